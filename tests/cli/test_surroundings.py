"The program in surroundings that are not those of a desk: closed streams, a terminal of few characters, errors that nobody expected."
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import tempfile
from pathlib import Path

import pytest
from helpers import EASY_OPTIONS, PROGRAM, fresh, sweep_here
from stores import answers, free_port, process

RIDGE = ['train', '--architecture', 'ridge', '--run-tag', 'r']


def broken(args):
    raise ZeroDivisionError('by\nzero')


@pytest.fixture
def crash(here, monkeypatch):
    "crash(…): `bioai-esol status …` when something in it goes wrong that nobody has thought of."
    from bioai_esol.cli import commands
    monkeypatch.setitem(commands._COMMANDS, 'status', broken)
    return lambda *args: here('status', *args)


def test_messages_print_in_any_encoding(program, tmp_path):
    sweep_here(fresh(tmp_path), 'a', 1)
    question = ['promote', '--run-tag', 'a', '--allow-dirty', '--dry-run', '--gap-threshold', '9', '--r2-tolerance', '0.99']
    done = program(*question, env=dict(PYTHONIOENCODING='ascii'))
    assert done.returncode == 0 and done.stderr == ''
    assert '  + ' in done.stdout and '✓' not in done.stdout
    done = program(*question, '--json', env=dict(PYTHONIOENCODING='latin-1'))
    assert done.returncode == 0 and json.loads(done.stdout)['approved']
    assert program('promote', '--help', env=dict(PYTHONIOENCODING='ascii')).returncode == 0


