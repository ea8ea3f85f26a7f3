"A store that goes away: what was trained is never lost and never there twice, and nobody waits for long. Processes are really killed."
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.request import Request, urlopen

import boto3
import psutil
import pytest
from conftest import PROGRAM
from stores import KEYS, free_port, mlflow_server, s3

from bioai_esol.outbox import left
from bioai_esol.store import connect
from bioai_esol.tracking import histories, runs_table, search

EPOCHS = 60
GRID = ['--hidden-dim', '8,16,32', '--lr', '1e-2', '--batch-size', '16', '--dropout', '0,0.2', '--weight-decay', '0', '--workers', '2',
        '--epochs', str(EPOCHS), '--run-tag', 'outage']  # six runs in several blocks, some ten seconds


@contextlib.contextmanager
def sweeping(folder, uri, env=None):
    "`bioai-esol sweep` while it runs."
    with open(folder / 'out', 'w') as out, open(folder / 'err', 'w') as err:
        p = subprocess.Popen([PROGRAM, 'sweep', *GRID, '--tracking-uri', uri], cwd=folder, stdout=out, stderr=err, start_new_session=True,
                             env=dict(os.environ, **(env or {})))
    try:
        yield p
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(p.pid, signal.SIGKILL)
        p.wait()


def sweep(folder, uri, env=None, seconds=120):
    start = time.monotonic()
    done = subprocess.run([PROGRAM, 'sweep', *GRID, '--tracking-uri', uri], cwd=folder, capture_output=True, text=True, timeout=seconds,
                          env=dict(os.environ, **(env or {})))
    return done, time.monotonic() - start


def until(what, p=None, seconds=90):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end and (p is None or p.poll() is None)
        time.sleep(0.1)


def kill_tree(p):
    "SIGKILL for a process and everything it started, sessions of their own included."
    family = [*psutil.Process(p.pid).children(recursive=True), psutil.Process(p.pid)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, 10)
    p.wait()


def running(uri):
    "How many runs of the sweep say RUNNING; 0 while there is no experiment yet."
    with contextlib.suppress(Exception):
        return sum(r.info.status == 'RUNNING' for r in search(connect(uri), run_tag='outage', kind='run'))
    return 0


def complete(uri, trainings=6):
    "Six finished runs, each once, with every epoch and every file; and nothing is waiting on this machine."
    store = connect(uri)
    table = runs_table(store, 'outage')
    finished = table[table.status == 'FINISHED']
    assert (len(finished), finished.config_digest.nunique()) == (6, 6), table[['run_name', 'status']]
    assert not (table.status == 'RUNNING').any() and len(table) == trainings, table[['run_name', 'status']]
    history = histories(store, finished.run_id.tolist())
    assert history.groupby('run_id').size().tolist() == [EPOCHS] * 6 and not history.isna().any().any()
    for run_id in finished.run_id:
        assert {f.path for f in store.client.list_artifacts(run_id)} == {'weights.safetensors', 'model.json', 'test_predictions.csv'}
        assert len(store.client.get_run(run_id).inputs.dataset_inputs) == 1
    assert left(store) == []


def test_the_server_is_killed_in_the_middle_and_comes_back(tmp_path):
    "And again after it was killed for longer than anyone waits: then the sweep fails with one line, and the next one writes what was kept."
    port = free_port()
    with mlflow_server(tmp_path, port=port) as server:
        with sweeping(tmp_path, server.url) as p:
            until(lambda: running(server.url), p)
            kill_tree(server)
            until(lambda: 'results are kept' in (tmp_path / 'err').read_text(), p)
            with mlflow_server(tmp_path, port=port) as again:
                assert p.wait(120) == 0, (tmp_path / 'err').read_text()
                assert 'is back' in (tmp_path / 'err').read_text() and '0 failed' in (tmp_path / 'out').read_text()
                complete(again.url)


def test_a_server_that_does_not_come_back(tmp_path):
    "The sweep ends with one line; a second one at once with another; the third, with the server back, trains nothing that was trained."
    port = free_port()
    with mlflow_server(tmp_path, port=port) as server, sweeping(tmp_path, server.url) as p:
        until(lambda: running(server.url) >= 4, p)
        kill_tree(server)
        assert p.wait(120) == 2
        said = (tmp_path / 'err').read_text().strip().splitlines()
        assert 'trained runs are kept in' in said[-1] and 'the same command writes them' in said[-1], said
    done, seconds = sweep(tmp_path, server.url)
    assert done.returncode == 2 and 'cannot reach the tracking server' in done.stderr and seconds < 30
    with mlflow_server(tmp_path, port=port) as again:
        done, _ = sweep(tmp_path, again.url)
        assert done.returncode == 0 and '0 trained, 6 finished before, 0 failed' in done.stdout, done.stdout + done.stderr
        complete(again.url)


def test_the_sweep_is_killed_while_the_server_is_away(tmp_path):
    "SIGKILL in the middle of the waiting: what was on the disk is written by the next sweep."
    port = free_port()
    with mlflow_server(tmp_path, port=port) as server, sweeping(tmp_path, server.url) as p:
        until(lambda: running(server.url) >= 4, p)
        kill_tree(server)
        kept = lambda: list(Path(os.environ['XDG_STATE_HOME']).rglob('run.json'))
        until(lambda: len(kept()) >= 3, p)
        os.killpg(p.pid, signal.SIGKILL)
        p.wait()
        trained = len([k for k in kept() if '.draft' not in str(k)])
    with mlflow_server(tmp_path, port=port) as again:
        done, _ = sweep(tmp_path, again.url)
        assert done.returncode == 0 and f'{6 - trained} trained, {trained} finished before' in done.stdout, done.stdout + done.stderr
        killed = runs_table(connect(again.url), 'outage').status.eq('KILLED').sum()
        complete(again.url, 6 + killed)


