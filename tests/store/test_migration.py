"A store that grew in a file moves to PostgreSQL, or stays where it was: real databases, real crashes."
import contextlib
import math
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
import stores
from helpers import copied, uri_of, wait_until
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric
from quick import EASY
from sqlalchemy import create_engine

from bioai_esol.store import migration
from bioai_esol.registry.journal import Entry, MODEL
from bioai_esol.store.migration import migrate
from bioai_esol.registry.promotion import promote
from bioai_esol.registry.versions import rollback, set_alias
from bioai_esol.errors import StoreError

HANG_UP = 'select pg_terminate_backend(pid) from pg_stat_activity where pid != pg_backend_pid() and datname is not null'


@pytest.fixture(scope='module')
def pg():
    with stores.postgres() as cluster, pytest.MonkeyPatch.context() as patch:
        patch.setenv('PGPASSWORD', cluster.password)
        yield cluster
        asked(cluster.uri('postgres'), HANG_UP)  # or the server would wait for them


@pytest.fixture(scope='module')
def store(template, quick, tmp_path_factory):
    "Two champions and a rollback, a free alias, a run that went wrong, one that was deleted, and an experiment beside ours."
    folder = tmp_path_factory.mktemp('store')
    uri = copied(template, folder)
    for tag in 'ab':
        assert promote(tag, EASY, tracking_uri=uri).approved
    rollback('drift: über dem Grenzwert', tracking_uri=uri)
    set_alias('shadow', '2', tracking_uri=uri)
    client = MlflowClient(uri, registry_uri=uri)
    other = client.create_experiment('beside', artifact_location='s3://esol-runs/beside', tags=dict(why='"quoted", \\ and löslich 🧪'))
    run = client.create_run(other, run_name='went wrong').info.run_id
    client.log_batch(run, metrics=[Metric('loss', v, 7, i) for i, v in enumerate((0.1, -0.0, math.nan, math.inf, -math.inf, 5e-324))])
    client.log_inputs(run, [DatasetInput(Dataset('esol', '1a2b', 'local', '{}'), [InputTag('split', 'train')])])
    client.log_param(run, 'long', 'x' * 6000)
    client.delete_run(client.create_run(other).info.run_id)
    client.delete_experiment(client.create_experiment('mistaken'))
    for number, json in enumerate(('null', "'null'", """'{"b":1,  "a": 1.50}'""")):
        columns = 'id, creation_time, job_name, params, status, retry_count, last_update_time, status_details'
        asked(uri, f"insert into jobs ({columns}) values ({number}, 0, 'job', '{{}}', 0, 0, 0, {json})", write=True)
    return folder


@pytest.fixture(scope='module')
def source(store): return uri_of(store)


@pytest.fixture(scope='module')
def moved(source, pg):
    "The store on PostgreSQL: the address, and what `migrate` said."
    target = pg.create('moved')
    return target, migrate(source, target)


@pytest.fixture(scope='module')
def blank(pg):
    "A database in which MLflow has made its tables, and nothing has happened since."
    target = pg.create('blank')
    MlflowClient(full(target)).search_experiments()
    return target


@pytest.fixture
def spare(pg, blank):
    "Another such database, for one test."
    name = f'spare_{time.time_ns()}'
    asked(pg.uri('postgres'), f"{HANG_UP} and datname = 'blank'")
    createdb = [pg.programs / 'createdb', '-h', '127.0.0.1', '-p', str(pg.port), '-U', 'esol', '-T', 'blank', name]
    subprocess.run(createdb, check=True)
    return pg.uri(name)


@pytest.fixture
def mine(store, tmp_path):
    "The store, to be changed; its artifacts are not looked at."
    shutil.copy(store / 'mlflow.db', tmp_path / 'mlflow.db')
    return uri_of(tmp_path)


def full(uri): return uri.replace('postgresql:', 'postgresql+psycopg2:')


