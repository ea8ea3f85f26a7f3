"The whole path, sweep to prediction, against every kind of store; the same test for each, with real servers."
import json
import os
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import pytest
from helpers import EASY_OPTIONS, fresh, sweep_here
from stores import KEYS, Postgres, mlflow_server, postgres, s3

from bioai_esol.chem.dataset import load_esol
from bioai_esol.store.runs import load_histories, load_predictions, load_runs
from bioai_esol.registry.versions import check
from bioai_esol.store.client import connect
from bioai_esol.store.runs import runs_table

TINY = ['--hidden-dim', '8', '--lr', '1e-2', '--batch-size', '128', '--dropout', '0,0.2', '--weight-decay', '0', '--epochs', '2', '--workers', '1']


@dataclass
class Case:
    "A store of a kind, and where its artifacts must be."
    uri: str
    folder: Path                  # of the server, or of the database file
    env: dict = field(default_factory=dict)   # what a client needs
    bucket: tuple | None = None   # endpoint, bucket, prefix
    postgres: Postgres | None = None

    def objects(self):
        endpoint, bucket, prefix = self.bucket
        client = boto3.client('s3', endpoint_url=endpoint, aws_access_key_id='tester', aws_secret_access_key='x', region_name='eu-west-1')
        return [o['Key'] for o in client.list_objects_v2(Bucket=bucket, Prefix=prefix).get('Contents', [])]

    def artifacts(self):
        "Names of all artifact files, wherever they lie."
        if self.bucket: return self.objects()
        return [str(p.relative_to(self.folder)) for p in (self.folder / 'mlartifacts').rglob('*') if p.is_file()]


@pytest.fixture(scope='session')
def cluster():
    with postgres() as running: yield running


@pytest.fixture(scope='session')
def bucket(tmp_path_factory):
    with s3(tmp_path_factory.mktemp('s3')) as endpoint: yield endpoint


@pytest.fixture(params=['embedded', 'server', 'server-s3', 'server-s3-proxied', 'server-postgres-s3'])
def case(request, tmp_path, monkeypatch):
    kind, name = request.param, request.node.originalname.removeprefix('test_the_')  # a database and a prefix for each test
    if kind == 'embedded':
        yield Case(fresh(tmp_path), tmp_path)
        return
    folder, args, env, s3_at, db = tmp_path / 'server', [], {}, None, None
    folder.mkdir()
    if 's3' in kind:
        s3_at = (request.getfixturevalue('bucket'), 'esol-runs', f'{kind}-{name}')
        args += ['--artifacts', f's3://esol-runs/{kind}-{name}', '--s3-endpoint', s3_at[0]]
        env |= KEYS
    if 'proxied' in kind: args += ['--proxy-artifacts']
    if 'postgres' in kind:
        db = request.getfixturevalue('cluster')
        args, env = [*args, '--backend', db.create(name)], env | db.env
    with mlflow_server(folder, *args, env=env) as running:
        client = KEYS | dict(MLFLOW_S3_ENDPOINT_URL=s3_at[0]) if s3_at and 'proxied' not in kind else {}
        for name, value in client.items(): monkeypatch.setenv(name, value)
        yield Case(running.url, folder, client, s3_at, db)


def test_the_whole_path(case, here, monkeypatch):
    monkeypatch.setenv('MLFLOW_TRACKING_URI', case.uri)
    found = here('doctor')
    assert found.returncode == 0 and '✗' not in found.stdout, found.stdout
    swept = here('sweep', *TINY, '--run-tag', 'first')
    assert swept.returncode == 0, swept.stderr
    assert '2 trained, 0 finished before, 0 failed' in swept.stdout and 'View run' not in swept.stdout
    assert '0 trained, 2 finished before' in here('sweep', *TINY, '--run-tag', 'first').stdout
    first = here('promote', '--run-tag', 'first', *EASY_OPTIONS, '--json')
    assert first.returncode == 0 and json.loads(first.stdout)['champion'] == '1'  # JSON and nothing else, whatever MLflow has to say
    sweep_here(case.uri, 'second', 40)
    better = here('promote', '--run-tag', 'second', *EASY_OPTIONS)
    assert better.returncode == 0 and 'champion: version 2' in better.stdout, better.stdout + better.stderr
    asked = [json.loads(here('predict', 'CCO', 'C1CC', '--json').stdout)]
    assert 'champion: version 1' in here('rollback', '--reason', 'drift').stdout
    asked.append(json.loads(here('predict', 'CCO', 'C1CC', '--json').stdout))
    for answer, version in zip(asked, '21'):
        assert [row['model_version'] for row in answer] == [version] * 2
        assert answer[0]['log_solubility'] is not None and answer[1]['log_solubility'] is None and 'C1CC' in answer[1]['error']
    assert check(tracking_uri=case.uri).holds.all()
    assert json.loads(here('history', '--json').stdout)[-1]['action'] == 'rollback'
    told = here('report', '--run-tag', 'first', '--output', 'first.html')
    assert told.returncode == 0 and 'Sweep first' in (here.folder / 'first.html').read_text(), told.stderr
    runs = load_runs('first')
    assert len(load_histories(runs)) == 2 * 2 * 6 and len(load_predictions(runs.run_id[0])) == 113
    table = runs_table(connect(case.uri), 'first')
    assert table.status.tolist() == ['FINISHED'] * 2 and table.config_digest.nunique() == 2
    names = case.artifacts()
    assert sum(n.endswith('/weights.safetensors') for n in names) == 3 + 2 + 2  # runs, retrainings, their models
    assert not any('doctor' in n for n in names) and any(n.endswith('report/first.html') for n in names)
    if case.bucket: assert not (case.folder / 'mlartifacts').exists() and not (here.folder / 'mlartifacts').exists()
    no_secret_anywhere(case)


