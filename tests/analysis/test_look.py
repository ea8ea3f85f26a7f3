"`look`: whatever the table, something true is said about it; what it calls usable is what training takes, and it makes no store."
import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, copied
from hypothesis import given, HealthCheck, settings
from hypothesis import strategies as st
from quick import EASY

import bioai_esol as esol
from bioai_esol.analysis.look import look, SAMPLE_SIZE
from bioai_esol.chem.census import count_rows, Helpers, Rows
from bioai_esol.chem.columns import Reading
from bioai_esol.chem.dataset import duplicates, load_esol, load_table
from bioai_esol.chem.split import leakage, random_split, scaffold_split
from bioai_esol.errors import BioaiError, DataError


@pytest.fixture
def written(tmp_path, monkeypatch):
    "written(content): a file with this content, in a working folder without a store."
    monkeypatch.chdir(tmp_path)
    def write(content, name='mine.csv'):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path
    yield write
    assert not (tmp_path / 'mlflow.db').exists()


def test_esol_is_described_as_it_is():
    table = load_esol()
    numbers = look(table.frame).numbers
    twice = duplicates(table.frame)
    assert numbers['rows'] == dict(total=1128, usable=1128, bad=0, kinds={}, first=[], blank=0)
    assert numbers['duplicates']['molecules'] == len(twice)
    assert numbers['duplicates']['largest'] == pytest.approx(twice.label_range.max())
    assert numbers['target']['likely_unit'] == 'log10(mol/L)'
    assert numbers['target']['value']['lowest'] == pytest.approx(-11.6)
    assert numbers['ESOL']['molecules'] == numbers['molecules']['distinct'] == 1117
    for name, split in (('scaffold', scaffold_split(table.smiles)), ('random', random_split(table.smiles))):
        assert {part: numbers[f'{name} split'][part] for part in split.sizes} == split.sizes
    assert numbers['random split']['leaking'] == len(leakage(table.smiles, random_split(table.smiles)))
    assert numbers['random split']['similarity']['median'] > numbers['scaffold split']['similarity']['median']


CASES = {  # table, what is said, and the commands that are proposed
    'a semicolon and a decimal comma': ('SMILES;logS (mol/L);Comment\nCCO;1,10;"mixes; freely"\nc1ccccc1;-1,64;\n',
                                        ['separated by semicolon', 'with a decimal comma', '-1.64 … 1.1', '2 molecules are in ESOL too'], []),
    'milligrams': ('smiles,solubility_mg_per_L\nCCO,1000000\nc1ccccc1,1790\nCCCCCCCC,0.66\n',
                   ['looks like mg/L, not log10(mol/L)', '2 values are impossible'], ["--target solubility_mg_per_L --unit mg/L"]),
    'limits and errors': ('smiles,logS\nCCO,1.10\nCCCCCCCCCCCC,<-7.5\nc1ccc2ccccc2c1,-3.60 ± 0.1\nCCC,−1.94\nCC(C)C,ND\n',
                          ['3 (60 %) cannot be used', '1 censored', '1 a value with its error', '1 no value', "line 3: logS is '<-7.5'"], []),
    'other headers': ('Drug_ID,Drug,Y\nA,CCO,1.10\nB,c1ccccc1,-1.64\n', ["SMILES from 'Drug'", "target 'Y'", "smiles_column='Drug'"], []),
    'two candidates': ('smiles,logP,logD\nCCO,1.1,2.2\nCC,1.5,-2.5\n', ["'logP' holds numbers: 1.1 … 1.5", "which column is the target?"],
                       ['--target logP', '--target logD']),
    'a count': ('id,smiles\n7,CCO\n8,CCC\n', ["is 'id' the target?", '2 different molecules'], ['--target id']),
    'a comma that may stand between thousands': ('smiles;S\nCCO;1,234\nCC;2,500\n', ['a decimal sign, or between thousands', '2 different molecules'], []),
    'no header': ('CCO\tethanol\nCCC\tpropane\n', ['the first row holds a molecule'], []),
    'nothing that reads as SMILES': ('a,b\n1,x y\n2,z z\n', ['none of them reads as SMILES', "'a' holds numbers: 1 … 2"], []),
    'a header that is not there': ('smiles,logS\nCCO,1\n', ['1 different molecule'], []),
    'an acyclic series': ('smiles,logS\n' + '\n'.join(f"{'C' * n}O,{.9 - .6 * n:.2f}" for n in range(1, 21)),
                          ['a scaffold split cannot divide them', '16 training, 2 validation, 2 test', 'are few'], ['--data {} --split cluster']),
    'odd molecules': ('smiles\n[Na+].[Cl-]\nO.O.O=C(O)C(=O)O\n[2H]O[2H]\n*CC*\nCC |$foo$|\nCCO ethanol\nc1cccc1\n\nC[C@H](O)F\n[U+6]\n',
                      ['1 (14 %) salts', '1 (14 %) hydrates', 'with isotopes', 'no element (*)', '1 not readable as SMILES', '1 a CXSMILES extension',
                       'ESOL does not hold: Na, U'], []),
    'replicates that disagree': ('smiles,logS\nCCO,1\nOCC,4\nC[N+](=O)[O-],0\nCN(=O)=O,2\nCC(O)=CC,1\nCC(=O)CC,2\n',
                                 ['2 molecules are in more than one row (4 rows); 2 of them with values that differ', 'up to 3.00',
                                  'line 2 and line 3'], []),
    'misfits': ('smiles,logS\nCCO,1,10\nCCC,-1,94\nCC,1.5\n', ['2 (67 %) cannot be used', '2 another number of fields than the header'], []),
    'a limit of detection': ('smiles,logS\n' + '\n'.join(f"{'C' * n},{-4 if n % 2 else -n / 7 - .05:.3f}" for n in range(1, 41)),
                             ['20 (50 %) are exactly -4'], []),
    'a constant': ('smiles,logS\n' + '\n'.join(f"{'C' * n},-4.5" for n in range(1, 30)), ['standard deviation 0.00'], []),
    'nothing that can be used': ('smiles,logS\nxx,1\nyy,2\n', ['2 (100 %) cannot be used', 'no molecule can be read'], [])}


