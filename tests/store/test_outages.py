"A store that goes away: what was trained is never lost and never there twice, and nobody waits for long. Processes are really killed."
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import Request, urlopen

import boto3
import psutil
import pytest
from helpers import PROGRAM, copied, fresh, wait_until
from stores import KEYS, family, free_port, kill_family, mlflow_server, s3

from bioai_esol.store.outbox import outbox_folders, pending
from bioai_esol.store.client import connect, Store
from bioai_esol.errors import StoreError
from bioai_esol.store.runs import load_histories
from bioai_esol.store.runs import runs_table, search

EPOCHS = 60
GRID = ['--hidden-dim', '8,16,32', '--lr', '1e-2', '--batch-size', '16', '--dropout', '0,0.2', '--weight-decay', '0', '--workers', '2',
        '--epochs', str(EPOCHS)]  # six runs in several blocks


class Revivable:
    "A server that is killed and started again, on the same port and database."
    def __init__(self, folder):
        self.folder, self.port, self.stack = folder, free_port(), contextlib.ExitStack()
        self.url = f'http://127.0.0.1:{self.port}'

    def start(self):
        self.process = self.stack.enter_context(mlflow_server(self.folder, port=self.port))

    def kill(self):
        members = family(self.process)
        kill_family(self.process)
        self.process.wait()
        psutil.wait_procs(members, 10)


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    server = Revivable(tmp_path_factory.mktemp('server'))
    with server.stack:
        server.start()
        yield server


@contextlib.contextmanager
def sweeping(folder, uri, env=None):
    "`bioai-esol sweep` while it runs, with the folder's name for a run tag; what it says is in the files `out` and `err`."
    with open(folder / 'out', 'w') as out, open(folder / 'err', 'w') as err:
        p = subprocess.Popen([PROGRAM, 'sweep', *GRID, '--run-tag', folder.name, '--tracking-uri', uri], cwd=folder, stdout=out, stderr=err,
                             start_new_session=True, env=dict(os.environ, **(env or {})))
    try:
        yield p
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(p.pid, signal.SIGKILL)
        p.wait()


def opened(uri, run_tag):
    "How many runs of a sweep there are; 0 while there is no experiment."
    try:
        return len(search(connect(uri), run_tag=run_tag, kind='run'))
    except StoreError:
        return 0


def complete(uri, run_tag, killed=0):
    "Six finished runs, each once, with every epoch and every file; and nothing is waiting on this machine."
    store = connect(uri)
    table = runs_table(store, run_tag)
    finished = table[table.status == 'FINISHED']
    assert (len(finished), finished.config_digest.nunique()) == (6, 6), table[['run_name', 'status']]
    assert table.status.value_counts().to_dict() == {'FINISHED': 6} | ({'KILLED': killed} if killed else {})
    history = load_histories(finished, tracking_uri=uri)
    assert history.groupby(['run_id', 'metric']).size().tolist() == [EPOCHS] * 36 and not history.isna().any().any()
    for run_id in finished.run_id:
        assert {f.path for f in store.client.list_artifacts(run_id)} == {'weights.safetensors', 'model.json', 'test_predictions.csv'}
        assert len(store.client.get_run(run_id).inputs.dataset_inputs) == 1
    assert pending(store) == []


def said(folder): return (folder / 'err').read_text()


def test_the_server_is_killed_in_the_middle_and_comes_back(server, tmp_path):
    with sweeping(tmp_path, server.url) as p:
        wait_until(lambda: opened(server.url, tmp_path.name), p)
        server.kill()
        wait_until(lambda: 'the training goes on, results are kept' in said(tmp_path), p)
        server.start()
        assert p.wait(120) == 0, said(tmp_path)
    assert 'is back' in said(tmp_path) and '6 trained, 0 finished before, 0 failed' in (tmp_path / 'out').read_text()
    complete(server.url, tmp_path.name)


