"The server of the champion: MLflow's protocol, versions that change while it answers, and whatever can go wrong, in real processes."
import json
import os
import random
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from threading import Event

import psutil
import pytest
from helpers import PROGRAM, copied, uri_of, wait_until
from hypothesis import given, HealthCheck, settings, strategies as st
from prometheus_client.parser import text_string_to_metric_families
from quick import EASY
from stores import free_port, mlflow_server, process

from bioai_esol.chem.dataset import load_esol
from bioai_esol.chem.molecules import canonical_smiles
from bioai_esol.registry.journal import snapshot, turn
from bioai_esol.registry.promotion import promote
from bioai_esol.registry.versions import distrust, rollback, set_alias, trust_again
from bioai_esol.serving.predictor import load_version
from bioai_esol.serving.requests import load_requests
from bioai_esol.serving.workers import Route
from bioai_esol.store.client import connect

JSON = {'Content-Type': 'application/json'}
HOSTILE = ['', ' ', 'C1CC', 'c1cccc1', 'C(C)(C)(C)(C)C', '[Xx]', '((((', 'C' * 5000, '1' * 4000, '[C' * 900, 'CCO\x00', 'CCO\nCCN', '=', '.',
           '\ud800', 'é', '<script>', "'; drop table runs; --", None, 3, 2.5, True, float('nan'), float('inf')]


class Server:
    "A server that runs, as its clients see it."
    def __init__(self, port, log, child): self.port, self.log, self.child = port, log, child

    def send(self, path, body=None, headers=JSON, method=None):
        "Status and body."
        connection = HTTPConnection('127.0.0.1', self.port, timeout=60)
        try:
            connection.request(method or ('GET' if body is None else 'POST'), path, body, headers)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def ask(self, smiles):
        "The rows of an answer."
        status, text = self.send('/invocations', json.dumps(dict(instances=[dict(smiles=s) for s in smiles])))
        assert status == 200, text
        return json.loads(text)['predictions']

    @property
    def version(self):
        [row] = self.ask(['CCO'])
        return row['model_version']

    def metric(self, name, **labels):
        families = text_string_to_metric_families(self.send('/metrics')[1])
        return sum(s.value for f in families for s in f.samples if s.name == name and labels.items() <= s.labels.items())


@pytest.fixture(scope='module')
def two_versions(with_champion, template, tmp_path_factory):
    "A store with version 1 and its successor, version 2."
    folder = tmp_path_factory.mktemp('two')
    uri = copied(with_champion, folder)
    assert promote('b', EASY, tracking_uri=uri).champion == '2'
    return folder


def serving(folder, *options, uri=None):
    port, log = free_port(), Path(folder) / f'serve-{time.monotonic_ns()}.log'
    command = [PROGRAM, 'serve', '--port', port, '--tracking-uri', uri or uri_of(folder), *options]
    env = dict(http_proxy='http://127.0.0.1:9', MLFLOW_REGISTRY_URI='sqlite:////nowhere.db', MLFLOW_RUN_ID='0' * 32)  # which is nobody's business
    running = process(command, log, lambda: 'Ctrl-C stops it' in log.read_text(), env, folder)
    return port, log, running


@pytest.fixture(scope='module')
def server(two_versions, tmp_path_factory):
    "One that all tests may use which leave it as it was."
    folder = tmp_path_factory.mktemp('served')
    copied(two_versions, folder)
    port, log, running = serving(folder, '--note-requests', folder / 'requests.csv')
    with running as child: yield Server(port, log, child)


@pytest.fixture
def started(two_versions, tmp_path):
    "started(*options) -> a server on a store of its own, `tmp_path`."
    copied(two_versions, tmp_path)
    ending = []

    def start(*options):
        port, log, running = serving(tmp_path, *options)
        ending.append(running)
        return Server(port, log, running.__enter__())
    yield start
    for running in ending: running.__exit__(None, None, None)