@pytest.mark.parametrize('content, said, commands', CASES.values(), ids=CASES)
def test_what_can_be_told_is_told(written, content, said, commands):
    path = written(content)
    target = 'absent' if content == CASES['a header that is not there'][0] else None
    found = look(path, target=target)
    text = ' '.join(found.summary(10_000).split())
    for words in said:
        assert words in text, text
    proposed = [s.command for s in found.suggestions]
    for words in commands:
        assert any(words.format(path) in command for command in proposed), proposed
    assert json.loads(json.dumps(found.to_dict())) and 'mine.csv' in repr(found) and '<table>' in found._repr_html_()
    page = found.save(path.with_suffix('.html')).read_text()
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*', page) == []


@pytest.mark.parametrize('content', ['', '\n\n', 'smiles,logS\n', b'\x89PNG\r\n\x1a\n\x00\x00', 'smiles,name,logS\nCCO,a,1\nC,"b,2\n', 'a,a\n1,2\n'])
def test_only_what_cannot_be_read_is_refused(written, content):
    with pytest.raises(DataError, match='mine.csv'):
        look(written(content))


def test_usable_is_what_training_takes(written):
    rows = ['CCO,1.1', 'OCC,1,2', 'C1CC,3', 'CC,<2', 'CCC,-1.9', ',5', 'CCCC,99', 'c1ccccc1,−1.6', 'CC(=O)[O-].[Na+],0.5', 'CCCCC,']
    path = written('smiles,logS\n' + '\n'.join(rows) + '\n')
    taken = load_table(path, skip_bad_rows=True)
    counts = look(path).numbers['rows']
    assert (counts['usable'], counts['bad']) == (len(taken), len(taken.skipped))
    assert counts['first'] == list(taken.skipped) and sum(counts['kinds'].values()) == len(taken.skipped)


def test_twenty_thousand_bad_rows_are_ten_lines_and_a_count(written):
    found = look(written('smiles,logS\n' + 'xx,1\n' * 20_000))
    [rows] = [topic for topic in found.topics if topic.name == 'rows']
    assert len(rows.details) == 11 and rows.details[-1] == '… and 19,990 more'


