"Notebooks that keep what they show, and a run that says when it is not what they show today."
import getpass
import json
import re
import shutil
import subprocess
import sys
import tempfile

import pytest
from helpers import ROOT, script

shapes = script('shapes')
FRAME = 'import pandas as pd\npd.DataFrame(dict(name=["a"], mean=[1.5], low=[1.0]))'
CELLS = [FRAME, 'dict(rmse=1.25, mae=0.5)',
         'from types import SimpleNamespace\nSimpleNamespace(lr=.01, seed=1)',
         'print(pd.DataFrame(dict(axis=["lr"], value=[1], runs=[2])).to_string())',
         'assert True', '#| eval: false\n1/0']


@pytest.fixture
def project(tmp_path):
    "project(cells): a checkout with one notebook of these cells; project.run(…) runs .ci/outputs.py there."
    shutil.copytree(ROOT / '.ci', tmp_path / '.ci', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / 'settings.ini', tmp_path)
    path = tmp_path / 'nbs/chem/01_tables.ipynb'
    path.parent.mkdir(parents=True)

    def make(cells):
        code = [dict(cell_type='code', id=f'0000000{i}', metadata={}, outputs=[], execution_count=None,
                     source=source.splitlines(keepends=True)) for i, source in enumerate(cells)]
        path.write_text(json.dumps(dict(cells=code, metadata={}, nbformat=4, nbformat_minor=5)))

    def run(*args):
        command = [sys.executable, tmp_path / '.ci/outputs.py', *args]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    make.path, make.run = path, run
    return make


def outputs(path):
    return [cell['outputs'] for cell in json.loads(path.read_text())['cells']]


def stored(cells):
    "Cells with the outputs that the text of each describes."
    return [dict(cell_type='code', source=source, outputs=out) for source, out in cells]


def test_what_was_kept_is_what_is_shown(project):
    project(CELLS)
    assert project.run().returncode == 0
    kept = project.path.read_bytes()
    assert [len(o) for o in outputs(project.path)] == [1, 1, 1, 1, 0, 0]
    done = project.run('--compare', 'tables')
    assert done.returncode == 0 and 'show what is stored' in done.stdout, done.stderr
    assert project.run('chem').returncode == 0 and project.path.read_bytes() == kept, 'two runs give the same file'


def test_a_stored_output_of_another_form_is_found(project):
    changes = [(r'<th>low</th>', '', '[0]: columns are stored without low'),
               (r'<th>low</th>', '<th>low</th><th>high</th>', '[0]: columns are stored with high'),
               (r"'mae': 0.5", "'r2': 0.5", '[1]: keys are stored without mae and with r2'),
               (r'namespace\(lr=0.01, seed=1\)', 'namespace(lr=0.01)', '[2]: fields are stored without seed'),
               (r' value ', ' ', '[3]: columns are stored without value')]
    project(CELLS)
    project.run()
    kept = project.path.read_text()
    for number, (old, new, _) in enumerate(changes):
        path = project.path.with_name(f'0{number}_changed.ipynb')
        path.write_text(re.sub(old, new, kept))
        assert path.read_text() != kept
    done = project.run('--compare')
    assert done.returncode == 1
    said = sorted(line for line in done.stderr.splitlines() if '.ipynb[' in line)
    assert [line.split('.ipynb')[1].split(', unlike')[0] for line in said] == [c[2] for c in changes], done.stderr


def test_an_output_that_is_missing_or_too_much_is_found(project):
    project(CELLS)
    project.run()
    notebook = json.loads(project.path.read_text())
    frame, nothing = notebook['cells'][0], notebook['cells'][4]
    frame['outputs'], nothing['outputs'] = [], frame['outputs']
    project.path.write_text(json.dumps(notebook))
    done = project.run('--compare')
    assert '[0]: the cell shows a value, and no output is stored' in done.stderr
    assert '[4]: an output is stored, and the cell shows none today' in done.stderr
    assert done.returncode == 1


def test_a_cell_that_fails_is_named_and_nothing_is_written(project):
    project(['1 + 1', 'print("so far")\n1/0'])
    before = project.path.read_bytes()
    done = project.run()
    assert done.returncode == 1 and '01_tables.ipynb[1] fails' in done.stderr
    assert 'ZeroDivisionError' in done.stderr and 'so far' in done.stderr
    assert project.path.read_bytes() == before


def test_nothing_of_this_machine_or_moment_is_kept(project):
    project(['''import getpass, platform, sys, tempfile, time, uuid
from datetime import datetime
from pathlib import Path
first, other = uuid.uuid4().hex, uuid.uuid4().hex
print(tempfile.mkdtemp(), Path.cwd(), Path.home() / "x", f"{getpass.getuser()}@{platform.node()}")
print(datetime.now(), datetime.now().astimezone().isoformat(timespec="seconds"), f"in {time.time() % 9:.1f} s")
print(first, other, first, f"run {first[:8]}")
print("a warning", file=sys.stderr)''', 'object()'])
    assert project.run().returncode == 0
    kept = project.path.read_text()
    project.run()
    assert project.path.read_text() == kept
    [[said], [address]] = outputs(project.path)
    for place in (getpass.getuser() + '@', str(project.path.parent), f'{tempfile.gettempdir()}/tmp', 'a warning'):
        assert place not in json.dumps(outputs(project.path))
    paths, times, ids = ''.join(said['text']).splitlines()
    assert paths.startswith('/tmp/folder /home/ada/bioai-esol/nbs/chem ') and paths.endswith(' ada@vm')
    assert times.startswith('2026-01-01 12:00:00.000000 2026-01-01T12:00:00+') and times.endswith('in … s')
    first, other, again, short = ids.replace('run ', '').split()
    assert first == again != other and first.startswith(short) and len(short) == 8


def test_which_cells_must_have_an_output():
    table = dict(output_type='stream', name='stdout', text='1')
    empty = ['1 + 1', 'a', 'f(x)', 'a.b[0]\n']
    right = ['f(x);', 'f(\n  x)  ;  # nothing', 'a = 1', 'test_eq(a, b)', 'print(a)', 'np.testing.assert_equal(a, b)', '#| eval: false\nf(x)',
             'for a in b: a', '%time f(x)', '"a comment"', 'PolicyExplorer(runs)', '']
    cells = stored([(source, []) for source in empty + right] + [('f(x)', [table])])
    assert shapes.missing(dict(cells=cells)) == [0, 1, 2, 3]


def test_every_notebook_shows_its_values():
    "The same that `make check` asks of the notebooks of the project."
    paths = shapes.notebooks(ROOT / 'nbs')
    assert len(paths) > 40
    assert [f'{p.name}[{i}]' for p in paths for i in shapes.missing(shapes.read(p))] == []
