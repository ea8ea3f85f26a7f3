"Life cycles in the registry: promotion, refusal, rollback, what must never be confused, and what may be broken."
import json
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path

import pytest
from helpers import copied, sweep_here, uri_of

from bioai_esol.errors import BioaiError, DataError
from bioai_esol.chem.dataset import load_table, load_esol
from bioai_esol.registry.journal import history, MODEL, snapshot
from bioai_esol.registry.policy import Policy
from bioai_esol.registry.promotion import promote, retrain
from bioai_esol.registry.versions import archive, check, restore, rollback, set_alias, status
from bioai_esol.serving.comparison import compare
from bioai_esol.serving.predictor import load_champion, load_version
from bioai_esol.sweep.grid import Grid
from bioai_esol.sweep.runner import run_sweep
from bioai_esol.errors import StoreError
from bioai_esol.store.client import connect
from bioai_esol.store.runs import runs_table
from quick import EASY

pytestmark = pytest.mark.usefixtures('quick')


@pytest.fixture
def uri(template, tmp_path):
    "A store with the sweeps `a`, `b`, `c` (each better than the one before) and nothing registered."
    return copied(template, tmp_path)


@pytest.fixture(scope='module')
def three_champions_folder(template, quick, tmp_path_factory):
    "A store in which `a`, `b` and `c` became champion one after the other."
    folder = tmp_path_factory.mktemp('three')
    uri = copied(template, folder)
    for tag in 'abc':
        assert promote(tag, EASY, tracking_uri=uri).approved
    return folder


@pytest.fixture
def three_champions(three_champions_folder, tmp_path):
    return copied(three_champions_folder, tmp_path)


def aliases(uri): return snapshot(connect(uri)).aliases
def statuses(uri): return status(tracking_uri=uri).set_index('version').status.to_dict()


def test_three_champions_and_two_rollbacks(three_champions):
    "Worse never wins; a rollback goes to the latest champion that has not failed; nothing is deleted."
    uri = three_champions
    assert aliases(uri) == dict(champion='3')
    assert statuses(uri) == {'1': 'archived', '2': 'archived', '3': 'champion'}
    refused = promote('a', EASY, tracking_uri=uri)
    assert not refused.approved and (refused.version, refused.champion) == ('4', '3')
    assert [r.name for r in refused.decisions[-1].rules if not r.passed][0] == 'improvement'
    assert aliases(uri) == dict(champion='3', candidate='4')
    set_alias('shadow', '2', tracking_uri=uri)
    assert rollback('drift', tracking_uri=uri).champion == '2'
    before = status(tracking_uri=uri).set_index('version')
    assert before.status.to_dict() == {'1': 'archived', '2': 'champion', '3': 'failed_in_monitoring', '4': 'candidate'}
    assert before.successor.to_dict() == {'1': '2', '2': '', '3': '2', '4': ''} and before.demoted_at['2'] == ''
    assert before.why['3'] == 'drift' and before.why['2'] == 'champion again, because version 3 failed: drift'
    assert rollback('drift again', tracking_uri=uri).champion == '1'
    third = rollback('and again', tracking_uri=uri)
    assert not third.approved and third.champion == '1' and 'no earlier champion to go back to' in third.reason
    assert statuses(uri) == {'1': 'champion', '2': 'failed_in_monitoring', '3': 'failed_in_monitoring', '4': 'candidate'}
    sweep_here(uri, 'd', 20)
    assert promote('d', EASY, tracking_uri=uri).champion == '5'
    assert rollback('too', tracking_uri=uri).champion == '1'
    assert aliases(uri) == dict(champion='1', shadow='2')
    assert check(tracking_uri=uri).holds.all()
    told = history(tracking_uri=uri)
    assert told.action.tolist()[-5:] == ['rollback', 'register', 'candidate', 'promote', 'rollback']
    assert told.outcome.tolist()[-5:] == ['refused', 'done', 'done', 'done', 'done']


