"A project folder that was moved, renamed, copied or carried to another machine: its files are found beside the database; nothing is written to where it was."
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path

import pytest
from helpers import copied, sweep_here, uri_of
from quick import EASY

from bioai_esol.analysis.report import write_report
from bioai_esol.errors import StoreError
from bioai_esol.registry.promotion import promote
from bioai_esol.registry.versions import check, rollback, set_alias
from bioai_esol.serving.predictor import load_champion
from bioai_esol.store.client import connect, settle_addresses
from bioai_esol.store.migration import migrate
from bioai_esol.store.outbox import deliver_pending, now_ms, Outbox, pending, Record
from bioai_esol.store.runs import load_predictions, runs_table
from bioai_esol.sweep.ensemble import build_ensemble

pytestmark = pytest.mark.usefixtures('quick')


@pytest.fixture(scope='module')
def project(template, tmp_path_factory):
    "A project folder `a` with three sweeps and a champion."
    folder = tmp_path_factory.mktemp('project') / 'a'
    promote('a', EASY, tracking_uri=copied(template, folder))
    return folder


@pytest.fixture(params=['a', "ä?b 30%ACN#'1"])
def a(project, tmp_path, request):
    "A copy of it that was made where it lies."
    copied(project, tmp_path / 'original')
    folder = tmp_path / request.param
    (tmp_path / 'original').rename(folder)
    settle_addresses(uri_of(folder))
    return folder


def files(folder):
    "Every file of a folder with its content, but for what SQLite and locks leave."
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file() and 'mlartifacts' in p.parts}


def addresses(folder):
    with sqlite3.connect(folder / 'mlflow.db') as db:
        return {row for place in ('artifact_location from experiments', 'artifact_uri from runs', 'source from model_versions')
                for row, in db.execute(f'select {place}')}


def test_a_folder_that_was_moved(a, tmp_path, here, caplog):
    "doctor says so and touches nothing, predict answers, the next sweep corrects the record; the old folder stays away."
    b = tmp_path / 'b'
    expected = load_champion(tracking_uri=uri_of(a)).predict('CCO')
    a.rename(b)
    before = addresses(b), files(b)
    done = here('doctor', cwd=b)
    line = f'artifacts of this store are looked for in {a}/mlartifacts, which is gone; those beside the database are in {b}/mlartifacts'
    assert done.returncode == 2 and f'✗ artifacts: {line}' in done.stdout and "→ the next 'bioai-esol sweep'" in done.stdout
    assert load_champion(tracking_uri=uri_of(b)).predict('CCO').equals(expected)
    assert here('predict', 'CCO', cwd=b).returncode == 0 and check(tracking_uri=uri_of(b)).holds.all()
    assert (addresses(b), files(b)) == before and not a.exists()
    caplog.clear()
    store = connect(uri_of(b))
    done = promote('b', EASY, tracking_uri=uri_of(b))
    assert done.version == '2' and line in caplog.text and caplog.text.count('looked for') == 1
    assert all(a.as_uri() not in address for address in addresses(b))
    assert (b / 'mlartifacts' / done.run['run_id'] / 'artifacts/model/artifacts/model.json').exists() and not a.exists()
    assert load_champion(tracking_uri=uri_of(b)).version == '2' and len(load_predictions(done.run['run_id'], tracking_uri=uri_of(b))) == 113
    assert here('doctor', cwd=b).returncode == 0 and len(runs_table(store, 'a')) == 1


def test_runs_that_wait_follow_the_folder(a, tmp_path, monkeypatch):
    "They are for the store that was moved, and not for a copy of it while the original is there."
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path / 'state'))
    record = Record('left behind', dict(kind='run', run_tag='late'), {}, status='FAILED', ended=now_ms())
    with Outbox(connect(uri_of(a))) as box: box.keep(record)
    shutil.copytree(a, tmp_path / 'copy')
    assert deliver_pending(connect(uri_of(tmp_path / 'copy'))) == 0
    a.rename(tmp_path / 'b')
    moved = connect(uri_of(tmp_path / 'b'))
    assert len(pending(moved)) == 1
    assert deliver_pending(moved) == 1
    assert record.find(moved) and pending(moved) == []
    assert not a.exists()


@pytest.mark.parametrize('act', ['sweep', 'ensemble', 'report', 'rollback', 'alias', 'migrate'])
def test_a_copy_leaves_the_original_alone(project, tmp_path, act):
    "Whatever writes in the copy writes there; the original has its files, its record and its champion as before."
    a, b = tmp_path / 'a', tmp_path / 'b'
    copied(project, a)
    shutil.copytree(a, b)
    before = addresses(a), files(a)
    assert load_champion(tracking_uri=uri_of(b)).version == '1'
    acts = dict(sweep=lambda uri: promote('b', EASY, tracking_uri=uri),
                ensemble=lambda uri: build_ensemble([runs_table(connect(uri), tag).run_id[0] for tag in 'ab'], tracking_uri=uri),
                report=lambda uri: write_report('a', tmp_path / 'report.html', tracking_uri=uri),
                rollback=lambda uri: rollback('drift', tracking_uri=uri),
                alias=lambda uri: set_alias('shadow', '1', tracking_uri=uri),
                migrate=lambda uri: migrate(uri, f'sqlite:///{tmp_path}/other.db'))
    acts[act](uri_of(b))
    assert (addresses(a), files(a)) == before
    ours = {address for address in addresses(b) if '/mlartifacts' in address}  # MLflow has an experiment of its own
    assert len(ours) >= 8 and all(address.startswith(b.as_uri()) for address in ours)
    if act == 'migrate':
        assert load_champion(tracking_uri=f'sqlite:///{tmp_path}/other.db').version == '1'