def test_it_speaks_as_mlflow_does(server):
    import mlflow
    assert [server.send(path)[0] for path in ('/ping', '/health')] == [200, 200]
    assert server.send('/version')[1] == mlflow.__version__
    split = json.dumps(dict(dataframe_split=dict(columns=['smiles'], data=[['CCO'], ['C1CC']])))
    status, text = server.send('/invocations', split)
    assert status == 200 and 'NaN' not in text
    ethanol, unreadable = json.loads(text)['predictions']
    assert ethanol['model_version'] == '2' and ethanol['unit'] == 'log10(mol/L)' and ethanol['error'] == ''
    assert unreadable['log_solubility'] is None and unreadable['error'] and (ethanol['trusted'], unreadable['trusted']) == ('yes', '')
    assert server.send('/invocations', 'smiles\nCCO\n', {'Content-Type': 'text/csv'})[1] == json.dumps(dict(predictions=[ethanol]))
    assert server.send('/invocations', json.dumps(dict(instances=[])))[1] == '{"predictions": []}'
    ready = json.loads(server.send('/ready')[1])
    assert ready.pop('processes') and ready == dict(version='2', trusted=True, doubt='', refused='', store_trouble='', noting_trouble='')


@pytest.mark.parametrize('status, body, says', [
    (400, b'{"dataframe_split": ', 'not JSON'),
    (400, b'null', 'one of the keys'),
    (400, b'\xff\xfe', 'not UTF-8'),
    (400, b'{"inputs": null}', 'must be a list'),
    (400, b'{"dataframe_records": {"smiles": "CCO"}}', 'must be a list, and is {"smiles": "CCO"}'),
    (400, b'{"instances": [{"smiles": ["CCO"]}]}', 'molecule 1 must be a SMILES'),
    (400, b'{"dataframe_split": {"columns": ["molecule"], "data": [["CCO"]]}}', "no column 'smiles' (columns: molecule)"),
    (413, json.dumps(dict(instances=['C'] * 100_000)).encode(), '10,000 are the limit'),
    (413, json.dumps(dict(instances=['CCCCCCCC'] * 1_000_000)).encode(), 'bytes, the limit')])
def test_a_request_that_nobody_can_answer(server, status, body, says):
    start = time.monotonic()
    found, text = server.send('/invocations', body)
    assert found == status and says in json.loads(text)['message'], text
    assert json.loads(text)['error_code'] and time.monotonic() - start < 5
    assert server.version == '2'


def test_only_this_machine_is_answered(server):
    assert server.send('/invocations', '{"instances": ["CCO"]}', JSON | {'Host': 'evil.example'})[0] == 400
    assert server.send('/ping', headers={'Host': f'localhost:{server.port}'})[0] == 200
    status, text = server.send('/invocation')
    assert status == 404 and 'POST /invocations' in json.loads(text)['message']
    assert server.send('/invocations', b'x', JSON | {'Content-Encoding': 'gzip'})[0] == 415
    [listens] = {c.laddr.ip for c in psutil.Process(server.child.pid).net_connections() if c.status == 'LISTEN'}
    assert listens == '127.0.0.1'


def test_hostile_molecules_in_one_batch(server):
    rows = server.ask(['CCO', *HOSTILE, 'c1ccccc1'])
    assert len(rows) == len(HOSTILE) + 2
    assert [bool(row['error']) for row in rows] == [False, *[True] * len(HOSTILE), False]
    assert rows[0]['log_solubility'] == server.ask(['CCO'])[0]['log_solubility']


def test_clients_that_hang_up(server):
    body = json.dumps(dict(instances=list(load_esol().smiles))).encode()
    head = f'POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n'.encode()
    for i in range(50):
        with socket.create_connection(('127.0.0.1', server.port)) as s:
            s.sendall(head + (body if i % 2 else body[:1000]))
    wait_until(lambda: server.metric('bioai_esol_waiting_molecules') == 0, seconds=30)
    assert server.version == '2' and server.send('/ping')[0] == 200
    assert 'Traceback' not in server.log.read_text()


def test_what_cannot_be_started(server, here, two_versions):
    uri = uri_of(two_versions)
    for options, says in ((['--port', server.port], 'give another --port'), (['--pin', '9'], "no version '9'"),
                          (['--share', 'challenger'], 'ALIAS=PART'), (['--port', '0'], 'port'), (['--host', '8.8.8.8'], 'not one of this machine'),
                          (['--host', 'nosuch.invalid'], "address 'nosuch.invalid'"), (['--note-requests', two_versions], 'a folder, not a file')):
        done = here('serve', '--tracking-uri', uri, *(['--port', free_port()] if '--port' not in options else []), *options)
        assert done.returncode == 2 and says in done.stderr and 'Traceback' not in done.stderr, done.stderr


