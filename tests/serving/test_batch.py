"A library is predicted by real processes, which are killed, and the file is that of an undisturbed run, byte for byte."
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import PROGRAM, uri_of, wait_until
from rdkit import Chem

from bioai_esol.chem.dataset import load_esol
from bioai_esol.errors import DataError
from bioai_esol.serving import predictor
from bioai_esol.serving.predictor import CORES_FROM, PIECE, load_champion

HOSTILE = ['', 'nan', 'C1CC', '[Na+].[Cl-]', 'CCO |$_AV:1$|', 'CC>>CO', 'C' * 300, '*', '[H][H]', 'C#', '((((', '[999C]', 'c1ccc',
           '\u202eCCO', 'é', '-1.5', '=HYPERLINK("x")', 'CC\tO', 'N' * 201, 'O=C(O' * 50]


@pytest.fixture(scope='module')
def champion(with_champion): return load_champion(tracking_uri=uri_of(with_champion))


@pytest.fixture(scope='module')
def library(tmp_path_factory):
    "Twenty thousand rows made of ESOL's molecules: two in one name, some of them nonsense, each row unlike the others."
    smiles = load_esol().smiles
    draw = random.Random(0)
    rows = [dict(id=i, smiles=draw.choice(smiles) + (draw.choice(smiles) if i % 3 else ''), batch=f'no. {i % 7}, "a"') for i in range(20_000)]
    path = tmp_path_factory.mktemp('tables') / 'library.csv'
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def started(library, output, folder):
    command = [PROGRAM, 'predict', '--input', str(library), '--output', str(output), '--tracking-uri', uri_of(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope='module')
def undisturbed(library, with_champion, tmp_path_factory):
    output = tmp_path_factory.mktemp('undisturbed') / 'predicted.csv'
    process = started(library, output, with_champion)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0 and said.startswith('20,000 molecules, '), (said, errors)
    assert os.listdir(output.parent) == ['predicted.csv']
    return output


def test_every_row_comes_back_in_its_order(library, undisturbed, champion):
    before, after = pd.read_csv(library), pd.read_csv(undisturbed, keep_default_na=False)
    assert list(after)[:3] == ['id', 'smiles', 'batch'] and before.equals(after[['id', 'smiles', 'batch']])
    some = slice(7 * PIECE, 8 * PIECE)  # a piece as the program cuts them: the same in this process
    from bioai_esol.models.kaxis import one_thread
    with one_thread(): said = champion.predict(before.smiles[some].tolist())
    numbers = [float(v or 'nan') for v in after.log_solubility[some]]
    np.testing.assert_array_equal(numbers, said.log_solubility.to_numpy())
    assert after.error[some].tolist() == said.error.tolist() and (said.error != '').any()


def worker_of(process):
    "The number of a process that predicts for it."
    children = subprocess.run(['ps', '-ww', '-o', 'pid=,args=', '--ppid', str(process.pid)], capture_output=True, text=True).stdout
    return next(int(line.split()[0]) for line in children.splitlines() if 'spawn_main' in line)


def test_killed_at_four_moments_it_goes_on(library, undisturbed, with_champion, tmp_path):
    "By three signals; and the fourth time only a process that predicts for it."
    output = tmp_path / 'predicted.csv'
    output.write_text('what was there')
    parts = tmp_path / 'predicted.csv.parts'
    for pieces, how in (1, signal.SIGKILL), (5, signal.SIGTERM), (9, signal.SIGINT), (13, None):
        process = started(library, output, with_champion)
        wait_until(lambda n=pieces: parts.exists() and len(list(parts.glob('0*'))) >= n, process)
        if how:
            process.send_signal(how)
        else:
            os.kill(worker_of(process), signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        assert process.returncode != 0 and 'Traceback' not in errors, errors
        assert output.read_text() == 'what was there'
        wait_until(lambda: not growing(parts))
    assert process.returncode == 2 and 'a process that predicts was ended from outside' in errors
    assert errors.count('\n') == 3, errors  # how the table was read, where it goes on, and what happened
    process = started(library, output, with_champion)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0 and 'goes on after ' in errors, errors
    assert output.read_bytes() == undisturbed.read_bytes()
    assert os.listdir(tmp_path) == ['predicted.csv']


def growing(parts):
    "Is a piece still being written by a process that was left behind?"
    before = len(list(parts.glob('0*')))
    time.sleep(.3)
    return len(list(parts.glob('0*'))) != before


def test_another_champion_begins_anew(library, with_champion, champion, tmp_path):
    output = tmp_path / 'predicted.csv'
    small = tmp_path / 'small.csv'
    pd.read_csv(library, nrows=3 * PIECE).to_csv(small, index=False)
    answers = champion.answer_pieces

    class Stopped(Exception): pass

    def two_pieces(pieces, n):
        for i, answer in enumerate(answers(pieces, n)):
            if i == 2:
                raise Stopped
            yield answer
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor.Predictor, 'answer_pieces', lambda self, pieces, n: two_pieces(pieces, n))
        with pytest.raises(Stopped):
            champion.predict_table(small, output, tell=told.append)
    assert len(list((tmp_path / 'predicted.csv.parts').glob('0*'))) == 2
    other = predictor.Predictor(champion.model, '2')
    other.predict_table(small, output, tell=told.append)
    assert any('begun anew' in line for line in told)
    assert set(pd.read_csv(output).model_version) == {2}


def test_two_commands_do_not_write_one_file(library, with_champion, tmp_path):
    output = tmp_path / 'predicted.csv'
    first = started(library, output, with_champion)
    try:
        wait_until(lambda: (tmp_path / 'predicted.csv.parts' / 'note.json').exists(), first)
        second = started(library, output, with_champion)
        _, errors = second.communicate(timeout=100)
        assert second.returncode == 2 and 'another command is writing' in errors
    finally:
        first.kill()
        first.communicate()


@pytest.mark.parametrize('end', ['.csv', '.tsv', '.csv.gz', '.smi', '.sdf', '.sdf.gz', '.parquet'])
def test_every_form_holds_the_same(champion, tmp_path, end):
    smiles = [s for s in load_esol().smiles[:40]] + ['no molecule']
    pd.DataFrame(dict(smiles=smiles, id=[f'{i:03}' for i in range(41)])).to_csv(tmp_path / 'in.csv', index=False)
    output = tmp_path / f'out{end}'
    done = champion.predict_table(tmp_path / 'in.csv', output, tell=lambda line: None)
    assert (done.rows, done.failed) == (41, 1)
    raw = gzip.decompress(output.read_bytes()) if end.endswith('.gz') else output.read_bytes()
    (tmp_path / 'plain').write_bytes(raw)
    if 'sdf' in end:
        rows = [m.GetPropsAsDict() for m in Chem.SDMolSupplier(str(tmp_path / 'plain'))]
        table = pd.DataFrame(rows).assign(id=lambda t: [f'{int(i):03}' for i in t.id])
    elif end == '.parquet':
        table = pd.read_parquet(output)
    else:
        table = pd.read_csv(tmp_path / 'plain', sep=',' if 'csv' in end else '\t', dtype=dict(id=str), float_precision='round_trip')
    assert table.id.tolist() == [f'{i:03}' for i in range(41)]
    expected = champion.predict(smiles).log_solubility
    np.testing.assert_allclose(table.log_solubility.astype(float), expected, rtol=1e-15)
    again = champion.predict_table(output, tmp_path / 'again.csv', tell=lambda line: None)  # what is written can be read
    assert again.rows == 41


def test_hostile_molecules_cost_only_their_rows(champion, tmp_path):
    table = pd.DataFrame(dict(smiles=['CCO', *HOSTILE, 'c1ccccc1'], row=range(len(HOSTILE) + 2)))
    table.to_csv(tmp_path / 'in.csv', index=False)
    champion.predict_table(tmp_path / 'in.csv', tmp_path / 'out.csv', tell=lambda line: None)
    read = pd.read_csv(tmp_path / 'out.csv', keep_default_na=False)
    assert read.row.tolist() == table.row.tolist() and read.smiles.tolist() == table.smiles.tolist()
    assert read.error[0] == read.error[len(read) - 1] == '' and (read.error != '').sum() >= 12
    assert ((read.log_solubility == '') == (read.error != '')).all()


def test_output_is_tried_before_the_work(library, with_champion, tmp_path):
    absent = tmp_path / 'absent'
    for output, words in ((absent / 'out.csv', f'out.csv: there is no folder {absent}'), (tmp_path / 'x.parquet.gz', 'compressed already')):
        process = started(library, output, with_champion)
        said, errors = process.communicate(timeout=100)
        assert process.returncode == 2 and words in errors and not said, errors
    assert os.listdir(tmp_path) == []


def test_output_in_a_folder_that_is_closed(champion, tmp_path, monkeypatch):
    "A root user may write anywhere, so the refusal is that of the system, made here."
    (tmp_path / 'in.csv').write_text('smiles\nCCO\n')
    def closed(self, **_): raise PermissionError(13, 'Permission denied', str(self))
    monkeypatch.setattr(Path, 'mkdir', closed)
    with pytest.raises(DataError, match=f'cannot write .*out.csv: Permission denied in the folder {tmp_path}'):
        champion.predict_table(tmp_path / 'in.csv', tmp_path / 'out.csv', tell=lambda line: None)


def test_a_pipe_goes_in_and_out(champion, with_champion):
    command = [PROGRAM, 'predict', '--input', '/dev/stdin', '--output', '/dev/stdout', '--tracking-uri', uri_of(with_champion)]
    done = subprocess.run(command, input='smiles\nCCO\nC\n', capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stdout.startswith('smiles,log_solubility,'), done.stderr
    assert len(done.stdout.splitlines()) == 4  # header, two rows, what became of them


def test_a_program_without_a_guard_predicts_all_the_same(with_champion, tmp_path):
    "Processes could not load it, so it answers by itself."
    script = tmp_path / 'plain.py'
    script.write_text(f"import bioai_esol as esol\nc = esol.load_champion(tracking_uri='{uri_of(with_champion)}')\n"
                      f"print(len(c.predict(['CCO', 'C'] * {CORES_FROM})))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == str(2 * CORES_FROM), done.stderr


def test_drawings_and_notes_are_of_every_piece(champion, with_champion, tmp_path, here, monkeypatch):
    monkeypatch.setattr(predictor, 'PIECE', 2)
    (tmp_path / 'in.csv').write_text('smiles\nCCO\nC1CC\nCCC\nc1ccccc1\nCO\n')
    done = here('predict', '--input', 'in.csv', '--output', 'out.csv', '--explain', 'drawings', '--note-requests', 'asked.csv',
                '--tracking-uri', uri_of(with_champion))
    assert done.returncode == 0 and '4 drawings of 5 molecules' in done.stdout, (done.stdout, done.stderr)
    assert sorted(p.name for p in (tmp_path / 'drawings').iterdir()) == ['0.svg', '2.svg', '3.svg', '4.svg']
    assert len((tmp_path / 'asked.csv').read_text().splitlines()) == 5
    assert len(json.loads(here('predict', '--input', 'in.csv', '--json', '--tracking-uri', uri_of(with_champion)).stdout)) == 5
