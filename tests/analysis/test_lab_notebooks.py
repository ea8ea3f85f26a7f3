"The analysis notebooks, top to bottom on a small real sweep, as somebody's JupyterLab runs them; and the report of the same sweep."
import re
import subprocess

import nbformat
import pytest
from helpers import EASY_OPTIONS, PROGRAM, ROOT, copied, fresh, uri_of, words_of
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import bioai_esol as esol
from bioai_esol.chem.dataset import load_esol

SWEEP = ['--hidden-dim', '8,16,24', '--lr', '3e-3,1e-2', '--batch-size', '64', '--dropout', '0,0.2', '--weight-decay', '0', '--epochs', '6',
         '--run-tag', 'twelve']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A working directory with twelve runs and a champion."
    folder = tmp_path_factory.mktemp('analysed')
    fresh(folder)
    for command in (['sweep', *SWEEP], ['promote', *EASY_OPTIONS]):
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
    ('sweep_analysis', 4, ['12 FINISHED', 'The lowest final val_rmse', 'Seeds agree on the order of these']),
    ('hyperparameter_effects', 4, ['12 FINISHED', 'The forest explains', 'On this data']),
    ('promotion', 2, ['Champion is version 2', 'Champion is version 1 again', 'test RMSE is']),
    ('error_analysis', 4, ['Test RMSE', 'The worst 5', 'Spearman']),
    ('monitoring', 0, ['No observed molecule counts as evidence yet']),
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


def test_monitoring_shows_what_was_observed(folder, tmp_path, monkeypatch):
    "All of ESOL, of which the molecules of the test set alone are evidence; the store of the notebook stays as it is."
    uri = copied(folder, tmp_path)
    observed = esol.observe(load_esol().frame, tracking_uri=uri)
    assert observed.known > 900
    before = esol.history(tracking_uri=uri)
    outputs = executed('monitoring', uri, monkeypatch)
    assert len(shown(outputs, 'image/png')) == 4 and not shown(outputs, 'text/markdown')
    assert shown(outputs, 'text/html')[-1].count('rollback') == 1  # rehearsed on the copy, whatever watching decides
    assert 'watch over version 1' in shown(outputs, 'text/html')[0] and esol.history(tracking_uri=uri).equals(before)


def test_effects_of_a_few_runs_of_several_kinds(here, tmp_path, monkeypatch):
    "As after the preset `accurate`: what eight runs cannot say is said, and the rest is shown."
    done = here('sweep', '--architecture', 'ridge,gradient-boosting', '--seed', '1,2', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    outputs = executed('hyperparameter_effects', uri_of(tmp_path), monkeypatch)
    assert 'None of these models has a hyperparameter' in '\n'.join(shown(outputs, 'text/markdown'))
    assert '3 FINISHED' in '\n'.join(shown(outputs, 'text/markdown')) and len(shown(outputs, 'image/png')) == 3
    assert 'ten runs are needed' in '\n'.join(o.get('text', '') for o in outputs)


OF_SOLUBILITY = re.compile(r'solub|mol/L|logS|log10', re.IGNORECASE)


@pytest.fixture(scope='module')
def energies(tmp_path_factory):
    "A working directory with models on descriptors for a property of one's own, whose values ESOL's stand in for."
    from bioai_esol import load_esol
    folder = tmp_path_factory.mktemp('energies')
    fresh(folder)
    table = load_esol().frame.rename(columns=dict(log_solubility='dG'))
    table.iloc[::5].to_csv(folder / 'dG.csv', index=False)
    command = ['sweep', '--data', 'dG.csv', '--target', 'dG', '--property', 'hydration free energy', '--unit', 'kcal/mol',
               '--architecture', 'ridge,gradient-boosting', '--seed', '1,2']
    done = subprocess.run([PROGRAM, *command], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize('name, said', [
    ('sweep_analysis', ['None of these runs was trained in epochs', 'The lowest best_val_rmse']),
    ('hyperparameter_effects', ['None of these models has a hyperparameter', 'What varies: architecture']),
])
def test_of_a_property_of_ones_own_nothing_is_said_of_solubility_nor_of_epochs(name, said, energies, monkeypatch):
    outputs = executed(name, uri_of(energies), monkeypatch)
    text = '\n'.join(shown(outputs, 'text/markdown'))
    for sentence in said:
        assert sentence in text, text
    whole = text + '\n'.join(shown(outputs, 'text/html') + shown(outputs, 'text/plain'))
    assert not OF_SOLUBILITY.search(whole) and 'nan' not in text and 'inf' not in text, whole


def test_the_report_of_models_on_descriptors_has_no_curves(here, energies):
    done = here('report', '--output', 'page.html', cwd=energies)
    assert done.returncode == 0, done.stderr
    page = words_of((energies / 'page.html').read_text())
    assert 'None of these runs was trained in epochs' in page and 'None of these models has a hyperparameter' in page
    assert 'epochs each' not in page and 'dropout' not in page and 'in epoch 1' not in page
    assert 'hydration free energy (kcal/mol)' in page or 'errors are in its unit, kcal/mol' in page
    assert not OF_SOLUBILITY.search(page)


@pytest.mark.parametrize('name', ['sweep_analysis', 'hyperparameter_effects', 'promotion', 'error_analysis', 'monitoring'])
def test_with_no_runs_a_notebook_says_what_to_run(name, tmp_path, monkeypatch):
    with pytest.raises(CellExecutionError) as e:
        executed(name, uri_of(tmp_path), monkeypatch)
    assert "no tracking store" in e.value.evalue and "run 'bioai-esol sweep' first" in e.value.evalue
    assert 'bioai_esol/' not in e.value.traceback and 'Traceback' not in e.value.traceback  # the line, and none of our code above it


def test_the_report_is_one_file_and_lies_beside_its_sweep(here, folder, tmp_path):
    done = here('report', '--output', tmp_path / 'page.html', cwd=folder)
    assert done.returncode == 0 and done.stdout.strip() == f'report: {tmp_path / "page.html"}', done.stderr
    page = (tmp_path / 'page.html').read_text()
    assert not re.findall(r'(?:src|href)="(?!data:image/png;|#)[^"]*', words_of(page)) and '<script src' not in page
    assert page.count('<img ') >= 9 and 'Sweep twelve' in page and 'On record: promotion of' in page and 'gap_threshold=9.0' in page
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
