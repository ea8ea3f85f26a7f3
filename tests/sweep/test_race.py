"A race: its runs are those of the grid, every decision is on record, and whatever kills it, the same command ends it."
import json
import random
import signal
import subprocess
import sys

import pytest
from helpers import PROGRAM, fresh, uri_of, wait_until

import bioai_esol as esol
from bioai_esol.errors import BioaiError
from bioai_esol.registry.policy import Policy, choose_candidate
from bioai_esol.store.client import connect
from bioai_esol.store.runs import fetch_artifacts, load_runs, newest_run_tag, runs_table, search, sweeps
from bioai_esol.sweep.grid import Grid
from bioai_esol.sweep.race import BEST, FAILED, Race, run_race
from bioai_esol.sweep.runner import run_sweep

AXES = dict(hidden_dim=(8, 16), lr=(1e-2, 1e-3), batch_size=64, dropout=(0, .2), weight_decay=0, epochs=16)
FIGURES = ['best_val_rmse', 'best_epoch', 'test_rmse', 'val_r2', 'generalisation_gap']
SCRIPT = """
import sys
import bioai_esol as esol
if __name__ == '__main__':
    grid = esol.Grid(hidden_dim=(8, 16), lr=(1e-2, 1e-3), batch_size=64, dropout=(0, .2), weight_decay=0, epochs=16, run_tag='race', workers=2)
    esol.run_race(esol.Race(grid=grid, rungs=3, finalists=2, seeds=4), tracking_uri=sys.argv[1])
"""


def short(**settings):
    return Race(grid=Grid(**AXES | dict(run_tag='race', workers=2) | settings), rungs=3, finalists=2, seeds=4)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    uri = fresh(tmp_path_factory.mktemp('race'))
    return uri, run_race(short(), tracking_uri=uri)


def figures(uri):
    "Of all rungs."
    store = connect(uri)
    tables = [runs_table(store, tag).set_index('config_digest') for tag in ('race.rung1', 'race.rung2', 'race')]
    assert all(set(table.status) == {'FINISHED'} and table.index.is_unique for table in tables)
    return [table[FIGURES].sort_index() for table in tables]


def test_fewer_configurations_and_more_seeds(undisturbed):
    uri, result = undisturbed
    plan = short().plan()
    assert [(rung.configurations, rung.epochs) for rung in plan] == [(8, 4), (4, 8), (2, 16)] and plan[-1].seeds == 4
    assert [len(table) for table in figures(uri)] == [r.configurations * r.seeds for r in plan]
    assert len(result.table) == 8 and result.table.name.is_unique and result.table.outcome.tolist().count(BEST) == 1
    assert result.epochs == sum(rung.cost for rung in plan) and f'{result.epochs / (8 * 16):.0%} of the grid' in result.headline
    assert result.table['mean'][:2].is_monotonic_increasing and result.table.seeds[:2].tolist() == [4, 4]
    assert "esol.promote('race', esol.Policy(min_seeds=4))" in repr(result) and '<table' in result._repr_html_()


def test_runs_of_finalists_are_those_of_the_grid(undisturbed, tmp_path):
    "Whoever trains the whole grid with one of their seeds finds the same runs, to the bit."
    uri, _ = undisturbed
    finalists = figures(uri)[-1]
    seed = int(load_runs('race', tracking_uri=uri).seed.min())
    grid = run_sweep(Grid(**AXES, seed=seed, run_tag='grid', workers=1), tracking_uri=fresh(tmp_path)).runs.set_index('config_digest')
    shared = finalists.index.intersection(grid.index)
    assert len(shared) == 2 and finalists.loc[shared].astype(float).equals(grid.loc[shared, FIGURES].astype(float))


def test_each_decision_is_on_record(undisturbed, tmp_path):
    uri, result = undisturbed
    store = connect(uri)
    records = []
    for tag in ('race.rung1', 'race.rung2', 'race'):
        sweep = search(store, kind='sweep', run_tag=tag)[-1]
        records.append(json.loads(fetch_artifacts(store, sweep.info.run_id, tmp_path / tag, 'race.json').read_text()))
    assert [(record['rung'], record['epochs'], len(record['configurations'])) for record in records] == [(1, 4, 8), (2, 8, 4), (3, 16, 2)]
    said = {row['name']: row['reason'] for record in records for row in record['configurations']}
    assert said == dict(zip(result.table.name, result.table.reason))
    assert all(f"mean {row['mean']:.4f} after " in row['reason'] for record in records for row in record['configurations'])


