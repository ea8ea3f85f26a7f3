"A user's table on the command line: every command reads it alike, nothing of it is lost, and what was said about it is remembered."
import json
import resource
import shlex
import subprocess

import pandas as pd
import pytest
from helpers import EASY_OPTIONS, PROGRAM, fresh, uri_of

from bioai_esol.chem.dataset import load_esol
from bioai_esol.store.runs import load_runs
from bioai_esol.training.config import dataset_of

RIDGE = ['--architecture', 'ridge', '--split', 'random', '--run-tag', 'mine']


@pytest.fixture(scope='module')
def assay():
    "Sixty molecules as an assay delivers them: µM with a decimal comma, other headers, compound numbers, a comment."
    esol = load_esol().frame.iloc[::18].head(60)
    micromolar = [f'{10 ** (y + 6):.6g}'.replace('.', ',') for y in esol.log_solubility]
    return pd.DataFrame({'Compound': [f'{i:05}' for i in range(60)], 'Drug': esol.smiles.values, 'S [µM]': micromolar, 'Remark': ['a; b', ''] * 30})


@pytest.fixture(scope='module')
def folder(tmp_path_factory, assay):
    "A folder with the assay, a sweep of one run on it, and its champion."
    folder = tmp_path_factory.mktemp('assay')
    fresh(folder)
    assay.to_csv(folder / 'assay.csv', index=False, sep=';', encoding='utf-16')
    options = ['--data', 'assay.csv', '--smiles-column', 'drug', '--target', 'S [µM]', '--unit', 'uM', '--name-column', 'Compound']
    for command in (['train', *RIDGE, *options], ['promote', *EASY_OPTIONS, '--run-tag', 'mine']):
        done = subprocess.run([PROGRAM, *command], cwd=folder, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
        (folder / f'{command[0]}.txt').write_text(done.stdout)
    return folder


def test_how_it_was_read_is_said_and_remembered(folder):
    said = (folder / 'train.txt').read_text().splitlines()[0]
    for part in ('assay.csv: separated by semicolon, utf-16', "SMILES from 'Drug'", "target 'S [µM]' with a decimal comma",
                 'converted from µM to log10(mol/L)', "names from 'Compound'"):
        assert part in said, part
    [run] = load_runs('mine', tracking_uri=uri_of(folder)).to_dict('records')
    again = dataset_of(run)
    assert again.version == run['dataset_version'] and again.frame.name[0] == '00000'
    esol = load_esol().frame.iloc[::18].head(60)
    pd.testing.assert_series_equal(again.frame.log_solubility, esol.log_solubility.reset_index(drop=True), atol=1e-4)


def test_predict_knows_the_column_and_keeps_every_other(folder, here, assay):
    (here.folder / 'new.csv').write_text('Drug;log_solubility;error\nCCO;1,10;0,05\n\nC1CC;x;y\n')
    done = here('predict', '--input', 'new.csv', '--output', 'new.csv', '--tracking-uri', uri_of(folder))
    assert done.returncode == 0, done.stderr
    assert '1 blank row' in done.stderr and 'log_solubility, error: kept as they are' in done.stderr
    out = pd.read_csv(here.folder / 'new.csv', dtype=str, keep_default_na=False)
    assert out[['Drug', 'log_solubility', 'error']].to_numpy().tolist() == [['CCO', '1,10', '0,05'], ['C1CC', 'x', 'y']]
    assert float(out.predicted_log_solubility[0]) < 3 and 'RDKit cannot read it' in out.predicted_error[1]
    done = here('predict', '--input', 'new.csv', '--json', '--tracking-uri', uri_of(folder))
    assert json.loads(done.stdout)[0]['log_solubility'] == '1,10'


@pytest.mark.parametrize('command', [('train', *RIDGE, '--data'), ('compare', '1', '2', '--data'), ('benchmark', '--data'), ('predict', '--input')],
                         ids=lambda c: c[0])
def test_every_command_says_the_same_of_a_file(here, command):
    fresh(here.folder)
    tables = {'comma.csv': ('smiles,logS\nCCO,1,10\nCC,-1,9\n', 'comma.csv line 2: 3 fields, the header has 2; a decimal comma?'),
              'quote.csv': ('smiles,name,logS\nCCO,a,1\nC,"b,2\nCC,c,3\n', 'quote.csv line 3: a quotation mark opens here and is never closed'),
              'index.csv': (',smiles\n0,CCO\n', 'index.csv: column 1 has no name: an index?'),
              'empty.csv': ('smiles,logS\n', 'no molecules in empty.csv')}
    for name, (content, message) in tables.items():
        (here.folder / name).write_text(content)
        done = here(*command, name)
        assert done.returncode == 2 and message in done.stderr and 'Traceback' not in done.stderr, done.stderr


def test_a_doubt_is_answered_with_options(here):
    (here.folder / 'tdc.csv').write_text('Drug_ID,Drug,Y value\nx,CCO,-3.6\ny,CC,1.5\n')
    done = here('train', '--data', 'tdc.csv')
    assert done.returncode == 2 and "'Drug' reads as SMILES: --smiles-column Drug" in done.stderr
    (here.folder / 'two.csv').write_text('smiles,log P,log D\nCCO,1.1,2.2\n')
    done = here('train', '--data', 'two.csv')
    assert "which column is the target? --target 'log P' or --target 'log D'" in done.stderr
    done = here('train', '--target', 'log P')
    assert done.returncode == 2 and 'together with --data' in done.stderr


def test_look_goes_on_where_training_refuses(here):
    table = ('Drug_ID;Drug;S (mg/L);logP\nx;CCO;1000000;1,1\ny;c1ccccc1;1790;2,5\nz;C1CC;3;<4\n' + 'w;CCCCCCCC;0,66;1,5\n' * 3)
    (here.folder / 'tdc.csv').write_text(table)
    done = here('look', 'tdc.csv', '--output', 'deep/look.html')
    assert done.returncode == 0 and not done.stderr, done.stderr
    for words in ("'Drug' reads as SMILES: --smiles-column Drug", "--target 'S (mg/L)' or --target logP", 'page: deep/look.html', '1 not readable as SMILES',
                  "bioai-esol look tdc.csv --smiles-column Drug --target 'S (mg/L)' --unit mg/L"):
        assert words in ' '.join(done.stdout.split()), done.stdout
    assert '<h2' in (here.folder / 'deep/look.html').read_text()
    done = here('look', 'tdc.csv', '--smiles-column', 'drug', '--target', 'S (mg/L)', '--unit', 'mg/l', '--json')
    numbers = json.loads(done.stdout)
    assert numbers['rows']['usable'] == 5 and numbers['target']['unit'] == 'mg/L' and numbers['ESOL']['median_absolute'] < .1
    assert not (here.folder / 'mlflow.db').exists()


@pytest.mark.parametrize('content, words', [
    (b'', 'is empty'), (b'\x7fELF\x02\x01\x01\x00\x00', 'is not a table'), (b'smiles,name\nCCO,"a\n', 'a quotation mark opens here'),
    (b'smiles,logS\n', 'no molecules in'), (None, 'cannot read')])
def test_look_refuses_what_cannot_be_read(here, content, words):
    if content is not None:
        (here.folder / 'mine.csv').write_bytes(content)
    done = here('look', 'mine.csv')
    assert done.returncode == 2 and words in done.stderr and not done.stdout, done.stdout


def test_what_look_proposes_trains(here):
    "The last command of a look, copied into a shell, trains on the table."
    esol = load_esol().frame.iloc[::18]
    rows = [f'{s};{10 ** (y + 3):.6g};' for s, y in zip(esol.smiles, esol.log_solubility)]
    (here.folder / 'a b.csv').write_text('Drug;S (mmol/L);Remark\n' + '\n'.join(rows) + '\nC1CC;1;bad\n')
    done = here('look', 'a b.csv', '--smiles-column', 'Drug', '--target', 'S (mmol/L)', '--unit', 'mmol/L')
    [command] = [line.strip() for line in done.stdout.splitlines() if line.strip().startswith('bioai-esol train')]
    fresh(here.folder)
    done = here(*shlex.split(command)[1:], '--architecture', 'ridge')
    assert done.returncode == 0 and '1 trained' in done.stdout, done.stderr


def test_a_full_disk_costs_nothing(folder, tmp_path):
    "The limit on the size of a file stands for a disk that is full: writing fails in the middle."
    before = 'smiles,comment\n' + 'CCO,as it was\n' * 400
    (tmp_path / 'in.csv').write_text(before)
    limited = subprocess.run([PROGRAM, 'predict', '--input', 'in.csv', '--output', 'in.csv', '--tracking-uri', uri_of(folder)], cwd=tmp_path,
                             preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)), capture_output=True, text=True, timeout=100)
    assert limited.returncode == 2 and 'cannot write in.csv: File too large' in limited.stderr, limited.stderr
    assert (tmp_path / 'in.csv').read_text() == before and [p.name for p in tmp_path.iterdir()] == ['in.csv']


