"`bioai-esol server` itself: what it refuses to start with, whom it lets in, and what can be seen of its secrets."
import base64
import json
import os
import signal
import subprocess
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from helpers import PROGRAM
from stores import free_port, mlflow_server, postgres

from bioai_esol.registry.journal import snapshot
from bioai_esol.store.client import connect

PASSWORD = 'a-password-of-the-tests'


def start(folder, *args):
    "A server that is expected not to start: its one line."
    done = subprocess.run([PROGRAM, 'server', *args], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def ask(url, method='GET', body=None, **headers):
    "Status and text of one request."
    data = json.dumps(body).encode() if body is not None else None
    request = Request(url, data, {'Content-Type': 'application/json', **{k.replace('_', '-'): v for k, v in headers.items()}}, method=method)
    try:
        with urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode(errors='replace')
    except HTTPError as e:
        return e.code, e.read().decode(errors='replace')


def basic(user, password): return dict(Authorization='Basic ' + base64.b64encode(f'{user}:{password}'.encode()).decode())


@pytest.mark.parametrize('args, env, said', [
    (['--host', '0.0.0.0'], {}, 'add --auth'),
    (['--auth'], dict(MLFLOW_AUTH_ADMIN_PASSWORD='short'), 'at least 12'),
    (['--backend', 'postgresql://me:secret@127.0.0.1/db'], {}, 'leave it out, and set PGPASSWORD'),
    (['--backend', 'sqlite:////nowhere/at/all/mlflow.db'], {}, 'does not exist'),
    (['--artifacts', 'folder'], {}, 'write s3://BUCKET'),
    (['--port', '70000'], {}, '--port 70000: must be'),
])
def test_what_it_does_not_start_with(here, args, env, said, monkeypatch):
    for name, value in env.items(): monkeypatch.setenv(name, value)
    port = [] if '--port' in args else ['--port', free_port()]
    done = here('server', *port, *args)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert 'secret@' not in done.stdout + done.stderr


def test_databases_that_cannot_be_used(tmp_path, here, monkeypatch):
    "Wrong password, no such database, no right to make tables, an older schema: each in one line."
    with postgres() as cluster:
        monkeypatch.setenv('PGPASSWORD', cluster.password)
        uri = cluster.create('esol')
        sql = [cluster.programs / 'psql', '-q', '-h', '127.0.0.1', '-p', str(cluster.port), '-U', 'esol', 'esol', '-c']
        subprocess.run([*sql, "create user guest password 'guest'; create table alembic_version (version_num varchar(32)); "
                              "insert into alembic_version values ('c48cb773bb87')"], check=True)
        monkeypatch.setenv('PGPASSWORD', 'wrong')
        for backend, password, said in ((uri, 'wrong', 'password authentication failed'), (cluster.uri('none'), cluster.password, 'createdb'),
                                        (uri, cluster.password, 'mlflow db upgrade'), (uri.replace('esol@', 'guest@'), 'guest', 'GRANT CREATE')):
            monkeypatch.setenv('PGPASSWORD', password)
            done = here('server', '--port', free_port(), '--backend', backend)
            assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
            assert password == 'guest' or password not in done.stderr.replace('wrong password', '')
    done = here('server', '--port', free_port(), '--backend', uri)  # the cluster is gone
    assert done.returncode == 2 and 'refused' in done.stderr


def test_an_open_server(tmp_path):
    "A page in somebody's browser can reach 127.0.0.1: foreign Host and Origin headers are refused. So are names that leave the artifacts' folder."
    with mlflow_server(tmp_path) as server:
        (tmp_path / 'secret.txt').write_text('not an artifact')
        search = server.url + '/api/2.0/mlflow/experiments/search'
        assert ask(search, 'POST', dict(max_results=1))[0] == 200
        assert ask(search, 'POST', dict(max_results=1), Host='evil.example')[0] == 403
        assert ask(search, 'POST', dict(max_results=1), Origin='https://evil.example')[0] == 403
        assert ask(search, 'POST', dict(max_results=1), Origin=server.url)[0] == 200
        proxy = server.url + '/api/2.0/mlflow-artifacts/artifacts/'
        assert ask(proxy + '0/note', 'PUT', 'hello')[0] == 200 and ask(proxy + '0/note')[0] == 200
        for name in ('../secret.txt', '%2e%2e/secret.txt', '..%2fsecret.txt', '0/../../secret.txt', '%252e%252e%252fsecret.txt', '/etc/passwd',
                     '%2fetc%2fpasswd', 'file:///etc/passwd', '0/%5c..%5c..%5csecret.txt'):
            status, text = ask(proxy + name)
            assert status >= 400 and 'not an artifact' not in text and 'root:' not in text, (name, status, text[:200])
            assert ask(proxy + name, 'PUT', 'overwritten')[0] >= 400 or (tmp_path / 'secret.txt').read_text() == 'not an artifact', name
        assert (tmp_path / 'secret.txt').read_text() == 'not an artifact' and not (tmp_path.parent / 'secret.txt').exists()
        outside = dict(name='out', artifact_location='file:///etc#../..')
        assert ask(server.url + '/api/2.0/mlflow/experiments/create', 'POST', outside)[0] == 400

        said = start(tmp_path, '--port', server.url.rsplit(':', 1)[1])
        assert 'give another --port' in said
        told = (tmp_path / 'server.log').read_text()
        assert f'export MLFLOW_TRACKING_URI={server.url}' in told and 'Traceback' not in told
        os.kill(server.pid, signal.SIGINT)
        assert server.wait(20) == 0 and 'stopped' in (tmp_path / 'server.log').read_text()
        with pytest.raises(OSError):
            urlopen(server.url + '/health', timeout=2)


def test_accounts(tmp_path, here, monkeypatch):
    "Without the password nothing can be read or moved; with it everything works; and it is seen nowhere."
    with mlflow_server(tmp_path, '--auth', env=dict(MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD)) as server:
        monkeypatch.setenv('MLFLOW_TRACKING_URI', server.url)
        nobody, wrong = here('doctor'), None
        assert nobody.returncode == 2 and 'MLFLOW_TRACKING_USERNAME' in nobody.stdout, nobody.stdout
        monkeypatch.setenv('MLFLOW_TRACKING_USERNAME', 'admin')
        monkeypatch.setenv('MLFLOW_TRACKING_PASSWORD', 'not the password')
        for command in (['doctor'], ['status'], ['sweep', '--epochs', '1'], ['alias', 'shadow', '1']):
            wrong = here(*command)
            assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) <= 1, wrong.stderr
            assert 'user name or password were refused' in wrong.stdout + wrong.stderr and 'MLFLOW_TRACKING_PASSWORD' in wrong.stdout + wrong.stderr
        monkeypatch.setenv('MLFLOW_TRACKING_PASSWORD', PASSWORD)
        assert here('doctor').returncode == 0
        one = ['--hidden-dim', '8', '--lr', '1e-2', '--batch-size', '128', '--dropout', '0', '--weight-decay', '0', '--epochs', '1']
        assert here('train', *one).returncode == 0
        loose = ['--gap-threshold', '3', '--r2-tolerance', '0.99', '--allow-dirty']
        assert here('promote', *loose).returncode == 0
        assert here('alias', 'shadow', '1').returncode == 0
        from mlflow.server import get_app_client
        accounts = get_app_client('basic-auth', tracking_uri=server.url)
        accounts.create_user('anna', 'a-password-of-anna')
        accounts.grant_user_permission('anna', 'experiment', connect(server.url).experiment_id, 'EDIT')
        with monkeypatch.context() as anna:  # who may train, and not promote
            anna.setenv('MLFLOW_TRACKING_USERNAME', 'anna')
            anna.setenv('MLFLOW_TRACKING_PASSWORD', 'a-password-of-anna')
            assert here('doctor').returncode == 0 and here('status').returncode == 0
            trained = here('train', *one, '--seed', '2')
            assert trained.returncode == 0, trained.stderr
            for command in (['alias', 'shadow', '--remove'], ['rollback', '--reason', 'envy']):
                denied = here(*command)
                assert denied.returncode == 2 and 'access is denied' in denied.stderr, denied.stderr
        assert snapshot(connect(server.url)).aliases['shadow'] == '1'
        everything = open_routes(server.url)
        assert len(everything) > 40
        let_in = {route: ask(server.url + route[1], route[0], {} if route[0] != 'GET' else None)[0] for route in everything}
        assert {r: s for r, s in let_in.items() if s not in (401, 403)} == {}
        for user, password in (('admin', 'wrong'), ('', ''), ('nobody', PASSWORD)):
            assert ask(server.url + '/api/2.0/mlflow/experiments/get?experiment_id=0', **basic(user, password))[0] == 401
        assert ask(server.url + '/api/2.0/mlflow/experiments/get?experiment_id=0', **basic('admin', PASSWORD))[0] == 200
        key = (tmp_path / '.mlflow-auth' / 'secret_key').read_text()
        for secret in (PASSWORD, key):
            for p in tmp_path.rglob('*'):
                if p.is_file() and p.name != 'secret_key':
                    assert secret.encode() not in p.read_bytes(), p
            for line in Path('/proc').glob('[0-9]*/cmdline'):
                try: raw = line.read_bytes()
                except OSError: continue  # it has ended meanwhile
                assert secret.encode() not in raw
        assert (tmp_path / '.mlflow-auth').stat().st_mode & 0o077 == 0


