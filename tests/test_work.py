"Copies of the analysis notebooks: made once, renewed while nobody edited them, and never written over."
import json
import re
import shutil
import subprocess
from urllib.parse import unquote

import pytest
from helpers import ROOT, script

lab = script('lab')
NAMES = sorted(p.stem for p in (ROOT / 'nbs').rglob('*.ipynb') if lab.shapes.is_analysis(p))


@pytest.fixture
def project(tmp_path):
    "The notebooks of the project, in a git repository."
    without = shutil.ignore_patterns('.ipynb_checkpoints')
    shutil.copytree(ROOT / 'nbs', tmp_path / 'nbs', ignore=without)
    shutil.copy(ROOT / '.gitignore', tmp_path)
    for command in (['init', '-q'], ['add', '-A'], ['-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '-qm', 'all']):
        subprocess.run(['git', *command], cwd=tmp_path, check=True)
    return tmp_path


def edit(path, text):
    "Add a cell to a notebook, and outputs to all others, as somebody who works in it."
    notebook = json.loads(path.read_text())
    for cell in notebook['cells']:
        if cell['cell_type'] == 'code':
            cell['outputs'] = [dict(output_type='stream', name='stdout', text=['1\n'])]
    if text:
        notebook['cells'].append(dict(cell_type='markdown', id='0badcafe', metadata={}, source=[text]))
    path.write_text(json.dumps(notebook))


def test_copies_are_without_outputs_and_git_does_not_see_them(project):
    opened, said = lab.make(project)
    assert opened == 'work/sweep_analysis.ipynb' and len(said) == len(NAMES) >= 4
    for name in NAMES:
        cells = json.loads((project / f'work/{name}.ipynb').read_text())['cells']
        assert len(cells) > 5 and all(c['outputs'] == [] for c in cells if c['cell_type'] == 'code')
        edit(project / f'work/{name}.ipynb', 'mine')
    status = subprocess.run(['git', 'status', '--porcelain'], cwd=project, capture_output=True, text=True, check=True)
    assert status.stdout == ''


def test_links_and_pictures_lead_somewhere(project):
    lab.make(project)
    found = 0
    for name in NAMES:
        for cell in json.loads((project / f'work/{name}.ipynb').read_text())['cells']:
            text = ''.join(cell['source']) if cell['cell_type'] == 'markdown' else ''
            for target in re.findall(r'\]\(([^)#\s]+)', text):
                if not target.startswith('http'):
                    found += 1
                    assert (project / 'work' / unquote(target)).is_file(), f'{name}: {target}'
    assert found >= 5


def test_what_was_only_run_is_kept_until_the_project_has_a_newer_one(project):
    lab.make(project)
    edit(project / 'work/promotion.ipynb', '')
    ran = (project / 'work/promotion.ipynb').read_bytes()
    assert lab.make(project)[1] == []
    assert (project / 'work/promotion.ipynb').read_bytes() == ran
    edit(project / 'nbs/lab/promotion.ipynb', 'a new chapter')
    assert lab.make(project)[1] == ['work/promotion.ipynb: renewed']
    assert 'a new chapter' in (project / 'work/promotion.ipynb').read_text()


def test_what_was_edited_stays_and_the_new_one_lies_beside(project):
    lab.make(project)
    edit(project / 'work/sweep_analysis.ipynb', 'my own notes')
    mine = (project / 'work/sweep_analysis.ipynb').read_bytes()
    assert lab.make(project) == ('work/sweep_analysis.ipynb', []), 'the project has nothing newer'
    edit(project / 'nbs/lab/sweep_analysis.ipynb', 'a new chapter')
    opened, said = lab.make(project)
    assert opened == 'work/sweep_analysis-2.ipynb' and 'has your changes and stays' in said[0]
    assert (project / 'work/sweep_analysis.ipynb').read_bytes() == mine
    assert 'a new chapter' in (project / opened).read_text()
    assert lab.make(project) == (opened, []), 'and no third one, as long as nothing is newer'


def test_a_file_that_was_there_before_is_not_written_over(project):
    (project / 'work').mkdir()
    (project / 'work/promotion.ipynb').write_text('not a notebook')
    assert 'work/promotion-2.ipynb' in ' '.join(lab.make(project)[1])
    assert (project / 'work/promotion.ipynb').read_text() == 'not a notebook'
