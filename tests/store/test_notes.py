"Notes and tags that a person gives to runs: they come back, and change nothing of what the package decides."
import re

import pytest
from helpers import EASY_OPTIONS, copied, uri_of

import bioai_esol as esol
from bioai_esol.errors import BioaiError, StoreError
from bioai_esol.store.client import connect
from bioai_esol.store.notes import annotate, is_reserved, user_tags
from bioai_esol.sweep.grid import repeats


def test_every_name_that_the_package_uses_is_refused(here, swept, tmp_path):
    "Sweep, repeats, ensemble, promotion, observation: no tag, parameter or metric of theirs may be set."
    uri = copied(swept, tmp_path)
    esol.run_sweep(repeats(esol.load_runs('small', tracking_uri=uri), k=1, seeds=(1,)), tracking_uri=uri)
    esol.best_ensemble('small', tracking_uri=uri)
    done = here('promote', '--run-tag', 'small', *EASY_OPTIONS)
    assert done.returncode == 0, done.stderr
    esol.observe(esol.load_esol().frame.head(20), tracking_uri=uri)
    store = connect(uri)
    runs = store.client.search_runs([store.experiment_id], max_results=1000)
    assert {run.data.tags['kind'] for run in runs} >= {'run', 'sweep', 'retraining', 'observations'}
    used = {name for run in runs for name in (*run.data.tags, *run.data.params, *run.data.metrics)}
    assert [name for name in sorted(used) if not is_reserved(name)] == []
    for tag in esol.sweeps(tracking_uri=uri).run_tag:
        assert user_tags(esol.load_runs(tag, tracking_uri=uri)) == []
    for name in used:
        with pytest.raises(BioaiError, match='cannot be set'):
            annotate(runs[0].info.run_id, tags={name: 'x'}, tracking_uri=uri)


def test_a_note_changes_neither_choice_nor_version(here, swept, tmp_path):
    "The same sweep with and without notes: the same candidate is chosen, and its version carries the same tags."
    versions = []
    for folder, noted in ((tmp_path / 'plain', False), (tmp_path / 'noted', True)):
        uri = copied(swept, folder)
        if noted:
            annotate(list(esol.load_runs('small', tracking_uri=uri).run_id), 'looked at', {'checked': 'yes', 'code': 'mine'}, tracking_uri=uri)
        done = here('promote', '--run-tag', 'small', *EASY_OPTIONS, cwd=folder)
        assert done.returncode == 0, done.stderr
        store = connect(uri)
        [version] = store.client.search_model_versions("name = 'EsolPrediction'")
        versions.append({k: v for k, v in version.tags.items() if not re.match(r'20\d\d-|[0-9a-f]{32}$', v)})  # moments, ids of runs
        retrained = store.client.get_run(version.run_id)
        assert 'checked' not in retrained.data.tags and 'mlflow.note.content' not in retrained.data.tags
    plain, noted = versions
    assert plain == noted and plain
    runs = esol.load_runs('small', tracking_uri=uri_of(tmp_path / 'noted'))
    assert set(runs.note) == {'looked at'} and set(user_tags(runs)) == {'checked', 'code'}


def test_a_store_that_is_away_is_named(tmp_path):
    with pytest.raises(StoreError, match='no tracking store'):
        annotate('0' * 32, 'x', tracking_uri=uri_of(tmp_path))
