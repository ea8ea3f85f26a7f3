"Frames hold what MLflow's own client says, from every kind of store, and at a size where one call a run would take minutes."
import contextlib
import shutil
import sqlite3
import time

import pandas as pd
import pytest
from helpers import EASY_OPTIONS, copied, fresh, sweep_here, uri_of
from stores import mlflow_server

from bioai_esol.chem.dataset import load_esol, load_table
from bioai_esol.registry.promotion import promote
from bioai_esol.registry.versions import status
from bioai_esol.errors import BioaiError
from bioai_esol.store.runs import load_histories, load_predictions, load_runs, newest_run_tag, finished_of, newest_sweep, sweeps
from bioai_esol.store.client import connect
from bioai_esol.training.engine import HISTORY
from quick import EASY


def multiplied(path, copies):
    "Every run of a store once more, `copies` times, with all its parameters, tags and last metrics."
    series = f'WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {copies})'
    with contextlib.closing(sqlite3.connect(path)) as db:
        def columns(table):
            return [row[1] for row in db.execute(f'PRAGMA table_info({table})')]
        for table in ('runs', 'params', 'tags', 'latest_metrics'):
            def value(c, table=table):
                if c == 'run_uuid':
                    return "substr(run_uuid, 1, 24) || printf('%08x', i)"
                return "CASE WHEN key = 'config_digest' THEN value || i ELSE value END" if (table, c) == ('tags', 'value') else c
            names = columns(table)
            db.execute(f"{series} INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(map(value, names))} FROM {table}, n")
        db.commit()


def test_histories_are_what_the_client_says(swept):
    runs = load_runs('small', tracking_uri=uri_of(swept))
    found = load_histories(runs, tracking_uri=uri_of(swept)).set_index(['run_id', 'metric', 'epoch']).value
    client, asked = connect(uri_of(swept)).client, {}
    for run_id in runs.run_id:
        for metric in HISTORY:
            asked |= {(run_id, metric, m.step): m.value for m in client.get_metric_history(run_id, metric)}
    assert found.to_dict() == asked and len(asked) == 8 * 6 * 6


def test_a_server_gives_the_same_frames(swept, tmp_path):
    copied(swept, tmp_path / 'copy')
    here = uri_of(tmp_path / 'copy')
    runs, histories = load_runs('small', tracking_uri=here), load_histories(load_runs('small', tracking_uri=here), tracking_uri=here)
    with mlflow_server(tmp_path / 'copy') as server:
        uri = server.url
        pd.testing.assert_frame_equal(load_runs('small', tracking_uri=uri), runs)
        pd.testing.assert_frame_equal(load_histories(runs, tracking_uri=uri), histories)
        pd.testing.assert_frame_equal(load_predictions(runs.run_id[0], tracking_uri=uri), load_predictions(runs.run_id[0], tracking_uri=here))


def test_ten_thousand_runs(swept, tmp_path):
    shutil.copy(swept / 'mlflow.db', tmp_path / 'mlflow.db')
    multiplied(tmp_path / 'mlflow.db', 1249)
    start = time.perf_counter()
    runs = load_runs('small', tracking_uri=uri_of(tmp_path))
    seconds = time.perf_counter() - start
    assert len(runs) == 10_000 and runs.run_id.is_unique and runs.best_val_rmse.notna().all()
    assert seconds < 120  # 15 s are meant; only a hang, or one call a run, takes this long
    print(f'10,000 runs in {seconds:.1f} s')


@pytest.mark.parametrize('what', [lambda uri: load_runs(tracking_uri=uri), lambda uri: load_predictions('0' * 32, tracking_uri=uri)])
def test_what_is_not_there_is_one_line(tmp_path, what):
    from bioai_esol.errors import BioaiError
    with pytest.raises(BioaiError, match="no tracking store at .*run 'bioai-esol sweep' first"):
        what(uri_of(tmp_path))