def more_and_less_soluble(folder):
    "ESOL as two tables: its molecules above logS −3, and every fourteenth of the others."
    frame = load_esol().frame[['smiles', 'log_solubility']]
    frame[frame.log_solubility > -3].to_csv(folder / 'near.csv', index=False)
    far = frame[frame.log_solubility <= -3].sort_values('log_solubility', ascending=False, kind='stable')
    far[::14].to_csv(folder / 'measured.csv', index=False)


@pytest.mark.parametrize('case', ['embedded', 'server-postgres-s3'], indirect=True)
def test_the_life_of_a_champion(case, here, monkeypatch):
    "Two champions; what is measured afterwards breaks the promise of the second, and the first errs less."
    monkeypatch.setenv('MLFLOW_TRACKING_URI', case.uri)
    more_and_less_soluble(here.folder)
    for version, architecture in enumerate(['ridge', 'gradient-boosting'], 1):
        trained = here('train', '--architecture', architecture, '--data', 'near.csv', '--split', 'random', '--run-tag', architecture)
        assert trained.returncode == 0, trained.stderr
        done = here('promote', '--run-tag', architecture, *EASY_OPTIONS)
        assert done.returncode == 0 and f'champion: version {version}' in done.stdout, done.stdout + done.stderr
    first = here('observe', 'measured.csv')
    assert first.returncode == 0 and '39 new molecules; champion: version 2' in first.stdout, first.stdout + first.stderr
    assert '39 observed before' in here('observe', 'measured.csv').stdout
    planned = here('watch', '--dry-run', '--json')
    assert planned.returncode == 1 and not json.loads(planned.stdout)['changed']
    look = here('watch', '--json')
    told = json.loads(look.stdout)
    assert (look.returncode, told['action'], told['changed'], told['champion']) == (1, 'go back', True, '1')
    assert told['evidence'] == json.loads(planned.stdout)['evidence']  # read again, to the bit
    again = here('watch')
    assert again.returncode == 0 and 'keep' in again.stdout and 'champion: version 1' in again.stdout
    checked = here('status', '--check')
    assert checked.returncode == 0 and '✗' not in checked.stdout, checked.stdout
    last = json.loads(here('history', '--json').stdout)[-1]
    assert (last['action'], last['version'], last['outcome']) == ('rollback', '2', 'done') and 'found by watching' in last['reason']
    assert [row['model_version'] for row in json.loads(here('predict', 'CCO', '--json').stdout)] == ['1']
    names = case.artifacts()
    assert sum(n.endswith('observations/molecules.csv') for n in names) == 1
    if case.bucket: assert not (case.folder / 'mlartifacts').exists() and not (here.folder / 'mlartifacts').exists()
    no_secret_anywhere(case)


SECRETS = [KEYS['AWS_SECRET_ACCESS_KEY'], 'pg-secret-of-the-tests']


def no_secret_anywhere(case):
    "Not in what the servers said, not in the database, not in an artifact, not in the arguments of any process."
    for p in case.folder.rglob('*'):
        if p.is_file():
            raw = p.read_bytes()
            assert not any(s.encode() in raw for s in SECRETS), p
    if (case.folder / 'mlflow.db').exists():
        with sqlite3.connect(case.folder / 'mlflow.db') as db: said = '\n'.join(db.iterdump())
        db.close()
        assert not any(s in said for s in SECRETS)
    if case.postgres:
        import subprocess
        dump = subprocess.run([case.postgres.programs / 'pg_dump', '-h', '127.0.0.1', '-p', str(case.postgres.port), '-U', 'esol', 'whole_path'],
                              env=dict(os.environ, **case.postgres.env), capture_output=True, text=True, check=True).stdout
        assert 'EsolPrediction' in dump and not any(s in dump for s in SECRETS)
    if case.bucket:
        client = boto3.client('s3', endpoint_url=case.bucket[0], aws_access_key_id='tester', aws_secret_access_key='x', region_name='eu-west-1')
        for key in case.objects():
            raw = client.get_object(Bucket=case.bucket[1], Key=key)['Body'].read()
            assert not any(s.encode() in raw for s in SECRETS), key
    for line in Path('/proc').glob('[0-9]*/cmdline'):
        try: raw = line.read_bytes()
        except OSError: continue  # it has ended meanwhile
        assert not any(s.encode() in raw for s in SECRETS), raw
