"What tests share: a store of their own, small sweeps, and the program as a process."
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = str(Path(sys.executable).with_name('bioai-esol'))
SMALL = ['--hidden-dim', '8,16', '--lr', '1e-2', '--batch-size', '64', '--dropout', '0,0.2', '--weight-decay', '0,1e-4']


@pytest.fixture(autouse=True)
def _no_store_from_outside(monkeypatch):
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)


@pytest.fixture
def program(tmp_path):
    "`bioai-esol` as a process in a directory of its own: program('status') -> CompletedProcess."
    def run(*args, cwd=tmp_path, timeout=300, env=None):
        command = [PROGRAM, *map(str, args)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, env=dict(os.environ, COLUMNS='140', **(env or {})))
    return run


@pytest.fixture(scope='session')
def swept(tmp_path_factory):
    "A working directory with a finished small sweep of eight runs; copy it before changing it."
    folder = tmp_path_factory.mktemp('swept')
    command = [PROGRAM, 'sweep', *SMALL, '--epochs', '6', '--run-tag', 'small', '--workers', '2']
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder
