"Ensembles: several kinds of models in one sweep, their mean as a run, judged, promoted and asked like any other."
import re

import numpy as np
import pytest
from helpers import fresh, sweep_here
from quick import EASY

from bioai_esol.errors import BioaiError
from bioai_esol.sweep.ensemble import any_config, best_ensemble, build_ensemble
from bioai_esol.store.client import connect
from bioai_esol.store.runs import load_predictions, load_runs
from bioai_esol.sweep.grid import Grid
from bioai_esol.registry.promotion import promote
from bioai_esol.registry.versions import check
from bioai_esol.serving.predictor import load_champion
from bioai_esol.sweep.runner import run_sweep

KINDS = dict(architecture=('gcn', 'gradient-boosting', 'ridge'), hidden_dim=16, lr=1e-2, batch_size=128, dropout=0, weight_decay=0, epochs=3, seed=(1, 2))


@pytest.fixture(scope='module')
def kinds(tmp_path_factory):
    "A store with a sweep of three kinds, and another of one run."
    uri = fresh(tmp_path_factory.mktemp('kinds'))
    run_sweep(Grid(**KINDS, run_tag='kinds', workers=1), tracking_uri=uri)
    sweep_here(uri, 'plain', 8)
    return uri


def test_seeds_only_where_numbers_are_drawn(kinds):
    runs = load_runs('kinds', tracking_uri=kinds)
    assert runs.groupby('architecture').seed.nunique().to_dict() == {'gcn': 2, 'gradient-boosting': 2, 'ridge': 1}
    assert runs.coverage_90.between(.5, 1).all() and (runs.interval_90 > 0).all()


def test_the_mean_becomes_champion_over_a_plain_network(kinds, quick):
    first = promote('plain', EASY, tracking_uri=kinds)
    assert first.champion == '1'
    run, tried = best_ensemble('kinds', tracking_uri=kinds, as_tag='mean')
    assert tried.chosen.sum() == 1 and len(tried) == 7
    again, _ = best_ensemble('kinds', tracking_uri=kinds, as_tag='mean')
    assert again['run_id'] == run['run_id']  # made once
    members = [r for r in load_runs('kinds', tracking_uri=kinds).itertuples() if r.run_id in run['member_runs'].split(',')]
    assert {m.architecture for m in members} == set(tried.kinds[tried.chosen].item())
    kept = {m.run_id: load_predictions(m.run_id, tracking_uri=kinds).predicted.to_numpy() for m in members}
    by_kind = [np.mean([kept[m.run_id] for m in members if m.architecture == a], axis=0) for a in {m.architecture for m in members}]
    found = load_predictions(run['run_id'], tracking_uri=kinds)
    np.testing.assert_allclose(found.predicted, np.mean(by_kind, axis=0), rtol=1e-5, atol=1e-5)
    assert found.log_solubility.between(found.low, found.high).mean() == run['coverage_90']
    done = promote('mean', EASY, tracking_uri=kinds)
    assert done.approved and done.champion == '2', done.reason
    assert done.decisions[0].note == 'bit for bit'  # every member trained again
    rules = {r.name: r.reason for r in done.decisions[-1].rules}
    assert rules['hyperparameters'] == 'architecture, members are on record' and rules['same_test_set'] == 'tested on the same molecules'
    assert check(tracking_uri=kinds).holds.all()
    answer = load_champion(tracking_uri=kinds).predict(found.smiles.tolist())
    np.testing.assert_allclose(answer.log_solubility, found.predicted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(answer.high, found.high, rtol=1e-5, atol=1e-5)
    far = load_champion(tracking_uri=kinds).predict(['CCO', '[Na+].[Cl-]'])
    assert far.domain[1] == 'outside' and 'no training molecule has' in far.why[1]  # of few epochs, it may be unsure of ethanol
    assert 'no training molecule' not in far.why[0] and far.similarity[0] > far.similarity[1]


def test_what_cannot_be_members(kinds, tmp_path):
    runs = load_runs('kinds', tracking_uri=kinds)
    other = run_sweep(Grid(architecture='ridge', split='random', seed=7, run_tag='elsewhere', workers=1), tracking_uri=kinds).runs
    with pytest.raises(BioaiError, match='differ in split_digest'):
        build_ensemble([runs.run_id[0], other.run_id[0]], tracking_uri=kinds)
    mean, _ = best_ensemble('kinds', tracking_uri=kinds, as_tag='mean')
    with pytest.raises(BioaiError, match='a finished run of a single model'):
        build_ensemble([runs.run_id[0], mean['run_id']], tracking_uri=kinds)
    with pytest.raises(BioaiError, match='needs two at least'):
        best_ensemble('plain', tracking_uri=kinds)
    with pytest.raises(BioaiError, match="no runs with the run tag 'none'"):
        best_ensemble('none', tracking_uri=kinds)
    with pytest.raises(BioaiError, match='two runs at least, not 1'):
        build_ensemble(runs.run_id[:1], tracking_uri=kinds)
    assert {m.architecture for m in any_config(connect(kinds), mean).members} <= set(KINDS['architecture'])


def test_the_preset_on_the_command_line(program):
    "Options win over the preset: here two kinds without networks, so that it takes seconds."
    small = ['--preset', 'accurate', '--architecture', 'gradient-boosting,ridge', '--seed', '1', '--workers', '1']
    done = program('sweep', *small)
    assert done.returncode == 0, done.stderr
    assert "run tag 'accurate.members'" in done.stdout and '← taken' in done.stdout and 'next: bioai-esol promote --run-tag accurate' in done.stdout
    gap, threshold = (float(re.search(f'{name} ([0-9.]+)', done.stdout)[1]) for name in ('gap', '--gap-threshold'))
    assert gap < threshold
    again = program('sweep', *small)
    assert again.returncode == 0 and '0 trained, 2 finished before' in again.stdout
    both = program('sweep', '--preset', 'accurate', '--grid', 'x.yaml')
    assert both.returncode == 2 and 'one of the two' in both.stderr
