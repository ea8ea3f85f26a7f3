"What tests share: a store of their own, small sweeps, and the program as a process."
import atexit
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

pytest_plugins = ['browser']  # `page` and `new_page`
for _name in ('MLFLOW_TRACKING_URI', 'MPLBACKEND'):  # of whoever runs the tests: no store from outside, no window
    os.environ.pop(_name, None)
ROOT = Path(__file__).resolve().parent.parent
PROGRAM = str(Path(sys.executable).with_name('bioai-esol'))
SMALL = ['--hidden-dim', '8,16', '--lr', '1e-2', '--batch-size', '64', '--dropout', '0,0.2', '--weight-decay', '0,1e-4']


@pytest.fixture(scope='session', autouse=True)
def _kept_runs_elsewhere(tmp_path_factory):
    os.environ['XDG_STATE_HOME'] = str(tmp_path_factory.mktemp('state'))


@pytest.fixture
def program(tmp_path):
    "`bioai-esol` as a process in a directory of its own: program('status') -> CompletedProcess."
    def run(*args, cwd=tmp_path, timeout=300, env=None):
        command = [PROGRAM, *map(str, args)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, env=dict(os.environ, COLUMNS='140', **(env or {})))
    return run


@pytest.fixture
def here(tmp_path, monkeypatch, capfd):
    "The same as `program` without a process of its own, for the many that only ask what is said: importing MLflow and PyTorch takes seconds."
    def run(*args, cwd=tmp_path):
        from bioai_esol.cli.commands import main
        monkeypatch.setenv('COLUMNS', '140')
        monkeypatch.chdir(cwd)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            code = main([str(a) for a in args])
        except SystemExit as e:
            code = e.code
        finally:
            signal.signal(signal.SIGTERM, handler)
        return subprocess.CompletedProcess(args, code, *capfd.readouterr())
    run.folder = tmp_path
    return run


@pytest.fixture(scope='session')
def swept(tmp_path_factory):
    "A working directory with a finished small sweep of eight runs; copy it before changing it."
    folder = tmp_path_factory.mktemp('swept')
    fresh(folder)
    command = [PROGRAM, 'sweep', *SMALL, '--epochs', '6', '--run-tag', 'small', '--workers', '2']
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def uri_of(folder):
    return f'sqlite:///{folder}/mlflow.db'


def fresh(folder):
    "An embedded store with MLflow's tables and nothing in them. Making them takes seconds, so all workers of a test run share one original."
    from bioai_esol.store.client import Client
    original = Path(tempfile.gettempdir()) / f"bioai-tables-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}.db"
    with FileLock(f'{original}.lock'):
        if not original.exists():
            with tempfile.TemporaryDirectory() as making:
                Client(uri_of(making)).search_experiments()
                with sqlite3.connect(Path(making) / 'mlflow.db') as db:
                    db.execute('delete from experiments')  # the first one keeps its artifacts where the tables were made
                db.close()
                shutil.move(Path(making) / 'mlflow.db', original)
            atexit.register(original.unlink, missing_ok=True)
    shutil.copy(original, Path(folder) / 'mlflow.db')
    return uri_of(folder)


def sweep_here(uri, run_tag, epochs, hidden_dim=8, seed=42):
    "A sweep of one run as `run_sweep` writes it, trained in this process: no worker has to import PyTorch for it."
    from bioai_esol.chem.dataset import load_esol
    from bioai_esol.sweep.grid import Grid
    from bioai_esol.training.lineage import lineage
    from bioai_esol.store.client import connect
    from bioai_esol.store.writer import Writer
    from bioai_esol.training.engine import make_task, train
    grid = Grid(hidden_dim=hidden_dim, lr=1e-2, batch_size=128, dropout=0, weight_decay=0, epochs=epochs, seed=seed, run_tag=run_tag)
    [config], store = grid.configs(), connect(uri, create=True)
    task = make_task(load_esol(), config)
    tags = dict(run_tag=run_tag, kind='run') | lineage(task)
    parent = store.client.create_run(store.experiment_id, tags=tags | dict(kind='sweep'), run_name=f'sweep {run_tag}').info.run_id
    writer = Writer(store, task, tags, parent)
    writer.close(writer.open(writer.draft(config)), train([config], task)[0])
    store.client.set_terminated(parent, 'FINISHED')
    return store


@pytest.fixture(scope='session')
def template(tmp_path_factory):
    "A store with three sweeps of one run each, `a` worse than `b` worse than `c`; take it with `copied`."
    folder = tmp_path_factory.mktemp('template')
    fresh(folder)
    for tag, epochs in (('a', 1), ('b', 8), ('c', 40)):
        sweep_here(uri_of(folder), tag, epochs)
    return folder


def copied(source, folder):
    "A store moved elsewhere: MLflow keeps absolute addresses of artifacts, and remembers them for each run id as long as a process lives."
    from mlflow.tracking._tracking_service.client import utils
    utils._artifact_repos_cache.clear()
    shutil.copytree(source, folder, dirs_exist_ok=True)
    with sqlite3.connect(Path(folder) / 'mlflow.db') as db:
        for place in ('experiments.artifact_location', 'runs.artifact_uri', 'model_versions.source', 'model_versions.storage_location'):
            table, column = place.split('.')
            db.execute(f'update {table} set {column} = replace({column}, ?, ?)', (str(source), str(folder)))
    db.close()
    return uri_of(folder)


@pytest.fixture(scope='module')
def quick():
    "See quick.py: promotions that pack the table once, from a clean code version."
    import quick
    with pytest.MonkeyPatch.context() as patch:
        quick.install(patch.setattr)
        yield


@pytest.fixture
def faulty(monkeypatch):
    "A store that goes away when it is told to: `quick.blow_after`."
    import quick
    monkeypatch.setattr('mlflow.MlflowClient', quick.Faulty)
    yield quick.Faulty
    quick.blow_after(None)