def test_the_race_is_one_sweep_for_those_who_look(undisturbed):
    uri, result = undisturbed
    table = sweeps(tracking_uri=uri).set_index('run_tag')
    assert table.kind.to_dict() == {'race': 'sweep', 'race.rung1': 'rung', 'race.rung2': 'rung'}
    assert newest_run_tag(connect(uri)) == 'race'
    choice = choose_candidate(load_runs('race', tracking_uri=uri), Policy(min_seeds=4, gap_threshold=9, r2_tolerance=.99))
    assert choice.chosen['run_name'].rsplit(' s', 1)[0] == result.table.name[0]


def test_again_it_is_there_and_fresh_it_begins_anew(undisturbed):
    uri, result = undisturbed
    again = run_race(short(), tracking_uri=uri)
    assert again.sweep.trained == 0 and again.table.equals(result.table)
    new = run_race(short(), tracking_uri=uri, fresh=True)
    assert new.run_tag == 'race-2' and new.sweep.trained == 4 and new.table.equals(result.table)


def test_killed_at_any_moment_it_ends_the_same(undisturbed, tmp_path):
    uri = fresh(tmp_path)
    (tmp_path / 'script.py').write_text(SCRIPT)
    moments = random.Random(4)
    command = [sys.executable, 'script.py', uri]
    for _ in range(6):
        process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL)
        try:
            process.wait(moments.uniform(6, 20))
        except subprocess.TimeoutExpired:
            process.send_signal(moments.choice([signal.SIGKILL, signal.SIGTERM]))
            process.wait(30)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and 'rung 3 of 3' in done.stderr, done.stderr
    store = connect(uri)
    kept = [runs_table(store, tag) for tag in ('race.rung1', 'race.rung2', 'race')]
    finished = [table[table.status == 'FINISHED'].set_index('config_digest')[FIGURES].sort_index() for table in kept]
    assert all(ours.equals(theirs) for ours, theirs in zip(finished, figures(undisturbed[0]), strict=True))


def test_a_configuration_that_diverges_leaves(tmp_path):
    uri = fresh(tmp_path)
    result = run_race(short(lr=(1e-2, 1e12), dropout=0), tracking_uri=uri)
    failed = result.table[result.table.outcome == FAILED]
    assert len(failed) == 2 and set(failed.rung) == {1} and set(failed.reason) == {'a run of it failed on rung 1'}
    with pytest.raises(BioaiError, match='every configuration on rung 1 failed; .*: diverged in epoch'):
        run_race(short(lr=1e12, run_tag='wild'), tracking_uri=uri)


def test_on_the_command_line(tmp_path):
    command = [PROGRAM, 'sweep', '--race', '--hidden-dim', '8', '--batch-size', '64', '--epochs', '8']
    wide = [*command, '--gap-threshold', '9']
    connect(fresh(tmp_path), create=True)
    process = subprocess.Popen(wide, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    wait_until(lambda: len(runs_table(connect(uri_of(tmp_path)), 'race.rung1')) > 0, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and 'the same command continues the sweep' in err and 'Traceback' not in err
    done = subprocess.run(wide, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'race of 27 configurations on esol (1,128 molecules)' in done.stdout and '  rung 3: 6 configurations × 10 seeds × 8 epochs' in done.stdout
    assert done.stdout.splitlines()[-1] == 'next: bioai-esol promote --run-tag race --min-seeds 10 --gap-threshold 9'
    promoted = subprocess.run([PROGRAM, 'promote', '--run-tag', 'race', '--min-seeds', '10', '--gap-threshold', '9', '--r2-tolerance', '.99', '--allow-dirty'],
                              cwd=tmp_path, capture_output=True, text=True)
    assert promoted.returncode == 0 and 'over 10 seeds' in promoted.stdout, promoted.stdout + promoted.stderr
    for wrong, why in ((['--preset', 'accurate'], '--race and --preset'), (['--architecture', 'ridge'], 'ridge is not trained in epochs'),
                       (['--seed', '1,2'], 'give one seed'), (['--gap-threshold', 'wide'], '--gap-threshold wide: '),
                       (['--gap-threshold', '0'], '--gap-threshold 0')):
        refused = subprocess.run([*command, *wrong], cwd=tmp_path, capture_output=True, text=True)
        assert refused.returncode == 2 and why in refused.stderr and 'Traceback' not in refused.stderr, refused.stderr
    refused = subprocess.run([PROGRAM, 'sweep', '--gap-threshold', '1'], cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 2 and '--gap-threshold is for --race' in refused.stderr
    assert esol.Race is Race