def test_no_molecule_is_in_the_log_or_the_metrics(server):
    server.ask(['OC(=O)CCCCCBr', 'OC(=O)CCCCCBr('])
    assert 'CCCCCBr' not in server.log.read_text() + server.send('/metrics')[1]


def same(rows, table):
    expected = table.astype(object).where(table.notna(), None).to_dict('records')
    assert rows == expected


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(st.sampled_from([*load_esol().smiles[::7], 'C', 'O', '[Na+].[Cl-]', 'C1CC', '']), min_size=1, max_size=40),
                        min_size=1, max_size=6))
def test_every_answer_is_what_the_version_says(server, two_versions, batches):
    "To the last bit, whatever is answered together with it."
    champion = _version(uri_of(two_versions), '2')
    with ThreadPoolExecutor(len(batches)) as threads: answers = list(threads.map(server.ask, batches))
    for asked, rows in zip(batches, answers): same(rows, champion.predict(asked))


_VERSIONS = {}


def _version(uri, number):
    if (uri, number) not in _VERSIONS: _VERSIONS[uri, number] = load_version(number, tracking_uri=uri)
    return _VERSIONS[uri, number]


def test_a_process_that_is_killed_is_replaced(server):
    def answering():
        alive = [p for p in psutil.Process(server.child.pid).children() if p.status() != psutil.STATUS_ZOMBIE]
        return [p for p in alive if any('spawn_main' in part for part in p.cmdline())]
    before = answering()
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(server.ask, ['CCO'] * 20) for _ in range(40)]
        for p in before: p.kill()
        assert {row['model_version'] for f in asked for row in f.result()} == {'2'}
    assert server.send('/ping')[0] == 200 and not {p.pid for p in before} & {p.pid for p in answering()}
    assert server.metric('bioai_esol_replaced_processes_total') >= 2 and 'another takes its place' in server.log.read_text()


def test_trust_is_told_as_it_changes(started, tmp_path):
    server, store = started(), connect(uri_of(tmp_path))
    def trusted():
        known, unreadable = server.ask(['CCO', 'C1CC'])
        assert unreadable['trusted'] == ''
        return known['trusted']
    assert trusted() == 'yes'
    with turn(store) as t: distrust(t, '2', '20 of 40 values lie outside their interval')
    wait_until(lambda: trusted() == 'no: 20 of 40 values lie outside their interval', server.child, 20)
    assert server.metric('bioai_esol_trusted') == 0
    with turn(store) as t: trust_again(t, '2', 'a batch of salts', 1)
    wait_until(lambda: trusted() == 'yes', server.child, 20)


def test_shadow_and_share(started, tmp_path):
    uri = uri_of(tmp_path)
    set_alias('challenger', '1', tracking_uri=uri)
    noted = tmp_path / 'requests.csv'
    asked = list(load_esol().smiles[:200])
    server = started('--share', 'challenger=0.3', '--note-requests', noted)
    route = Route('2', '1', .3)
    rows = server.ask(asked)
    assert [row['model_version'] for row in rows] == [route.of(canonical_smiles(s)) for s in asked]
    for number in route.versions:
        mine = [i for i, row in enumerate(rows) if row['model_version'] == number]
        assert len(mine) > 30
        same([rows[i] for i in mine], load_version(number, tracking_uri=uri).predict([asked[i] for i in mine]))
    set_alias('shadow', '1', tracking_uri=uri)
    set_alias('challenger', None, tracking_uri=uri)
    wait_until(lambda: server.metric('bioai_esol_version', version='2') == 1, server.child)
    before = len(asked)
    wait_until(lambda: len(load_requests(noted)) == before, server.child)  # an answer is noted after it was given
    assert {row['model_version'] for row in server.ask(asked)} == {'2'}
    wait_until(lambda: len(load_requests(noted)) == before + 2 * len(asked), server.child)
    shadow = load_requests(noted)[before:].query("version == '1'")
    assert sorted(shadow.smiles) == sorted(map(canonical_smiles, asked))