def test_a_server_that_does_not_come_back(server, tmp_path, here):
    "The sweep ends with one line; a second one at once with another; the third, with the server back, trains nothing that was trained."
    command = ['sweep', *GRID, '--run-tag', tmp_path.name, '--tracking-uri', server.url]
    with sweeping(tmp_path, server.url) as p:
        wait_until(lambda: opened(server.url, tmp_path.name) >= 4, p)
        server.kill()
        assert p.wait(120) == 2
    last = said(tmp_path).strip().splitlines()[-1]
    assert 'trained runs are kept in' in last and 'the same command writes them' in last, said(tmp_path)
    done = here(*command)
    assert done.returncode == 2 and 'cannot reach the tracking server' in done.stderr
    server.start()
    done = here(*command)
    assert done.returncode == 0 and '0 trained, 6 finished before, 0 failed' in done.stdout, done.stdout + done.stderr
    complete(server.url, tmp_path.name)


def test_the_sweep_is_killed_while_the_server_is_away(server, tmp_path, here):
    "SIGKILL in the middle of the waiting: what was on the disk is written by the next sweep."
    def kept(): return [p for place in outbox_folders(Store(None, server.url, '')) for p in place.rglob('run.json') if not p.parent.suffix]
    assert not kept()
    with sweeping(tmp_path, server.url) as p:
        wait_until(lambda: opened(server.url, tmp_path.name) >= 4, p)
        server.kill()
        wait_until(lambda: len(kept()) >= 2, p)
        os.killpg(p.pid, signal.SIGKILL)
        p.wait()
    trained = len(kept())
    server.start()
    begun = opened(server.url, tmp_path.name)
    done = here('sweep', *GRID, '--run-tag', tmp_path.name, '--tracking-uri', server.url)
    finished = 6 - int(done.stdout.split(' trained, ')[0].split()[-1])
    assert done.returncode == 0 and finished >= trained, done.stdout + done.stderr
    complete(server.url, tmp_path.name, killed=begun - finished)


def test_a_second_machine(server, tmp_path, here, monkeypatch):
    "No lock file is shared: a sweep that is alive elsewhere is left alone, and one that died there is continued."
    command = ['sweep', *GRID, '--run-tag', tmp_path.name, '--tracking-uri', server.url]
    with sweeping(tmp_path, server.url) as p:
        wait_until(lambda: opened(server.url, tmp_path.name) >= 4, p)
        monkeypatch.setattr('socket.gethostname', lambda: 'elsewhere')
        monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
        begun = opened(server.url, tmp_path.name)
        done = here(*command)
        assert done.returncode == 2 and f'is running on {os.uname().nodename}' in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
        statuses = runs_table(connect(server.url), tmp_path.name).status
        assert p.poll() is None and 'KILLED' not in set(statuses) and len(statuses) >= begun
        os.killpg(p.pid, signal.SIGKILL)
        p.wait()
    monkeypatch.setattr('bioai_esol.sweep.runner.HEARTBEAT_TIMEOUT_S', 0.1)
    done = here(*command)
    assert done.returncode == 0, done.stderr
    complete(server.url, tmp_path.name, killed=len(runs_table(connect(server.url), tmp_path.name)) - 6)
    sweeps = runs_table(connect(server.url), tmp_path.name, 'sweep')
    assert sorted(sweeps.status) == ['FINISHED', 'KILLED'] and 'elsewhere' in set(sweeps.host)


OF_A_MACHINE = """
import socket, sys, tempfile
_, host, tempfile.tempdir, *arguments = sys.argv
socket.gethostname = lambda: host
sys.argv[:] = ['bioai-esol', *arguments]
from bioai_esol.cli.commands import program
sys.exit(program())
"""  # a name and a folder for locks of its own