def test_a_failed_version_is_stepped_over(three_champions):
    "Somebody gives `champion` back to 3 by hand; the one before it, 2, has failed in the meantime."
    uri = three_champions
    rollback('drift', tracking_uri=uri)
    assert rollback('drift', tracking_uri=uri).champion == '1'
    connect(uri).client.set_registered_model_alias(MODEL, 'champion', '3')
    back = rollback('still bad', tracking_uri=uri)
    assert (back.version, back.champion) == ('3', '1') and 'version 2 failed: drift' in back.decision.note


def test_every_decision_is_an_artifact_of_its_run(three_champions, tmp_path):
    uri = three_champions
    store, version = connect(uri), snapshot(connect(uri)).versions['3']
    rollback('drift', tracking_uri=uri)
    set_alias('shadow', '3', tracking_uri=uri)
    files = sorted(f.path for f in store.client.list_artifacts(version.run_id, 'decisions'))
    assert [f.split('-')[-1] for f in files] == [f'{a}.json' for a in ('register', 'candidate', 'promote', 'rollback', 'alias')]
    texts = [json.loads(Path(p).read_text()) for p in sorted((tmp_path / 'mlartifacts').glob(f'{version.run_id}/artifacts/decisions/*'))]
    promoted = texts[2]
    assert promoted['policy']['min_improvement'] == 0.02 and promoted['who'] and promoted['code_version'] == 'c0ffee'
    improvement = next(r for r in promoted['decisions'][-1]['rules'] if r['name'] == 'improvement')
    assert improvement['limit'] == 0.02 and improvement['value'] > 0.02 and improvement['passed']
    assert texts[3]['reason'] == 'drift' and ['alias/champion', '3', '2'] in texts[3]['changes']
    assert [t['id'] for t in texts] == history(tracking_uri=uri).query("run_id == @version.run_id").index.map(lambda i: snapshot(store).entries[i].id).tolist()


def test_no_candidate_is_a_decision_too(uri, tmp_path):
    done = promote('a', Policy(gap_threshold=1e-6), tracking_uri=uri)
    assert not done.approved
    [entry] = history(tracking_uri=uri).to_dict('records')
    assert (entry['action'], entry['outcome'], entry['version']) == ('promote', 'refused', None) and 'the only run does not pass' in entry['reason']
    assert connect(uri).client.get_run(entry['run_id']).data.tags['kind'] == 'sweep'
    assert list((tmp_path / 'mlartifacts').glob(f"{entry['run_id']}/artifacts/decisions/*-promote.json"))
    assert len(status(tracking_uri=uri)) == 0


def test_what_failed_stays_out_unless_forced(three_champions):
    "Neither the version, nor its settings under a new number; `force=True` takes it and leaves a trace."
    uri = three_champions
    rollback('drift', tracking_uri=uri)
    again = promote('c', EASY, tracking_uri=uri)
    assert not again.approved and 'its settings failed in monitoring as version 3 (drift)' in again.reason
    named = promote(version='3', policy=EASY, tracking_uri=uri)
    assert not named.approved and 'failed in monitoring' in named.reason
    with pytest.raises(BioaiError, match='force=True'):
        restore('3', 'please', tracking_uri=uri)
    with pytest.raises(BioaiError, match="is moved by 'bioai-esol promote'"):
        set_alias('champion', '3', tracking_uri=uri)
    assert statuses(uri)['3'] == 'failed_in_monitoring' and len(statuses(uri)) == 3
    forced = promote(version='3', policy=EASY, tracking_uri=uri, force=True)
    assert forced.approved and forced.champion == '3' and statuses(uri)['3'] == 'champion'
    rule = next(r for r in forced.decisions[-1].rules if r.name == 'not_failed')
    assert 'accepted with force=True' in rule.reason
    assert rollback('drift, as before', tracking_uri=uri).champion == '2'
    anew = promote('c', EASY, tracking_uri=uri, force=True)
    assert anew.approved and anew.champion == '4'
    assert check(tracking_uri=uri).holds.all()


