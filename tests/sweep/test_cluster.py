"A sweep on a cluster: real schedulers, nannies and workers on loopback, killed at random moments."
import contextlib
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, UTC
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from dask import config as dask_config
from distributed import Client
from helpers import PROGRAM, fresh, wait_until
from stores import family, free_port, kill_family, mlflow_server

from bioai_esol.errors import BioaiError
from bioai_esol.store.client import connect
from bioai_esol.store.live import ask_sweep, sweep_state
from bioai_esol.store.runs import runs_table, typed_runs
from bioai_esol.sweep.cluster import batch_system
from bioai_esol.sweep.grid import Grid
from bioai_esol.sweep.runner import run_sweep

FIGURES = ['best_val_rmse', 'best_epoch', 'test_rmse', 'val_r2', 'generalisation_gap']
SETTINGS = ['--hidden-dim', '8,16', '--lr', '1e-2,1e-3', '--batch-size', '64', '--dropout', '0,0.2', '--seed', '1,2', '--weight-decay', '0',
            '--epochs', '60', '--run-tag', 'small']  # those of `grid()`
DASK = Path(PROGRAM).with_name('dask')


class Dask:
    "A scheduler and nannies with a worker each; all of them can be killed and started again."
    def __init__(self, folder, options=()):
        self.folder, self.options = folder, options
        self.address = f'tcp://127.0.0.1:{free_port()}'
        self.processes = []

    def start(self, *command, **env):
        with open(self.folder / 'dask.log', 'a') as log:
            process = subprocess.Popen([DASK, *map(str, command), *self.options], cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
                                       env=dict(os.environ, DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL='10s', **env))
        self.processes.append(process)
        return process

    def scheduler(self):
        self.head = self.start('scheduler', '--host', self.address.removesuffix(f":{self.address.rpartition(':')[2]}"),
                               '--port', self.address.rpartition(':')[2], '--no-dashboard')
        return self.head

    def worker(self, *options, **env):
        return self.start('worker', self.address, '--nthreads', '1', '--no-dashboard', '--death-timeout', '60', *options, **env)

    def workers(self):
        "The processes that train; each is the child of a nanny."
        return [child for nanny in self.processes if nanny is not self.head and nanny.poll() is None
                for child in family(nanny) if 'spawn_main' in ' '.join(child.cmdline())]

    def close(self):
        for process in self.processes:
            kill_family(process)
            process.wait()
        self.processes.clear()


@pytest.fixture
def dask(tmp_path):
    cluster = Dask(tmp_path)
    yield cluster
    cluster.close()


def grid(**settings):
    return Grid(**dict(hidden_dim=(8, 16), lr=(1e-2, 1e-3), batch_size=64, dropout=(0, .2), weight_decay=0, seed=(1, 2), epochs=60, run_tag='small',
                       workers=2) | settings)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    return table(run_sweep(grid(), tracking_uri=fresh(tmp_path_factory.mktemp('undisturbed'))).runs)


def table(runs):
    assert set(runs.status) == {'FINISHED'}, runs[['run_name', 'status', 'error']]
    assert runs.config_digest.is_unique
    return runs.set_index('config_digest')[FIGURES].sort_index()


def all_runs(uri):
    "Those that are finished, however many sweeps it took."
    runs = typed_runs(runs_table(connect(uri), 'small'))
    return runs[runs.status == 'FINISHED']


def prepared(folder):
    "A store with its experiment: a scheduler may go before a sweep would make it."
    uri = fresh(folder)
    connect(uri, create=True)
    return uri


def test_the_table_of_a_cluster_is_that_of_this_machine(dask, tmp_path, undisturbed):
    dask.scheduler()
    workers = [dask.worker(), dask.worker()]
    result = run_sweep(grid(), tracking_uri=fresh(tmp_path), cluster=dask.address)
    assert table(result.runs).equals(undisturbed)
    assert result.runs.worker.nunique() == 2 and set(result.runs.pid.astype(int)) == {p.pid for p in dask.workers()}
    assert all(process.poll() is None for process in workers)  # they are not ours to end