def asked(uri, query, write=False):
    "What a database answers, past everything that is tested."
    engine = create_engine(full(uri))
    try:
        with engine.begin() as connection:
            done = connection.exec_driver_sql(query)
            return None if write else done.all()
    finally:
        engine.dispose()


def rows(uri):
    counts = (f'(select count(*) from {table})' for table in ('runs', 'metrics', 'tags', 'registered_models'))
    return tuple(asked(uri, f"select {', '.join(counts)}")[0])


def untouched(uri): return rows(uri) == (0, 0, 0, 0) and asked(uri, 'select experiment_id, name from experiments') == [(0, 'Default')]


def everything(uri):
    "A store as a client of MLflow reads it; floats as text, so that NaN equals itself."
    client = MlflowClient(full(uri), registry_uri=full(uri))
    experiments = sorted(client.search_experiments(view_type=3), key=lambda e: int(e.experiment_id))
    found = {}
    for run in client.search_runs([e.experiment_id for e in experiments], run_view_type=3, max_results=1000):
        histories = {key: [(m.step, m.timestamp, repr(m.value)) for m in client.get_metric_history(run.info.run_id, key)] for key in run.data.metrics}
        inputs = [(d.dataset.to_dictionary(), [(t.key, t.value) for t in d.tags]) for d in run.inputs.dataset_inputs]
        found[run.info.run_id] = dict(run.info), run.data.params, run.data.tags, repr(sorted(run.data.metrics.items())), histories, inputs
    model = client.get_registered_model(MODEL)
    versions = {str(v.version): dict(v) for v in client.search_model_versions(f"name = '{MODEL}'")}
    journal = [Entry.from_json(value) for key, value in sorted(model.tags.items()) if key.startswith('journal.')]
    return dict(experiments=[dict(e) for e in experiments], runs=found, tags=model.tags, description=model.description, versions=versions,
                aliases={alias: str(v) for alias, v in model.aliases.items()}, journal=journal)


def test_a_client_reads_the_same(source, moved):
    target, report = moved
    before, after = everything(source), everything(target)
    for what in before:
        assert after[what] == before[what], what
    assert [e['name'] for e in before['experiments']] == ['Default', 'esol_prediction', 'beside', 'mistaken']
    assert len(before['runs']) == 10 and sum(len(h) for run in before['runs'].values() for h in run[4].values()) > 200
    [wrong] = [run for run in before['runs'].values() if 'loss' in run[4]]
    assert [value for *_, value in wrong[4]['loss']][2] == 'nan' and wrong[5] and len(wrong[1]['long']) == 6000
    assert before['aliases'] == dict(champion='1', shadow='2') and set(before['versions']) == {'1', '2'}
    assert [e.action for e in before['journal']] == ['register', 'candidate', 'promote'] * 2 + ['rollback', 'alias']
    assert report.equal.all() and (report.source == report.target).all()
    assert report.set_index('table').source[['runs', 'experiments', 'model_versions']].tolist() == [10, 4, 2]
    assert report.attrs['artifacts'][-1] == 's3://esol-runs/beside' and 'mlartifacts' in report.attrs['artifacts'][-2]


def test_and_back_into_a_file(source, moved, tmp_path):
    back = f'sqlite:///{tmp_path}/back.db'
    assert migrate(moved[0], back).equal.all()
    assert everything(back) == everything(source)
    for query in ('select * from metrics order by 1, 2, 3, 4, 5, 6', 'select id, status_details from jobs order by 1'):
        assert asked(back, query) == asked(source, query)


def test_the_moved_store_goes_on(source, spare):
    "New experiments, runs and versions get the numbers they would have got; and it does not take a second store."
    migrate(source, spare)
    client = MlflowClient(full(spare), registry_uri=full(spare))
    assert [client.create_experiment(name, artifact_location='s3://esol-runs/next') for name in ('next', 'and next')] == ['4', '5']
    run = client.create_run('4')
    client.log_metric(run.info.run_id, 'rmse', 0.5)
    assert str(client.create_model_version(MODEL, 's3://esol-runs/model', run.info.run_id).version) == '3'
    client.set_registered_model_alias(MODEL, 'champion', '3')
    assert client.get_model_version_by_alias(MODEL, 'champion').run_id == run.info.run_id
    before = rows(spare)
    with pytest.raises(StoreError, match=r"in use, it holds runs \(11\), registered models \(1\), experiments \(5\): nothing was copied; .*createdb"):
        migrate(source, spare)
    assert rows(spare) == before


