"Random command lines, tables and surroundings: whatever a person gives, the answer is a result or one clear line, and nothing is lost."
import argparse
import os
import subprocess

import pytest
from helpers import PROGRAM, copied
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from bioai_esol.chem.dataset import load_esol
from bioai_esol.cli.parser import make_parser

COMMAND_LINES = int(os.environ.get('BIOAI_SEQUENCES', 60))
SURROUNDINGS = int(os.environ.get('BIOAI_SEQUENCES', 48)) // 6
ENDLESS = {'server', 'serve', 'benchmark'}       # until Ctrl-C, or ten minutes; so is 'watch --every'
MAY_SAY_NO = {'promote', 'watch', 'acknowledge', 'rollback', 'archive', 'restore', 'alias', 'status', 'train', 'sweep'}  # a rule, or every run failed
QUICK = ['--architecture', 'ridge', '--epochs', '2', '--workers', '1', '--hidden-dim', '4', '--lr', '1e-2', '--batch-size', '64', '--dropout', '0',
         '--weight-decay', '0', '--seed', '1']   # so that a command line that is right does not train for hours
ODD = ['', ' ', '0', '1', '-1', '2', '0.5', 'nan', 'inf', '-inf', '1e309', '1,2', ',', 'x', 'é', '\u0661', '👍', '%s%n', '{0}', "a'b", 'a"b', 'a b', '../..',
       '/dev/null', '/dev/full', '/', 'true', 'None', '[1]', '--', '-', '\t', 'a\nb', '0x10', '1_0', '9' * 400, 'smiles', 'logS',
       'log_solubility', 'mg/L', 'logD', 'table.csv', 'absent.csv', 'small', 'a', 'b', 'champion', 'candidate', '99', 'sqlite:///absent/x.db', 'http://127.0.0.1:9',
       'ftp://x', 'utf-16', ';', 'comma']
RIGHT = dict(data='table.csv', input='table.csv', table='table.csv', tables='table.csv', smiles_column='smiles', target='logS', property='logS',
             unit='mg/L', separator='comma', decimal='.', run_tag='c', version='1', version_a='1', version_b='champion',
             name='shadow', reason='tried', smiles='CCO', split='random', source='sqlite:///mlflow.db')
OUTPUTS = ['out.csv', 'out.html', '/dev/null', '/dev/full', 'absent/out.csv', '/proc/out', 'table.csv/x']  # what a test may write to


