"Importing the package changes nothing in a process; a store that is opened makes the settings, and the user's own win."
import os
import subprocess
import sys

import pytest

SETTINGS = {'MLFLOW_HTTP_REQUEST_MAX_RETRIES': '1', 'MLFLOW_HTTP_REQUEST_TIMEOUT': '12', 'MLFLOW_DISABLE_TELEMETRY': 'true',
            'MLFLOW_LOGGING_LEVEL': 'WARNING', 'AWS_MAX_ATTEMPTS': '2'}


def python(code, **own):
    "What a fresh process prints that has none of these variables but `own`."
    env = {k: v for k, v in os.environ.items() if not k.startswith(('MLFLOW_', 'AWS_'))} | own
    return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize('module', ['client', 'doctor', 'outbox', 'writer', 'runs', 'tracking_server', 'migration'])
def test_importing_changes_nothing(module):
    shown = "print(*sorted(k for k in os.environ if k.startswith(('MLFLOW_', 'AWS_'))), *(m for m in ('mlflow', 'boto3') if m in sys.modules))"
    levels = "print(*(logging.getLogger(n).level for n in ('mlflow', 'alembic', 'mlflow.store.db.utils')))"
    assert python(f'import logging, os, sys, bioai_esol.store.{module}; {shown}; {levels}') == ['0', '0', '0']


def test_opening_a_store_makes_the_settings_and_the_users_win(tmp_path):
    code = (f"import logging, os; from bioai_esol.store.client import connect; connect('sqlite:///{tmp_path}/mlflow.db', create=True); "
            f"print(*(os.environ[k] for k in {list(SETTINGS)}), *(logging.getLogger(n).level for n in ('mlflow', 'alembic')))")
    assert python(code) == [*SETTINGS.values(), '30', '30']
    own = dict(MLFLOW_HTTP_REQUEST_TIMEOUT='60', MLFLOW_LOGGING_LEVEL='ERROR')
    assert python(code, **own) == [*(SETTINGS | own).values(), '40', '40']