def test_significance_can_be_a_rule(uri):
    "A much better candidate passes it; one that was trained for one epoch more cannot."
    strict = Policy(**EASY.model_dump() | dict(min_improvement=0.0, require_significance=True, regression_tolerance=0.99))
    assert promote('a', EASY, tracking_uri=uri).approved
    clear = promote('c', strict, tracking_uri=uri)
    assert clear.approved
    rule = next(r for r in clear.decisions[-1].rules if r.name == 'significance')
    assert rule.passed and rule.value < 0 and 'better with probability' in rule.reason and '113 molecules' in clear.decisions[-1].note
    sweep_here(uri, 'd', 41)
    close = promote('d', strict, tracking_uri=uri)
    rule = next(r for r in close.decisions[-1].rules if r.name == 'significance')
    assert not close.approved and not rule.passed and rule.value >= 0


def test_the_mean_over_seeds_is_judged(uri, tmp_path):
    "Not the luckiest run of all becomes champion, but the one that is nearest to the mean of the best configuration."
    grid = Grid(hidden_dim=(8, 16), lr=1e-2, batch_size=64, dropout=0, weight_decay=0, seed=(1, 2, 3), epochs=20, run_tag='means')
    runs = run_sweep(grid, tracking_uri=uri).runs
    means = runs.groupby('hidden_dim').best_val_rmse.mean()
    seeds = runs[runs.hidden_dim == means.idxmin()]
    nearest = seeds.loc[(seeds.best_val_rmse - means.min()).abs().idxmin()]
    policy = Policy(min_seeds=3, **EASY.model_dump(exclude={'min_seeds'}))
    first = promote('means', policy, tracking_uri=uri)
    assert first.approved and first.choice.chosen['run_id'] == nearest.run_id
    assert f'{means.min():.4f} over 3 seeds' in first.choice.reason
    records = [json.loads(path.read_text()) for path in (tmp_path / 'mlartifacts').glob(f'{first.run["run_id"]}/artifacts/decisions/*')]
    assert records and {record['policy']['min_seeds'] for record in records} == {3}
    assert promote('means', policy, tracking_uri=uri).already
    assert not promote('means', Policy(min_seeds=4), tracking_uri=uri).choice.approved


def test_archive_restore_and_a_second_judgement(three_champions):
    uri = three_champions
    promote('a', EASY, tracking_uri=uri)
    assert aliases(uri)['candidate'] == '4'
    archive('candidate', 'looked at by hand: no', tracking_uri=uri)
    assert aliases(uri) == dict(champion='3') and statuses(uri)['4'] == 'archived'
    with pytest.raises(BioaiError, match="'bioai-esol restore 4"):
        promote(version='4', policy=EASY, tracking_uri=uri)
    restore('4', 'one more look', tracking_uri=uri)
    again = promote(version='4', policy=EASY, tracking_uri=uri)
    assert not again.approved and aliases(uri)['candidate'] == '4' and len(statuses(uri)) == 4


def test_a_promotion_that_is_repeated_is_not_trained_again(three_champions):
    "Refused once, judged again: the same version, not another one."
    uri = three_champions
    first, second = promote('a', EASY, tracking_uri=uri), promote('a', EASY, tracking_uri=uri)
    assert (first.version, first.reused) == ('4', False) and (second.version, second.reused) == ('4', True)
    assert promote('c', EASY, tracking_uri=uri).already


def test_a_champion_that_cannot_be_loaded_is_stepped_over(three_champions, tmp_path):
    uri = three_champions
    store = connect(uri)
    shutil.rmtree(tmp_path / 'mlartifacts' / snapshot(store).versions['2'].run_id / 'artifacts' / 'model')
    back = rollback('drift', tracking_uri=uri)
    assert back.approved and back.champion == '1' and 'version 2 cannot be loaded' in back.decision.note


def test_a_lost_reproduction_is_not_registered(uri):
    store = connect(uri)
    [run] = runs_table(store, 'a').to_dict('records')
    store.client.log_metric(run['run_id'], 'best_val_rmse', run['best_val_rmse'] * (1 - 1e-12), step=99)
    done = promote('a', EASY, tracking_uri=uri)
    assert not done.approved and done.version is None
    assert repr(run['best_val_rmse']) in done.reason and 'must be equal' in done.reason
    assert len(status(tracking_uri=uri)) == 0
    repeated = runs_table(store, 'a', 'retraining').iloc[0]
    assert repeated.repeats_run == run['run_id'] and repeated.reproduction == 'failed'
    assert history(tracking_uri=uri)[['action', 'outcome']].values.tolist() == [['register', 'refused']]