def test_a_unit_is_recognised_and_its_command_settles_it(written):
    frame = load_esol().frame.iloc[::20]
    micro = [f'{10 ** (y + 6):.5g}' for y in frame.log_solubility]
    path = written('smiles;S\n' + '\n'.join(f'{s};{u}' for s, u in zip(frame.smiles, micro)))
    first = look(path)
    assert first.numbers['target']['likely_unit'] == 'µM' and not any('train' in s.command for s in first.suggestions)
    [again] = [s.command for s in first.suggestions]
    assert again.endswith("--target S --unit 'µM'") or again.endswith('--target S --unit µM')
    second = look(path, target='S', unit='µM')
    assert second.numbers['ESOL']['median_absolute'] < .01
    assert any(s.command.startswith('bioai-esol train --data') for s in second.suggestions)


def test_processes_count_as_one_does(tmp_path):
    frame = load_esol().frame
    rows = Rows(0, [*frame.smiles, 'xx'], [*map(str, frame.log_solubility), '1'], 'logS', Reading(decimal='.'))
    with Helpers(2) as helpers:
        [theirs, _] = helpers.map(count_rows, [lambda: rows] * 2)
    ours = count_rows(rows)
    for name in ('identity', 'number', 'value', 'heavy_atoms'):
        np.testing.assert_array_equal(getattr(theirs, name), getattr(ours, name))
    assert (theirs.traits, theirs.elements, theirs.troubles, theirs.refused) == (ours.traits, ours.elements, ours.troubles, ours.refused)


def test_a_large_table_is_asked_by_sample_and_without_a_guarded_main(tmp_path):
    "Twelve thousand rows in several processes, from a program that has no `if __name__ == '__main__'`."
    small = [s for s in load_esol().smiles if len(s) < 12]
    chosen = (small * 60)[:12_000]
    pd.DataFrame(dict(smiles=chosen, logS=np.linspace(-5, 1, 12_000))).to_csv(tmp_path / 'many.csv', index=False)
    (tmp_path / 'plain.py').write_text("import bioai_esol as esol, json\nprint(json.dumps(esol.look('many.csv').to_dict()))\n")
    done = subprocess.run([sys.executable, 'plain.py'], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout)
    assert numbers['rows']['usable'] == 12_000 and numbers['scaffolds']['sampled'] and numbers['scaffolds']['molecules'] == SAMPLE_SIZE
    assert not (tmp_path / 'mlflow.db').exists()


def test_the_champion_is_asked_and_its_store_stays_as_it_was(template, quick, tmp_path):
    uri = copied(template, tmp_path)
    esol.promote('a', EASY, tracking_uri=uri)
    before = (tmp_path / 'mlflow.db').read_bytes()
    frame = load_esol().frame
    numbers = look(frame.iloc[:200], tracking_uri=uri).numbers['champion']
    trained = {frame.smiles[i] for i in scaffold_split(frame.smiles).train}
    assert numbers['trained_on'] >= len(trained & set(frame.smiles[:200])) > 100
    assert numbers['available'] and numbers['version'] == '1' and .5 < numbers['inside'] <= 1
    assert (tmp_path / 'mlflow.db').read_bytes() == before


def test_a_store_that_does_not_answer_is_a_sentence():
    found = look(load_esol().frame.iloc[:30], tracking_uri='http://127.0.0.1:9')
    assert 'cannot reach the tracking server' in found.numbers['champion']['reason']


FIELDS = st.sampled_from(['CCO', 'c1ccccc1', 'C1CC', '[Na+].[Cl-]',
                          '1.1', '-2', '1,5', '', ' ', '"', '0', 'smiles', 'logS', 'S (mg/L)', '\x00', '<1', '1e400', '1e9'])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(FIELDS, min_size=1, max_size=3), max_size=12), separator=st.sampled_from(',;\t'), header=st.booleans())
def test_any_table_is_described_or_refused_by_name(written, rows, separator, header):
    rows = [['smiles', 'logS'], *rows] if header else rows
    try:
        found = look(written('\n'.join(separator.join(row) for row in rows)))
    except BioaiError as e:
        assert 'mine.csv' in str(e)
    else:
        assert found.summary() and json.dumps(found.to_dict()) and found._repr_html_()


def test_what_it_calls_usable_is_said_in_the_docs_too():
    "The page of the reader's own table begins with a look."
    cells = json.loads((ROOT / 'nbs/howto/own_table.ipynb').read_text('utf-8'))['cells']
    text = ''.join(line for cell in cells for line in cell['source'])
    assert 'bioai-esol look assay.csv' in text and text.index('bioai-esol look assay.csv') < text.index('bioai-esol sweep')