def test_workers_and_nannies_are_killed(dask, tmp_path, undisturbed):
    "Ten of each, at random moments of one sweep; there is always somebody who comes."
    dask.scheduler()
    moments = random.Random(1)
    over = threading.Event()
    killed = dict(worker=0, nanny=0)

    def disturb():
        while not over.wait(moments.uniform(.5, 3)):
            nannies = [p for p in dask.processes if p is not dask.head and p.poll() is None]
            while len(nannies) < 3:
                nannies.append(dask.worker())
            kind = min(killed, key=killed.get)
            alive = dask.workers() if kind == 'worker' else [psutil.Process(p.pid) for p in nannies]
            if alive and min(killed.values()) < 10:
                with contextlib.suppress(psutil.NoSuchProcess):
                    moments.choice(alive).kill()
                    killed[kind] += 1
    thread = threading.Thread(target=disturb)
    thread.start()
    uri = fresh(tmp_path)
    try:
        while True:
            result = run_sweep(grid(), tracking_uri=uri, cluster=dask.address)
            if min(killed.values()) >= 10 and not len(result.failed):
                break
            if not len(result.failed):
                uri = fresh(tmp_path)  # and once more, until enough were killed
    finally:
        over.set()
        thread.join()
    assert table(result.runs).equals(undisturbed)


def test_schedulers_are_killed(dask, tmp_path, undisturbed):
    "Ten of them: each time one line, nothing that goes on, and the same call continues."
    moments = random.Random(2)
    uri = prepared(tmp_path)
    killed = 0
    while killed < 10:
        dask.scheduler()
        dask.worker(), dask.worker()
        timer = threading.Timer(moments.uniform(1, 7), dask.head.kill)
        timer.start()
        try:
            run_sweep(grid(), tracking_uri=uri, cluster=dask.address)
            if len(all_runs(uri)) == 16:
                uri = prepared(tmp_path)
        except BioaiError as e:
            assert str(e).startswith(('the scheduler at ', f'no Dask scheduler answers at {dask.address}')), e
            assert not set(runs_table(connect(uri), 'small').get('status', ())) & {'RUNNING'}
            killed += 1
        finally:
            timer.cancel()
            dask.close()
    dask.scheduler()
    dask.worker()
    result = run_sweep(grid(), tracking_uri=uri, cluster=dask.address)
    assert table(result.runs).equals(undisturbed) and table(all_runs(uri)).equals(undisturbed)


def test_a_scheduler_that_goes_is_one_line(dask, tmp_path):
    "On the command line, without a traceback of Dask's; and no run stays open."
    dask.scheduler()
    dask.worker()
    uri = prepared(tmp_path)
    process = subprocess.Popen([PROGRAM, 'sweep', '--hidden-dim', '8', '--epochs', '20000', '--cluster', dask.address], cwd=tmp_path, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: len(runs_table(connect(uri), 'grid_sweep')), process)
    dask.head.kill()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2 and 'Traceback' not in err and 'distributed' not in err
    assert err.splitlines()[-1].startswith(f'bioai-esol sweep: the scheduler at {dask.address} has gone; the same command continues the sweep')
    assert set(runs_table(connect(uri), 'grid_sweep').status) == {'KILLED'}


def test_sweeps_are_killed(dask, tmp_path, undisturbed):
    "Ten of them: their workers stop by themselves, and are there for the next."
    dask.scheduler()
    dask.worker(), dask.worker()
    moments = random.Random(3)
    uri = fresh(tmp_path)
    command = [PROGRAM, 'sweep', *SETTINGS, '--cluster', dask.address, '--tracking-uri', uri]
    killed = 0
    while killed < 10:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(3, 9))
        if process.poll() is None:
            process.kill()
            killed += 1
        else:
            out, err = process.communicate()
            assert process.returncode == 0, err
            if killed < 10:
                fresh(tmp_path)
        process.communicate()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert table(all_runs(uri)).equals(undisturbed)
    wait_until(lambda: all(p.cpu_percent(.5) < 50 for p in dask.workers()), dask.head, 20)  # nobody trains for those who are gone