def test_a_closed_standard_error_is_no_obstacle(tmp_path):
    fresh(tmp_path)
    command = f'exec {shlex.join([PROGRAM, *RIDGE])} 2>&-'
    done = subprocess.run(['sh', '-c', command], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and '1 trained' in done.stdout, done.stdout
    with sqlite3.connect(tmp_path / 'mlflow.db') as db:
        assert db.execute('select status, count(*) from runs group by status').fetchall() == [('FINISHED', 2)]
    db.close()


def test_an_unexpected_error_is_one_line_and_a_file(crash):
    done = crash()
    assert done.returncode == 70 and done.stdout == ''
    [line] = done.stderr.splitlines()
    assert line.startswith('bioai-esol status: unexpected ZeroDivisionError: by zero; ')
    kept = Path(re.search('the traceback is in (.+)', line)[1]).read_text(encoding='utf-8')
    assert kept.startswith('Traceback') and 'in broken' in kept
    done = crash('--debug')
    assert done.returncode == 70 and 'Traceback' in done.stderr and 'in broken' in done.stderr


def test_a_traceback_finds_its_second_place_or_says_that_it_has_none(crash, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_STATE_HOME', '/dev/null/state')
    for place, words in ((str(tmp_path), str(tmp_path)), ('/dev/null', '--debug shows it')):
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, 'tempdir', place)
            done = crash()
        assert done.returncode == 70 and words in done.stderr


def test_a_mistake_has_its_status_with_debug_too(here):
    done = here('status', '--debug')
    assert done.returncode == 2 and 'Traceback' in done.stderr and 'no tracking store' in done.stderr.splitlines()[-1]


NAMELESS = ['unshare', '--user', '--map-user=4242', '--map-group=4242']  # a user as in a container: a number, no name, no rights


@pytest.fixture
def nameless(tmp_path):
    "nameless(*args, home=…): the program for a user who has no entry in passwd, with this home or with none."
    if not shutil.which('unshare') or subprocess.run([*NAMELESS, 'true'], capture_output=True).returncode:
        pytest.skip('this machine allows no user namespaces')
    fresh(tmp_path)
    known = {name: value for name, value in os.environ.items() if name not in ('HOME', 'LOGNAME', 'USER', 'LNAME', 'USERNAME') and 'XDG' not in name}

    def run(*args, home=None):
        env = known | (dict(HOME=str(home)) if home else {})
        return subprocess.run([*NAMELESS, PROGRAM, *args], cwd=tmp_path, capture_output=True, text=True, timeout=200, env=env)
    return run


@pytest.mark.parametrize('home', [None, '/dev/null', 'closed'])
def test_a_user_without_a_usable_home_can_train(nameless, tmp_path, home):
    if home == 'closed':
        home = tmp_path / 'closed'
        home.mkdir(mode=0o000)
    done = nameless(*RIDGE, home=home)
    assert done.returncode == 0 and '1 trained' in done.stdout, done.stderr
    assert done.stderr.count('descriptors are computed anew each time') == 1 and 'Traceback' not in done.stderr
    assert not (tmp_path / '~').exists()


@pytest.mark.parametrize('home, accounts', [(None, ['--auth']), ('closed', [])])
def test_a_user_without_a_usable_home_can_run_a_server(nameless, tmp_path, home, accounts):
    if home == 'closed':
        home = tmp_path / 'closed'
        home.mkdir(mode=0o000)
    port, log = free_port(), tmp_path / 'server.log'
    known = ['env', *(f'--unset={name}' for name in ('HOME', 'LOGNAME', 'USER', 'LNAME', 'USERNAME')), *([f'HOME={home}'] if home else [])]
    command = [*NAMELESS, *known, PROGRAM, 'server', '--port', port, *accounts]
    with process(command, log, lambda: 'Ctrl-C stops it' in log.read_text(), cwd=tmp_path):
        assert answers(f'http://127.0.0.1:{port}/health')
    assert 'Traceback' not in log.read_text() and not (tmp_path / '~').exists()


def test_a_database_whose_folder_may_not_be_entered(nameless, tmp_path):
    "One line and status 2, whether the folder itself is closed or one above it."
    closed = tmp_path / 'closed'
    (closed / 'sub').mkdir(parents=True)
    closed.chmod(0o000)
    try:
        for place in (closed, closed / 'sub'):
            uri = f'sqlite:///{place}/mlflow.db'
            for command in (['status'], RIDGE, ['predict', 'CCO'], ['server', '--backend', uri]):
                done = nameless(*command, *([] if command[0] == 'server' else ['--tracking-uri', uri]), home='/dev/null')
                assert done.returncode == 2 and 'Permission denied' in done.stderr, done.stderr
                assert len(done.stderr.splitlines()) == 1, done.stderr
            done = nameless('doctor', '--tracking-uri', uri)
            assert done.returncode == 2 and f'✗ database {place}/mlflow.db: cannot be opened: Permission denied' in done.stdout, done.stdout
    finally:
        closed.chmod(0o755)


ANOTHER = 54321  # a user id without an entry in passwd


@pytest.fixture
def container(tmp_path):
    "container(*args): the program as in a container: no HOME, no passwd entry, nothing writable but the working folder; the code belongs to another user."
    rights = ['+dac_read_search']  # may look into any folder, as an image's user may, and write into none of them
    command = ['setpriv', '--reuid', ANOTHER, '--regid', ANOTHER, '--clear-groups', '--inh-caps', *rights, '--ambient-caps', *rights]
    command = [str(part) for part in command]
    if not shutil.which('setpriv') or subprocess.run([*command, 'true'], capture_output=True).returncode:
        pytest.skip('only root may become another user')
    folder = Path(tempfile.mkdtemp(prefix='container-'))
    os.chown(folder, ANOTHER, ANOTHER)
    env = {name: os.environ[name] for name in ('PATH', 'LANG') if name in os.environ} | dict(PYTHONDONTWRITEBYTECODE='1')
    env |= dict(GIT_CONFIG_COUNT='1', GIT_CONFIG_KEY_0='safe.directory', GIT_CONFIG_VALUE_0='*')  # git's own advice about a checkout of somebody else

    def run(*args):
        return subprocess.run([*command, PROGRAM, *map(str, args)], cwd=folder, capture_output=True, text=True, timeout=300, env=env)
    yield run
    shutil.rmtree(folder)


def test_from_sweep_to_prediction_in_a_container(container):
    "On networks: descriptors, which find no home to be kept in, take a minute."
    small = ['--hidden-dim', '8', '--lr', '1e-2', '--batch-size', '64', '--dropout', '0,0.2', '--weight-decay', '0']
    done = container('sweep', *small, '--epochs', '6', '--run-tag', 'r')
    assert done.returncode == 0 and '2 trained, 0 finished before, 0 failed' in done.stdout, done.stderr
    done = container('promote', '--run-tag', 'r', *EASY_OPTIONS)
    assert done.returncode == 0 and 'champion: version 1' in done.stdout, done.stdout + done.stderr
    done = container('predict', 'CCO', '--json')
    [row] = json.loads(done.stdout)
    assert row['domain'] == 'inside' and row['model_version'] == '1' and 'Traceback' not in done.stderr
    for command in (['doctor'], ['report']):
        done = container(*command)
        assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stdout + done.stderr
