"Tables as people have them: read as they are meant, or refused with the line and a way on. Never read as something else."
import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, HealthCheck, settings
from hypothesis import strategies as st

from bioai_esol.chem.columns import Reading, recorded
from bioai_esol.chem.dataset import dataset_version, load_esol, load_table, read_dataset
from bioai_esol.chem.tables import read_table
from bioai_esol.errors import BioaiError, DataError


@pytest.fixture
def table(tmp_path):
    "table(content, name): a file with this content."
    def write(content, name='mine.csv'):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path
    return write


READ = {  # what is in the file, and the targets that it means
    'semicolon and decimal comma': ('SMILES;logS (mol/L);Comment\nCCO;1,10;"mixes; freely"\nc1ccccc1;-1,64;\n', [1.10, -1.64]),
    'tab': ('smiles\tlogS\nCCO\t1.1\nCCC\t-1.9\n', [1.1, -1.9]),
    'vertical bar': ('smiles|logS\nCCO|1\n', [1.]),
    'capitals': ('SMILES,LOGS\nCCO,1.1\n', [1.1]),
    'byte order mark': ('\ufeffsmiles,logS\nCCO,1.1\n', [1.1]),
    'quoted headers': ('"smiles","log S (mol/L)"\nCCO,1\n', [1.]),
    'blanks around headers': (' smiles, logS\nCCO,1\n', [1.]),
    'nothing in the last columns': ('smiles,logS,,\nCCO,1,,\n', [1.]),
    'blank lines before the header': ('\n\nsmiles,logS\nCCO,1\n', [1.]),
    'line ends of old Macs': ('smiles,logS\rCCO,1\rCC,2\r', [1., 2.]),
    'rows of commas': ('smiles,logS\nCCO,1\n,\n,\n', [1.]),
    'a minus sign of typographers': ('smiles,logS\nCCC,−1.94\nCC,+1.5\n', [-1.94, 1.5]),
    'other columns': ('id,smiles,logS,MW,year\n7,CCO,1.1,46.07,1999\n', [1.1]),
    'the only numbers': ('smiles,value,comment\nCCO,1.1,a\nCC,2,b\n', [1.1, 2.]),
    'quoted decimal commas between commas': ('smiles,logS\nCCO,"1,10"\nCC,"-2,5"\n', [1.1, -2.5])}


@pytest.mark.parametrize('content, targets', READ.values(), ids=READ)
def test_is_read_as_it_is_meant(table, content, targets):
    data = load_table(table(content))
    np.testing.assert_allclose(data.frame.log_solubility, targets)
    assert 'SMILES from' in data.how and 'target' in data.how


REFUSED = {  # what is in the file, and what the message says
    'a decimal comma between commas': ('smiles,logS\nCCO,1,10\nCCC,-1,94\n', ['2 of 2 rows', 'line 2: 3 fields, the header has 2; a decimal comma?']),
    'too few fields': ('smiles,name,logS\nCCO,x,1\nCCC\n', ['line 3: 1 field, the header has 3']),
    'a name with a comma': ('name,smiles,logS\n2,4-dinitro,CCO,1\n', ['line 2: 4 fields, the header has 3']),
    'an open quotation mark': ('smiles,name,logS\nCCO,a,1\nCC,b,2\nC,"c,3\nCCC,d,4\n', ['line 4: a quotation mark opens here and is never closed']),
    'text behind a quotation mark': ('smiles,name,logS\nCCO,"a"b,1\n', ['line 2: text follows a closing quotation mark']),
    'a repeated header': ('smiles,logS,logS\nCCO,1,2\n', ["'logS' is the name of more than one column"]),
    "pandas' index": (',smiles,logS\n0,CCO,1.1\n', ['column 1 has no name: an index']),
    'an index as target': (',smiles\n0,CCO\n1,CC\n', ['column 1 has no name: an index']),
    'compound numbers': ('id,smiles\n7,CCO\n8,CCC\n', ["is 'id' the target?", "target='id'"]),
    'a year': ('smiles,year\nCCO,1999\n', ["is 'year' the target?"]),
    'other headers': ('Drug_ID,Drug,Y\nA,CCO,1.1\n', ["no column 'smiles'", "'Drug' reads as SMILES: smiles_column='Drug'"]),
    'two candidates': ('smiles,logP,logD\nCCO,1.1,2.2\n', ["target='logP' or target='logD'"]),
    'no header': ('CCO\tethanol\nCCC\tpropane\n', ['the first row holds a molecule; add a row of headers']),
    'no numbers': ('smiles,comment\nCCO,x\n', ['no column of numbers']),
    'milligrams': ('smiles,logS\nc1ccccc1,1790\n', ['outside -15 … 5', "unit='mg/L'"]),
    'a limit': ('smiles,logS\nCCO,<-7.5\n', ['line 2', 'censored']),
    'a value with its error': ('smiles,logS\nCCO,-3.60 ± 0.1\n', ['with its error']),
    'nothing measured': ('smiles,logS\nCCO,ND\n', ['no value']),
    'an underscore': ('smiles,logS\nCCO,1_000\n', ['not a number']),
    'Arabic digits': ('smiles,logS\nCCO,٣\n', ['not a number']),
    'infinite in 32 bits': ('smiles,logS\nCCO,1e39\n', ['not a finite number']),
    'one decimal comma among points': ('smiles;logS\nCCO;1.1\nCC;1,2\n', ['line 3', 'a decimal comma?']),
    'a comma that may stand between thousands': ('smiles;S\nCCO;1,234\nCC;2,500\n', ['a decimal sign, or between thousands']),
    'lines behind blank ones': ('smiles,logS\r\nCCO,1\r\n\r\n\r\nxx,2\r\n', ["line 5: no molecule in 'xx'"]),
    'a header only': ('smiles,logS\n', ['no molecules in']),
    'nothing': ('', ['is empty'])}


