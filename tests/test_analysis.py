"The analysis notebooks, top to bottom on a small real sweep, as somebody's JupyterLab runs them; and the report of the same sweep."
import re
import subprocess

import nbformat
import pytest
from conftest import PROGRAM, ROOT, fresh, uri_of
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

SWEEP = ['--hidden-dim', '8,16,24', '--lr', '3e-3,1e-2', '--batch-size', '64', '--dropout', '0,0.2', '--weight-decay', '0', '--epochs', '6',
         '--run-tag', 'twelve']
EASY = ['--gap-threshold', '3', '--r2-tolerance', '0.99', '--allow-dirty']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A working directory with twelve runs and a champion."
    folder = tmp_path_factory.mktemp('analysed')
    fresh(folder)
    for command in (['sweep', *SWEEP], ['promote', *EASY]):
        done = subprocess.run([PROGRAM, *command], cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def executed(name, uri, monkeypatch):
    "A notebook after it has run, on a real kernel."
    monkeypatch.setenv('MLFLOW_TRACKING_URI', uri)
    notebook = nbformat.read(ROOT / f'nbs/lab/{name}.ipynb', as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name='python3', resources=dict(metadata=dict(path=str(ROOT / 'nbs/lab')))).execute()
    return [o for c in notebook.cells if c.cell_type == 'code' for o in c.outputs]


def shown(outputs, kind):
    return [o.data[kind] for o in outputs if kind in o.get('data', {})]


@pytest.mark.parametrize('name, figures, said', [
    ('sweep_analysis', 5, ['12 FINISHED', 'The lowest final val_rmse', 'Seeds agree on the order of these 5']),
    ('hyperparameter_effects', 4, ['12 finished runs', 'The forest explains', 'On this data']),
    ('promotion', 3, ['Champion is version 2', 'Champion is version 1 again', 'test RMSE is']),
    ('error_analysis', 4, ['test RMSE', 'The worst five', 'Spearman']),
])
def test_a_notebook_reads_top_to_bottom(name, figures, said, folder, monkeypatch):
    outputs = executed(name, uri_of(folder), monkeypatch)
    assert len(shown(outputs, 'image/png')) == figures
    text = '\n'.join(shown(outputs, 'text/markdown'))
    for sentence in said:
        assert sentence in text, text
    assert 'nan' not in text and not re.search(r'\{[a-z]', text), text
    if name == 'sweep_analysis':
        assert len(shown(outputs, 'application/vnd.jupyter.widget-view+json')) >= 3  # the explorer, the browser, the live view


def test_effects_of_a_few_runs_of_several_kinds(here, tmp_path, monkeypatch):
    "As after the preset `accurate`: what eight runs cannot say is said, and the rest is shown."
    done = here('sweep', '--architecture', 'ridge,gradient-boosting', '--seed', '1,2', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    outputs = executed('hyperparameter_effects', uri_of(tmp_path), monkeypatch)
    assert '3 finished runs' in '\n'.join(shown(outputs, 'text/markdown')) and len(shown(outputs, 'image/png')) == 3
    assert 'ten runs are needed' in '\n'.join(o.get('text', '') for o in outputs)


@pytest.mark.parametrize('name', ['sweep_analysis', 'hyperparameter_effects', 'promotion', 'error_analysis'])
def test_with_no_runs_a_notebook_says_what_to_run(name, tmp_path, monkeypatch):
    with pytest.raises(CellExecutionError) as e:
        executed(name, uri_of(tmp_path), monkeypatch)
    assert "no tracking store" in e.value.evalue and "run 'bioai-esol sweep' first" in e.value.evalue
    assert 'bioai_esol/' not in e.value.traceback and 'Traceback' not in e.value.traceback  # the line, and none of our code above it


def test_the_report_is_one_file_and_lies_beside_its_sweep(here, folder, tmp_path):
    done = here('report', '--output', tmp_path / 'page.html', cwd=folder)
    assert done.returncode == 0 and done.stdout.strip() == f'report: {tmp_path / "page.html"}', done.stderr
    page = (tmp_path / 'page.html').read_text()
    assert not re.findall(r'(?:src|href)="(?!data:image/png;base64,|#)[^"]*', page) and '<script' not in page
    assert page.count('<img ') >= 9 and 'Sweep twelve' in page and 'On record: promotion of' in page and 'gap_threshold=3.0' in page
    from bioai_esol.store.client import connect
    from bioai_esol.store.runs import fetch_artifacts, search
    store = connect(uri_of(folder))
    [parent] = search(store, kind='sweep', run_tag='twelve')
    assert fetch_artifacts(store, parent.info.run_id, tmp_path / 'kept', 'report/page.html').read_text() == page


def test_the_report_names_what_is_wrong(here, folder, tmp_path):
    for args, cwd, words in ((['--run-tag', 'other'], folder, ["no sweep with the run tag 'other'", 'twelve']),
                             ([], tmp_path, ["run 'bioai-esol sweep' first"]),
                             (['--output', '/dev/null/page.html'], folder, ['cannot write /dev/null/page.html'])):
        done = here('report', *args, cwd=cwd)
        assert done.returncode == 2 and 'Traceback' not in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert all(w in done.stderr for w in words), done.stderr
