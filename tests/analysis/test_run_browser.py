"The table of runs: labels, unfinished and failed runs, and ten thousand of them."
import json
import re

import pandas as pd
import pytest
from helpers import copied

import bioai_esol as esol
from bioai_esol.analysis.run_browser import RunBrowser, run_labels, run_table, side_by_side
from bioai_esol.store.writer import fail_run
from bioai_esol.store.client import connect


@pytest.fixture(scope='module')
def runs(swept):
    return esol.load_runs('small', tracking_uri=f'sqlite:///{swept}/mlflow.db')


def test_two_runs_never_share_a_label(runs):
    again = runs.assign(run_id=[run_id[::-1] for run_id in runs.run_id], run_tag='again')
    both = pd.concat([runs, again], ignore_index=True)
    labels = run_labels(both)
    assert labels.is_unique and len(labels) == 16
    assert all(f'{run.run_name} · {run.run_id[:8]}' == label for run, label in zip(both.itertuples(), labels))
    table = side_by_side(both.iloc[[0, 8]])
    assert table.columns.is_unique and 'run_tag' in table.iloc[:, 0].tolist()
    close = both.iloc[[0, 8]].assign(run_id=['a' * 31 + 'b', 'a' * 31 + 'c'])
    assert run_labels(close).is_unique


def test_a_failed_run_is_in_the_table_with_its_reason(swept, tmp_path):
    uri = copied(swept, tmp_path)
    first = esol.load_runs('small', tracking_uri=uri).run_id[0]
    fail_run(connect(uri), first, 'diverged: loss is <inf> in epoch 3')
    table = run_table(esol.load_runs('small', tracking_uri=uri))
    assert len(table) == 8 and table.status[0] == 'FAILED' and table.reason[0] == 'diverged: loss is <inf> in epoch 3'
    browser = RunBrowser(esol.load_runs('small', tracking_uri=uri), tracking_uri=uri)
    assert '&lt;inf&gt;' in browser.table._dt_args['data_json'] and '<inf>' not in browser.table._dt_args['data_json']
    browser.table.selected_rows = [0]
    assert 'FAILED' in browser.text.value


def test_histories_are_read_for_picked_runs_only(runs, swept):
    browser = RunBrowser(runs, tracking_uri=f'sqlite:///{swept}/mlflow.db')
    assert len(browser.read) == 1
    browser.table.selected_rows = list(range(8))
    assert len(browser.read) == 8 and len({r['run'] for r in browser.chart.data['curves']}) == 8
    given = RunBrowser(runs, esol.load_histories(runs, tracking_uri=f'sqlite:///{swept}/mlflow.db'), tracking_uri='sqlite:////nowhere/mlflow.db')
    assert given.chart.data['curves'] and 'nowhere' not in given.text.value


def test_ten_thousand_runs_are_all_there(runs, swept):
    many = pd.concat([runs] * 1250, ignore_index=True)
    many = many.assign(run_id=[f'{i:032x}' for i in range(len(many))], hidden_dim=[i % 7 for i in range(len(many))])
    browser = RunBrowser(many, esol.load_histories(runs, tracking_uri=f'sqlite:///{swept}/mlflow.db'))
    rows = json.loads(browser.table._dt_args['data_json'])
    assert len(rows) == 10_000 and len({row[0] for row in rows}) == 10_000
    assert 'downsampling_warning' not in browser.table._dt_args
    browser.table.selected_rows = list(range(3000))
    assert '3,000 runs picked' in browser.text.value and 'first 10 are drawn' in browser.text.value
    assert len(re.findall('<th>', browser.text.value)) == 11


@pytest.mark.parametrize('text, words', [('checked', 'is not a tag'), ('= yes', 'is not a tag'), ('kind = x', 'cannot be set'),
                                         ('mlflow.note.content = x', 'cannot be set'), ('', 'nothing to write')])
def test_a_refused_note_is_a_line(text, words, runs, swept):
    browser = RunBrowser(runs, tracking_uri=f'sqlite:///{swept}/mlflow.db')
    browser.tag.value = text
    browser.write()
    assert words in browser.said.value and 'class="no"' in browser.said.value