@pytest.fixture
def refused(source, blank):
    "refused(source=…, target=…) -> the one line that says why; nothing is in the target afterwards."
    def ask(**given):
        with pytest.raises(StoreError) as e:
            migrate(**dict(source=source, target=blank) | given)
        assert untouched(blank)
        assert '\n' not in str(e.value) and 'secret' not in str(e.value)
        return str(e.value)
    return ask


def test_addresses_that_are_refused(refused, source, store, pg, blank, tmp_path, monkeypatch):
    assert "127.0.0.1:5000 is a server: give the address of the database behind it" in refused(target='http://127.0.0.1:5000')
    assert 'is a server' in refused(source='https://me:secret@host')
    assert 'set PGPASSWORD' in refused(target=f'postgresql://esol:secret@127.0.0.1:{pg.port}/blank')
    assert 'is not a supported database' in refused(target='mysql://host/db')
    assert f'there is no database {tmp_path}/none.db' in refused(source=f'sqlite:///{tmp_path}/none.db')
    (tmp_path / 'text.db').write_text('no database, however long one looks at it' * 50)
    assert 'not a database; give another file' in refused(source=f'sqlite:///{tmp_path}/text.db')
    (tmp_path / 'link.db').symlink_to(store / 'mlflow.db')
    assert 'are the same database' in refused(target=f'sqlite:///{tmp_path}/link.db')
    assert 'are the same database' in refused(source=blank.replace('postgresql:', 'postgres:'))
    assert 'createdb' in refused(target=pg.uri('nowhere'))
    assert 'is the server running' in refused(target=f'postgresql://esol@127.0.0.1:{stores.free_port()}/blank')
    monkeypatch.setenv('PGPASSWORD', 'wrong-secret')
    with pytest.raises(StoreError, match='password authentication failed.*PGPASSWORD'):
        migrate(source, blank)


def test_stores_that_are_refused(refused, mine, blank, pg):
    asked(mine, "update alembic_version set version_num = 'b7e2c1a4d9f3'", write=True)
    assert "revision b7e2c1a4d9f3" in (told := refused(source=mine)) and f"'mlflow db upgrade {mine}'" in told
    assert 'holds no runs' in refused(source=blank, target=mine.replace('mlflow.db', 'new.db'))
    assert 'holds no runs' in refused(source=pg.create('without_tables'))


@pytest.mark.parametrize('change, named', [
    ("insert into registered_model_tags (workspace, name, key, value) select workspace, name, 'journal.9', printf('%5001d', 1) from registered_models",
     "registered_model_tags.value has 5,001 characters, PostgreSQL takes 5,000 \\(workspace 'default', key 'journal.9', name 'EsolPrediction'\\)"),
    ("update tags set value = 'a' || char(0) || 'b' where key = 'mlflow.runName'", "tags.value holds a zero byte"),
    ("insert into params (key, value, run_uuid) values ('lr', '0.1', 'of no run')", "cannot copy the table params.*foreign key"),
    ("update runs set name = cast(x'ff' as text)", "cannot read the table runs.*UTF-8"),
], ids=['too long', 'zero byte', 'orphan', 'no text'])
def test_what_does_not_fit_is_named_and_leaves_nothing(refused, mine, change, named):
    asked(mine, change, write=True)
    assert re.search(named, told := refused(source=mine)), told


@contextlib.contextmanager
def trigger(target, table, body):
    "A database that does more than it is asked to."
    asked(target, f"create function meddle() returns trigger language plpgsql as $$ begin {body}; return new; end $$", write=True)
    asked(target, f"create trigger meddle before insert on {table} for each row execute function meddle()", write=True)
    try:
        yield
    finally:
        asked(target, 'drop function meddle cascade', write=True)


