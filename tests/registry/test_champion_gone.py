"A champion whose run or files are gone for good, with nobody before it: there is a way on, it is on record, and nothing is compared in silence."
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import copied
from quick import EASY

from bioai_esol.errors import BioaiError, StoreError
from bioai_esol.registry.journal import history, snapshot
from bioai_esol.registry.promotion import promote
from bioai_esol.registry.versions import archive, restore, rollback, status
from bioai_esol.serving.predictor import load_champion
from bioai_esol.store.client import connect

pytestmark = pytest.mark.usefixtures('quick')


@pytest.fixture(scope='module')
def with_champion(template, tmp_path_factory):
    "A store whose only version is made of the run `b`: `a` is worse, `c` is better."
    folder = tmp_path_factory.mktemp('champion')
    assert promote('b', EASY, tracking_uri=copied(template, folder)).champion == '1'
    return folder


@pytest.fixture
def uri(with_champion, tmp_path):
    return copied(with_champion, tmp_path)


def champion(uri):
    return snapshot(connect(uri)).holder('champion')


def purge(uri):
    "Delete the champion's run for good, as an administrator does."
    run_id = champion(uri).run_id
    connect(uri).client.delete_run(run_id)
    mlflow = Path(sys.executable).with_name('mlflow')
    subprocess.run([mlflow, 'gc', '--backend-store-uri', uri, '--run-ids', run_id], check=True, capture_output=True, timeout=120,
                   env=dict(os.environ, MLFLOW_TRACKING_URI=uri))


def lose_files(uri):
    folder = Path(uri.removeprefix('sqlite:///')).parent / 'mlartifacts' / champion(uri).run_id
    shutil.rmtree(folder / 'artifacts')


@pytest.mark.parametrize('lose', [purge, lose_files])
def test_rollback_takes_the_title_away(uri, lose):
    lose(uri)
    with pytest.raises(BioaiError, match='version 1 cannot be loaded'):
        load_champion(tracking_uri=uri)
    with pytest.raises(BioaiError, match='a reason must be given'):
        archive('1', ' ', tracking_uri=uri)
    with pytest.raises(BioaiError, match='version 1 is the champion: promote another, or roll it back'):
        archive('1', 'gone', tracking_uri=uri)
    refused = rollback(' ', tracking_uri=uri)
    assert not refused.approved and refused.champion == '1'
    back = rollback('it is gone', tracking_uri=uri)
    assert back.approved and (back.champion, back.version) == (None, '1') and 'there is no champion' in back.reason
    assert champion(uri) is None
    row = status(tracking_uri=uri).iloc[0]
    assert row.status == 'archived' and 'it is gone; version 1 cannot be loaded' in row.why
    last = history(tracking_uri=uri).iloc[-1]
    assert (last.action, last.outcome, last.moves) == ('rollback', 'done', 'champion: 1 → –') and 'cannot be loaded' in last.reason
    again = promote('b', EASY, tracking_uri=uri)  # its settings are not to blame
    assert again.approved and again.champion == '2' and [r.name for r in again.decision.rules][0] == 'first_champion'
    assert load_champion(tracking_uri=uri).version == '2'


def test_the_command_line_does_it_too(uri, here, tmp_path):
    lose_files(uri)
    for command, code, text in (
            (['doctor'], 2, "✗ champion: version 1 cannot be loaded"), (['rollback', '--reason', 'gone'], 0, 'there is no champion'),
            (['promote', '--run-tag', 'a', '--allow-dirty', '--gap-threshold', '9', '--r2-tolerance', '0.99'], 0, 'champion: version 2'),
            (['doctor'], 0, '✓ champion: version 2, its files are the registered ones'), (['predict', 'CCO'], 0, 'CCO')):
        done = here(*command)
        assert done.returncode == code and text in done.stdout, done.stdout + done.stderr


def test_files_that_come_back_from_a_backup(uri, tmp_path):
    shutil.copytree(tmp_path / 'mlartifacts', tmp_path / 'backup')
    lose_files(uri)
    rollback('gone', tracking_uri=uri)
    shutil.copytree(tmp_path / 'backup', tmp_path / 'mlartifacts', dirs_exist_ok=True)
    restore('1', 'the backup was found', tracking_uri=uri)
    assert promote(version='1', policy=EASY, tracking_uri=uri).champion == '1' and load_champion(tracking_uri=uri).version == '1'


def test_a_champion_that_can_answer_nothing_is_not_compared_in_silence(uri):
    lose_files(uri)
    for dry_run in (True, False):
        worse = promote('a', EASY, tracking_uri=uri, dry_run=dry_run)
        assert not worse.approved and 'version 1 cannot be loaded' in worse.reason and 'roll it back first' in worse.reason
    with pytest.raises(BioaiError, match='is the champion already, but version 1 cannot be loaded: .*roll it back, then promote again'):
        promote('b', EASY, tracking_uri=uri)
    better = promote('c', EASY, tracking_uri=uri)
    [rule] = [rule for rule in better.decision.rules if rule.name == 'champion_files']
    assert better.approved and rule.passed and 'its figures were compared' in rule.reason


def test_a_champion_that_answers_keeps_its_title(uri):
    back = rollback('drift', tracking_uri=uri)
    assert not back.approved and back.champion == '1' and back.reason == 'no earlier champion to go back to: promote another candidate instead'
    assert promote('a', EASY, tracking_uri=uri).decision.rules[-1].name != 'champion_files'


def test_an_outage_is_not_a_loss(uri, monkeypatch, tmp_path):
    "The bucket does not answer: nobody can tell whether the files are gone."
    for name, value in dict(AWS_ACCESS_KEY_ID='me', AWS_SECRET_ACCESS_KEY='secret', MLFLOW_S3_ENDPOINT_URL='http://127.0.0.1:9').items():
        monkeypatch.setenv(name, value)
    with sqlite3.connect(tmp_path / 'mlflow.db') as db:
        for table, column in (('experiments', 'artifact_location'), ('runs', 'artifact_uri')):
            db.execute(f"update {table} set {column} = replace({column}, ?, 's3://esol-runs')", ((tmp_path / 'mlartifacts').as_uri(),))
    db.close()
    with pytest.raises(StoreError, match='http://127.0.0.1:9 cannot be reached'):
        rollback('gone?', tracking_uri=uri)
    assert str(champion(uri).version) == '1'
