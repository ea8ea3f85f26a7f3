"""Chemprop on the split files of `bioai-esol benchmark`, to be judged beside this package's models.

    python3.11 -m venv chemprop-env && chemprop-env/bin/pip install chemprop==2.3.1
    python benchmarks/chemprop.py --chemprop chemprop-env/bin/chemprop --output benchmarks/accuracy
    make bench-accuracy

Chemprop needs an environment of its own: it pins other versions than this package does. Its command line is run
with its defaults on one thread, once with and once without RDKit's 2D descriptors. What is found lies in the same
folder and form as ours, so `bioai-esol benchmark --output benchmarks/accuracy` takes it into its tables. A run takes
about a minute and there are 22; one that is there already is not repeated.
"""
import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from bioai_esol.benchmark.boards import BenchResult, data_key, keep_result, kept_results
from bioai_esol.chem.dataset import load_dataset
from bioai_esol.benchmark.splits import bench_splits, write_splits

MODELS = {'chemprop + RDKit 2D': ['--molecule-featurizers', 'rdkit_2d'], 'chemprop': []}
ONE_THREAD = dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1')


def children_seconds() -> float:
    "CPU seconds of all processes that this one has started and that have ended."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def version_of(chemprop: Path) -> str:
    ask = 'import importlib.metadata as m; print(m.version("chemprop"))'
    return 'chemprop ' + subprocess.run([chemprop.with_name('python'), '-c', ask], check=True, capture_output=True, text=True).stdout.strip()


def run(chemprop: Path, file: Path, options: list[str]) -> tuple[str, float, float, dict[str, float]]:
    "The command, its CPU seconds, the validation RMSE of the epoch that Chemprop takes, and the test predictions by SMILES."
    settings = ['-s', 'smiles', '--target-columns', 'log_solubility', '-t', 'regression', '--splits-column', 'split', '--accelerator', 'cpu',
                '--pytorch-seed', '0', *options]
    with tempfile.TemporaryDirectory() as folder:
        before = children_seconds()
        done = subprocess.run([chemprop, 'train', '-i', file, '-o', folder, *settings], capture_output=True, text=True, env=os.environ | ONE_THREAD)
        seconds = children_seconds() - before
        if done.returncode: sys.exit(f"{chemprop} ended with {done.returncode} on {file}:\n{done.stderr[-2000:]}")
        [predictions], [metrics] = (list(Path(folder).rglob(name)) for name in ('test_predictions.csv', 'metrics.csv'))
        predicted, lowest = pd.read_csv(predictions, keep_default_na=False), pd.read_csv(metrics)['val_loss'].min()
    table = pd.read_csv(file, keep_default_na=False)
    scale = table.log_solubility[table.split == 'train'].std(ddof=0)  # Chemprop's losses are those of the standardised target
    return (' '.join(['chemprop train', '-i', f'splits/{file.name}', *settings]), seconds, float(np.sqrt(lowest) * scale),
            dict(zip(predicted.smiles, predicted.log_solubility.astype(float))))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--chemprop', type=Path, required=True, metavar='PATH', help='the program chemprop of the other environment')
    p.add_argument('--output', type=Path, default=Path('benchmark'), metavar='FOLDER', help="the benchmark's folder (default benchmark/)")
    p.add_argument('--data', metavar='CSV', help='a table with a column smiles and a target, instead of ESOL')
    a = p.parse_args()
    dataset = load_dataset(a.data)
    splits, files, made_by = bench_splits(dataset), write_splits(a.output, dataset), version_of(a.chemprop)
    kept = kept_results(a.output, dataset, splits)
    pending = [(s, m) for m in MODELS for s in splits if (s, m) not in kept or kept[s, m].made_by != made_by]
    for split, model in tqdm(pending, desc='chemprop'):
        command, seconds, val_rmse, predicted = run(a.chemprop.absolute(), files[split], MODELS[model])
        keep_result(a.output, BenchResult(split, model, data_key(dataset, splits[split]), made_by, command, val_rmse, seconds,
                                          [predicted[dataset.smiles[i]] for i in splits[split].test]))


if __name__ == '__main__':
    main()
