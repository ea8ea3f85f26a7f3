"Fixtures that tests share: the program as a process, a store with a small sweep, and a store that goes away."
import os
import signal
import subprocess

import pytest
from helpers import PROGRAM, SMALL, copied, fresh, sweep_here, uri_of

pytest_plugins = ['browser']  # `page` and `new_page`
for _name in ('MLFLOW_TRACKING_URI', 'MPLBACKEND'):  # of whoever runs the tests: no store from outside, no window
    os.environ.pop(_name, None)


@pytest.fixture(scope='session', autouse=True)
def _kept_runs_elsewhere(tmp_path_factory):
    os.environ['XDG_STATE_HOME'] = str(tmp_path_factory.mktemp('state'))


@pytest.fixture(autouse=True)
def _no_store_left_behind():
    "`mlflow.set_tracking_uri` also sets a variable of the environment, which every later process of this worker would follow."
    yield
    assert 'MLFLOW_TRACKING_URI' not in os.environ, 'the test leaves the address of its store to the tests after it'


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


@pytest.fixture(scope='session')
def template(tmp_path_factory):
    "A store with three sweeps of one run each, `a` worse than `b` worse than `c`; take it with `copied`."
    folder = tmp_path_factory.mktemp('template')
    fresh(folder)
    for tag, epochs in (('a', 1), ('b', 8), ('c', 40)):
        sweep_here(uri_of(folder), tag, epochs)
    return folder


@pytest.fixture(scope='module')
def quick():
    "See quick.py: promotions that pack the table once, from a clean code version."
    import quick
    with pytest.MonkeyPatch.context() as patch:
        quick.install(patch.setattr)
        yield


@pytest.fixture(scope='module')
def with_champion(template, quick, tmp_path_factory):
    "A working directory with one champion, a network of one epoch."
    from quick import EASY

    from bioai_esol.registry.promotion import promote
    folder = tmp_path_factory.mktemp('champion')
    assert promote('a', EASY, tracking_uri=copied(template, folder)).champion == '1'
    return folder


@pytest.fixture
def faulty(monkeypatch):
    "A store that goes away when it is told to: `quick.blow_after`."
    import quick
    monkeypatch.setattr('mlflow.MlflowClient', quick.Faulty)
    yield quick.Faulty
    quick.blow_after(None)
