"A project may lie in a folder of any name: what it writes goes there, and never to a neighbour whose name looks like its own in an address."
import os
import subprocess

import pytest
from helpers import PROGRAM, sweep_here
from stores import free_port, mlflow_server, process

from bioai_esol.registry.promotion import promote
from bioai_esol.serving.predictor import load_champion
from bioai_esol.store.client import connect, sqlite_uri
from bioai_esol.store.runs import load_runs
from quick import EASY

pytestmark = pytest.mark.usefixtures('quick')
NAMES = ['a?b 30%ACN', 'v%20x', "Lösung it's+;#1"]
NEIGHBOURS = ['v x', 'a', 'v%2520x']


@pytest.fixture
def folder(request, tmp_path):
    for name in {*NAMES, *NEIGHBOURS} - {'a'}:
        (tmp_path / name).mkdir()
    yield tmp_path / request.param
    written = [p for p in tmp_path.rglob('*.db') if tmp_path / request.param not in p.parents]
    assert not written and {p.name for p in tmp_path.iterdir()} == {*NAMES, *NEIGHBOURS} - {'a'}, written


@pytest.mark.parametrize('folder', NAMES, indirect=True)
def test_everything_stays_in_the_folder(folder, here):
    "A sweep, a promotion, a copy, and what is said of them; addresses are given by nobody, relative to the folder, or as a whole path."
    assert 'no tracking store' in here('status', cwd=folder).stderr
    sweep_here(f'sqlite:///{folder}/mlflow.db', 'r', 1)
    assert 'no version is registered yet' in here('status', cwd=folder).stdout
    assert promote('r', EASY, tracking_uri=f'sqlite:///{folder}/mlflow.db').champion == '1'
    assert (folder / 'mlflow.db').exists() and len(list(folder.glob('mlartifacts/*/artifacts/weights.safetensors'))) == 2
    for command in (['doctor'], ['status', '--tracking-uri', f'sqlite:///{folder}/mlflow.db'], ['predict', 'CCO']):
        done = here(*command, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    for source, target in (('sqlite:///mlflow.db', 'sqlite:///copy.db'), (f'sqlite:///{folder}/copy.db', f'sqlite:///{folder}/again.db')):
        done = here('migrate', '--from', source, '--to', target, cwd=folder)
        assert done.returncode == 0, done.stderr
    assert len(load_runs('r', tracking_uri=f'sqlite:///{folder}/again.db')) == 1
    assert here('migrate', '--from', 'sqlite:///mlflow.db', '--to', f'sqlite:///{folder}/mlflow.db', cwd=folder).stderr.count('same database') == 1


@pytest.mark.parametrize('folder', NAMES[:2], indirect=True)
def test_servers_in_the_folder(folder):
    "An MLflow server with accounts keeps everything beside its database; the champion is served from there."
    uri = sqlite_uri(folder / 'mlflow.db')
    connect(uri, create=True)
    password = 'a-password-of-the-tests'
    env = dict(MLFLOW_AUTH_ADMIN_PASSWORD=password)
    with mlflow_server(folder, '--backend', f'sqlite:///{folder}/mlflow.db', '--auth', env=env) as server:
        with_account = server.url.replace('//', f'//admin:{password}@')
        connect(with_account)
        assert (folder / '.mlflow-auth' / 'accounts.db').exists()
    sweep_here(uri, 'r', 1)
    assert promote('r', EASY, tracking_uri=uri).champion == '1'
    port, log = free_port(), folder / 'serve.log'
    with process([PROGRAM, 'serve', '--port', port], log, lambda: 'Ctrl-C stops it' in log.read_text(), cwd=folder):
        body = '{"dataframe_split": {"columns": ["smiles"], "data": [["CCO"]]}}'
        command = ['curl', '-s', '-H', 'Content-Type: application/json', '-d', body, f'http://127.0.0.1:{port}/invocations']
        said = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=60).stdout
    expected = load_champion(tracking_uri=uri).predict('CCO').log_solubility[0]
    assert f'"log_solubility": {expected}'[:25] in said, said


@pytest.mark.parametrize('folder', NAMES[:1], indirect=True)
def test_a_sweep_over_a_server_in_the_folder(folder):
    "Artifacts that the server writes lie beside its database, too."
    with mlflow_server(folder) as server:
        sweep_here(server.url, 'r', 1)
        assert promote('r', EASY, tracking_uri=server.url).champion == '1'
    assert len(list(folder.glob('mlartifacts/**/weights.safetensors'))) >= 2
