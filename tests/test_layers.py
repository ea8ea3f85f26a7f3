"The wings stand in order, each thing has one writer, and heavy libraries are imported only where they belong."
import ast
import json
import subprocess
import sys

import pytest
from helpers import ROOT

WINGS = dict(
    chem='molecules tables columns dataset split descriptors graphs bond_graphs domain census',
    stats='metrics conformal eprocess',
    models='kaxis gcn residual_gcn dmpnn pretrained regressors architectures fitted',
    training='config optimiser engine worker lineage',
    store='client doctor outbox writer runs notes live tracking_server migration',
    sweep='grid crew cluster runner ensemble race',
    registry='policy journal versions promotion',
    serving='attribution batch predictor comparison requests endpoint workers following service',
    monitoring='observations questions watch follow',
    analysis='effects importance figures page vega interactive chart run_browser live_sweep error_analysis '
             'timeline advice explorer sweep_comparison watching report look',
    benchmark='splits boards',
    cli='parser commands')
ORDER = ['errors', *(f'{wing}.{module}' for wing, modules in WINGS.items() for module in modules.split())]
MAY_USE_MLFLOW = {'store', 'registry', 'serving'}
PACKAGE = ROOT / 'bioai_esol'


def name_of(path):
    return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)


MODULES = sorted(p for p in PACKAGE.rglob('*.py') if p.name not in ('__init__.py', '_modidx.py'))
KNOWN = {name_of(p) for p in MODULES}


def imported(path):
    "Every module that a file imports, at the top or inside a function, by its whole name; `from package import module` gives the module."
    package = ['bioai_esol', *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            module = '.'.join([*base, *(node.module or '').split('.')]).strip('.')
            parts = [f'{module}.{a.name}' for a in node.names]
            inside = [p for p in parts if p.removeprefix('bioai_esol.') in KNOWN]
            yield from inside or [module]


def ours(path):
    return {name.removeprefix('bioai_esol.') for name in imported(path) if name.startswith('bioai_esol.')}


def test_every_module_has_a_place():
    assert KNOWN == set(ORDER)


def test_the_architecture_page_says_the_same():
    "The order of the wings as the page shows it, and a paragraph for each."
    cells = json.loads((ROOT / 'nbs/architecture.ipynb').read_text(encoding='utf-8'))['cells']
    text = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    assert ' → '.join(['errors', *WINGS]) in text
    assert [wing for wing in ['errors', *WINGS] if f'**{wing}** ' not in text] == []


def test_imports_are_seen_in_every_form(tmp_path):
    assert {'training.worker', 'training.config'} <= ours(PACKAGE / 'sweep/runner.py')
    assert 'registry.versions' in ours(PACKAGE / 'cli/commands.py')  # `from bioai_esol.registry import versions`
    assert 'torch' in set(imported(PACKAGE / 'training/engine.py'))


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_imports_only_from_above(path):
    below = {m for m in ours(path) if ORDER.index(m) >= ORDER.index(name_of(path))}
    assert not below, f'{name_of(path)} imports {below}, which stand below it'


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_mlflow_only_where_it_belongs(path):
    uses = any(name.split('.')[0] == 'mlflow' for name in imported(path))
    assert not uses or name_of(path).split('.')[0] in MAY_USE_MLFLOW


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_only_the_journal_writes_to_the_registry(path):
    "Every alias, version and tag is announced before it is written; whoever writes past the journal breaks that."
    text = path.read_text()
    for call in ('set_registered_model_alias', 'delete_registered_model', 'create_registered_model', 'create_model_version',
                 'set_model_version_tag', 'delete_model_version', 'set_registered_model_tag'):
        assert call not in text or name_of(path) == 'registry.journal', f'{name_of(path)} calls {call}'


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_no_private_name_of_another_module(path):
    taken = [a.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) for a in node.names
             if a.name.startswith('_') and (node.level or (node.module or '').startswith('bioai_esol'))]
    assert not taken


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_no_development_tools_at_run_time(path):
    assert not {name.split('.')[0] for name in imported(path)} & {'fastcore', 'nbdev', 'IPython', 'pytest', 'playwright', 'hypothesis'}


def loaded_by(code, *heavy):
    show = f"{code}; import sys; print(*sorted({{m.split('.')[0] for m in sys.modules}} & {set(heavy)!r}))"
    return subprocess.run([sys.executable, '-c', show], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize('code', [
    'import bioai_esol; dir(bioai_esol)',
    'import bioai_esol.cli.commands, bioai_esol.cli.parser; bioai_esol.cli.parser.make_parser()'])
def test_nothing_heavy_at_import(code):
    assert loaded_by(code, 'torch', 'mlflow', 'rdkit', 'pandas', 'numpy', 'matplotlib', 'pydantic') == []


def test_what_is_wrong_is_said_before_mlflow_is_imported():
    "`server` and `doctor` check ports, databases and buckets within seconds; importing MLflow takes as long as all of that."
    assert loaded_by('import bioai_esol.store.tracking_server, bioai_esol.store.doctor', 'mlflow', 'torch') == []


def test_the_worker_needs_neither_mlflow_nor_pyg():
    assert loaded_by('import bioai_esol.training.worker, bioai_esol.training.engine', 'mlflow', 'torch_geometric') == []


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