def test_requests_that_cannot_be_noted_are_answered(started, tmp_path):
    "A folder that is gone, and one that is there again: told once, in the log, /ready and /metrics."
    folder = tmp_path / 'noted'
    folder.mkdir()
    server = started('--note-requests', folder / 'requests.csv')
    server.ask(['CCO'])
    wait_until(lambda: len(load_requests(folder / 'requests.csv')) == 1, server.child)
    assert server.metric('bioai_esol_noting_fails') == 0 and json.loads(server.send('/ready')[1])['noting_trouble'] == ''
    folder.rename(tmp_path / 'elsewhere')
    asked = list(load_esol().smiles[:200])
    assert all(row['error'] == '' for _ in range(5) for row in server.ask(asked))
    wait_until(lambda: server.metric('bioai_esol_noting_fails') == 1, server.child, 20)
    why = f'cannot note requests in {folder}/requests.csv: there is no folder {folder}'
    assert json.loads(server.send('/ready')[1])['noting_trouble'] == why and not folder.exists()
    folder.mkdir()
    server.ask(['C1CCCCC1'])
    wait_until(lambda: server.metric('bioai_esol_noting_fails') == 0, server.child, 20)
    noted = lambda: set(load_requests(folder / 'requests.csv').smiles)
    wait_until(lambda: 'C1CCCCC1' in noted(), server.child)
    assert noted() <= {'C1CCCCC1', *map(canonical_smiles, asked)}  # what was answered before may be noted late
    log = server.log.read_text()
    assert log.count(why) == 1 and log.count('requests can be noted again') == 1 and 'Traceback' not in log


def test_files_that_were_altered_are_never_served(started, tmp_path):
    uri = uri_of(tmp_path)
    server = started()
    run_id = snapshot(connect(uri)).versions['1'].run_id
    weights = tmp_path / 'mlartifacts' / run_id / 'artifacts/model/artifacts/weights.safetensors'
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    from mlflow import MlflowClient
    MlflowClient(uri).set_registered_model_alias('EsolPrediction', 'champion', '1')  # by whoever does not ask us
    wait_until(lambda: server.metric('bioai_esol_refused') == 1, server.child)
    assert server.version == '2' and 'version 1 cannot be loaded: weights.safetensors' in json.loads(server.send('/ready')[1])['refused']
    assert 'goes on with version 2: version 1 cannot be loaded' in server.log.read_text()
    weights.write_bytes(intact)
    wait_until(lambda: server.version == '1', server.child, 30)
    assert server.metric('bioai_esol_refused') == 0


@pytest.mark.parametrize('options', [['--share', 'challenger=0.5'], ['--note-requests', 'requests.csv']])
def test_another_version_that_was_altered_is_told(started, tmp_path, options):
    uri = uri_of(tmp_path)
    set_alias('challenger', '1', tracking_uri=uri)
    run_id = snapshot(connect(uri)).versions['1'].run_id
    weights = tmp_path / 'mlartifacts' / run_id / 'artifacts/model/artifacts/weights.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1] + b'\1')
    server = started(*options)
    assert {row['model_version'] for row in server.ask(list(load_esol().smiles[:20]))} == {'2'}
    assert server.metric('bioai_esol_refused') == 1 and 'version 1 cannot be loaded' in json.loads(server.send('/ready')[1])['refused']
    assert 'goes on with version 2: version 1 cannot be loaded' in server.log.read_text()


def test_a_store_that_is_gone(two_versions, tmp_path):
    copied(two_versions, tmp_path)
    place = free_port()
    with mlflow_server(tmp_path, port=place) as store:
        port, log, running = serving(tmp_path, uri=store.url)
        server = Server(port, log, running.__enter__())
    try:
        wait_until(lambda: server.metric('bioai_esol_store_reachable') == 0, server.child)
        assert server.version == '2' and json.loads(server.send('/ready')[1])['store_trouble']
        with mlflow_server(tmp_path, port=place) as store:
            wait_until(lambda: server.metric('bioai_esol_store_reachable') == 1, server.child)
            assert rollback('a test', tracking_uri=store.url).approved
            wait_until(lambda: server.version == '1', server.child)
        assert log.read_text().count('goes on with version 2') == 1
    finally: running.__exit__(None, None, None)