def test_another_machine_gets_a_tolerance(uri):
    store = connect(uri)
    [run] = runs_table(store, 'a').to_dict('records')
    store.client.set_tag(run['run_id'], 'processor', 'another one')
    store.client.log_metric(run['run_id'], 'best_val_rmse', run['best_val_rmse'] * 1.01, step=99)
    done = promote('a', EASY, tracking_uri=uri)
    assert done.approved and done.decisions[0].note == 'on another machine (processor)'


def test_a_changed_table_is_not_retrained_on(uri, tmp_path):
    mine = tmp_path / 'mine.csv'
    load_esol().frame.head(150)[['smiles', 'log_solubility']].to_csv(mine, index=False)
    grid = Grid(hidden_dim=8, lr=1e-2, batch_size=32, dropout=0, weight_decay=0, epochs=3, run_tag='mine', workers=1)
    [run] = run_sweep(grid, load_table(mine), tracking_uri=uri).runs.to_dict('records')
    assert retrain(connect(uri), run)['best_val_rmse'] == run['best_val_rmse']
    mine.write_text(mine.read_text().replace('-0.77', '-0.78', 1))
    with pytest.raises(DataError, match='was changed since'):
        retrain(connect(uri), run)


def test_a_dirty_tree_blocks_and_says_how_to_go_on(uri, monkeypatch):
    from bioai_esol.registry import promotion
    from bioai_esol.training import lineage
    for module in (lineage, promotion):
        monkeypatch.setattr(module, 'code_version', lambda: dict(code_version='c0ffee', git_dirty='true'))
    monkeypatch.setattr(lineage, 'uncommitted_files', lambda: ('bioai_esol/models/gcn.py', 'constraints.txt'))
    expected, blocked = promote('a', EASY, tracking_uri=uri, dry_run=True), promote('a', EASY, tracking_uri=uri)
    assert not blocked.approved and blocked.reason == expected.reason and blocked.champion is None
    assert 'uncommitted changes in bioai_esol/models/gcn.py, constraints.txt' in blocked.reason and 'allow_dirty=True' in blocked.reason
    assert len(runs_table(connect(uri), 'a', 'retraining')) == 0  # asked before anything is trained
    [entry] = history(tracking_uri=uri).to_dict('records')
    assert (entry['action'], entry['outcome'], entry['version']) == ('promote', 'refused', None) and 'gcn.py' in entry['reason']
    assert promote('a', EASY, tracking_uri=uri, allow_dirty=True).approved


def test_two_versions_side_by_side(three_champions, tmp_path):
    uri = three_champions
    set_alias('shadow', '1', tracking_uri=uri)
    found = compare('shadow', 'champion', tracking_uri=uri)
    assert found.versions == ('1', '3') and len(found.molecules) == 113 and not found.notes
    runs = status(tracking_uri=uri).set_index('version')
    assert found.table().rmse.tolist() == pytest.approx([runs.test_rmse['1'], runs.test_rmse['3']], abs=1e-6)
    assert found.difference.low > 0 and 'version 3 is better' in str(found)
    load_esol().frame.head(40)[['smiles', 'log_solubility']].to_csv(tmp_path / 'mine.csv', index=False)
    mine = compare('1', '3', load_table(tmp_path / 'mine.csv'), tracking_uri=uri)
    assert len(mine.molecules) == 40 and all('was trained on' in n for n in mine.notes) and len(mine.notes) == 2
    assert (mine.molecules.error_1 == mine.molecules.predicted_1 - mine.molecules.log_solubility).all()
    with pytest.raises(BioaiError, match='are the same version'):
        compare('champion', '3', tracking_uri=uri)


# what may be broken: one line, and nothing changed

def tables(uri):
    "All that a store holds about runs and versions, past MLflow; the lock file and its claims come and go."
    with sqlite3.connect(uri.removeprefix('sqlite:///')) as db:
        return {t: sorted(map(str, db.execute(f'select * from {t}'))) for t in
                ('runs', 'tags', 'metrics', 'model_versions', 'model_version_tags', 'registered_model_aliases', 'registered_model_tags')}