@pytest.mark.parametrize('content, messages', REFUSED.values(), ids=REFUSED)
def test_is_refused_with_the_line_and_a_way_on(table, content, messages):
    with pytest.raises(DataError) as raised:
        load_table(table(content))
    for message in messages:
        assert message in str(raised.value)


def test_rows_that_do_not_fit_are_left_out_and_listed(table):
    data = load_table(table('smiles,logS\nCCO,1.1\nCC,1,2\nC1C,3\nCCC,-1\n'), skip_bad_rows=True)
    assert data.smiles == ['CCO', 'CCC']
    assert [line.split(':')[0] for line in data.skipped] == ['mine.csv line 3', 'mine.csv line 4']


def test_twenty_thousand_bad_rows_are_ten_lines_and_a_count(table):
    with pytest.raises(DataError) as raised:
        load_table(table('smiles,logS\n' + 'xx,1\n' * 20_000))
    lines = str(raised.value).splitlines()
    assert len(lines) == 12 and '20,000 of 20,000' in lines[0] and lines[-1].strip() == '… and 19,990 more'


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'cp1252', 'latin-1'])
def test_encodings(table, encoding):
    data = load_table(table('name,smiles,logS\nÄthanol,CCO,1.1\n'.encode(encoding)))
    assert data.frame.name.tolist() == ['Äthanol'] and data.y.tolist() == [np.float32(1.1)]


def test_names_stay_the_text_they_are(table):
    names = ['001176', 'TRUE', '0e5', 'NA', '1e3', '']
    rows = '\n'.join(f'{name},{"C" * (i + 1)},-1.{i}' for i, name in enumerate(names))
    assert load_table(table(f'name,smiles,logS\n{rows}\n')).frame.name.tolist() == [*names[:-1], 'CCCCCC']


def test_every_kind_of_file_gives_the_same_table(table, tmp_path):
    frame = load_esol().frame.head(20)
    frame.to_csv(tmp_path / 'a.csv', index=False)
    frame.to_csv(tmp_path / 'b.tsv', index=False, sep='\t')
    frame.to_csv(tmp_path / 'c.csv', index=False, sep=';', decimal=',', encoding='utf-16')
    frame.to_parquet(tmp_path / 'd.parquet')
    (tmp_path / 'e.csv.gz').write_bytes(gzip.compress((tmp_path / 'a.csv').read_bytes()))
    for name in ('a.csv', 'b.tsv', 'c.csv', 'd.parquet', 'e.csv.gz'):
        pd.testing.assert_frame_equal(load_table(tmp_path / name).frame, frame)


def test_a_workbook(tmp_path):
    frame = pd.DataFrame(dict(SMILES=['CCO', None, 'c1ccccc1'], logS=[1.1, None, -1.64], Compound=[1176, None, 12], measured=pd.Timestamp('2026-11-26')))
    with pd.ExcelWriter(tmp_path / 'assay.xlsx', engine='openpyxl') as book:
        frame.to_excel(book, sheet_name='results', index=False)
        frame.to_excel(book, sheet_name='notes', index=False)
    frame[:1].to_excel(tmp_path / 'index.xlsx', engine='openpyxl')
    data = load_table(tmp_path / 'assay.xlsx', name_column='Compound', skip_bad_rows=True)
    assert data.frame.to_numpy().tolist() == [['1176', 'CCO', 1.1], ['12', 'c1ccccc1', -1.64]]
    assert "sheet 'results', the first of 2" in data.how and data.skipped == ("assay.xlsx row 3: no molecule in '': the SMILES is empty",)
    with pytest.raises(DataError, match='column 1 has no name'):
        load_table(tmp_path / 'index.xlsx')