def test_a_file_that_is_replaced_or_gone(started, tmp_path):
    "As when a backup is put back: a connection that is kept would never notice."
    server = started()
    file, away = tmp_path / 'mlflow.db', tmp_path / 'away.db'
    file.rename(away)
    wait_until(lambda: server.metric('bioai_esol_store_reachable') == 0, server.child)
    assert server.version == '2' and 'is not there' in server.log.read_text() and not file.exists()
    shutil.copy(away, file)
    wait_until(lambda: server.metric('bioai_esol_store_reachable') == 1, server.child)
    assert rollback('a test', tracking_uri=uri_of(tmp_path)).approved
    wait_until(lambda: server.version == '1', server.child)


def test_half_a_request_does_not_hold_the_end(started):
    server = started()
    with socket.create_connection(('127.0.0.1', server.port)) as s:
        s.sendall(b'POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{')
        time.sleep(.5)
        os.kill(server.child.pid, signal.SIGTERM)
        assert server.child.wait(20) == 0
    assert 'Traceback' not in server.log.read_text()


def test_sigterm_under_load_answers_what_was_taken(started):
    server = started('--pin', '1')
    smiles = list(load_esol().smiles)
    with ThreadPoolExecutor(12) as threads:
        asked = [threads.submit(server.ask, smiles) for _ in range(12)]
        wait_until(lambda: server.metric('bioai_esol_waiting_molecules') > 5000)
        os.kill(server.child.pid, signal.SIGTERM)
        answers = [f.result() for f in asked]
    assert all([row['smiles'] for row in rows] == smiles for rows in answers) and server.child.wait(30) == 0
    assert {row['model_version'] for rows in answers for row in rows} == {'1'}  # the pinned one, though 2 is champion
    assert server.log.read_text().endswith('stopped\n') and 'Traceback' not in server.log.read_text()


def test_many_switches_while_many_ask(started, tmp_path):
    "The alias moves to and fro, by whoever does not ask us, and nobody notices."
    from mlflow import MlflowClient
    client, server = MlflowClient(uri_of(tmp_path)), started()
    over = Event()

    def ask_on():
        versions = []
        while not over.is_set(): versions.append({row['model_version'] for row in server.ask(['CCO', 'c1ccccc1'])})
        return versions
    with ThreadPoolExecutor(8) as threads:
        asking = [threads.submit(ask_on) for _ in range(8)]
        for version in '1212121212':
            client.set_registered_model_alias('EsolPrediction', 'champion', version)
            wait_until(lambda version=version: json.loads(server.send('/ready')[1])['version'] == version, server.child)
        over.set()
        seen = [versions for f in asking for versions in f.result()]
    assert {frozenset(versions) for versions in seen} == {frozenset('1'), frozenset('2')}


@pytest.mark.alone
def test_promotion_and_rollback_while_ten_clients_ask(started, tmp_path, quick):
    "Nothing fails, nothing is mixed, and the new version is live within two seconds."
    uri = uri_of(tmp_path)
    server = started()
    over = Event()
    smiles, random_ = list(load_esol().smiles), random.Random(0)
    seen = []  # when a request was sent, and the versions in its answer

    def ask_on():
        while not over.is_set():
            start = time.monotonic()
            versions = {row['model_version'] for row in server.ask(random_.sample(smiles, random_.choice([1, 1, 1, 30])))}
            seen.append((start, versions))
            time.sleep(max(0, start + .05 - time.monotonic()))
    with ThreadPoolExecutor(10) as threads:  # 20 requests per second each
        asking = [threads.submit(ask_on) for _ in range(10)]
        time.sleep(1)
        rolled_back = time.monotonic()
        assert rollback('a test', tracking_uri=uri).approved
        rolled_back_until = time.monotonic()
        wait_until(lambda: seen[-1][1] == {'1'}, server.child)
        assert promote('c', EASY, tracking_uri=uri).champion == '3'
        promoted_until = time.monotonic()
        wait_until(lambda: seen[-1][1] == {'3'}, server.child)
        time.sleep(1)
        over.set()
        for f in asking: f.result()
    assert all(len(versions) == 1 for _, versions in seen)
    def last(version): return max(t for t, versions in seen if versions == {version})
    assert rolled_back < last('2') < rolled_back_until + 2 and last('1') < promoted_until + 2
    assert len(seen) > 200  # of some 200 per second, as long as the promotion, in this process, leaves the clients their time
