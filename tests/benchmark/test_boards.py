"The benchmark as a whole: processes, what they keep, and what is written in the end."
import json

import pandas as pd
import pytest

from bioai_esol.training.config import TrainConfig
from bioai_esol.chem.dataset import load_dataset
from bioai_esol.benchmark.splits import bench_splits

RIDGE, PROCESS = TrainConfig(architecture='ridge'), TrainConfig(architecture='gaussian-process')
QUICK = {'ridge': (RIDGE,), 'accurate': (RIDGE, PROCESS)}


@pytest.fixture
def table(tmp_path):
    "Two hundred molecules of ESOL as a user's own table."
    load_dataset().frame.iloc[::5][['smiles', 'log_solubility']].head(200).to_csv(tmp_path / 'own.csv', index=False)
    return tmp_path / 'own.csv'


def test_benchmark_from_the_command_line(here, table, monkeypatch):
    monkeypatch.setattr('bioai_esol.benchmark.boards.bench_models', lambda molecules: QUICK)
    done = here('benchmark', '--data', 'own.csv', '--workers', '2')
    assert done.returncode == 0, done.stderr
    folder = here.folder / 'benchmark'
    assert done.stdout == (folder / 'accuracy.md').read_text()
    assert done.stdout.startswith('`bioai-esol benchmark --output benchmark --data own.csv --smiles-column smiles --target log_solubility ')
    predictions, figures = (pd.read_csv(folder / f'{name}.csv') for name in ('predictions', 'figures'))
    splits = bench_splits(load_dataset(table))
    assert len(figures) == 2 * len(splits) == 22 and figures.test_rmse.between(.3, 2.5).all() and (figures.cpu_seconds > 0).all()
    for (split, _), rows in predictions.groupby(['split', 'model']): assert rows.row.tolist() == splits[split].test.tolist()

    # an interrupted one: what is there stays, what is missing or was made from other molecules is trained, and comes out the same
    kept, lost, stale = (folder / 'results' / name for name in ('scaffold/ridge.json', 'random-1/accurate.json', 'balanced-2/ridge.json'))
    before = kept.stat().st_mtime_ns
    lost.unlink()
    stale.write_text(json.dumps(json.loads(stale.read_text()) | dict(data='other')))
    assert here('benchmark', '--data', 'own.csv', '--workers', '1').returncode == 0
    assert kept.stat().st_mtime_ns == before and lost.exists()
    pd.testing.assert_frame_equal(pd.read_csv(folder / 'predictions.csv'), predictions)

    kept.write_text('{')
    done = here('benchmark', '--data', 'own.csv')
    assert done.returncode == 2 and 'scaffold/ridge.json holds no result of a benchmark' in done.stderr and 'Traceback' not in done.stderr


def test_a_table_that_is_too_small_is_refused(here):
    (here.folder / 'tiny.csv').write_text('smiles,log_solubility\n' + 'CCO,1\nc1ccccc1,-1\nCC,0\nCCC,0\n' * 3)
    done = here('benchmark', '--data', 'tiny.csv')
    assert done.returncode == 2 and 'from the 0 small scaffolds of 12 molecules: give a larger table' in done.stderr