def test_the_first_sweep_of_a_copy_that_held_none(tmp_path, here):
    "A store that was made and not yet used: there are no files that would say whose folder it is."
    a, b = tmp_path / 'a', tmp_path / 'b'
    a.mkdir()
    connect(uri_of(a), create=True)
    shutil.copytree(a, b)
    done = here('train', '--architecture', 'ridge', '--run-tag', 'r', cwd=b)
    assert done.returncode == 0, done.stderr
    assert len(list(b.glob('mlartifacts/*/artifacts/weights.safetensors'))) == 1 and not (a / 'mlartifacts').exists()


def test_a_database_without_its_files(project, tmp_path, here, caplog):
    "Every command says so in the same words, and the one thing that is offered works."
    a, b = tmp_path / 'a', tmp_path / 'b'
    copied(project, a)
    b.mkdir()
    shutil.copy(a / 'mlflow.db', b)
    assert here('predict', 'CCO', cwd=b).returncode == 0  # the files are where the database says
    shutil.rmtree(a)
    words = f'artifacts of this store are looked for in {a}/mlartifacts, which is gone, and there is no folder {b}/mlartifacts'
    for command in (['doctor'], ['predict', 'CCO'], ['train', '--architecture', 'ridge'], ['promote', '--run-tag', 'b'], ['rollback', '--reason', 'gone']):
        done = here(*command, cwd=b)
        assert done.returncode == 2 and words in done.stdout + done.stderr and f"'mkdir {b}/mlartifacts'" in done.stdout + done.stderr, command
    assert sorted(p.name for p in tmp_path.iterdir() if p.name in 'ab') == ['b'] and not (b / 'mlartifacts').exists()
    (b / 'mlartifacts').mkdir()
    done = here('train', '--architecture', 'ridge', '--run-tag', 'new', cwd=b)
    assert done.returncode == 0 and 'which the database records now' in caplog.text, done.stderr
    assert len(list(b.glob('mlartifacts/*/artifacts/weights.safetensors'))) == 1 and not a.exists()
    done = here('doctor', cwd=b)
    assert done.returncode == 2 and '✗ champion: version 1 cannot be loaded' in done.stdout, done.stdout


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid(), reason='changes the user, as only root can')
def test_another_user_s_machine(project):
    "The recorded folder is in a home that may not be entered, the copy may be read and not written: looking works, writing says why not."
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    home, b = place / 'home', place / 'b'
    copied(project, home / 'a')
    shutil.copytree(home / 'a', b)
    home.chmod(0o700)
    for path in [b, *b.rglob('*')]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = addresses(home / 'a'), files(home / 'a')
    os.seteuid(65534)
    try:
        assert load_champion(tracking_uri=uri_of(b)).version == '1'
        for act in (lambda: promote('b', EASY, tracking_uri=uri_of(b)), lambda: rollback('drift', tracking_uri=uri_of(b))):
            with pytest.raises(StoreError, match=r'home/a/mlartifacts, which cannot be opened \(Permission denied\); those beside .* cannot be corrected'):
                act()
    finally:
        os.seteuid(0)
    assert (addresses(home / 'a'), files(home / 'a')) == before
    shutil.rmtree(place)


def test_a_link_is_the_same_folder(project, tmp_path):
    a = tmp_path / 'a'
    copied(project, a)
    (tmp_path / 'link').symlink_to(a)
    before = addresses(a)
    assert connect(uri_of(tmp_path / 'link')).moved is None
    promote('b', EASY, tracking_uri=uri_of(tmp_path / 'link'))
    assert before <= addresses(a)


def test_nothing_is_half_corrected(project, tmp_path, monkeypatch):
    "An error in the middle leaves every address as it was."
    from bioai_esol.store import client
    a, b = tmp_path / 'a', tmp_path / 'b'
    copied(project, a)
    a.rename(b)
    before = addresses(b)
    monkeypatch.setattr(client, '_ADDRESSES', (*client._ADDRESSES[:3], ('none', 'none')))
    with pytest.raises(StoreError, match='cannot be corrected: no such table: none'):
        settle_addresses(uri_of(b))
    assert addresses(b) == before
    monkeypatch.undo()
    sweep_here(uri_of(b), 'd', 1)
    promote('d', EASY, tracking_uri=uri_of(b))
    assert not a.exists()