def test_a_server_that_hangs(tmp_path):
    "Stopped, not dead: it takes connections and answers nobody."
    with mlflow_server(tmp_path) as server:
        family = psutil.Process(server.pid).children(recursive=True)
        for member in family:
            member.suspend()
        try:
            for command in (['sweep', *GRID], ['promote'], ['doctor'], ['predict', 'CCO']):
                start = time.monotonic()
                done = subprocess.run([PROGRAM, *command, '--tracking-uri', server.url], cwd=tmp_path, capture_output=True, text=True, timeout=60)
                assert done.returncode == 2 and 'timed out' in done.stdout + done.stderr and time.monotonic() - start < 30
        finally:
            for member in family:
                member.resume()


def refuse(endpoint, yes):
    "Let the S3 server look at the keys from now on, and refuse ours, which it does not know; or let everyone in again."
    urlopen(Request(f'{endpoint}/moto-api/reset-auth', b'0' if yes else b'1000000000', method='POST')).close()


def test_s3_refuses_in_the_middle(tmp_path):
    "First it refuses the keys, then it is let in again; all of it ends in complete data."
    env = dict(KEYS, INITIAL_NO_AUTH_ACTION_COUNT='1000000000')
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        with s3(tmp_path) as endpoint, mlflow_server(tmp_path, '--artifacts', 's3://esol-runs', '--s3-endpoint', endpoint) as server:
            patch.setenv('MLFLOW_S3_ENDPOINT_URL', endpoint)
            with sweeping(tmp_path, server.url) as p:
                until(lambda: running(server.url), p)
                refuse(endpoint, True)
                until(lambda: 'results are kept' in (tmp_path / 'err').read_text(), p)
                refuse(endpoint, False)
                assert p.wait(120) == 0, (tmp_path / 'err').read_text()
            complete(server.url)
            said = (tmp_path / 'err').read_text()
            assert 'InvalidAccessKeyId' in said or 'does not exist in our records' in said, said


@pytest.mark.parametrize('fault', ['credentials', 'endpoint', 'bucket'])
def test_s3_that_cannot_be_used(tmp_path, fault):
    "Found before anything is trained, in one line, within seconds; and by `server` before it starts."
    with s3(tmp_path) as endpoint, mlflow_server(tmp_path, '--artifacts', 's3://esol-runs', '--s3-endpoint', endpoint, env=KEYS) as server:
        env = dict(KEYS, MLFLOW_S3_ENDPOINT_URL=endpoint)
        if fault == 'credentials':
            env = {k: v for k, v in env.items() if k not in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY')}
        if fault == 'endpoint':
            env['MLFLOW_S3_ENDPOINT_URL'] = f'http://127.0.0.1:{free_port()}'
        if fault == 'bucket':
            client = boto3.client('s3', endpoint_url=endpoint, aws_access_key_id='tester', aws_secret_access_key='x', region_name='eu-west-1')
            client.delete_bucket(Bucket='esol-runs')
        hint = dict(credentials="'aws configure'", endpoint='cannot be reached', bucket="'aws s3 mb s3://esol-runs'")[fault]
        done, seconds = sweep(tmp_path, server.url, env)
        assert done.returncode == 2 and hint in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
        assert seconds < 30 and running(server.url) == 0 and 'trained' not in done.stdout
        started = subprocess.run([PROGRAM, 'server', '--port', str(free_port()), '--artifacts', 's3://esol-runs', '--s3-endpoint',
                                  env['MLFLOW_S3_ENDPOINT_URL']], cwd=tmp_path, capture_output=True, text=True, timeout=30, env=dict(os.environ, **env))
        assert started.returncode == 2 and hint in started.stderr, started.stderr


@pytest.mark.skipif(os.getuid() != 0, reason='mounting a small disk needs root')
def test_the_disk_is_full(tmp_path):
    "Store, state directory and temporary directory on one disk that fills up, and is given room again."
    disk = Path(tempfile.mkdtemp())
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=24m', 'tmpfs', disk], capture_output=True).returncode:
        pytest.skip('this machine does not let a small disk be mounted')
    try:
        env = dict(XDG_STATE_HOME=str(disk / 'state'), TMPDIR=str(disk))
        with sweeping(disk, uri := f'sqlite:///{disk}/mlflow.db', env) as p:
            until(lambda: running(uri), p)
            with contextlib.suppress(OSError), open(disk / 'ballast', 'wb') as f:
                while True:
                    f.write(b'x' * 65536)
                    f.flush()
            until(lambda: 'the training goes on' in (disk / 'err').read_text() or p.poll() is not None)
            assert p.poll() is None, (disk / 'err').read_text()
            (disk / 'ballast').unlink()
            assert p.wait(120) == 0, (disk / 'err').read_text()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv('XDG_STATE_HOME', env['XDG_STATE_HOME'])
            complete(uri)
    finally:
        subprocess.run(['umount', '-l', disk], check=True)
        shutil.rmtree(disk)