def test_units_are_converted_with_the_weight_of_each_molecule(table):
    path = table('smiles,solubility_mg_per_L\nCCO,1000000\nc1ccccc1,1790\nCCCCCCCC,0.66\n')
    data = load_table(path, target='solubility_mg_per_L', unit='mg/L')
    np.testing.assert_allclose(data.frame.log_solubility, np.log10([1000 / 46.069, 1.790 / 78.114, 0.66e-3 / 114.232]), atol=1e-4)
    assert 'converted from mg/L to log10(mol/L)' in data.how
    with pytest.raises(BioaiError, match="unit='stone' is not one of solubility"):
        load_table(path, target='solubility_mg_per_L', unit='stone')


def test_another_target_or_unit_is_another_version_and_the_same_words_the_same(table):
    path = table('smiles,a,b\nCCO,1.5,-2.5\nCC,0.5,1.5\n')
    readings = (dict(target='a'), dict(target='b'), dict(target='b', unit='mol/L', skip_bad_rows=True))
    assert len({load_table(path, **reading).version for reading in readings}) == 3
    first = load_table(path, target='A')
    assert read_dataset(path, Reading(**first.reading.model_dump())).version == first.version == load_table(path, target='a').version
    plain = table('smiles,logS\nCCO,1.1\n', 'plain.csv')
    assert load_table(plain).version == dataset_version(plain.read_bytes())


def test_molecules_that_stand_twice_are_said(table):
    data = load_table(table('smiles,logS\nCCO,1\nOCC,-2\nC[N+](=O)[O-],0\nCC,1\n'))
    assert data.remarks == ('1 molecule is in more than one row, and 1 of them with values that differ, by up to 3.00',)


FIELDS = st.sampled_from(['CCO', 'c1ccccc1', 'xx', '1.1', '-2', '1,5', '', ' ', '"', '"a', 'smiles', 'logS', 'name', '\x00', 'é', '−3', '<1', '1e400', ';'])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(FIELDS, max_size=4), max_size=6), separator=st.sampled_from(',;\t|'), end=st.sampled_from(['\n', '\r\n', '\r']),
       encoding=st.sampled_from(['utf-8', 'utf-16', 'cp1252']), skip=st.booleans(), header=st.booleans())
def test_any_table_is_read_or_refused_by_name(table, rows, separator, end, encoding, skip, header):
    if header:
        rows = [['smiles', 'logS'], *rows]
    path = table(end.join(separator.join(row) for row in rows).encode(encoding, 'replace'))
    try:
        data = load_table(path, skip_bad_rows=skip)
    except BioaiError as e:
        assert 'mine.csv' in str(e)
    else:
        assert len(data) and np.isfinite(data.y).all() and not (data.skipped and not skip)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), name=st.sampled_from(['a.csv', 'a.smi', 'a.sdf', 'a.xlsx', 'a.parquet', 'a.csv.gz', 'a.ods', 'a']))
def test_any_bytes_are_read_or_refused_by_name(table, content, name):
    path = table(content, name)
    try:
        read_table(path)
    except DataError as e:
        assert name in str(e)


def test_a_unit_in_the_header_is_not_overlooked(table):
    "Whoever names a column of mg/L and no unit is asked: what little of it could be a logarithm would train."
    path = table('smiles,S [mg/L]\nCCO,1.5\nc1ccccc1,1790\n')
    with pytest.raises(BioaiError, match="seems to be in mg/L: unit='mg/L' converts it, unit='log10"):
        load_table(path, target='S [mg/L]')
    assert load_table(path, target='S [mg/L]', unit='mg/L').y[1] == pytest.approx(-1.64, abs=1e-3)
    said = table('smiles,S [mg/L]\nCCO,1.5\nc1ccccc1,-1.8\n')
    data = load_table(said, target='S [mg/L]', unit='log10(mol/L)')
    assert data.y.tolist() == pytest.approx([1.5, -1.8]) and recorded(data.reading.record()) == data.reading


def test_one_row_is_not_several():
    from bioai_esol.chem.tables import table_of
    frame = pd.DataFrame(dict(smiles=['CCO', 'CC'], y=['1', '2']))
    assert '; 1 row, columns' in repr(table_of(frame.head(1)))
    assert '; 2 rows, columns' in repr(table_of(frame))
