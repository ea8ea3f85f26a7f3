"Ensembles of many members: more than a parameter of MLflow holds, and still judged, registered and made again."
import json
import sqlite3

import pytest
from helpers import fresh
from quick import EASY

from bioai_esol.errors import BioaiError
from bioai_esol.registry.promotion import promote
from bioai_esol.serving.comparison import compare
from bioai_esol.serving.predictor import load_champion
from bioai_esol.store.client import connect
from bioai_esol.store.runs import load_runs, runs_table, search
from bioai_esol.sweep.ensemble import any_config, best_ensemble, build_ensemble, run_preset
from bioai_esol.sweep.grid import Grid
from bioai_esol.sweep.runner import run_sweep

pytestmark = pytest.mark.usefixtures('quick')
MEMBERS = 40
CHEAP = dict(architecture='gcn', hidden_dim=8, lr=1e-2, batch_size=256, epochs=1, seed=tuple(range(1, MEMBERS + 1)), run_tag='many', workers=1)


@pytest.fixture(scope='module')
def many(tmp_path_factory):
    "A store with forty networks and their mean."
    uri = fresh(tmp_path_factory.mktemp('many'))
    run = run_preset('accurate', tracking_uri=uri, **CHEAP).run
    return uri, run


def logged_members(uri, run_id, change=None):
    "The parameter `members` of a run in the database; changed, when a value is given."
    with sqlite3.connect(uri.removeprefix('sqlite:///')) as db:
        if change is not None:
            db.execute("update params set value = ? where run_uuid = ? and key = 'members'", (change, run_id))
        [(value,)] = db.execute("select value from params where run_uuid = ? and key = 'members'", (run_id,)).fetchall()
    db.close()
    return value


def test_forty_members_become_champion(many):
    uri, run = many
    assert logged_members(uri, run['run_id']) == '40, as model.json has them'
    assert len(any_config(connect(uri), run).members) == MEMBERS
    done = promote('many', EASY, tracking_uri=uri)
    assert done.approved and done.champion == '1', done.reason
    assert done.decisions[0].note == 'bit for bit' and done.run['best_val_rmse'] == run['best_val_rmse']
    champion = load_champion(tracking_uri=uri)
    assert len(champion.model.members) == MEMBERS and champion.predict('CCO').error[0] == ''
    assert best_ensemble('many.members', tracking_uri=uri, as_tag='many')[0]['run_id'] == run['run_id']  # found, not made again


@pytest.mark.parametrize('kept', [6000, None], ids=['cut off', 'whole'])
def test_older_runs_have_their_members_in_a_parameter(many, kept):
    "Whole for a few; of many, MLflow kept 6,000 characters, and the model's own description has the rest."
    uri, _ = many
    store = connect(uri)
    runs = load_runs('many.members', tracking_uri=uri).sort_values('seed', kind='stable')
    runs = runs if kept else runs[:3]
    old = build_ensemble(list(runs.run_id), tracking_uri=uri, run_tag=f'old-{kept}')
    members = any_config(store, old).members
    assert len(members) == len(runs)
    texts = json.dumps([{k: v for k, v in m.to_params().items() if not k.startswith(('frac', 'split'))} for m in members])
    assert (len(texts) > 6000) == bool(kept)
    logged_members(uri, old['run_id'], texts[:kept])
    assert any_config(store, runs_table(store, f'old-{kept}').iloc[-1].to_dict()).members == members
    done = promote(f'old-{kept}', EASY, tracking_uri=uri)
    assert done.decisions[0].approved and done.version, done.reason


def test_versions_of_many_members_are_compared(many):
    uri, _ = many
    assert compare('1', '2', tracking_uri=uri).table().shape[0] == 2


def test_what_mlflow_would_cut_off_is_an_error(many, tmp_path):
    "Before anything is trained where it can be known, and nothing is written."
    uri, run = many
    ids = list(load_runs('many.members', tracking_uri=uri).run_id[:2])
    with pytest.raises(BioaiError, match=r"the tag 'why' of the run 'ensemble of 2 gcn s.*' has 8,001 characters"):
        build_ensemble(ids, tracking_uri=uri, run_tag='long', note=dict(why='x' * 8001))
    assert not search(connect(uri), run_tag='long')
    grid = Grid(architecture='gcn', hidden_dim=8, epochs=1, seed=tuple(range(10_000, 11_001)), run_tag='long', workers=1)
    with pytest.raises(BioaiError, match=r"the parameter 'seed' of the run 'sweep long' has 6,005 characters"):
        run_sweep(grid, tracking_uri=uri)
    assert not search(connect(uri), run_tag='long')
