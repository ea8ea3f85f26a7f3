"Somebody else uses MLflow in the same process or on the same account: our runs stay ours, and nobody logs them a second time."
import os
import sqlite3
import subprocess
import sys

from helpers import EASY_OPTIONS, fresh

SCRIPT = '''
import mlflow
import pandas as pd
from sklearn.linear_model import LinearRegression
import bioai_esol as esol
from bioai_esol.analysis.importance import importance

if __name__ == '__main__':
    mlflow.autolog()
    with mlflow.start_run(run_name='theirs'):
        esol.run_sweep(esol.Grid(architecture='ridge', run_tag='r', workers=1))
        assert esol.promote('r', esol.Policy(gap_threshold=9, r2_tolerance=.99), allow_dirty=True).approved
        importance(pd.DataFrame(dict(status='FINISHED', config_digest=list('abcdefghijkl'), lr=[.1, .2, .3] * 4, dropout=[0., .5] * 6,
                                     best_val_rmse=[1., 2, 3, 4] * 3)))
    LinearRegression().fit(pd.DataFrame(dict(x=[1., 2.])), pd.Series([1., 2.]))  # their own, to see that it is logged
'''
OURS = ['sweep r', 'ridge s42', 'ridge s42']  # the last is the retraining


def runs(folder):
    "The names of the runs by experiment, oldest first; and how many parameters and metrics are on those of others."
    names = {}
    with sqlite3.connect(folder / 'mlflow.db') as db:
        for experiment, name in db.execute('select experiments.name, runs.name from runs join experiments using (experiment_id) order by start_time'):
            names.setdefault(experiment, []).append(name)
        counts = [db.execute(f"select count(*) from {t} join runs using (run_uuid) where runs.name = 'theirs'").fetchone()[0] for t in ('params', 'metrics')]
    return names, counts


def test_autologging_and_an_active_run(tmp_path):
    "`mlflow.autolog()` and a run of one's own: a sweep, a promotion and a forest make no copy of themselves, and write nothing to that run."
    uri = fresh(tmp_path)
    (tmp_path / 'a.py').write_text(SCRIPT)
    done = subprocess.run([sys.executable, 'a.py'], cwd=tmp_path, capture_output=True, text=True, env=os.environ | dict(MLFLOW_TRACKING_URI=uri), timeout=300)
    assert done.returncode == 0, done.stderr
    names, counts = runs(tmp_path)
    first, second = names.pop('Default')  # the second is LinearRegression's: what was fitted after ours is logged as ever
    assert first == 'theirs' and counts == [0, 0] and names == dict(esol_prediction=OURS)
    assert not list((tmp_path / 'mlartifacts').rglob('*.pkl'))


def test_settings_of_somebody_elses_runs(program, tmp_path, monkeypatch):
    "`MLFLOW_RUN_ID` and `MLFLOW_EXPERIMENT_NAME` of another program on this account: no run goes there."
    fresh(tmp_path)
    monkeypatch.setenv('MLFLOW_RUN_ID', '0123456789abcdef0123456789abcdef')
    monkeypatch.setenv('MLFLOW_EXPERIMENT_NAME', 'theirs')
    for command in (['train', '--architecture', 'ridge', '--run-tag', 'r'], ['promote', '--run-tag', 'r', *EASY_OPTIONS]):
        done = program(*command)
        assert done.returncode == 0, done.stderr
    assert runs(tmp_path)[0] == dict(esol_prediction=OURS)
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith('.')) == ['mlartifacts', 'mlflow.db']