def test_stores_are_killed(dask, tmp_path, undisturbed):
    "Ten times: what was trained waits on the disk, and is written once."
    dask.scheduler()
    dask.worker(), dask.worker()
    moments = random.Random(4)
    port = free_port()
    command = [PROGRAM, 'sweep', *SETTINGS, '--cluster', dask.address, '--tracking-uri', f'http://127.0.0.1:{port}']
    process = None
    for _ in range(10):
        with mlflow_server(tmp_path, port=port) as server:
            if process is None or process.poll() is not None:
                process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(moments.uniform(1, 5))
            kill_family(server)
    with mlflow_server(tmp_path, port=port) as server:
        process.wait(60)
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert table(all_runs(server.url)).equals(undisturbed)
        assert 'RUNNING' not in set(runs_table(connect(server.url), 'small').status)


def test_a_scheduler_that_does_not_answer(tmp_path, here):
    "One line within ten seconds, whether nothing is there or it is silent."
    fresh(tmp_path)
    with socket.create_server(('127.0.0.1', 0)) as silent:
        for port in (free_port(), silent.getsockname()[1]):
            begun = time.monotonic()
            done = here('sweep', '--cluster', f'tcp://127.0.0.1:{port}', cwd=tmp_path)
            assert time.monotonic() - begun < 10 and done.returncode == 2
            assert done.stderr.startswith(f'bioai-esol sweep: no Dask scheduler answers at tcp://127.0.0.1:{port}: ') and done.stderr.count('\n') == 1
    for wrong in ('slrum', '127.0.0.1'):
        done = here('sweep', '--cluster', wrong, cwd=tmp_path)
        assert done.returncode == 2 and f"--cluster {wrong} is not the address" in done.stderr and done.stderr.count('\n') == 1, done.stderr


def test_other_code_takes_no_part(dask, tmp_path):
    "A worker with another package is refused by name; while others are there, they train."
    import bioai_esol
    other = tmp_path / 'other'
    shutil.copytree(Path(bioai_esol.__file__).parent, other / 'bioai_esol', ignore=shutil.ignore_patterns('__pycache__'))
    with open(other / 'bioai_esol/errors.py', 'a') as file:
        file.write('# one line more\n')
    dask.scheduler()
    dask.worker(PYTHONPATH=str(other))
    uri = fresh(tmp_path)
    with pytest.raises(BioaiError, match='no worker can take part: on .* it has the modules of bioai-esol [0-9a-f]{16}, here '):
        run_sweep(grid(), tracking_uri=uri, cluster=dask.address)
    dask.worker()
    with Client(dask.address, set_as_default=False) as client:
        client.wait_for_workers(2)
        runs = run_sweep(grid(seed=1), tracking_uri=uri, cluster=client).runs  # of a client, too
    assert set(runs.status) == {'FINISHED'} and runs.worker.nunique() == 1


