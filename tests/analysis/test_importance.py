"Importance: what decides gets it all, what does nothing has an interval that begins at zero, and seeds are no independent runs."
import numpy as np
import pandas as pd
import pytest

from bioai_esol.analysis import importance as module
from bioai_esol.analysis.figures import plot_importance
from bioai_esol.analysis.importance import describe_importance, importance, MEASURES
from bioai_esol.errors import BioaiError

DRAWS = 40


def sweep(error, seeds=(42,), **axes):
    "A finished sweep over a grid; `error(runs)` gives its best_val_rmse."
    runs = pd.MultiIndex.from_product([*axes.values(), seeds], names=[*axes, 'seed']).to_frame(index=False)
    digests = [f'{i:04}' for i in runs.index]
    runs = runs.assign(status='FINISHED', config_digest=digests)
    return runs.assign(best_val_rmse=error(runs))


def noise(runs, seed=0):
    return np.random.default_rng(seed).normal(size=len(runs))


def shares(table, measure):
    return table[table.measure == measure].set_index('axis')


GRID = dict(hidden_dim=(32, 64, 128), lr=(.001, .003, .01), dropout=(0., .2, .5))


@pytest.mark.parametrize('measure', MEASURES)
def test_an_axis_that_decides_everything_gets_it_all(measure):
    table = shares(importance(sweep(lambda runs: runs.lr * 100, **GRID), draws=DRAWS), measure)
    assert table.importance['lr'] > .9 and table.low['lr'] > .5
    assert table.worst_place['lr'] == 1 and table.best_place.drop('lr').min() == 2
    assert table.low.drop('lr').max() == 0  # what does nothing: the interval begins at zero


def test_noise_shows_no_axis_to_matter():
    table = importance(sweep(noise, **GRID), draws=DRAWS)
    assert (table.low < .05).all() and table.r2[0] < .2
    assert 'no axis is shown to matter' in describe_importance(table)


def test_seeds_of_a_configuration_are_no_independent_runs(monkeypatch):
    """Each configuration has a luck of its own, which its ten seeds share. Whoever takes them for independent runs finds
    the other seeds of a judged run among its teachers: the forest seems to predict, and is sure of axes that do nothing."""
    rng = np.random.default_rng(3)
    luck = {key: rng.normal() for key in [(h, r, d) for h in GRID['hidden_dim'] for r in GRID['lr'] for d in GRID['dropout']]}
    runs = sweep(lambda runs: [luck[key] for key in zip(runs.hidden_dim, runs.lr, runs.dropout)] + noise(runs) * .1,
                 seeds=range(10), **GRID)
    clusters = importance(runs, draws=DRAWS)
    monkeypatch.setattr(module, '_configurations', lambda table, axes: np.arange(len(table)))
    independent = importance(runs, draws=DRAWS)
    assert clusters.r2[0] < .3 and independent.r2[0] > .9
    for measure in MEASURES:
        wide, narrow = (shares(t, measure).drop(index='seed') for t in (clusters, independent))
        assert (wide.high - wide.low).mean() > 1.5 * (narrow.high - narrow.low).mean()


def test_no_configuration_teaches_and_judges():
    design = module._design(sweep(noise, seeds=(1, 2, 3), **GRID), 'best_val_rmse')
    generator = np.random.default_rng(0)
    for _ in range(50):
        teachers, judges = module._resample(design, generator)
        assert not set(design.configuration[teachers]) & set(design.configuration[judges])
        assert len(teachers) == 81 and len(set(judges)) == len(judges) and len(judges) % 3 == 0


def test_the_same_seed_gives_the_same_numbers():
    runs = sweep(lambda runs: runs.lr + .01 * noise(runs), **GRID)
    first = importance(runs, draws=10)
    np.random.seed(5)  # state from outside plays no part
    pd.testing.assert_frame_equal(first, importance(runs, draws=10))
    assert not first.importance.equals(importance(runs, draws=10, seed=1).importance)


def test_names_and_gaps_and_a_pooling_that_follows():
    "Architectures have names, ridge has no width, and each network has a pooling of its own."
    networks = sweep(lambda runs: .01 * noise(runs), seeds=(1, 2), architecture=('gcn', 'dmpnn'), hidden_dim=(32., 64., 128.))
    networks['pooling'] = networks.architecture.map(dict(gcn='mean', dmpnn='sum'))
    ridge = sweep(lambda runs: 1 + .01 * noise(runs), seeds=(1, 2), architecture=('ridge', 'gradient-boosting', 'gaussian-process'))
    runs = pd.concat([networks, ridge], ignore_index=True)
    table = importance(runs.assign(config_digest=[f'{i:03}' for i in runs.index]), draws=DRAWS)
    assert set(table.axis) == {'architecture', 'hidden_dim', 'seed'}
    assert shares(table, 'permutation').importance.idxmax() == 'architecture'


def test_one_axis_alone():
    table = importance(sweep(lambda runs: runs.lr, lr=np.geomspace(1e-4, 1e-1, 12)), draws=DRAWS)
    assert table.importance.tolist() == pytest.approx([1, 1], abs=.1)
    assert describe_importance(table).startswith('The forest explains')


def test_the_best_r2_is_the_highest():
    runs = sweep(lambda runs: 0., **GRID).assign(val_r2=lambda runs: runs.lr * 10, best_val_rmse=1.)
    up = shares(importance(runs, 'val_r2', draws=10), 'PED-ANOVA')
    down = shares(importance(runs.assign(val_rmse=-runs.val_r2), 'val_rmse', draws=10), 'PED-ANOVA')
    pd.testing.assert_frame_equal(up, down)


@pytest.mark.parametrize('runs, said', [
    (sweep(noise, lr=(.1, .2, .3), dropout=(0., .5, .6)), '9 finished runs in which 2 hyperparameters vary cannot .*: ten runs'),
    (sweep(noise, seeds=range(6), lr=(.1, .2)), 'five configurations are needed, these are 2'),
    (sweep(noise, seeds=range(12), lr=(.1,)), 'in which 1 hyperparameter varies .* five configurations'),
    (sweep(noise, **GRID).assign(status='FAILED'), 'none of 27 runs is finished')])
def test_too_few(runs, said):
    with pytest.raises(BioaiError, match=said):
        importance(runs)


def test_nothing_of_optuna_is_left_changed():
    "Its notes are silenced while we use it, and only then."
    import optuna
    optuna.logging.set_verbosity(optuna.logging.INFO)
    importance(sweep(noise, **GRID), draws=5)
    assert optuna.logging.get_verbosity() == optuna.logging.INFO


def test_the_figure_shows_both():
    table = importance(sweep(lambda runs: runs.lr + .1 * runs.dropout, **GRID), draws=10)
    [ax] = plot_importance(table).axes
    assert len(ax.patches) == 6
    assert [label.get_text() for label in ax.get_yticklabels()] == table.axis.unique().tolist()
