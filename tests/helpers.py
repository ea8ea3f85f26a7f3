"What tests share besides fixtures: the program, a store of their own, small sweeps, and how to wait."
import atexit
import importlib.util
import os
import re
import shutil
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = str(Path(sys.executable).with_name('bioai-esol'))
SMALL = ['--hidden-dim', '8,16', '--lr', '1e-2', '--batch-size', '64', '--dropout', '0,0.2', '--weight-decay', '0,1e-4']
EASY_OPTIONS = ['--gap-threshold', '9', '--r2-tolerance', '0.99', '--regression-tolerance', '0.5', '--allow-dirty']  # what a poor model can pass


def script(name):
    "A script of .ci/ as a module."
    spec = importlib.util.spec_from_file_location(f'ci_{name}', ROOT / f'.ci/{name}.py')
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wait_until(condition, process=None, seconds=90):
    "Until `condition()` is true; a process that ends meanwhile, or `seconds` of waiting, fail the test."
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, 'the process ended before'
        assert time.monotonic() < end, f'not within {seconds} s'
        time.sleep(0.1)


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


def sweep_here(uri, run_tag, epochs=1, hidden_dim=8, seed=42, dataset=None, **settings):
    "A sweep of one run as `run_sweep` writes it, on ESOL or another `dataset`, trained in this process: no worker has to import PyTorch for it."
    from bioai_esol.chem.dataset import load_esol
    from bioai_esol.sweep.grid import Grid
    from bioai_esol.training.lineage import lineage
    from bioai_esol.store.client import connect
    from bioai_esol.store.writer import Writer
    from bioai_esol.training.engine import make_task, train
    grid = Grid(hidden_dim=hidden_dim, lr=1e-2, batch_size=128, dropout=0, weight_decay=0, epochs=epochs, seed=seed, run_tag=run_tag,
                **settings)
    [config], store = grid.configs(), connect(uri, create=True)
    task = make_task(dataset or load_esol(), config)
    tags = dict(run_tag=run_tag, kind='run') | lineage(task.dataset, task.split)
    parent = store.client.create_run(store.experiment_id, tags=tags | dict(kind='sweep'), run_name=f'sweep {run_tag}').info.run_id
    writer = Writer(store, task, tags, parent)
    writer.close(writer.open(writer.draft(config)), train([config], task)[0])
    store.client.set_terminated(parent, 'FINISHED')
    return store


def readdress(folder, before):
    "Give a store that lies in `folder` the addresses of that folder: MLflow keeps absolute ones."
    with sqlite3.connect(Path(folder) / 'mlflow.db') as db:
        for place in ('experiments.artifact_location', 'runs.artifact_uri', 'model_versions.source', 'model_versions.storage_location'):
            table, column = place.split('.')
            db.execute(f'update {table} set {column} = replace({column}, ?, ?)', (str(before), str(folder)))
    db.close()


def copied(source, folder):
    "A copy of a store, with addresses of its own. MLflow also remembers addresses for each run id as long as a process lives."
    from mlflow.tracking._tracking_service.client import utils
    utils._artifact_repos_cache.clear()
    shutil.copytree(source, folder, dirs_exist_ok=True)
    readdress(folder, source)
    return uri_of(folder)


def words_of(page):
    "A report without its pictures and without the program that draws its charts: what we wrote, and the data."
    return re.sub(r'base64,[^"]*', '', re.sub(r'<script>.*?</script>', '', page, flags=re.S))
