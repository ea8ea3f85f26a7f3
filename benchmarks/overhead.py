"""What a configuration costs the process that hands out the work: ours, Optuna's and Ray Tune's, CPU milliseconds.

    python benchmarks/overhead.py                                    # ours and Optuna's
    python benchmarks/overhead.py --ray ray-env/bin/python           # Ray Tune beside them, from an environment with 'ray[tune]'
    python benchmarks/overhead.py --output benchmarks/overhead.md    # written there

Ours are networks of two units that two workers train for one epoch; of the parent's time, the part that MLflow takes to write
their rows and the part that the files of a run take are told apart from the rest. Optuna and Ray Tune minimise (x - 1)²: Optuna
in one process, with its trials in memory and in SQLite, Ray in two actors that are used again, with its own files. The cost of a
configuration is the difference of a large and a small sweep, so that nobody pays for starting.
"""
import argparse
import functools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from md_table import table

SMALL, LARGE = 20, 320  # configurations


class Spent:
    "CPU seconds of this thread by kind of work; of what calls another kind, the outermost counts."
    def __init__(self):
        self.seconds = {}
        self.inside = False

    def of(self, kind, function):
        @functools.wraps(function)
        def timed(*args, **kwargs):
            if self.inside: return function(*args, **kwargs)
            self.inside, start = True, time.thread_time()
            try: return function(*args, **kwargs)
            finally:
                self.inside = False
                self.seconds[kind] = self.seconds.get(kind, 0.) + time.thread_time() - start
        return timed


CALLS = ('create_run', 'log_batch', 'log_inputs', 'log_artifacts', 'set_terminated', 'search_runs', 'get_run', 'set_tag')


def ours():
    "Milliseconds of the parent per configuration, by kind of work."
    from mlflow import MlflowClient

    import bioai_esol as esol
    from bioai_esol.store import outbox
    spent = Spent()
    for name in CALLS: setattr(MlflowClient, name, spent.of('rows, written by MLflow', getattr(MlflowClient, name)))
    files = 'files of a run: weights, what they belong to, predictions'
    for name in ('_write_entry', '_read_entry'): setattr(outbox, name, spent.of(files, getattr(outbox, name)))
    outbox.shutil.rmtree = spent.of(files, outbox.shutil.rmtree)
    uri = f'sqlite:///{tempfile.mkdtemp()}/mlflow.db'

    def sweep(n):
        grid = esol.Grid(hidden_dim=2, lr=tuple(1e-3 + 1e-6 * i for i in range(n)), batch_size=1024, dropout=0, weight_decay=0, epochs=1,
                         run_tag=f'of-{n}', workers=2)
        spent.seconds.clear()
        start = time.thread_time()
        esol.run_sweep(grid, tracking_uri=uri)
        total = time.thread_time() - start
        return spent.seconds | {'everything else': total - sum(spent.seconds.values())}
    sweep(1)
    few, many = sweep(SMALL), sweep(LARGE)
    return {kind: 1e3 * (many[kind] - few[kind]) / (LARGE - SMALL) for kind in many}


def optuna_ms(storage):
    import optuna
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def study(n):
        where = f'sqlite:///{tempfile.mkdtemp()}/optuna.db' if storage else None
        start = time.process_time()
        study = optuna.create_study(storage=where, sampler=optuna.samplers.RandomSampler(seed=0))
        study.optimize(lambda trial: (trial.suggest_float('x', 0, 2) - 1)**2, n_trials=n)
        return time.process_time() - start
    study(1)
    few = study(SMALL)
    return 1e3 * (study(LARGE) - few) / (LARGE - SMALL)


RAY = f'''
import os, tempfile, time
os.environ |= dict(RAY_USAGE_STATS_ENABLED='0', RAY_AIR_NEW_OUTPUT='0')
import ray
from ray import tune
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level='ERROR')
def objective(config): tune.report(dict(loss=(config['x'] - 1)**2))
def run(n):
    start = time.process_time()
    where = tune.RunConfig(storage_path=tempfile.mkdtemp(), verbose=0)
    space, again = dict(x=tune.grid_search([i / n for i in range(n)])), tune.TuneConfig(reuse_actors=True)
    found = tune.Tuner(objective, param_space=space, tune_config=again, run_config=where).fit()
    assert len(found) == n and not found.num_errors
    return time.process_time() - start
run(1)
few = run({SMALL})
print('milliseconds', 1e3 * (run({LARGE}) - few) / ({LARGE} - {SMALL}), ray.__version__)
'''


def ray_ms(python):
    done = subprocess.run([python, '-c', RAY], capture_output=True, text=True, timeout=1800)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith('milliseconds')]
    if not lines: sys.exit(f'Ray Tune failed: {done.stderr[-2000:]}')
    return float(lines[0][1]), lines[0][2]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--ray', metavar='PYTHON', help="of an environment with 'ray[tune]'")
    parser.add_argument('--output', type=Path, metavar='FILE', help='write the table there instead of printing it')
    args = parser.parse_args()
    import optuna
    from importlib.metadata import version
    parts = ours()
    rows = [['bioai-esol, with MLflow in SQLite', 'all', f'{sum(parts.values()):.1f}'], *(['', kind, f'{ms:.1f}'] for kind, ms in parts.items())]
    rows += [[f'Optuna {optuna.__version__}', kept, f'{optuna_ms(kept == "in SQLite"):.1f}'] for kept in ('in memory', 'in SQLite')]
    if args.ray:
        ms, its_version = ray_ms(args.ray)
        rows.append([f'Ray Tune {its_version}', 'the driver, in files', f'{ms:.1f}'])
    origin = f'The difference between sweeps of {LARGE} and of {SMALL} configurations; MLflow {version("mlflow")}.'
    text = f"{table(['', 'part', 'CPU ms per configuration'], rows)}\n\n{origin}\n"
    if args.output: args.output.write_text(text)
    else: print(text)


if __name__ == '__main__': main()
