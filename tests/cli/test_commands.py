"The program from outside: what it prints, writes and returns."
import csv
import json
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from mlflow import MlflowClient
from helpers import EASY_OPTIONS, PROGRAM, copied, fresh


@pytest.fixture(scope='module')
def with_champion(tmp_path_factory):
    "A working directory with one sweep and a champion; tests that change it take a copy: `champion_folder`."
    folder = tmp_path_factory.mktemp('champion')
    fresh(folder)
    subprocess.run([PROGRAM, 'sweep', '--hidden-dim', '32', '--lr', '1e-2', '--batch-size', '32', '--dropout', '0', '--weight-decay', '0',
                    '--epochs', '25', '--run-tag', 'tiny'], cwd=folder, check=True, capture_output=True, timeout=200)
    done = subprocess.run([PROGRAM, 'promote', *EASY_OPTIONS, '--json'], cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome['approved'] and outcome['champion'] == '1' and outcome['decisions'][0]['note'] == 'bit for bit'
    return folder


@pytest.fixture
def champion_folder(with_champion, tmp_path):
    copied(with_champion, tmp_path / 'store')
    return tmp_path / 'store'


def one_line(done, status, *words):
    assert done.returncode == status, (done.stdout, done.stderr)
    assert 'Traceback' not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_help_names_the_commands(program, here):
    done = program('--help')
    assert done.returncode == 0
    commands = ('look', 'train', 'sweep', 'promote', 'rollback', 'archive', 'restore', 'alias', 'status', 'history', 'compare', 'advice', 'predict', 'report',
                'server', 'doctor', 'serve', 'migrate', 'benchmark')
    for word in (*commands, 'Exit status'):
        assert word in done.stdout
    for command in commands:
        assert here(command, '--help').returncode == 0


BY_ARGPARSE = 'rollback', 'frobnicate'  # with the usage in front


@pytest.mark.parametrize('args, words', [
    (['sweep', '--dropout', '0,1.5'], ['--dropout 1.5:', 'less than 1']),
    (['sweep', '--lr', 'fast'], ['--lr fast: must be a valid number']),
    (['sweep', '--hidden-dim', ''], ["--hidden-dim '': must be a valid integer"]),
    (['sweep', '--grid', 'absent.yaml'], ['cannot read absent.yaml']),
    (['sweep', '--data', 'absent.csv'], ['cannot read absent.csv']),
    (['sweep', '--workers', '0'], ['--workers 0: must be greater']),
    (['train', '--lr', '1e-2,1e-3'], ['one value']),
    (['promote', '--gap-threshold', '-1'], ['--gap-threshold -1: must be greater than 0']),
    (['promote'], ['no tracking store', "run 'bioai-esol sweep' first"]),
    (['predict'], ['give molecules']),
    (['predict', 'CCO'], ['no tracking store']),
    (['status', '--tracking-uri', 'http://127.0.0.1:9'], ['cannot reach the tracking server']),
    (['rollback'], ['--reason']),
    (['promote', '--run-tag', 'a', '--version', '1'], ['one of the two']),
    (['alias', 'shadow'], ['--remove']),
    (['history'], ['no tracking store']),
    (['frobnicate'], ['invalid choice']),
    *((['serve', '--port', port], [f'bioai-esol serve: --port {port}: must be ']) for port in ('0', '99999', '-1', 'abc')),
    (['serve', '--port', '0'], ['between 1 and 65535']),
    (['server', '--port', '0'], ['bioai-esol server: --port 0: must be between 1 and 65535']),
    (['serve', '--host', 'nosuch.invalid'], ["address 'nosuch.invalid': cannot be listened on", '--host takes an address or name of this machine']),
    (['serve', '--digests-only'], ['bioai-esol serve: give --digests-only together with --note-requests']),
    (['sweep', '--preset', 'accurate', '--architecture', 'ridge'], ['ridge s1 alone is none', '--architecture']),
    (['sweep', '--preset', 'accurate', '--split', 'random'], ['--split random the seeds 1, 2', 'give one (--seed)']),
    (['serve', '--share', 'a=0.1', '--share', 'b=0.2'], ['--share is given twice']),
    (['sweep', '--lr', '1e-2', '--epochs', '3', '--lr', '1e-3'], ['--lr is given twice']),
    (['train', '--standardise', '--no-standardise'], ['--no-standardise is given twice']),
])
def test_wrong_use_is_one_clear_line(here, tmp_path, args, words):
    done = here(*args)
    one_line(done, 2, *words)
    assert len(done.stderr.splitlines()) == 1 or args[0] in BY_ARGPARSE, done.stderr
    assert not (tmp_path / 'mlflow.db').exists()  # nothing half done


def test_debug_shows_the_traceback(program):
    done = program('sweep', '--lr', 'fast', '--debug')
    assert done.returncode != 0 and 'Traceback' in done.stderr


def test_train_is_a_sweep_of_one(here):
    args = ['train', '--hidden-dim', '8', '--batch-size', '64', '--epochs', '2']
    first = here(*args)
    assert first.returncode == 0 and '1 trained, 0 finished before' in first.stdout, first.stderr
    assert '0 trained, 1 finished before' in here(*args).stdout


def test_yaml_and_options_are_the_same_thing(here, tmp_path):
    (tmp_path / 'grid.yaml').write_text('hidden_dim: [8]\nlr: 1e-2\n'
                                        'batch_size: 64\ndropout: 0\nweight_decay: [0, 1e-4]\nepochs: 2\nrun_tag: same\nworkers: 1\n')
    first = here('sweep', '--grid', 'grid.yaml')
    assert '2 trained' in first.stdout, first.stderr
    options = ['--hidden-dim', '8', '--lr', '0.01', '--batch-size', '64', '--dropout', '0', '--weight-decay', '0,0.0001', '--epochs', '2']
    assert '0 trained, 2 finished before' in here('sweep', *options, '--run-tag', 'same', '--workers', '2').stdout
    assert "run tag 'same-2'" in here('sweep', '--grid', 'grid.yaml', '--fresh').stdout


def test_bad_rows_stop_the_run_unless_skipped(here, tmp_path):
    from bioai_esol.chem.dataset import load_esol
    table = load_esol().frame.head(100)[['smiles', 'log_solubility']].astype(str)
    table.loc[3, 'smiles'], table.loc[7, 'log_solubility'] = 'C1CC', 'nan'
    table.to_csv(tmp_path / 'mine.csv', index=False)
    args = ['train', '--data', 'mine.csv', '--hidden-dim', '8', '--epochs', '2']
    one_line(here(*args), 2, 'mine.csv line 5', 'mine.csv line 9', '2 of 100 rows', '--skip-bad-rows')
    done = here(*args, '--skip-bad-rows')
    assert done.returncode == 0 and '2 rows left out' in done.stdout and 'line 5' in done.stdout
    promoted = here('promote', *EASY_OPTIONS)
    assert promoted.returncode == 0, (promoted.stdout, promoted.stderr)


RARELY = {'torch_geometric', 'sklearn', 'matplotlib', 'seaborn', 'optuna', 'IPython', 'PIL', 'boto3', 'uvicorn', 'scipy.stats', 'scipy.optimize',
          'rdkit.Chem.AllChem', 'rdkit.Chem.Draw', 'bioai_esol.training.engine', 'bioai_esol.sweep', 'bioai_esol.analysis'}
TO_ANSWER = {'torch', 'rdkit', 'safetensors', 'scipy.linalg', 'bioai_esol.chem', 'bioai_esol.models', 'bioai_esol.serving'}


@pytest.mark.parametrize('command, spared', [('status', RARELY | TO_ANSWER), ('history', RARELY | TO_ANSWER), ('predict CCO', RARELY)])
def test_a_command_starts_with_what_it_needs(with_champion, command, spared):
    "Modules, not seconds: what is not imported costs nothing on any machine."
    show = (f"import sys; from bioai_esol.cli.commands import main; status = main({command.split()!r}); "
            f"print('imported:', *sorted({spared!r} & set(sys.modules)), file=sys.stderr); sys.exit(status)")
    done = subprocess.run([sys.executable, '-c', show], cwd=with_champion, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (0, ['imported:']), done.stderr


def test_predict_in_another_process(program, here, with_champion, tmp_path):
    done = program('predict', 'CCO', cwd=with_champion)
    assert done.returncode == 0 and 'CCO' in done.stdout
    rows = json.loads(here('predict', 'CCO', 'C1CC', 'C', '--json', cwd=with_champion).stdout)
    assert [r['error'] == '' for r in rows] == [True, False, True]
    assert rows[1]['log_solubility'] is None and rows[0]['model_version'] == '1'
    assert rows[0]['solubility_mol_per_l'] == pytest.approx(10 ** rows[0]['log_solubility'])
    (tmp_path / 'in.csv').write_text('id,smiles\n1,CCO\n2,nonsense(\n3,C\n')
    done = here('predict', '--input', tmp_path / 'in.csv', '--output', tmp_path / 'out.csv', cwd=with_champion)
    assert done.returncode == 0 and '3 molecules, 1 with an error' in done.stdout
    with open(tmp_path / 'out.csv', newline='') as f:
        table = list(csv.DictReader(f))
    assert [r['id'] for r in table] == ['1', '2', '3']
    assert float(table[0]['log_solubility']) == pytest.approx(rows[0]['log_solubility'])
    assert 'nonsense(' in table[1]['error'] and not table[1]['log_solubility']
    one_line(here('predict', '--input', tmp_path / 'absent.csv', cwd=with_champion), 2, 'absent.csv')
    (tmp_path / 'wrong.csv').write_text('molecule\nCCO\n')
    one_line(here('predict', '--input', tmp_path / 'wrong.csv', cwd=with_champion), 2, "no column 'smiles'")


def test_predict_prints_what_fits_and_draws_why(here, with_champion, tmp_path):
    header, row = here('predict', 'CCO', cwd=with_champion).stdout.splitlines()
    cells = dict(zip(header.split(), row.split()))
    assert list(cells) == ['smiles', 'log_solubility', 'low', 'high', 'unit', 'solubility_mol_per_l', 'similarity', 'domain', 'model_version']
    assert [len(cells[c].split('.')[1]) for c in ('log_solubility', 'low', 'high', 'similarity')] == [3, 3, 3, 2]
    drawings = tmp_path / 'new' / 'drawings'
    done = here('predict', 'CCO', '../C1CC', 'C', '--explain', drawings, cwd=with_champion)
    assert done.returncode == 0 and f'2 drawings of 3 molecules written to {drawings}' in done.stdout, done.stderr
    assert "\n  ../C1CC: no molecule in '../C1CC': RDKit cannot read it" in done.stdout
    assert sorted(p.name for p in drawings.iterdir()) == ['0.svg', '2.svg']
    legends = [ElementTree.parse(p).getroot().findall('{*}text')[-1].text for p in sorted(drawings.iterdir())]
    assert legends[0].startswith('blue: more soluble') and legends[1].startswith('no colours')
    done = here('predict', 'CCO', '--json', '--explain', drawings, cwd=with_champion)
    assert len(json.loads(done.stdout)) == 1 and '1 drawing of 1 molecule written' in done.stderr
    (tmp_path / 'file').touch()
    one_line(here('predict', 'CCO', '--explain', tmp_path / 'file', cwd=with_champion), 2, 'cannot write', 'file', 'exists')


def test_status_history_and_rollback(here, champion_folder):
    [row] = json.loads(here('status', '--json', cwd=champion_folder).stdout)
    assert (row['version'], row['alias'], row['status']) == ('1', 'champion', 'champion')
    assert row['why'].startswith('first champion; the model is not shown to be better than always answering with the mean')
    done = here('rollback', '--reason', 'drift', cwd=champion_folder)
    assert done.returncode == 1 and 'no earlier champion' in done.stdout
    told = json.loads(here('history', '--json', cwd=champion_folder).stdout)
    assert [(e['action'], e['outcome']) for e in told] == [('register', 'done'), ('candidate', 'done'), ('promote', 'done'), ('rollback', 'refused')]
    shown = here('history', cwd=champion_folder).stdout
    assert 'champion: – → 1' in shown and 'no earlier champion' in shown and max(map(len, shown.splitlines())) <= 140
    shown = here('status', cwd=champion_folder).stdout
    assert 'champion' in shown and f"{row['test_rmse']:.4f}" in shown
    checked = here('status', '--check', cwd=champion_folder)
    assert checked.returncode == 0 and checked.stdout.count('✓') == 6


def test_aliases_and_the_archive(here, champion_folder):
    assert here('alias', 'shadow', 'champion', cwd=champion_folder).stdout.strip() == 'version 1: alias, shadow set'
    assert here('alias', 'shadow', '--remove', cwd=champion_folder).returncode == 0
    one_line(here('alias', 'shadow', '--remove', cwd=champion_folder), 2, "there is no alias 'shadow'")
    one_line(here('alias', 'champion', '1', cwd=champion_folder), 2, 'is moved by')
    one_line(here('archive', '1', '--reason', 'old', cwd=champion_folder), 2, 'version 1 is the champion')
    one_line(here('restore', '7', '--reason', 'new', cwd=champion_folder), 2, "no version '7'", 'there are: 1, champion')
    one_line(here('compare', '1', 'champion', cwd=champion_folder), 2, 'are the same version')
    one_line(here('promote', '--version', '9', cwd=champion_folder), 2, "no version '9'")
    one_line(here('promote', '--run-tag', 'nothing', cwd=champion_folder), 2, "no runs with the run tag 'nothing'", 'run tags: tiny')


def test_promote_says_no_with_status_1_and_which_threshold_would_do(here, champion_folder):
    "The gap of the one run is far above 1e-9: refused, and the threshold that is named admits it."
    done = here('promote', '--gap-threshold', '1e-9', '--r2-tolerance', '0', '--dry-run', '--json', cwd=champion_folder)
    outcome = json.loads(done.stdout)
    assert done.returncode == 1 and not outcome['approved'] and outcome['smallest_gap_threshold'] > 1e-9
    again = here('promote', '--gap-threshold', outcome['smallest_gap_threshold'], '--dry-run', '--allow-dirty', cwd=champion_folder)
    assert 'no candidate' not in again.stdout


def test_the_champion_is_not_promoted_again(here, champion_folder):
    again = here('promote', *EASY_OPTIONS, cwd=champion_folder)
    assert again.returncode == 0 and 'is the champion already' in again.stdout


def test_a_dry_run_changes_nothing(here, swept, tmp_path):
    shutil.copytree(swept, tmp_path / 'copy')
    def runs():
        import sqlite3
        with sqlite3.connect(tmp_path / 'copy/mlflow.db') as db:
            return [db.execute(f'select count(*) from {t}').fetchone() for t in ('runs', 'tags', 'registered_models', 'registered_model_tags',
                                                                                     'model_versions')]
    before = runs()
    here('promote', '--dry-run', *EASY_OPTIONS, cwd=tmp_path / 'copy')
    assert runs() == before


def test_a_champion_that_was_deleted_in_mlflows_pages(here, champion_folder):
    "The history names no version where none was meant, and the check says that there is no champion, not that None is."
    uri = f'sqlite:///{champion_folder}/mlflow.db'
    MlflowClient(uri).delete_model_version('EsolPrediction', '1')
    assert here('rollback', '--reason', 'it is gone', cwd=champion_folder).returncode == 1
    *_, last, _ = here('history', cwd=champion_folder).stdout.splitlines()
    assert 'rollback   –           refused' in last and 'nan' not in last, last
    checked = here('status', '--check', cwd=champion_folder)
    assert checked.returncode == 1 and 'version 1 was deleted' in checked.stdout
    assert "there is no champion, but the journal's last move made it 1" in ' '.join(checked.stdout.split())


def test_an_experiment_that_was_deleted_in_mlflows_pages(here, champion_folder):
    "Such a store answers and is writable, but no sweep can run in it: doctor says so in the words of the sweep."
    uri = f'sqlite:///{champion_folder}/mlflow.db'
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name('esol_prediction').experiment_id
    assert here('doctor', cwd=champion_folder).returncode == 0
    client.delete_experiment(experiment)
    found = here('doctor', cwd=champion_folder)
    remedy = f"'mlflow experiments restore -x {experiment}' brings it back"
    assert found.returncode == 2 and "✗ experiment: the experiment 'esol_prediction' was deleted" in found.stdout and remedy in found.stdout
    one_line(here('train', '--run-tag', 'new', cwd=champion_folder), 2, "the experiment 'esol_prediction'", 'was deleted', remedy)
    client.restore_experiment(experiment)
    assert here('doctor', cwd=champion_folder).returncode == 0
