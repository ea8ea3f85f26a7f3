"A property of one's own from the table to the server: everything speaks of it, and nothing of solubility."
import re
import subprocess

import mlflow
import pandas as pd
import pytest
from helpers import EASY_OPTIONS, PROGRAM, fresh, uri_of, words_of
from rdkit.Chem import Crippen

import bioai_esol as esol
from bioai_esol.chem.columns import measured_property, Property
from bioai_esol.chem.molecules import parse_smiles
from bioai_esol.store.runs import load_runs

FOREIGN = re.compile(r'solub|mol/L|logS\b|log10', re.IGNORECASE)
LOGP = Property('octanol water logP', '')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A folder with Crippen's logP of eighty molecules and a salt, a sweep on it, its champion and its report."
    folder = tmp_path_factory.mktemp('logp')
    fresh(folder)
    smiles = esol.load_esol().smiles[::14]
    rows = [(f'm{i}', s, Crippen.MolLogP(parse_smiles(s))) for i, s in enumerate(smiles)]
    pd.DataFrame([*rows, ('salt', '[Na+].CCCCCC(=O)[O-]', .5)], columns=['ID', 'smiles', 'logP']).to_csv(folder / 'logp.csv', index=False)
    data = ['--data', 'logp.csv', '--target', 'logP', '--property', LOGP.name, '--name-column', 'ID']
    for command in (['sweep', '--architecture', 'ridge,gaussian-process', '--split', 'cluster', '--run-tag', 'own', *data],
                    ['promote', '--run-tag', 'own', *EASY_OPTIONS], ['report', '--run-tag', 'own', '--output', 'report.html']):
        done = subprocess.run([PROGRAM, *command], cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        (folder / f'{command[0]}.txt').write_text(done.stdout)
    return folder


def test_what_was_done_is_said(folder):
    said = (folder / 'sweep.txt').read_text()
    assert "target 'logP', which is octanol water logP" in said
    assert "1 of 82 molecules changed by the rule for molecules, as '[Na+].CCCCCC(=O)[O-]' to 'CCCCCC(=O)[O-]'" in said
    assert 'test molecules are few: test_rmse' in (folder / 'promote.txt').read_text()


def test_nothing_speaks_of_solubility(folder):
    page = words_of((folder / 'report.html').read_text())
    assert LOGP.name in page
    for text in (page, (folder / 'sweep.txt').read_text(), (folder / 'promote.txt').read_text()):
        assert not FOREIGN.search(text), FOREIGN.search(text)


def test_the_champion_speaks_of_its_property(folder, here):
    champion = esol.load_champion(tracking_uri=uri_of(folder))
    assert champion.property == LOGP and 'octanol water logP' in repr(champion)
    table = champion.predict(['CCCCO', 'CC(=O)[O-].[Na+]', 'OB(O)c1ccccc1', 'C1CC'])
    assert table.columns.tolist() == ['smiles', 'octanol_water_logP', 'low', 'high', 'unit', 'similarity', 'domain', 'why', 'read_as', 'trusted',
                                      'model_version', 'error']
    assert table.read_as.tolist() == ['', 'CC(=O)[O-]', '', '']
    assert table.domain[2] == 'outside' and 'it has the element B, which no training molecule has' in table.why[2]
    assert 'raises octanol water logP' in champion.explain('CCCCO').svg and not FOREIGN.search(champion.explain('CCCCO').svg)
    done = here('predict', 'CCCCO', '--tracking-uri', uri_of(folder))
    assert 'octanol_water_logP' in done.stdout and not FOREIGN.search(done.stdout)


def test_predictions_know_what_they_are(folder):
    run = load_runs('own', tracking_uri=uri_of(folder)).iloc[0]
    predictions = esol.load_predictions(run.run_id, tracking_uri=uri_of(folder))
    assert measured_property(predictions) == LOGP and 'octanol_water_logP' in predictions


def test_figures_speak_of_it(folder):
    from bioai_esol.analysis import error_analysis, figures
    runs = load_runs('own', tracking_uri=uri_of(folder))
    predictions = esol.load_predictions(runs.run_id[0], tracking_uri=uri_of(folder))
    training = esol.load_table(folder / 'logp.csv', target='logP', property=LOGP.name).frame
    drawn = [error_analysis.plot_predictions(predictions), error_analysis.plot_scaffold_errors(predictions),
             error_analysis.plot_error_sources(predictions, training.smiles), figures.plot_progress(runs, 2),
             figures.plot_choice(esol.choose_candidate(runs).runs, 3., 0.)]
    words = [text.get_text() for fig in drawn for text in fig.findobj(lambda a: hasattr(a, 'get_text'))]
    words += [error_analysis.describe_errors(predictions, training['octanol_water_logP']), error_analysis.describe_families(predictions),
              error_analysis.describe_sources(predictions, training.smiles), error_analysis.describe_worst(predictions)]
    assert any(LOGP.name in w for w in words)
    assert not [w for w in words if FOREIGN.search(w)]


def test_it_is_served_under_its_name(folder):
    model = mlflow.pyfunc.load_model(next((folder / 'mlartifacts').glob('*/artifacts/model')))
    out = model.predict(pd.DataFrame(dict(smiles=['CCCCO', 'C1CC'])))
    assert 'octanol_water_logP' in out and 'solubility_mol_per_l' not in out
    assert 'octanol_water_logP' in [c.name for c in model.metadata.signature.outputs.inputs]


def test_a_name_that_is_a_column_of_ours_is_refused(here):
    (here.folder / 't.csv').write_text('smiles,y\nCCO,1.5\n')
    done = here('train', '--data', 't.csv', '--property', 'domain')
    assert done.returncode == 2 and "'domain' cannot be the name of a property" in done.stderr
    done = here('train', '--data', 't.csv', '--unit', 'kcal/mol')
    assert done.returncode == 2 and 'a property of your own (--property) has any unit' in done.stderr