@pytest.mark.parametrize('name', [
    lambda i: f'{i:06}', lambda i: ('TRUE', 'FALSE')[i % 2], lambda i: f'{i}e5', lambda i: ('NA', 'nan', 'null', 'None')[i % 4]],
    ids=['digits', 'truths', 'exponents', 'nothings'])
def test_names_that_look_like_something_else_stay_text(tmp_path, name):
    frame = load_esol().frame.head(60)
    named = frame.assign(name=[name(i) for i in range(len(frame))])
    named.to_csv(tmp_path / 'mine.csv', index=False)
    uri = fresh(tmp_path)
    sweep_here(uri, 'mine', 1, dataset=load_table(tmp_path / 'mine.csv'))
    predictions = load_predictions(load_runs('mine', tracking_uri=uri).run_id[0], tracking_uri=uri)
    assert len(predictions) and predictions.name.tolist() == [name(i) for i in predictions.index]
    assert predictions.smiles.tolist() == frame.smiles[predictions.index].tolist()


MISLEADING = dict(status='checked', start_time='yesterday', end_time='soon', run_id='x', run_name='the best', parent='y', threads='many',
                  pid='1e400', dataset_skipped='some', seconds='quick', lr='high', test_rmse='fine', val_r2='1')


def test_tags_of_somebody_else_hide_nothing(swept, here):
    "Every name that a row has, set as a tag on MLflow's page: the run's own values stand, and what should be a number is missing."
    uri = copied(swept, here.folder)
    before = load_runs('small', tracking_uri=uri)
    client = connect(uri).client
    for run_id in before.run_id:
        for name, value in MISLEADING.items():
            client.set_tag(run_id, name, value)
    after = load_runs('small', tracking_uri=uri)
    unknown = ['threads', 'pid', 'dataset_skipped', 'seconds']
    assert after[unknown].isna().all(axis=None)
    pd.testing.assert_frame_equal(after.drop(columns=unknown), before.drop(columns=unknown), check_like=True)
    for command in (['promote', '--dry-run', *EASY_OPTIONS], ['report']):
        done = here(*command, '--run-tag', 'small')
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_promotion_of_a_run_with_misleading_tags(template, quick, tmp_path):
    "The version's lineage leads to the run that was chosen, and a retraining whose process id nobody can read does no harm."
    uri = copied(template, tmp_path)
    client = connect(uri).client
    [run_id] = load_runs('a', tracking_uri=uri).run_id
    for name, value in MISLEADING.items():
        client.set_tag(run_id, name, value)
    assert promote('a', EASY, tracking_uri=uri).champion == '1'
    [row] = status(tracking_uri=uri).to_dict('records')
    assert row['repeats_run'] == run_id
    client.set_tag(row['run_id'], 'pid', 'none of yours')
    assert promote('a', EASY, tracking_uri=uri).already


def test_a_run_that_somebody_tagged_is_no_sweep(tmp_path):
    "On MLflow's page anybody can tag anything: such runs are left out, and cost nobody their table."
    uri = fresh(tmp_path)
    store = sweep_here(uri, 'mine', 1)
    for tags in (dict(kind='sweep'), dict(kind='sweep', run_tag=''), dict(kind='run', run_tag='mine'), dict(kind='sweep', run_tag='by hand')):
        run_id = store.client.create_run(store.experiment_id, tags=tags).info.run_id
        store.client.log_param(run_id, 'configurations', 'many')
    assert sweeps(tracking_uri=uri).run_tag.tolist() == ['by hand', 'mine']
    assert finished_of(store, newest_sweep(store, 'by hand')) == (0, 0) and load_runs('mine', tracking_uri=uri).status.tolist() == ['FINISHED', 'RUNNING']
    assert newest_run_tag(store) == 'by hand'
    for ask in (lambda: load_runs('none', tracking_uri=uri), lambda: promote('none', tracking_uri=uri)):
        with pytest.raises(BioaiError, match='run tags: mine, by hand'):
            ask()