def of(read):
    "A function that takes the store as a keyword, as one of the store alone."
    return lambda uri: read(tracking_uri=uri)


def refuses(uri, match, act=lambda uri: promote('c', EASY, tracking_uri=uri), error=BioaiError):
    before = tables(uri)
    with pytest.raises(error, match=match) as e:
        act(uri)
    assert '\n' not in str(e.value) and tables(uri) == before
    return e.value


def test_an_unknown_run_tag_and_an_empty_experiment(uri, tmp_path):
    refuses(uri, r"no runs with the run tag 'x' .*run tags: a, b, c", lambda uri: promote('x', EASY, tracking_uri=uri))
    empty = uri_of(tmp_path / 'empty')
    (tmp_path / 'empty').mkdir()
    connect(empty, create=True)
    refuses(empty, "no sweep in .*: run 'bioai-esol sweep' first", lambda uri: promote(None, EASY, tracking_uri=uri))


@pytest.mark.parametrize('key', ['test_rmse', 'best_val_rmse', 'generalisation_gap', 'val_r2'])
@pytest.mark.parametrize('broken', ['missing', 'nan'])
def test_a_run_with_a_missing_or_nan_metric(uri, key, broken):
    "Not eligible, with the metric's name as the reason; nothing is trained or registered."
    store = connect(uri)
    [run] = runs_table(store, 'a').to_dict('records')
    if broken == 'nan':
        store.client.log_metric(run['run_id'], key, float('nan'), step=999)
    else:
        with sqlite3.connect(uri.removeprefix('sqlite:///')) as db:
            for table in ('latest_metrics', 'metrics'):
                db.execute(f'delete from {table} where run_uuid = ? and key = ?', (run['run_id'], key))
    done = promote('a', EASY, tracking_uri=uri)
    assert not done.approved and key in done.choice.runs.reason[0] and 'not logged or not finite' in done.choice.runs.reason[0]
    assert len(runs_table(store, 'a', 'retraining')) == 0 and len(status(tracking_uri=uri)) == 0


def test_a_version_without_a_run(three_champions):
    uri = three_champions
    connect(uri).client.create_model_version(MODEL, '/nowhere')
    row = status(tracking_uri=uri).set_index('version').loc['4']
    assert 'version 4 has no run' in row.why
    refuses(uri, 'version 4 has no run', lambda uri: promote(version='4', policy=EASY, tracking_uri=uri))
    refuses(uri, 'version 4 has no run', lambda uri: load_version('4', tracking_uri=uri))
    assert promote('a', EASY, tracking_uri=uri).champion == '3'
    found = check(tracking_uri=uri).set_index('invariant')
    assert 'version 4 has no run' in found.findings['nothing was deleted']


def test_a_run_that_was_deleted_behind_our_back(three_champions):
    uri = three_champions
    store = connect(uri)
    run_id = snapshot(store).versions['3'].run_id
    store.client.delete_run(run_id)
    refuses(uri, f"cannot be compared|compared with the champion: version 3: run {run_id} .* was deleted: 'mlflow runs restore",
            lambda uri: promote('a', EASY, tracking_uri=uri))
    assert 'was deleted' in status(tracking_uri=uri).set_index('version').why['3']
    assert not check(tracking_uri=uri).holds.all()
    assert rollback('its run is gone', tracking_uri=uri).champion == '2'  # the way out
    assert promote('a', EASY, tracking_uri=uri).champion == '2'


