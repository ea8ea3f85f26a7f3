"The rooms stand in order, and heavy things are imported only where they belong."
import ast
import subprocess
import sys

import pytest
from conftest import ROOT

ORDER = ['data', 'split', 'descriptors', 'features', 'bonds', 'metrics', 'model', 'residual', 'dmpnn', 'regressors', 'architectures', 'intervals',
         'configuration', 'optimiser', 'training', 'lineage', 'store', 'doctor', 'outbox', 'tracking', 'frames', 'grid', 'sweep', 'ensemble',
         'analysis', 'figures', 'molecules', 'policy', 'journal', 'registry', 'promotion', 'serving', 'explanation', 'monitoring', 'chronicle',
         'explorer', 'report', 'server', 'migration', 'endpoint', 'benchmark', 'arguments', 'cli']
MAY_USE_MLFLOW = {'store', 'doctor', 'outbox', 'tracking', 'journal', 'registry', 'promotion', 'serving', 'migration'}
MODULES = sorted(p for p in (ROOT / 'bioai_esol').glob('*.py') if p.stem not in ('__init__', '_modidx'))


def imported(path):
    "Every module a file imports, at the top or inside a function."
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f'bioai_esol.{node.module}' if node.level else node.module


def test_every_module_has_a_place():
    assert {p.stem for p in MODULES} <= set(ORDER)
    assert len(MODULES) >= 15
    assert {'bioai_esol.training', 'torch'} <= set(imported(ROOT / 'bioai_esol/sweep.py'))  # relative imports are seen too


@pytest.mark.parametrize('path', MODULES, ids=lambda p: p.stem)
def test_imports_only_from_above(path):
    ours = {name.split('.')[1] for name in imported(path) if name.startswith('bioai_esol.')}
    below = {m for m in ours if ORDER.index(m) >= ORDER.index(path.stem)}
    assert not below, f'{path.stem} imports {below}, which stand below it'


@pytest.mark.parametrize('path', MODULES, ids=lambda p: p.stem)
def test_mlflow_only_where_it_belongs(path):
    uses = any(name.split('.')[0] == 'mlflow' for name in imported(path))
    assert not uses or path.stem in MAY_USE_MLFLOW


@pytest.mark.parametrize('path', MODULES, ids=lambda p: p.stem)
def test_only_the_journal_writes_to_the_registry(path):
    "Every alias, version and tag is announced before it is written; whoever writes past the journal breaks that."
    text = path.read_text()
    for call in ('set_registered_model_alias', 'delete_registered_model', 'create_registered_model', 'create_model_version',
                 'set_model_version_tag', 'delete_model_version', 'set_registered_model_tag'):
        assert call not in text or path.stem == 'journal', f'{path.stem} calls {call}'


@pytest.mark.parametrize('path', MODULES, ids=lambda p: p.stem)
def test_no_development_tools_at_run_time(path):
    assert not {name.split('.')[0] for name in imported(path)} & {'fastcore', 'nbdev', 'IPython', 'pytest', 'playwright', 'hypothesis'}


@pytest.mark.parametrize('code', ['import bioai_esol', 'import bioai_esol.cli, bioai_esol.arguments; bioai_esol.arguments.make_parser()'])
def test_nothing_heavy_at_import(code):
    show = f"{code}; import sys; print(*{{m.split('.')[0] for m in sys.modules}} & {{'torch', 'mlflow', 'rdkit', 'pandas', 'numpy', 'matplotlib'}})"
    assert subprocess.run([sys.executable, '-c', show], capture_output=True, text=True, check=True).stdout.strip() == ''


def test_what_is_wrong_is_said_before_mlflow_is_imported():
    "`server` and `doctor` check ports, databases and buckets within seconds; importing MLflow takes as long as all of that."
    show = "import bioai_esol.server, bioai_esol.doctor, sys; print(*{'mlflow', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, '-c', show], capture_output=True, text=True, check=True).stdout.strip() == ''


def test_the_worker_needs_neither_mlflow_nor_pyg():
    show = "import bioai_esol.training, sys; print(*{'mlflow', 'torch_geometric'} & set(sys.modules))"
    assert subprocess.run([sys.executable, '-c', show], capture_output=True, text=True, check=True).stdout.strip() == ''


def test_requirements_are_listed_once():
    import configparser
    import tomllib
    ini = configparser.ConfigParser(interpolation=None)
    ini.read(ROOT / 'settings.ini')
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    assert sorted(ini['DEFAULT']['requirements'].split()) == sorted(project['dependencies'])
    assert sorted(ini['DEFAULT']['dev_requirements'].split()) == sorted(project['optional-dependencies']['dev'])
    name, target = ini['DEFAULT']['console_scripts'].split('=')
    assert project['scripts'] == {name: target}


def test_every_requirement_is_pinned():
    import re
    import tomllib
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    def key(text): return re.split(r'[<>=!~\[;@ ]', text)[0].lower().replace('_', '-')
    pins = {key(line) for line in (ROOT / 'constraints.txt').read_text().splitlines() if '==' in line}
    missing = {key(r) for r in project['dependencies'] + project['optional-dependencies']['dev']} - pins
    assert not missing