def commands():
    "Every command with its arguments, from the parser itself, so that an option which is added is tried, too."
    sub = next(a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {name: [a for a in p._actions if a.dest not in ('help', 'tracking_uri', 'debug', 'every')] for name, p in sub.choices.items() if name not in ENDLESS}


def argument(draw, action):
    "One argument with a value that it may or may not take."
    writes = action.dest in ('output', 'explain', 'target', 'folder') and action.metavar in ('CSV', 'HTML', 'FOLDER', 'URI')  # or moves files
    values = OUTPUTS if writes else [*ODD, *(action.choices or [])]
    value = [] if action.nargs == 0 else [draw(st.sampled_from(values))]
    if value and action.dest in RIGHT and draw(st.integers(0, 3)): value = [RIGHT[action.dest]]
    if not action.option_strings: return value
    name = draw(st.sampled_from(action.option_strings))
    return [f'{name}={value[0]}'] if value else [name]


@st.composite
def command_lines(draw):
    name = draw(st.sampled_from(sorted(commands())))
    actions = commands()[name]
    given_ones = draw(st.lists(st.sampled_from(actions), max_size=4, unique_by=lambda a: a.dest)) if actions else []
    needed = [a for a in actions if a.required and a not in given_ones and draw(st.integers(0, 5))]
    line = [part for a in [*given_ones, *needed] for part in argument(draw, a)]
    options = {o for a in actions for o in a.option_strings}
    short = [part for o, v in zip(QUICK[::2], QUICK[1::2]) if o in options and not any(x.startswith(f'{o}=') for x in line) for part in (o, v)]
    return [name, *short, *line]


ROWS = [f'{s},{y}' for s, y in load_esol().frame[['smiles', 'log_solubility']].head(30).itertuples(index=False)]


@st.composite
def tables(draw):
    "A table of thirty molecules, with a few lines put among them or changed."
    rows = list(ROWS)
    odd = st.sampled_from(['', ',', 'CCO', 'CCO,', 'CCO,x', 'CCO,1,2', '"CCO,1', 'xx,1', '[Na+].[Cl-],0.5',
                           'CCO,>3', 'CCO,1e400', '\x00,1', 'C' * 400 + ',1', ',1', 'CCO;1', '*,1'])
    for line in draw(st.lists(odd, max_size=3)): rows.insert(draw(st.integers(0, len(rows))), line)
    header = draw(st.sampled_from(['smiles,logS', 'SMILES,log_solubility', 'smiles,logD', 'a,b', 'smiles,smiles', '', 'smiles']))
    return '\n'.join([header, *rows]).encode(draw(st.sampled_from(['utf-8', 'utf-8-sig', 'utf-16', 'latin-1'])))


def require_answer(line, code, out, err):
    "What holds of every answer: a known status, a line for a person, no traceback."
    shown = f'{line} → {code}\n{out[-1500:]}\n{err[-1500:]}'
    assert 'Traceback' not in out + err and 'unexpected' not in err, shown
    assert code in (0, 2) or code == 1 and line[0] in MAY_SAY_NO, shown
    if code == 2: assert err.strip() or line[0] in ('predict', 'doctor', 'look'), shown  # these say it in their table
    said = [text for text in err.splitlines() if text.startswith('bioai-esol')]
    assert len(said) <= 1, shown


@pytest.fixture(scope='module')
def with_champion(tmp_path_factory, template):
    "A folder with a champion."
    folder = tmp_path_factory.mktemp('champion')
    copied(template, folder)
    command = [PROGRAM, 'promote', '--run-tag', 'c', '--gap-threshold', '9', '--r2-tolerance', '0.99', '--allow-dirty']
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@settings(max_examples=COMMAND_LINES, deadline=None, suppress_health_check=list(HealthCheck))
@given(line=command_lines(), table=tables())
def test_every_command_line_has_an_answer(line, table, here, with_champion):
    if not (here.folder / 'mlflow.db').exists(): copied(with_champion, here.folder)
    (here.folder / 'table.csv').write_bytes(table)
    before = (here.folder / 'mlflow.db').stat().st_size
    done = here(*line)
    event(f'{line[0]} {done.returncode}')
    require_answer(line, done.returncode, done.stdout, done.stderr)
    assert (here.folder / 'mlflow.db').stat().st_size >= before and (here.folder / 'table.csv').read_bytes() == table


VARIABLES = dict(  # not PYTHONWARNINGS=error: that asks for an exception wherever a library warns, and MLflow does
    HOME=['/dev/null', '', 'absent', '/proc'], TMPDIR=['/dev/null', 'absent'], XDG_STATE_HOME=['/dev/null', '/proc/x'], XDG_CACHE_HOME=['/dev/null', '/proc/x'],
    LANG=['C', 'xx_YY.latin-1'], LC_ALL=['POSIX', 'tr_TR.UTF-8'], PYTHONIOENCODING=['ascii', 'cp1252'], PYTHONUTF8=['0', '1'], PYTHONOPTIMIZE=['1', '2'],
    PYTHONWARNINGS=['always', 'ignore'], PYTHONDONTWRITEBYTECODE=['1'], COLUMNS=['0', '1', 'x', '100000'], TERM=['', 'dumb'],
    NO_COLOR=['1'], TZ=['Nowhere/City', 'UTC+25'],
    http_proxy=['http://127.0.0.1:9'], https_proxy=['x'], all_proxy=['socks5://127.0.0.1:9'], no_proxy=['*'], MPLBACKEND=['nonsense', 'TkAgg'],
    MLFLOW_RUN_ID=['x'], MLFLOW_EXPERIMENT_NAME=['theirs'], MLFLOW_EXPERIMENT_ID=['7'], MLFLOW_REGISTRY_URI=['http://127.0.0.1:9'],
    MLFLOW_TRACKING_USERNAME=['u'], MLFLOW_TRACKING_TOKEN=['t'], MLFLOW_ENABLE_ASYNC_LOGGING=['true'],
    MLFLOW_S3_ENDPOINT_URL=['http://127.0.0.1:9'], MLFLOW_HTTP_REQUEST_TIMEOUT=['1'],
    OMP_NUM_THREADS=['0', 'x', '64'], GIT_DIR=['/absent'], GIT_CONFIG_GLOBAL=['/dev/null'], PATH=['/absent'], USER=[''], DISPLAY=[':99'],
    CUDA_VISIBLE_DEVICES=[''])


@st.composite
def surroundings(draw):
    names = draw(st.lists(st.sampled_from(sorted(VARIABLES)), min_size=1, max_size=5, unique=True))
    return {name: draw(st.sampled_from(VARIABLES[name])) for name in names}


ASKED = [line.split() for line in (
    'train --architecture ridge --run-tag r', 'predict CCO', 'look table.csv', 'status --check', 'history', 'doctor',
    'promote --run-tag b --dry-run --gap-threshold 9 --allow-dirty')]


@settings(max_examples=SURROUNDINGS, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate])
@given(env=surroundings(), line=st.sampled_from(ASKED))
def test_no_surrounding_is_answered_by_a_traceback(env, line, with_champion, tmp_path):
    (with_champion / 'table.csv').write_text('\n'.join(['smiles,logS', *ROWS]))
    done = subprocess.run([PROGRAM, *line], cwd=with_champion, capture_output=True, timeout=200, env=dict(os.environ, **env))
    out, err = (stream.decode(errors='replace') for stream in (done.stdout, done.stderr))
    require_answer(line, done.returncode, f'{env}\n{out}', err)
