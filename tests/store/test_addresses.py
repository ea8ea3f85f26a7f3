"Addresses of servers: a user and a password in them, a proxy in between, and what is no address at all."
import base64
import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from stores import free_port, mlflow_server

from bioai_esol.store.client import connect


@contextlib.contextmanager
def door(answer, target=None):
    "A server that answers every request with a status, or hands it on to `target` when the status is 200; gives its port and what it was asked."
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            import http.client
            length = int(self.headers.get('Content-Length', 0))
            body = self.rfile.read(length)
            status = answer(self.headers.get('Authorization', ''))
            asked.append((self.path, self.headers.get('Authorization', ''), status))
            said, headers = b'', {}
            if status == 200:
                behind = http.client.HTTPConnection('127.0.0.1', target, timeout=30)
                behind.request(self.command, self.path, body, {'Content-Type': 'application/json', 'Host': f'127.0.0.1:{target}'})
                response = behind.getresponse()
                status, said, headers = response.status, response.read(), {'Content-Type': response.getheader('Content-Type') or 'text/plain'}
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header('Content-Length', str(len(said)))
            self.end_headers()
            self.wfile.write(said)
        do_POST = do_PATCH = do_PUT = do_DELETE = do_GET

        def log_message(self, *args): pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        server.server_close()


def test_a_user_and_a_password_in_the_address(tmp_path, here):
    "Behind a door that wants Basic authentication: the first question carries it, as all others do, and nothing that is printed does."
    pair = 'Basic ' + base64.b64encode(b'me:s@cret').decode()
    with mlflow_server(tmp_path) as server, door(lambda said: 200 if said == pair else 401, int(server.url.rpartition(':')[2])) as (port, asked):
        right = f'http://me:s%40cret@127.0.0.1:{port}'
        connect(right, create=True)
        for command, said in ((['status'], 'no version is registered'), (['doctor'], f'✓ server http://127.0.0.1:{port}: answers')):
            done = here(*command, '--tracking-uri', right)
            assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr
            assert 'cret' not in done.stdout + done.stderr
        assert {status for _, _, status in asked} == {200} and '/health' in {path for path, _, _ in asked}
        for command in ('status', 'doctor'):
            done = here(command, '--tracking-uri', right.replace('s%40cret', 'wrong-secret'))
            assert done.returncode == 2 and 'user name or password were refused' in done.stdout + done.stderr
            assert 'wrong-secret' not in done.stdout + done.stderr


@pytest.mark.parametrize('uri', ['https://u:secret@127.0.0.1', 'https://u:secret@127.0.0.1:9', 'http://u:secret@127.0.0.1:port', 'http://u:secret@[::1',
                                 'http://u:sec/secret@127.0.0.1', 'http://u:sec secret@127.0.0.1', 'http://u:1#secret@127.0.0.1',
                                 'postgresql://u:secret@127.0.0.1/none', 'postgresql://127.0.0.1/none?user=u&password=secret', 'ftp://u:secret@host'])
@pytest.mark.parametrize('command', ['status', 'doctor', 'train'])
def test_a_password_is_never_printed(here, uri, command, monkeypatch):
    monkeypatch.setenv('MLFLOW_TRACKING_URI', uri)
    done = here(command, *(['--architecture', 'ridge'] if command == 'train' else []))
    said = done.stdout + done.stderr
    assert done.returncode == 2 and 'sec' not in said.replace('seconds', '') and 'Traceback' not in said, said
    assert len(done.stderr.splitlines()) == (0 if command == 'doctor' else 1), said


def test_a_proxy_is_not_asked_for_this_machine(tmp_path, here, monkeypatch):
    "A proxy that is set for everybody: a server on this machine answers without it, and of one elsewhere the error names it."
    with mlflow_server(tmp_path, env=dict(http_proxy='http://127.0.0.1:9')) as server, door(lambda _: 403) as (port, asked):
        connect(server.url, create=True)
        for proxy in (f'http://127.0.0.1:{port}', 'http://127.0.0.1:9'):
            with monkeypatch.context() as patch:
                for name in ('http_proxy', 'HTTP_PROXY'): patch.setenv(name, proxy)
                for name in ('no_proxy', 'NO_PROXY'): patch.setenv(name, 'intranet')
                for command in ('status', 'doctor'):
                    done = here(command, '--tracking-uri', server.url)
                    assert done.returncode == 0, done.stdout + done.stderr
                assert not asked
                done = here('status', '--tracking-uri', 'http://mlflow.invalid:5000')
                assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
                assert f'through the proxy {proxy} (http_proxy)' in done.stderr and 'set no_proxy=mlflow.invalid' in done.stderr
                asked.clear()


def test_nobody_answers(here):
    done = here('status', '--tracking-uri', f'http://127.0.0.1:{free_port()}')
    assert done.returncode == 2 and 'refused; is it running?' in done.stderr


@pytest.mark.parametrize('command', ['status', 'predict'])
def test_a_traceback_hides_passwords_too(here, monkeypatch, command):
    "MLflow's errors quote the address, and --debug shows them in full."
    import mlflow
    uri = 'http://u:secret@127.0.0.1:9'

    class Quotes(mlflow.MlflowClient):
        def __init__(self, *args, **kwargs):
            raise mlflow.MlflowException(f'API request to {uri}/api failed')
    monkeypatch.setattr('mlflow.MlflowClient', Quotes)
    monkeypatch.setattr('bioai_esol.store.client._check_server', lambda uri: None)
    done = here(command, *(['CCO'] if command == 'predict' else []), '--tracking-uri', uri, '--debug')
    assert done.returncode == 2 and 'Traceback' in done.stderr and 'API request to http://127.0.0.1:9/api' in done.stderr
    assert 'secret' not in done.stdout + done.stderr
