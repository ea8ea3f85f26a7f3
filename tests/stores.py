"Real stores on loopback, each a process of its own: PostgreSQL, an S3-compatible server, MLflow servers."
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest
from helpers import PROGRAM, fresh

KEYS = dict(AWS_ACCESS_KEY_ID='tester', AWS_SECRET_ACCESS_KEY='s3-secret-of-the-tests', AWS_DEFAULT_REGION='eu-west-1',
            AWS_EC2_METADATA_DISABLED='true', AWS_CONFIG_FILE='/nowhere', AWS_SHARED_CREDENTIALS_FILE='/nowhere')


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def answers(url):
    try:
        urlopen(url, timeout=2).close()
    except URLError as e:
        return getattr(e, 'code', None) is not None  # an answer, if not a kind one
    except OSError:
        return False
    return True


def family(process):
    "A process and everything that it started, sessions of their own included."
    try:
        head = psutil.Process(process.pid)
        return [*head.children(recursive=True), head]
    except psutil.NoSuchProcess:
        return []


def kill_family(process):
    for member in family(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


@contextlib.contextmanager
def process(command, log, ready, env=None, cwd=None, seconds=90, **kwargs):
    "A process from the moment it is `ready()` to the end of the block; what it says goes to the file `log`."
    with open(log, 'a') as out:
        p = subprocess.Popen([str(c) for c in command], stdout=out, stderr=out, cwd=cwd, env=dict(os.environ, **(env or {})), start_new_session=True, **kwargs)
    try:
        end = time.monotonic() + seconds
        while not ready():
            assert p.poll() is None and time.monotonic() < end, f'{command[0]} did not start:\n{Path(log).read_text()}'
            time.sleep(0.1)
        yield p
    finally:
        for sig in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(p.pid, sig)
            with contextlib.suppress(subprocess.TimeoutExpired):
                p.wait(10)


@contextlib.contextmanager
def s3(folder, bucket='esol-runs', port=None):
    "An S3-compatible server with a bucket; gives its address. boto3 speaks to it over HTTP."
    import boto3
    port = port or free_port()
    url = f'http://127.0.0.1:{port}'
    command = [Path(sys.executable).with_name('moto_server'), '-H', '127.0.0.1', '-p', port]
    with process(command, folder / 'moto.log', lambda: answers(f'{url}/moto-api/data.json')):
        if bucket:
            client = boto3.client('s3', endpoint_url=url, aws_access_key_id='tester', aws_secret_access_key='x', region_name='eu-west-1')
            client.create_bucket(Bucket=bucket, CreateBucketConfiguration=dict(LocationConstraint='eu-west-1'))
        yield url


@dataclass(frozen=True)
class Postgres:
    "A running cluster, whose user `esol` must give a password."
    port: int
    password: str
    programs: Path

    def uri(self, database): return f'postgresql://esol@127.0.0.1:{self.port}/{database}'
    @property
    def env(self): return dict(PGPASSWORD=self.password)

    def create(self, database):
        subprocess.run([self.programs / 'createdb', '-h', '127.0.0.1', '-p', str(self.port), '-U', 'esol', database],
                       env=dict(os.environ, **self.env), check=True)
        return self.uri(database)


def _programs():
    found = [Path(p) for p in (shutil.which('initdb'),) if p] or sorted(Path('/usr/lib/postgresql').glob('*/bin/initdb'))
    if found:
        return found[-1].resolve().parent
    assert not os.environ.get('CI'), 'PostgreSQL is not installed, and .ci/run should have done it'
    pytest.skip("PostgreSQL is not installed here: 'apt-get install postgresql'")


@contextlib.contextmanager
def postgres():
    "A PostgreSQL cluster on a free port; its programs refuse root, so they run as the user postgres there."
    programs, port, password = _programs(), free_port(), 'pg-secret-of-the-tests'
    folder = Path(tempfile.mkdtemp(prefix='bioai-postgres-'))
    who = dict(user='postgres', group='postgres', extra_groups=[]) if os.getuid() == 0 else {}
    (folder / 'password').write_text(password)
    if who:
        for path in (folder, folder / 'password'):
            shutil.chown(path, 'postgres', 'postgres')
    data = folder / 'data'
    try:
        subprocess.run([programs / 'initdb', '-D', data, '-U', 'esol', '-A', 'scram-sha-256', '--pwfile', folder / 'password', '-N', '-E', 'UTF8',
                        '--no-locale'], check=True, stdout=subprocess.DEVNULL, cwd=folder, **who)
        command = [programs / 'postgres', '-D', data, '-p', port, '-k', folder, '-c', 'listen_addresses=127.0.0.1', '-c', 'fsync=off']
        ready = [programs / 'pg_isready', '-q', '-h', '127.0.0.1', '-p', str(port)]
        with process(command, folder / 'log', lambda: subprocess.run(ready).returncode == 0, cwd=folder, **who):
            yield Postgres(port, password, programs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def mlflow_server(folder, *args, port=None, env=None):
    "`bioai-esol server` in a folder; gives its address."
    port = port or free_port()
    url = f'http://127.0.0.1:{port}'
    if '--backend' not in args and not (folder / 'mlflow.db').exists():
        fresh(folder)
    with process([PROGRAM, 'server', '--port', port, *args], folder / 'server.log', lambda: answers(f'{url}/health'), env, folder) as p:
        p.url = url
        yield p
