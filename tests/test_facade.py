"`import bioai_esol as esol`: some forty names, imported when they are first used, described where Shift+Tab looks."
import ast
import doctest
import inspect
import re
import subprocess
import sys

import pytest
from helpers import ROOT, copied
from quick import EASY

import bioai_esol as esol

SECTIONS = ('Parameters', 'Returns', 'Raises', 'Examples')


def test_every_name_is_there_and_listed():
    assert 25 <= len(esol.__all__) <= 42
    for name in esol.__all__:
        assert getattr(esol, name).__name__ == name
    assert set(esol.__all__) <= set(dir(esol))
    with pytest.raises(AttributeError, match="no attribute 'promoted'"):
        getattr(esol, 'promoted')  # noqa: B009


def test_an_earlier_name_still_works():
    from bioai_esol.sweep.grid import Repeats
    assert esol.load_csv is esol.load_table and esol.Repeats is Repeats and not {'load_csv', 'Repeats'} & set(dir(esol))


def test_editors_see_the_same_names():
    "What stands under TYPE_CHECKING is what `__getattr__` finds: the same names from the same modules."
    tree = ast.parse((ROOT / 'bioai_esol/__init__.py').read_text())
    [block] = [n for n in tree.body if isinstance(n, ast.If)]
    seen = {a.asname: node.module for node in block.body for a in node.names}
    assert seen == esol._HOME
    assert (ROOT / 'bioai_esol/py.typed').exists()


def test_a_name_imports_only_what_it_needs():
    show = "import bioai_esol as esol, sys; esol.Policy; print(*sorted({'torch', 'mlflow', 'rdkit', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, '-c', show], capture_output=True, text=True, check=True).stdout.split() == []


@pytest.mark.parametrize('name, package', [('PolicyExplorer', 'ipywidgets'), ('LiveSweep', 'anywidget'), ('RunBrowser', 'itables')])
def test_without_the_extra_lab_it_says_how_to_get_it(name, package):
    show = f"import sys; sys.modules['{package}'] = None; import bioai_esol as esol; esol.{name}"
    done = subprocess.run([sys.executable, '-c', show], capture_output=True, text=True)
    assert done.stderr.endswith(f"ImportError: {name} needs {package}, of the extra `lab`: pip install 'bioai-esol[lab]'\n")


@pytest.mark.parametrize('name', sorted(set(esol.__all__) - {'SolubilityModel'}))
def test_shift_tab_is_worth_reading(name):
    "A first line, what goes in with its meaning, what comes out, and an example."
    thing = getattr(esol, name)
    text = inspect.getdoc(thing)
    assert len(text.splitlines()[0]) < 120
    parameters = [p for p in inspect.signature(thing).parameters if p != 'self']
    described = '\n'.join(inspect.getdoc(c) or '' for c in (inspect.getmro(thing) if inspect.isclass(thing) else [thing]))  # fields are inherited
    assert not parameters or 'Parameters\n----------' in text
    for p in parameters:
        assert re.search(rf'^(?:\w+, )*(?:\*\*)?{p}(?:, \w+)*(?: : |$)', described, re.M), f'{name} does not say what {p} is'
    assert inspect.isclass(thing) or 'Returns\n-------' in text
    assert 'Examples\n--------' in text and '>>> import bioai_esol as esol' in text
    assert 'FieldInfo' not in str(inspect.signature(thing)) and 'Validator' not in str(inspect.signature(thing))


@pytest.mark.parametrize('name', [n for n in esol.__all__ if callable(getattr(esol, n)) and 'tracking_uri' in inspect.signature(getattr(esol, n)).parameters])
def test_the_store_is_named_by_keyword(name):
    assert inspect.signature(getattr(esol, name)).parameters['tracking_uri'].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.fixture(scope='module')
def example_store(template, quick, tmp_path_factory):
    "The store in which the examples of docstrings run: a sweep `try1` of four runs, and two versions that were champion."
    folder = tmp_path_factory.mktemp('examples')
    uri = copied(template, folder)
    esol.promote('a', EASY, tracking_uri=uri)
    esol.promote('b', EASY, tracking_uri=uri)
    esol.run_sweep(esol.Grid(hidden_dim=8, lr=1e-2, batch_size=128, dropout=(0, .2), weight_decay=(0, 1e-4), epochs=3, run_tag='try1'), tracking_uri=uri)
    return folder


@pytest.mark.parametrize('name', sorted(set(esol.__all__) - {'SolubilityModel'}))
def test_examples_run(name, example_store, tmp_path, monkeypatch):
    uri = copied(example_store, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MLFLOW_TRACKING_URI', uri)
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(getattr(esol, name)))
    assert examples
    space = {}
    for example in examples:
        exec(compile(example.source, f'<example of {name}>', 'single'), space)


@pytest.mark.parametrize('name', ['leaderboard', 'effects', 'stability', 'advice', 'explore', 'RunBrowser', 'PolicyExplorer'])
def test_a_run_tag_in_the_place_of_its_runs_is_one_line(name):
    from bioai_esol.errors import BioaiError
    with pytest.raises(BioaiError, match=r"'try1' is a run tag, and its runs are wanted: esol.load_runs\('try1'\)"):
        getattr(esol, name)('try1')