@pytest.mark.parametrize('break_it, text', [
    (lambda folder: shutil.rmtree(folder), 'has no artifact'),
    (lambda folder: (folder / 'weights.safetensors').unlink(), 'weights.safetensors is missing'),
    (lambda folder: os.truncate(folder / 'weights.safetensors', 300), 'weights.safetensors was altered or cut short'),
    (lambda folder: (folder / 'weights.safetensors').write_bytes((folder / 'weights.safetensors').read_bytes()[:-1] + b'\1'), 'was altered'),
    (lambda folder: (folder / 'model.json').write_text('{}'), 'model.json was altered'),
], ids=['gone', 'missing', 'cut', 'altered', 'config'])
def test_model_files_that_are_gone_or_changed(three_champions, tmp_path, break_it, text):
    "The champion does not answer with other weights than the registered ones; a version that is broken is not promoted."
    uri = three_champions
    store = connect(uri)
    break_it(tmp_path / 'mlartifacts' / snapshot(store).versions['3'].run_id / 'artifacts/model/artifacts')
    refuses(uri, f'version 3 cannot be loaded: .*{text}', of(load_champion), StoreError)
    assert text in ' '.join(check(tracking_uri=uri).findings)
    assert rollback('its files are broken', tracking_uri=uri).champion == '2'
    named = promote(version='3', policy=EASY, tracking_uri=uri, force=True)
    assert not named.approved and [r.name for r in named.decisions[-1].rules if not r.passed] == ['model_files']
    assert named.champion == '2' and load_champion(tracking_uri=uri).version == '2'


def test_a_broken_candidate_is_not_promoted(uri, monkeypatch):
    "The files are looked at between registration and crown, however they came to be broken."
    import bioai_esol.registry.promotion as promotion
    real = promotion._register

    def register(t, run, *args):
        folder = Path(t.store.client.get_run(run['run_id']).info.artifact_uri.removeprefix('file://'))
        os.truncate(folder / 'model/artifacts/weights.safetensors', 100)
        return real(t, run, *args)
    monkeypatch.setattr(promotion, '_register', register)
    done = promote('a', EASY, tracking_uri=uri)
    assert not done.approved and 'was altered or cut short' in done.reason and done.champion is None
    assert aliases(uri) == dict(candidate='1')


def test_an_unreachable_store_is_not_a_missing_champion(uri):
    with sqlite3.connect(uri.removeprefix('sqlite:///')) as db:
        db.execute('alter table registered_models rename to gone')
    store = connect(uri)
    with pytest.raises(StoreError, match='did not get registered model'):
        snapshot(store)
    def drift(uri): return rollback('drift', tracking_uri=uri)
    for act in (lambda uri: promote('a', EASY, tracking_uri=uri), of(load_champion), of(status), drift):
        with pytest.raises(StoreError) as e:
            act(uri)
        assert '\n' not in str(e.value) and not e.value.absent
    for act in (lambda uri: promote('a', EASY, tracking_uri=uri), of(load_champion), of(status), of(history), of(check)):
        with pytest.raises(StoreError, match='cannot reach the tracking server'):
            act('http://127.0.0.1:9')


def test_a_store_of_an_older_schema(three_champions):
    uri = three_champions
    with sqlite3.connect(uri.removeprefix('sqlite:///')) as db:
        db.execute("update alembic_version set version_num = 'cc1f77228345'")
    for act in (lambda uri: promote('c', EASY, tracking_uri=uri), of(status), of(load_champion), lambda uri: rollback('drift', tracking_uri=uri)):
        refuses(uri, 'cannot use the tracking store .*mlflow db upgrade', act, StoreError)


@pytest.mark.skipif(not hasattr(os, 'geteuid'), reason='file modes as on Unix')
def test_a_store_that_is_read_only(three_champions_folder):
    "As another user sees it, where root would be let through; looking works, changing is one line."
    folder = Path(tempfile.mkdtemp())
    uri = copied(three_champions_folder, folder)
    promote('a', EASY, tracking_uri=uri)
    for path in [folder, *folder.rglob('*')]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before, root = tables(uri), os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        assert load_champion(tracking_uri=uri).version == '3' and len(status(tracking_uri=uri)) == 4
        for act in (lambda: rollback('drift', tracking_uri=uri), lambda: set_alias('shadow', '1', tracking_uri=uri),
                    lambda: promote('a', EASY, tracking_uri=uri), lambda: archive('4', 'no', tracking_uri=uri)):
            with pytest.raises(StoreError) as e:
                act()
            assert '\n' not in str(e.value)
            assert any(text in str(e.value) for text in ('cannot write', 'cannot be written', 'read-only', 'readonly')), e.value
    finally:
        if root:
            os.seteuid(0)
    assert tables(uri) == before
    for path in [folder, *folder.rglob('*')]:
        path.chmod(0o755)
    shutil.rmtree(folder)