def open_routes(url):
    "Every route of the server's own list that reads or moves something: what is left out serves the pages, says that it lives, or its version."
    import sys
    code = ('import mlflow.server.auth, json; from mlflow.server import app; '
            'print(json.dumps([[m, r.rule] for r in app.url_map.iter_rules() for m in sorted(r.methods - {"HEAD", "OPTIONS"})]))')
    env = dict(os.environ, MLFLOW_FLASK_SERVER_SECRET_KEY='x' * 32)
    listed = json.loads(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=env).stdout.splitlines()[-1])
    import re
    fill = [(m, re.sub(r'<[^>]+>', '1', rule)) for m, rule in listed]
    more = [('GET', '/api/2.0/mlflow-artifacts/artifacts/0/x'), ('PUT', '/api/2.0/mlflow-artifacts/artifacts/0/x'),
            ('DELETE', '/api/2.0/mlflow-artifacts/artifacts/0/x'), ('GET', '/graphql'), ('POST', '/graphql'), ('POST', '/v1/traces'),
            ('GET', '/ajax-api/3.0/jobs/1'), ('POST', '/ajax-api/3.0/jobs/'), ('POST', '/gateway/chat/completions')]
    public = re.compile(r'^/(health|version|signup|metrics|static-files/.*|)$|server-info$')
    return sorted({route for route in [*fill, *more] if not public.search(route[1])})
