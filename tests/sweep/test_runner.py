"A sweep that is killed, interrupted, given twice, or run twice at once."
import multiprocessing as mp
import os
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from helpers import PROGRAM, SMALL, fresh, wait_until

from bioai_esol.errors import BioaiError
from bioai_esol.chem.dataset import load_esol
from bioai_esol.sweep import runner
from bioai_esol.sweep.grid import Grid
from bioai_esol.sweep.runner import run_sweep
from bioai_esol.store import writer
from bioai_esol.store.client import connect
from bioai_esol.store.live import ask_sweep, state_of, sweep_state
from bioai_esol.store.runs import runs_table, typed_runs
from bioai_esol.training.config import split_key, TrainConfig
from bioai_esol.training.engine import make_task
from bioai_esol.training.worker import train_from_pipe

SAME = [*SMALL, '--run-tag', 'small', '--workers', '2']
LONGER = [*SAME, '--epochs', '40']
FIGURES = ['config_digest', 'best_val_rmse', 'best_epoch', 'test_rmse', 'val_r2', 'generalisation_gap']


def start(folder, epochs=40):
    if not (folder / 'mlflow.db').exists():
        fresh(folder)
    return subprocess.Popen([PROGRAM, 'sweep', *SAME, '--epochs', str(epochs)], cwd=folder, start_new_session=True, text=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job starts with it ignored
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def statuses(folder):
    "Runs by status, read past MLflow so that looking does not disturb."
    try:
        with sqlite3.connect(f'file:{folder}/mlflow.db?mode=ro', uri=True, timeout=1) as db:
            rows = db.execute("select r.status, count(*) from runs r join tags t on t.run_uuid = r.run_uuid "
                              "where t.key = 'kind' and t.value = 'run' group by r.status").fetchall()
        return dict(rows)
    except sqlite3.Error:
        return {}


def wait_for(folder, moment, process):
    "Until the runs of the store in `folder`, counted by status, are as `moment` wants them."
    wait_until(lambda: moment(statuses(folder)), process, seconds=120)


def descendants(pid):
    out = subprocess.run(['ps', '-eo', 'pid=,ppid='], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in out.splitlines()]
    found, frontier = [], [pid]
    while frontier:
        frontier = [child for child, parent in pairs if parent in frontier]
        found += frontier
    return found


def alive(pid):
    try:
        with open(f'/proc/{pid}/stat') as f:
            return f.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('undisturbed')
    grid = Grid(hidden_dim=(8, 16), lr=1e-2, batch_size=64, dropout=(0, .2), weight_decay=(0, 1e-4), epochs=40, run_tag='small', workers=1)
    return run_sweep(grid, tracking_uri=fresh(folder)).runs.set_index('config_digest')[FIGURES[1:]].sort_index()


def test_killed_three_times(tmp_path, undisturbed):
    "SIGKILL at three moments: before anything is trained, in training, and with some runs finished and others open."
    moments = [lambda s: sum(s.values()) >= 1, lambda s: s.get('RUNNING', 0) >= 6, lambda s: s.get('FINISHED', 0) >= 2]
    for moment in moments:
        process = start(tmp_path)
        wait_for(tmp_path, moment, process)
        children = descendants(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        finished_then = statuses(tmp_path).get('FINISHED', 0)
        end = time.monotonic() + 20
        while any(map(alive, children)) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(map(alive, children)), 'a worker outlived its sweep'
    last = start(tmp_path)
    out, err = last.communicate(timeout=200)
    assert last.returncode == 0, err
    trained = int(out.split(' trained, ')[0].split()[-1])
    assert trained <= 8 - finished_then and f'{trained} trained, {8 - trained} finished before' in out  # what was on the disk alone counts too
    assert statuses(tmp_path)['FINISHED'] == 8 and 'RUNNING' not in statuses(tmp_path)
    store = connect(f'sqlite:///{tmp_path}/mlflow.db')
    runs = typed_runs(runs_table(store, 'small'))
    done = runs[runs.status == 'FINISHED']
    assert done.config_digest.is_unique
    assert done.set_index('config_digest')[FIGURES[1:]].sort_index().equals(undisturbed)  # bit for bit, with other blocks and workers
    sweeps = runs_table(store, 'small', 'sweep')
    assert sorted(sweeps.status.unique()) == ['FINISHED', 'KILLED']


@pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGTERM])
def test_interrupted_politely(tmp_path, sig):
    process = start(tmp_path)
    wait_for(tmp_path, lambda s: s.get('RUNNING', 0) >= 4, process)
    os.killpg(process.pid, sig) if sig == signal.SIGINT else os.kill(process.pid, sig)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert 'the same command continues the sweep' in err and 'Traceback' not in err
    assert 'RUNNING' not in statuses(tmp_path)