@pytest.mark.parametrize('table, body', [
    ('metrics', "if new.key = 'loss' and new.step = 0 then new.value := 0.10000000000000002; end if"),
    ('registered_model_aliases', 'new.version := 2'),
    ('latest_metrics', "if new.key = 'loss' then return null; end if"),
], ids=['the last bit', 'an alias', 'a row'])
def test_a_database_that_keeps_something_else(refused, blank, table, body):
    with trigger(blank, table, body):
        assert f'did not keep {table} as they were; nothing was copied' in refused()


def sleeping(uri): return asked(uri, "select pid from pg_stat_activity where wait_event = 'PgSleep'")


def test_a_process_that_is_killed_in_the_middle(source, spare):
    "Nobody sees what is not done, nothing of it stays, and the next one succeeds."
    code = f'from bioai_esol.store.migration import migrate; migrate({source!r}, {spare!r})'
    env = dict(os.environ, PGOPTIONS='-c client_connection_check_interval=100')
    with trigger(spare, 'model_versions', 'perform pg_sleep(60)'):
        with subprocess.Popen([sys.executable, '-c', code], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as p:
            wait_until(lambda: sleeping(spare))
            assert rows(spare) == (0, 0, 0, 0)
            p.kill()
            said = p.communicate(timeout=60)[1]
        assert p.returncode == -signal.SIGKILL, said
        wait_until(lambda: not sleeping(spare))
    assert untouched(spare)
    assert migrate(source, spare).equal.all()
    assert rows(spare) == rows(source)


def test_a_process_that_is_interrupted_in_the_middle(source, spare):
    with trigger(spare, 'model_versions', 'perform pg_sleep(0.5)'):
        interrupt = threading.Thread(target=lambda: (wait_until(lambda: sleeping(spare)), os.kill(os.getpid(), signal.SIGINT)))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            migrate(source, spare)
        interrupt.join()
    assert untouched(spare)


def test_one_moment_of_a_store_that_is_being_written(mine, spare, tmp_path):
    "A writer goes on; what is copied is whole: every run has its tag."
    stop = threading.Event()
    with contextlib.closing(sqlite3.connect(tmp_path / 'mlflow.db', timeout=30, check_same_thread=False)) as db:
        [(experiment,)] = db.execute("select experiment_id from experiments where name = 'beside'")

        def write():
            while not stop.is_set():
                run = os.urandom(16).hex()
                with db:
                    db.execute("insert into runs (run_uuid, name, experiment_id, lifecycle_stage) values (?, 'late', ?, 'active')", (run, experiment))
                    db.execute("insert into tags (run_uuid, key, value) values (?, 'late', 'yes')", (run,))
                time.sleep(0.005)
        writer = threading.Thread(target=write)
        writer.start()
        try:
            report = migrate(mine, spare).set_index('table')
        finally:
            stop.set()
            writer.join()
    assert report.equal.all()
    late = "select (select count(*) from runs where name = 'late'), (select count(*) from tags where key = 'late')"
    [(runs, tags)], [(more, _)] = asked(spare, late), asked(mine, late)
    assert runs == tags and 0 < runs < more


def test_a_target_that_somebody_writes_is_waited_for_and_then_given_up(source, spare, monkeypatch):
    "Rather than for ever; what they write stays."
    monkeypatch.setattr(migration, 'LOCK_TIMEOUT_S', 1)
    engine = create_engine(full(spare))
    with engine.begin() as other:
        other.exec_driver_sql("update experiments set name = 'mine' where experiment_id = 0")
        with pytest.raises(StoreError, match='cannot write .*lock timeout'):
            migrate(source, spare)
    engine.dispose()
    assert rows(spare) == (0, 0, 0, 0) and asked(spare, 'select name from experiments') == [('mine',)]
