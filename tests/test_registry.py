"Life cycles in the registry: promotion, refusal, rollback, and what must never be confused."
import json
import shutil
import subprocess
import sys

import pytest

from bioai_esol.data import BioaiError, DataError, load_csv, load_esol
from bioai_esol.policy import Policy
from bioai_esol.registry import MODEL, by_alias, promote, retrain, rollback, status
from bioai_esol.serving import load_champion
from bioai_esol.sweep import Grid, run_sweep
from bioai_esol.tracking import StoreError, connect, fetch_artifacts, runs_table

EASY = Policy(gap_threshold=3.0, r2_tolerance=0.99)


def sweep(uri, tag, epochs, hidden_dim=16, **more):
    grid = Grid(**dict(hidden_dim=hidden_dim, lr=1e-2, batch_size=64, dropout=0, weight_decay=0, epochs=epochs, run_tag=tag, workers=1) | more)
    return run_sweep(grid, tracking_uri=uri)


@pytest.fixture
def uri(tmp_path):
    return f'sqlite:///{tmp_path}/mlflow.db'


def aliases(uri):
    return {k: str(v) for k, v in connect(uri).client.get_registered_model(MODEL).aliases.items()}


def test_three_champions_and_two_rollbacks(uri, tmp_path):
    "Worse never wins; a rollback goes to the latest champion that has not failed; nothing is deleted."
    for tag, epochs in (('a', 1), ('b', 12), ('c', 60)):
        sweep(uri, tag, epochs)
        done = promote(tag, EASY, uri, allow_dirty=True)
        assert done.approved, done.reason
        assert done.decisions[0].note == 'bit for bit'
    assert aliases(uri) == dict(champion='3')
    store = connect(uri)
    record = json.loads((fetch_artifacts(store, done.run['run_id'], tmp_path, 'decisions.json')).read_text())
    assert [d['approved'] for d in record['decisions']] == [True] * 3
    assert 'paired bootstrap' in done.decisions[-1].note
    refused = promote('a', EASY, uri, allow_dirty=True)
    assert not refused.approved and (refused.version, refused.champion) == ('4', '3')
    assert [r.name for r in refused.decisions[-1].rules if not r.passed][0] == 'improvement'
    assert aliases(uri) == dict(champion='3', candidate='4')
    assert rollback('drift', uri)[1] == '2'
    assert rollback('drift again', uri)[1] == '1'
    decision, champion = rollback('and again', uri)
    assert not decision.approved and champion == '1'
    table = status(uri).set_index('version')
    assert table.status.to_dict() == {'1': 'champion', '2': 'failed_in_monitoring', '3': 'failed_in_monitoring', '4': 'candidate'}
    assert table.failure_reason['3'] == 'drift'
    sweep(uri, 'd', 30)
    assert promote('d', EASY, uri, allow_dirty=True).champion == '5'
    assert rollback('too', uri)[1] == '1'  # 2 and 3 failed before: stepped over


def test_a_lost_reproduction_is_not_registered(uri):
    sweep(uri, 'a', 4)
    store = connect(uri)
    [run] = runs_table(store, 'a').to_dict('records')
    store.client.log_metric(run['run_id'], 'best_val_rmse', run['best_val_rmse'] * (1 - 1e-12), step=99)
    done = promote('a', EASY, uri, allow_dirty=True)
    assert not done.approved and done.version is None
    assert repr(run['best_val_rmse']) in done.reason and 'must be equal' in done.reason
    assert len(status(uri)) == 0
    repeated = runs_table(store, 'a', 'retraining').iloc[0]
    assert repeated.repeats_run == run['run_id'] and repeated.reproduction == 'failed'


def test_another_machine_gets_a_tolerance(uri):
    sweep(uri, 'a', 4)
    store = connect(uri)
    [run] = runs_table(store, 'a').to_dict('records')
    store.client.set_tag(run['run_id'], 'processor', 'another one')
    store.client.log_metric(run['run_id'], 'best_val_rmse', run['best_val_rmse'] * 1.01, step=99)
    done = promote('a', EASY, uri, allow_dirty=True)
    assert done.approved and done.decisions[0].note == 'on another machine (processor)'


def test_an_unreachable_store_is_not_a_missing_champion(uri, tmp_path):
    sweep(uri, 'a', 2)
    store = connect(uri)
    assert by_alias(store, 'champion') is None
    import sqlite3
    with sqlite3.connect(tmp_path / 'mlflow.db') as db:
        db.execute('alter table registered_models rename to gone')
    with pytest.raises(StoreError, match='cannot ask'):
        by_alias(store, 'champion')
    with pytest.raises(BioaiError):
        promote('a', EASY, uri, allow_dirty=True)


def test_a_changed_table_is_not_retrained_on(uri, tmp_path):
    mine = tmp_path / 'mine.csv'
    load_esol().head(150)[['smiles', 'log_solubility']].to_csv(mine, index=False)
    grid = Grid(hidden_dim=8, lr=1e-2, batch_size=32, dropout=0, weight_decay=0, epochs=3, run_tag='mine', workers=1)
    [run] = run_sweep(grid, load_csv(mine), uri).runs.to_dict('records')
    assert retrain(connect(uri), run)['best_val_rmse'] == run['best_val_rmse']
    mine.write_text(mine.read_text().replace('-0.77', '-0.78', 1))
    with pytest.raises(DataError, match='was changed since'):
        retrain(connect(uri), run)


def test_a_dirty_tree_blocks_and_says_how_to_go_on(uri):
    sweep(uri, 'a', 3)
    from bioai_esol import registry
    from bioai_esol.tracking import lineage
    real = registry.lineage
    try:
        registry.lineage = lambda task, device: lineage(task, device) | dict(code_version='c0ffee', git_dirty='true')
        blocked = promote('a', EASY, uri)
        assert not blocked.approved and '--allow-dirty' in blocked.reason and blocked.champion is None
        assert promote('a', EASY, uri, allow_dirty=True).approved
    finally:
        registry.lineage = real


def test_the_champion_in_other_processes(tmp_path):
    "The champion answers alike through this package, and through MLflow's pyfunc with pickle forbidden, in processes of their own."
    uri = f'sqlite:///{tmp_path}/mlflow.db'
    sweep(uri, 'a', 5)
    assert promote('a', EASY, uri, allow_dirty=True).approved
    here = load_champion(uri).predict(['CCO', 'c1ccccc1', 'C'])
    code = (f"import mlflow, pandas as pd, json; mlflow.set_tracking_uri({uri!r}); "
            "m = mlflow.pyfunc.load_model('models:/EsolPrediction@champion'); "
            "print(json.dumps(m.predict(pd.DataFrame(dict(smiles=['CCO', 'c1ccccc1', 'C']))).log_solubility.tolist()))")
    import os
    env = dict(os.environ, MLFLOW_ALLOW_PICKLE_DESERIALIZATION='false')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env, timeout=120)
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout.splitlines()[-1]) == here.log_solubility.tolist()
    files = [p.suffix for p in (tmp_path / 'mlartifacts').rglob('*') if p.is_file()]
    assert not {'.pkl', '.pickle', '.pt', '.pth'} & set(files) and '.safetensors' in files


def test_artifacts_that_are_gone_are_named(uri, tmp_path):
    sweep(uri, 'a', 2)
    assert promote('a', EASY, uri, allow_dirty=True).approved
    shutil.rmtree(tmp_path / 'mlartifacts')
    with pytest.raises(StoreError, match='has no artifact'):
        load_champion(uri)