def test_two_sweeps_at_once_are_refused(tmp_path, here):
    process = start(tmp_path, epochs=20_000)  # still at work when the second one has started, however slow the machine
    wait_for(tmp_path, lambda s: s.get('RUNNING', 0) >= 1, process)
    second = here('sweep', *LONGER)
    assert second.returncode == 2 and "a sweep with the run tag 'small' is running" in second.stderr
    assert process.poll() is None
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert set(statuses(tmp_path)) == {'KILLED'}


def workers_of(process):
    return [p for p in descendants(process.pid) if b'spawn_main' in open(f'/proc/{p}/cmdline', 'rb').read()]


def test_another_worker_takes_over_from_one_that_dies(tmp_path, undisturbed):
    "Its runs begin anew, are there once, and end with the same bits."
    process = start(tmp_path)
    wait_for(tmp_path, lambda s: s.get('RUNNING', 0) >= 8, process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0 and statuses(tmp_path) == {'FINISHED': 8}, (out, err)
    assert 'the worker process ended with code -9 (out of memory?); 4 runs begin again with another worker' in err
    runs = typed_runs(runs_table(connect(f'sqlite:///{tmp_path}/mlflow.db'), 'small'))
    assert runs.set_index('config_digest')[FIGURES[1:]].sort_index().equals(undisturbed)


def test_a_block_that_kills_its_workers_fails(tmp_path):
    "Three of them, and no more; the same command tries again."
    process = start(tmp_path, epochs=20_000)
    killed = set()
    while process.poll() is None:
        for worker in set(workers_of(process)) - killed:
            wait_until(lambda: statuses(tmp_path).get('RUNNING', 0) + statuses(tmp_path).get('FAILED', 0) >= 8, process, 120)
            os.kill(worker, signal.SIGKILL)
            killed.add(worker)
        time.sleep(.05)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and statuses(tmp_path) == {'FAILED': 8}, (out, err)
    assert len(killed) == 6 and 'ended with code -9 (out of memory?), and so did 2 before it' in out
    again = subprocess.run([PROGRAM, 'sweep', *LONGER], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0 and statuses(tmp_path)['FINISHED'] == 8


def _train_without_luck(pipe, device):
    "What a worker does whose training raises."
    from bioai_esol.training import engine
    def train(*_): raise ValueError('no room for\n  12 numbers')
    engine.train = train
    train_from_pipe(pipe, device)


def test_the_words_of_an_exception_in_a_worker_reach_its_runs(tmp_path, monkeypatch, capfd):
    from bioai_esol.sweep import crew
    monkeypatch.setattr(crew, 'train_from_pipe', _train_without_luck)
    grid = Grid(architecture='ridge', split='random', seed=(1, 2), run_tag='unlucky', workers=1)
    failed = run_sweep(grid, tracking_uri=fresh(tmp_path))
    assert failed.runs.status.tolist() == ['FAILED', 'FAILED']
    [words] = set(failed.runs.error)
    assert words.startswith('ValueError: no room for 12 numbers (line ') and words.endswith(' of test_runner.py)')
    assert f': {words}' in repr(failed) and 'Traceback' not in capfd.readouterr().err
    monkeypatch.undo()
    again = run_sweep(grid, tracking_uri=f'sqlite:///{tmp_path}/mlflow.db')
    assert again.runs.status.tolist() == ['FINISHED', 'FINISHED']


def test_a_doubt_of_scikit_learn_is_kept_and_said_once(tmp_path, caplog, capfd):
    from bioai_esol.chem.dataset import load_table
    few = load_esol().frame.head(60)[['smiles']]
    few.assign(y=np.random.default_rng(0).normal(size=60)).to_csv(tmp_path / 'noise.csv', index=False)
    noise = load_table(tmp_path / 'noise.csv')
    grid = Grid(architecture='gaussian-process', split='random', seed=(1, 2), run_tag='noise', workers=1)
    fitted = run_sweep(grid, noise, tracking_uri=fresh(tmp_path))
    assert fitted.runs.status.tolist() == ['FINISHED', 'FINISHED']
    [doubt] = set(fitted.runs.warning)
    assert doubt.startswith('the fit took the '), doubt
    said = [r.message for r in caplog.records if doubt in r.message]
    assert len(said) == 1 and said[0].startswith('gaussian-process s') and ' and 1 more: ' in said[0]
    assert 'ConvergenceWarning' not in capfd.readouterr().err
    caplog.clear()
    run_sweep(grid, noise, tracking_uri=f'sqlite:///{tmp_path}/mlflow.db')
    assert not [r for r in caplog.records if doubt in r.message]


def test_a_sweep_says_that_it_is_alive(tmp_path, monkeypatch):
    import mlflow
    told, real = [], mlflow.MlflowClient.log_batch

    def log_batch(self, run_id, metrics=(), params=(), tags=(), **kwargs):
        values = {tag.key: tag.value for tag in tags}
        if set(values) == {'seen_alive', 'progress'}:
            told.append((int(values['seen_alive']), state_of(values['progress'])))
        return real(self, run_id, metrics, params, tags, **kwargs)
    monkeypatch.setattr(mlflow.MlflowClient, 'log_batch', log_batch)
    monkeypatch.setattr('bioai_esol.store.writer.HEARTBEAT_INTERVAL_S', 0.2)
    grid = Grid(hidden_dim=16, lr=1e-2, batch_size=16, dropout=0, weight_decay=0, epochs=100, run_tag='alive', workers=1)
    run_sweep(grid, tracking_uri=fresh(tmp_path))
    times, states = zip(*told)
    shares = [state.share for state in states]
    assert len(told) >= 2 and list(times) == sorted(times) and shares == sorted(shares) and shares[-1] > shares[0]
    assert {state.status for state in states} == {'running'} and {state.total for state in states} == {1}
    assert any(state.blocks and state.blocks[0].val_rmse[0] for state in states)
    [sweep] = runs_table(connect(f'sqlite:///{tmp_path}/mlflow.db'), 'alive', 'sweep').to_dict('records')
    assert int(sweep['seen_alive']) > times[0] and sweep['status'] == 'FINISHED'  # the last note is the one of its end


def test_a_sweep_pauses_and_goes_on_when_it_is_asked_to(tmp_path):
    "Asked from another process; what was paused in its middle is what it would have been anyway."
    uri = f'sqlite:///{tmp_path}/mlflow.db'
    def state():
        return sweep_state('small', tracking_uri=uri)
    process = start(tmp_path, epochs=300)
    wait_for(tmp_path, lambda s: s.get('RUNNING', 0) >= 4, process)
    wait_until(lambda: state().share > 0, process, seconds=120)  # a worker that has told nothing yet does not hear either
    ask_sweep('pause', 'small', tracking_uri=uri)
    wait_until(lambda: state().status == 'paused', process, seconds=60)
    time.sleep(4)  # until the workers' last ticks are told
    before = statuses(tmp_path), state().share
    time.sleep(4)
    assert (statuses(tmp_path), state().share, state().status) == (*before, 'paused') and state().silent_s < 20
    ask_sweep('go on', 'small', tracking_uri=uri)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0 and '8 trained' in out and 'going on' in err, (out, err)
    assert state().status == 'over' and (state().finished, state().total) == (8, 8)
    runs = typed_runs(runs_table(connect(uri), 'small'))
    one = runs[runs.status == 'FINISHED'].iloc[0]
    grid = Grid(hidden_dim=one.hidden_dim, lr=one.lr, batch_size=one.batch_size, dropout=one.dropout, weight_decay=one.weight_decay, epochs=300,
                run_tag='again', workers=1)
    [again] = run_sweep(grid, tracking_uri=uri).runs.to_dict('records')
    assert {name: again[name] for name in FIGURES} == {name: one[name] for name in FIGURES}


def test_a_worker_stays_small_over_many_blocks():
    "Under 1.5 GB at the largest shapes of the grid, and no larger after eight blocks than after three."
    task = make_task(load_esol(), TrainConfig())
    context = mp.get_context('spawn')
    ours, theirs = context.Pipe()
    worker = context.Process(target=train_from_pipe, args=(theirs, 'cpu'), daemon=True)
    worker.start()
    ours.send({split_key(TrainConfig()): task})
    memory = []
    for batch_size in (32, 16, 32, 16, 32, 16, 32, 16):
        ours.send(Grid(hidden_dim=128, batch_size=batch_size, epochs=1).configs())
        while ours.recv()[0] != 'done':
            pass
        memory.append(psutil.Process(worker.pid).memory_info().rss)
    ours.send(None)
    worker.join(20)
    assert worker.exitcode == 0
    assert max(memory) < 1.5e9, memory
    assert memory[-1] - memory[2] < 20e6, memory


def test_workers_and_order_do_not_matter(tmp_path, undisturbed):
    grid = Grid(hidden_dim=(16, 8), lr=1e-2, batch_size=64, dropout=(.2, 0), weight_decay=(1e-4, 0), epochs=40, run_tag='other', workers=2)
    runs = run_sweep(grid, tracking_uri=fresh(tmp_path)).runs
    assert runs.set_index('config_digest')[FIGURES[1:]].sort_index().equals(undisturbed)


def test_a_diverging_run_fails_alone_and_is_not_tried_again(tmp_path):
    uri = fresh(tmp_path)
    grid = Grid(hidden_dim=8, lr=(1e-3, 1e12), batch_size=64, dropout=0, weight_decay=0, epochs=8, run_tag='wild', workers=1)
    first = run_sweep(grid, tracking_uri=uri)
    assert sorted(first.runs.status) == ['FAILED', 'FINISHED']
    assert first.failed.error.iloc[0].startswith('diverged in epoch ')
    again = run_sweep(grid, tracking_uri=uri)
    assert (again.trained, again.reused, len(again.failed)) == (0, 2, 1)


def test_what_a_run_holds(swept):
    store = connect(f'sqlite:///{swept}/mlflow.db')
    runs = runs_table(store, 'small')
    assert len(runs) == 8 and set(runs.status) == {'FINISHED'} and runs.parent.nunique() == 1
    for key in ('run_tag', 'model', 'dataset', 'split', 'config_digest', 'package_version', 'dataset_version', 'split_digest',
                'processor', 'threads', 'version.torch', 'seed', 'hidden_dim'):
        assert runs[key].notna().all(), key
    run = store.client.get_run(runs.run_id[0])
    assert not any('{' in v for v in run.data.params.values())
    assert run.inputs.dataset_inputs[0].dataset.name == 'esol'
    assert {a.path for a in store.client.list_artifacts(run.info.run_id)} == {'weights.safetensors', 'model.json', 'test_predictions.csv'}
    for key in ('train_loss', 'train_rmse', 'val_rmse', 'val_mae', 'val_r2', 'generalisation_gap'):
        assert [m.step for m in store.client.get_metric_history(run.info.run_id, key)] == list(range(1, 7)), key


def test_own_table(tmp_path):
    from bioai_esol.chem.dataset import load_table, load_esol
    load_esol().frame.head(120)[['smiles', 'log_solubility']].to_csv(tmp_path / 'mine.csv', index=False)
    uri = fresh(tmp_path)
    grid = Grid(hidden_dim=8, lr=1e-2, batch_size=32, dropout=0, weight_decay=0, epochs=3, workers=1)
    on_mine = run_sweep(grid, load_table(tmp_path / 'mine.csv'), tracking_uri=uri)
    on_esol = run_sweep(grid, tracking_uri=uri)  # same tag, other data: another configuration
    assert on_mine.runs.dataset.tolist() == ['mine'] and on_esol.runs.dataset.tolist() == ['esol']
    assert on_esol.trained == 1


def test_the_store_must_be_usable(tmp_path):
    with pytest.raises(BioaiError, match='does not exist'):
        run_sweep(Grid(), tracking_uri=f'sqlite:///{tmp_path}/none/mlflow.db')


SCRIPT = """import os
from bioai_esol.sweep.grid import Grid
from bioai_esol.sweep.runner import run_sweep
def go(): print(run_sweep(Grid(architecture='ridge', run_tag='g', workers=1)).trained, 'trained')
"""
GUARD = "if __name__ == '__main__':"


@pytest.mark.parametrize('call', ["if os.getcwd():\n    go()", 'import threading\nt = threading.Thread(target=go)\nt.start()\nt.join()'])
def test_a_script_without_a_main_guard_starts_nothing(tmp_path, call):
    (tmp_path / 'sweep.py').write_text(SCRIPT + call)
    done = subprocess.run([sys.executable, 'sweep.py'], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    last = done.stderr.splitlines()[-1]
    assert 'BioaiError' in last and GUARD in last and 'trained' not in done.stdout
    assert done.stderr.count('Traceback') == 1 and not (tmp_path / 'mlflow.db').exists()


def test_a_program_from_standard_input_starts_nothing(tmp_path):
    done = subprocess.run([sys.executable, '-'], input=f'{SCRIPT}{GUARD}\n    go()', cwd=tmp_path, capture_output=True, text=True, timeout=100)
    last = done.stderr.splitlines()[-1]
    assert 'BioaiError' in last and GUARD in last and not (tmp_path / 'mlflow.db').exists()


@pytest.mark.parametrize('how', ['-c', '-m'])
def test_programs_that_workers_can_load_train(tmp_path, how):
    fresh(tmp_path)
    (tmp_path / 'sweep.py').write_text(f'{SCRIPT}{GUARD}\n    go()\n')
    command = {'-c': ['-c', f'{SCRIPT}go()'], '-m': ['-m', 'sweep']}[how]
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and done.stdout == '1 trained\n', done.stderr


def test_trainings_wait_for_a_store_that_is_behind(tmp_path, monkeypatch):
    "Trainings of a moment end faster than their runs are written: then nobody is heard before the runs that wait are in the store."
    monkeypatch.setattr(writer, '_MAX_WAITING', 0)
    waiting = []
    hear, step = runner._Asked.hear, writer.Delivery.step
    def heard(self, news):
        waiting.append(len(self.log.kept))
        hear(self, news)
    def slow(self):
        time.sleep(.5)
        step(self)
    monkeypatch.setattr(runner._Asked, 'hear', heard)
    monkeypatch.setattr(writer.Delivery, 'step', slow)
    grid = Grid(hidden_dim=(2, 3, 4, 5, 6, 7, 8, 9), lr=(1e-3, 1e-2), batch_size=1024, dropout=0, weight_decay=0, epochs=1, workers=2)
    result = run_sweep(grid, tracking_uri=fresh(tmp_path))
    assert len(waiting) >= 8 and max(waiting) <= 2  # those of another worker that was heard at the same time
    assert len(result.runs) == 16 and set(result.runs.status) == {'FINISHED'}