def long_sweep(dask, folder):
    "Hours of training by two workers, in a process that hears Ctrl-C; the store, the process, how its sweep stands."
    uri = prepared(folder)
    dask.scheduler()
    dask.worker(), dask.worker()
    process = subprocess.Popen([PROGRAM, 'sweep', '--hidden-dim', '8', '--batch-size', '16', '--weight-decay', '0', '--epochs', '20000', '--run-tag', 'long',
                                '--cluster', dask.address], cwd=folder, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    return uri, process, lambda: sweep_state('long', tracking_uri=uri)


def test_a_worker_that_is_silent_keeps_nobody_from_ending(dask, tmp_path):
    uri, process, state = long_sweep(dask, tmp_path)
    wait_until(lambda: len(runs_table(connect(uri), 'long', 'sweep')) and len(state().blocks) == 2, process)
    dask.workers()[0].suspend()
    ask_sweep('pause', 'long', tracking_uri=uri)
    wait_until(lambda: state().status == 'paused', process)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and 'Traceback' not in err, err
    assert err.splitlines()[-1].endswith('the same command continues the sweep')


def test_a_cluster_pauses_and_is_left_in_peace(dask, tmp_path, undisturbed):
    "Pause, go on, and Ctrl-C; after that nothing trains."
    uri, process, state = long_sweep(dask, tmp_path)
    busy = lambda: sum(p.cpu_percent(.5) > 30 for p in dask.workers())
    wait_until(lambda: len(runs_table(connect(uri), 'long', 'sweep')) and (state().share or 0) > 0, process)
    assert len(state().blocks) == 2 and any(block.val_rmse[0] for block in state().blocks)  # its curves, as LiveSweep draws them
    ask_sweep('pause', 'long', tracking_uri=uri)
    wait_until(lambda: state().status == 'paused' and not busy(), process)
    ask_sweep('go on', 'long', tracking_uri=uri)
    wait_until(lambda: state().status == 'running' and busy(), process)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and 'the same command continues the sweep' in err and 'Traceback' not in err
    wait_until(lambda: not busy(), dask.head, 20)
    assert table(run_sweep(grid(), tracking_uri=uri, cluster=dask.address).runs).equals(undisturbed)


SBATCH = """#!/bin/sh
# What a batch system is to dask-jobqueue: it takes a script, runs it some time, and prints a number.
setsid sh "$1" > job.log 2>&1 &
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
for job in "$@"; do kill -KILL -"$job"; done
"""


def test_a_batch_system(tmp_path, here, monkeypatch, undisturbed):
    "The script that it is given, as text; and a sweep whose workers it starts, which are gone afterwards."
    for name, script in dict(sbatch=SBATCH, scancel=SCANCEL).items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    done = here('sweep', '--cluster', 'slurm', cwd=tmp_path)
    assert done.returncode == 2 and 'there is no sbatch on this machine' in done.stderr
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv('HOME', str(tmp_path))
    with batch_system('slurm', 'short') as jobs:
        script = jobs.job_script()
        key = Path(re.search(r'--tls-key (\S+)', script)[1])
        assert key.exists() and stat.S_IMODE(key.parent.stat().st_mode) == 0o700 and key.parent.parent == tmp_path  # the home
        with pytest.raises(BioaiError, match='no Dask scheduler answers at tls://'):  # to one who has no certificate
            run_sweep(grid(), tracking_uri=fresh(tmp_path), cluster=jobs.scheduler_address)
    assert '#SBATCH -p short' in script and '#SBATCH --cpus-per-task=1' in script and '#SBATCH --mem=4G' in script
    assert f'{sys.executable} -m distributed.cli.dask_worker tls://' in script and '--nthreads 1' in script
    uri = fresh(tmp_path)
    done = here('sweep', *SETTINGS, '--cluster', 'slurm', '--queue', 'short', '--workers', '2', cwd=tmp_path)
    assert done.returncode == 0 and '16 trained' in done.stdout, done.stderr
    assert table(all_runs(uri)).equals(undisturbed) and 'worker' in all_runs(uri)
    ours = lambda: [p for p in psutil.process_iter(['cmdline', 'cwd']) if p.info['cwd'] == str(tmp_path) and 'dask_worker' in ' '.join(p.info['cmdline'])]
    wait_until(lambda: not ours(), seconds=20)
    assert not list(tmp_path.glob('.bioai-esol-*'))


def certificate(folder):
    "For 127.0.0.1, signed by itself."
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, '127.0.0.1')])
    now = datetime.now(UTC)
    signed = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
              .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
              .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address('127.0.0.1'))]), False)
              .add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256()))
    (folder / 'cert.pem').write_bytes(signed.public_bytes(Encoding.PEM))
    (folder / 'key.pem').write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def test_tls(tmp_path):
    "As the page says: who has no key is not let in."
    certificate(tmp_path)
    files = [f'{option}={tmp_path}/{name}' for option, name in {'--tls-ca-file': 'cert.pem', '--tls-cert': 'cert.pem', '--tls-key': 'key.pem'}.items()]
    cluster = Dask(tmp_path, files)
    cluster.address = cluster.address.replace('tcp', 'tls')
    ours = {'distributed.comm.require-encryption': True, 'distributed.comm.tls.ca-file': f'{tmp_path}/cert.pem',
            'distributed.comm.tls.client.cert': f'{tmp_path}/cert.pem', 'distributed.comm.tls.client.key': f'{tmp_path}/key.pem'}
    try:
        cluster.scheduler()
        cluster.worker()
        with pytest.raises(BioaiError, match='no Dask scheduler answers at tls://'):
            run_sweep(grid(), tracking_uri=fresh(tmp_path), cluster=cluster.address)
        with dask_config.set(ours):
            runs = run_sweep(grid(seed=1), tracking_uri=fresh(tmp_path), cluster=cluster.address).runs
        assert set(runs.status) == {'FINISHED'} and runs.worker.iloc[0].startswith('tls://')
    finally:
        cluster.close()