def test_half_a_character_is_an_error_of_its_own_row(folder, here):
    done = here('predict', 'CCO', b'\xff'.decode(errors='surrogateescape'), '--json', '--tracking-uri', uri_of(folder))
    first, second = json.loads(done.stdout)
    assert done.returncode == 0 and first['error'] == '' and 'no molecule in' in second['error']


def test_molecules_in_two_parts_of_a_split_are_counted(here):
    "Sixty molecules, each in two rows with two values, divided at random."
    fresh(here.folder)
    frame = load_esol().frame.iloc[:60][['smiles', 'log_solubility']]
    pd.concat([frame, frame.assign(log_solubility=frame.log_solubility - 2)]).to_csv(here.folder / 'twice.csv', index=False)
    done = here('train', *RIDGE, '--data', 'twice.csv')
    assert done.returncode == 0, done.stderr
    assert '60 molecules are in more than one row, and 60 of them with values that differ, by up to 2.00' in done.stdout
    [run] = load_runs('mine', tracking_uri=uri_of(here.folder)).to_dict('records')
    assert 10 < int(run['split_leakage']) < 40
    assert f"note: {run['split_leakage']} molecules are in more than one part of the split" in done.stdout


def test_ten_molecules_go_the_whole_way(here):
    "One molecule for validation and one for the test: little can be said of such a model, and that is said."
    fresh(here.folder)
    load_esol().frame.iloc[::113].head(10).to_csv(here.folder / 'ten.csv', index=False)
    done = here('train', *RIDGE, '--data', 'ten.csv')
    assert done.returncode == 0 and '1 trained' in done.stdout, done.stdout + done.stderr
    done = here('promote', '--run-tag', 'mine', '--dry-run', *EASY_OPTIONS)
    assert '1 test molecule is few' in done.stdout or 'not logged or not finite' in done.stdout
