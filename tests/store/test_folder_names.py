"A project may lie in a folder of any name: what it writes goes there, and never to a neighbour whose name looks like its own in an address."
import pytest
from helpers import sweep_here

from bioai_esol.registry.promotion import promote
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
    written = [p for p in tmp_path.rglob('*.db') if p.parent != tmp_path / request.param]
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