def test_two_machines_at_once(server, tmp_path):
    "Started in the same moment, twice: one trains, the other is refused and leaves nothing."
    for attempt in range(2):
        tag = f'{tmp_path.name}-{attempt}'
        processes = []
        for host in ('north', 'south'):
            folder = tmp_path / f'{host}-{attempt}'
            folder.mkdir()
            command = [sys.executable, '-c', OF_A_MACHINE, host, folder, 'sweep', *GRID, '--run-tag', tag, '--tracking-uri', server.url]
            processes.append(subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        said = [p.communicate(timeout=120) for p in processes]
        [refused] = [err for p, (_, err) in zip(processes, said) if p.returncode]
        assert sorted(p.returncode for p in processes) == [0, 2] and 'is running on' in refused, said
        assert set(runs_table(connect(server.url), tag).status) == {'FINISHED'} and len(runs_table(connect(server.url), tag)) == 6
        [sweep] = runs_table(connect(server.url), tag, 'sweep').to_dict('records')
        assert sweep['status'] == 'FINISHED' and sweep['claim'] == 'holds' and f"is running on {sweep['host']};" in refused


def test_a_server_that_hangs(server, here):
    "Stopped, not dead: it takes connections and answers nobody."
    members = family(server.process)
    for member in members:
        member.suspend()
    try:
        for command in (['sweep', *GRID], ['promote'], ['doctor'], ['predict', 'CCO']):
            done = here(*command, '--tracking-uri', server.url)
            assert done.returncode == 2 and 'timed out' in done.stdout + done.stderr
    finally:
        for member in members:
            member.resume()


def refuse(endpoint, yes):
    "Let the S3 server look at the keys from now on, and refuse ours, which it does not know; or let everyone in again."
    urlopen(Request(f'{endpoint}/moto-api/reset-auth', b'0' if yes else b'1000000000', {'Content-Type': 'text/plain'}, method='POST')).close()


def test_s3(tmp_path, here, monkeypatch):
    "What cannot work is found before anything is trained, in one line; what stops working in the middle ends in complete data."
    for name, value in dict(KEYS, INITIAL_NO_AUTH_ACTION_COUNT='1000000000').items():
        monkeypatch.setenv(name, value)
    with s3(tmp_path) as endpoint, mlflow_server(tmp_path, '--artifacts', 's3://esol-runs', '--s3-endpoint', endpoint) as server:
        sweep = ['sweep', *GRID, '--run-tag', tmp_path.name, '--tracking-uri', server.url]
        monkeypatch.setenv('MLFLOW_S3_ENDPOINT_URL', endpoint)

        def refused(hint):
            for command in (sweep, ['server', '--port', free_port(), '--artifacts', 's3://esol-runs']):
                done = here(*command)
                assert done.returncode == 2 and hint in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
                assert opened(server.url, tmp_path.name) == 0
            assert hint in here('doctor', '--tracking-uri', server.url).stdout

        with monkeypatch.context() as without:
            without.delenv('AWS_ACCESS_KEY_ID')
            without.delenv('AWS_SECRET_ACCESS_KEY')
            refused("'aws configure'")
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv('MLFLOW_S3_ENDPOINT_URL', f'http://127.0.0.1:{free_port()}')
            refused('cannot be reached')
        client = boto3.client('s3', endpoint_url=endpoint)
        client.delete_bucket(Bucket='esol-runs')
        refused("'aws s3 mb s3://esol-runs'")
        client.create_bucket(Bucket='esol-runs', CreateBucketConfiguration=dict(LocationConstraint='eu-west-1'))
        refuse(endpoint, True)
        refused('the access key is not known there')
        refuse(endpoint, False)

        with sweeping(tmp_path, server.url) as p:
            wait_until(lambda: opened(server.url, tmp_path.name), p)
            refuse(endpoint, True)
            wait_until(lambda: 'results are kept' in said(tmp_path), p)
            refuse(endpoint, False)
            assert p.wait(120) == 0, said(tmp_path)
        assert 'InvalidAccessKeyId' in said(tmp_path) and 'is back' in said(tmp_path)
        complete(server.url, tmp_path.name)


def test_a_bucket_behind_the_server(tmp_path, here, monkeypatch):
    "Artifacts that the server writes, into a bucket that is not there: MLflow's client would hang for four minutes and never name it."
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with s3(tmp_path) as endpoint:
        client = boto3.client('s3', endpoint_url=endpoint)
        with mlflow_server(tmp_path, '--artifacts', 's3://esol-runs', '--s3-endpoint', endpoint, '--proxy-artifacts') as server:
            client.delete_bucket(Bucket='esol-runs')
            for command in (['sweep', *GRID], ['doctor']):
                begun = time.monotonic()
                done = here(*command, '--tracking-uri', server.url)
                assert done.returncode == 2 and f'artifacts behind {server.url}' in done.stdout + done.stderr, done.stdout + done.stderr
                assert time.monotonic() - begun < 30 and opened(server.url, 'grid_sweep') == 0
            bucket = dict(Bucket='esol-runs', CreateBucketConfiguration=dict(LocationConstraint='eu-west-1'))
            client.create_bucket(**bucket)
            with sweeping(tmp_path, server.url) as p:
                wait_until(lambda: opened(server.url, tmp_path.name), p)
                client.delete_bucket(Bucket='esol-runs')
                wait_until(lambda: 'results are kept' in said(tmp_path), p)
                client.create_bucket(**bucket)
                assert p.wait(120) == 0, said(tmp_path)
            assert 'is back' in said(tmp_path)
            complete(server.url, tmp_path.name)


@pytest.mark.skipif(os.getuid() != 0, reason='mounting a small disk needs root')
def test_the_disk_is_full(tmp_path):
    "Store, state directory and temporary directory on one disk that fills up, and is given room again."
    disk = tmp_path / 'disk'
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=24m', 'tmpfs', disk], capture_output=True).returncode:
        pytest.skip('this machine does not let a small disk be mounted')
    try:
        uri, env = fresh(disk), dict(XDG_STATE_HOME=str(disk / 'state'), TMPDIR=str(disk))
        with sweeping(tmp_path, uri, env) as p:
            wait_until(lambda: opened(uri, tmp_path.name), p)
            with contextlib.suppress(OSError), open(disk / 'ballast', 'wb', buffering=0) as f:
                while True:
                    f.write(b'x' * 4096)
            wait_until(lambda: 'the training goes on' in said(tmp_path), p)
            (disk / 'ballast').unlink()
            assert p.wait(120) == 0, said(tmp_path)
        assert 'Traceback' not in said(tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv('XDG_STATE_HOME', env['XDG_STATE_HOME'])
            complete(uri, tmp_path.name)
    finally:
        subprocess.run(['umount', '-l', disk], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason='to see a file that cannot be written, root becomes somebody else')
def test_a_database_that_is_read_only(template, here, monkeypatch):
    "Looking works; a sweep, a promotion and a server each say it in one line, and nothing is left begun."
    folder = Path(tempfile.mkdtemp())
    uri = copied(template, folder)
    monkeypatch.setenv('XDG_STATE_HOME', tempfile.mkdtemp())
    for path in [folder, *folder.rglob('*')]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.setenv('MLFLOW_TRACKING_URI', uri)
    os.seteuid(65534)
    try:
        assert 'read-only' in (found := here('doctor', cwd='/tmp')).stdout and found.returncode == 2
        assert here('status', cwd='/tmp').returncode == 0
        for command in (['sweep', *GRID], ['promote', '--run-tag', 'c'], ['server', '--port', free_port(), '--backend', uri]):
            done = here(*command, cwd='/tmp')
            assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
            assert any(word in done.stderr for word in ('read-only', 'readonly', 'cannot be written', 'Permission denied')), done.stderr
    finally:
        os.seteuid(0)
    assert len(runs_table(connect(uri), 'c')) == 1 and opened(uri, 'grid_sweep') == 0
    shutil.rmtree(folder)
