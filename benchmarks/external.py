"""A model of ESOL asked about molecules that ESOL does not hold, and a model of another table on its own split.

    make bench-external                                                        # written to benchmarks/external.md
    python benchmarks/external.py --data TABLE.csv --smiles-column SMILES --target Solubility
    python benchmarks/external.py --chemprop chemprop-env/bin/chemprop         # Chemprop beside ours

The table is AqSolDB (Sorkun, Khetan and Er 2019, doi:10.1038/s41597-019-0151-1), which is not part of this repository: without
--data it is `shared/data/aqsoldb_external.csv` beside the project, the 6,676 molecules of it that ESOL does not hold. Any table of
log10 solubilities in mol/L will do; molecules that ESOL holds are left out of the first part.

outside    the preset `accurate`, trained on ESOL's scaffold split, asked about the table: errors, and how often the 90 % intervals hold
           the measured value, by kind of molecule, similarity, size, fragments and predicted value
own split  the preset for a table of this size, trained on the table's own deterministic scaffold split; ridge regression, the mean of
           the training molecules and Chemprop on the same molecules

Chemprop needs an environment of its own, see chemprop.py; it runs with RDKit's 2D descriptors on one thread. What it said is kept in
--kept and not asked again. All of it takes ten minutes; Chemprop takes a quarter of an hour more, once.
"""
import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from rdkit import Chem, RDLogger
from rdkit.Chem import Descriptors
from scipy.stats import binomtest

from md_table import table

from bioai_esol.chem.dataset import Dataset, load_esol, load_table
from bioai_esol.chem.molecules import canonical_smiles
from bioai_esol.chem.split import scaffold_split, Split
from bioai_esol.serving.predictor import load_predictor, Predictor
from bioai_esol.stats.metrics import bootstrap_rmse, mae, paired_rmse_difference, rmse
from bioai_esol.store.client import connect, sqlite_uri
from bioai_esol.store.runs import fetch_artifacts
from bioai_esol.sweep.ensemble import run_preset
from bioai_esol.sweep.grid import Grid
from bioai_esol.sweep.runner import run_sweep
from bioai_esol.training.lineage import machine

HERE = Path(__file__).resolve().parent
EXTERNAL = HERE.parent.parent / 'shared/data/aqsoldb_external.csv'
ORGANIC = {1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 34, 35, 53}  # atomic numbers
ONE_THREAD = dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1')


# --- tables

def held(part: pd.DataFrame) -> str:
    "How often intervals hold the measured value, with the exact 95 % interval of that share."
    if part.empty: return '–'
    inside = ((part.low <= part.measured) & (part.measured <= part.high)).sum()
    ci = binomtest(int(inside), len(part)).proportion_ci(.95)
    return f'{inside / len(part):.1%} ({ci.low:.1%} … {ci.high:.1%})'


def row(name: str, part: pd.DataFrame, whole: int) -> list:
    if part.empty: return [name, 0, '–', '–', '–', '–', '–']
    return [name, f'{len(part):,}', f'{len(part) / whole:.1%}', f'{rmse(part.measured, part.predicted):.3f}', f'{mae(part.measured, part.predicted):.3f}',
            held(part), f'{(part.high - part.low).mean():.2f}']


def bands(part: pd.DataFrame, column: str, edges: list[float], form: str, unit: str = '') -> list[list]:
    "A row for each band of a column."
    rows = []
    for low, high in zip(edges, edges[1:]):
        chosen = part[(part[column] >= low) & (part[column] < high)]
        name = f'from {low:{form}}' if np.isinf(high) else f'below {high:{form}}' if np.isinf(low) else f'{low:{form}} to {high:{form}}'
        rows.append(row(f'{unit} {name}'.strip(), chosen, len(part)))
    return rows


HEAD = ['molecules', 'n', 'share', 'RMSE', 'MAE', '90 % intervals hold (95 %)', 'width']


def by_newness(part: pd.DataFrame) -> str:
    rows = bands(part, 'similarity', [-np.inf, .2, .3, .4, .5, .7, np.inf], '.1f', 'similarity')
    rows += bands(part, 'atoms', [-np.inf, 10, 15, 20, 30, 50, np.inf], '.0f', 'heavy atoms')
    rows += bands(part, 'fragments', [1, 2, 3, np.inf], '.0f', 'fragments')
    rows += bands(part, 'predicted', [-np.inf, -8, -6, -4, -2, 0, np.inf], '.0f', 'predicted')
    return table(HEAD, rows)


# --- models

def trained(dataset: Dataset, uri: str, run_tag: str, folder: Path) -> tuple[Predictor, float]:
    "The preset's ensemble, and the seconds that it took."
    began = time.perf_counter()
    run = run_preset('accurate', dataset, tracking_uri=uri, run_tag=run_tag).run
    return loaded(uri, run['run_id'], folder / run_tag), time.perf_counter() - began


def ridge(dataset: Dataset, uri: str, run_tag: str, folder: Path) -> Predictor:
    runs = run_sweep(Grid(architecture='ridge', run_tag=run_tag, workers=1), dataset, tracking_uri=uri).runs
    return loaded(uri, runs.run_id.iloc[0], folder / run_tag)


def loaded(uri: str, run_id: str, folder: Path) -> Predictor:
    folder.mkdir()
    return load_predictor(fetch_artifacts(connect(uri), run_id, folder), 'of the benchmark')


def asked(predictor: Predictor, smiles: list[str], measured: np.ndarray) -> pd.DataFrame:
    "What a model says of molecules whose values are known; those that cannot be read are left out."
    answers = predictor.predict(smiles).rename(columns=dict(log_solubility='predicted')).assign(measured=measured)
    mols = [Chem.MolFromSmiles(s) for s in answers.smiles]
    answers = answers.assign(
        kind=list(map(kind, mols)), atoms=[m.GetNumHeavyAtoms() if m else 0 for m in mols], fragments=[len(Chem.GetMolFrags(m)) if m else 0 for m in mols])
    return answers[answers.error == '']


def kind(mol: Chem.Mol | None) -> str:
    "What sort of substance it is; the first that applies."
    if mol is None: return 'unreadable'
    if len(Chem.GetMolFrags(mol)) > 1: return 'salts, hydrates and mixtures'
    numbers = {atom.GetAtomicNum() for atom in mol.GetAtoms()}
    if numbers - ORGANIC or 6 not in numbers: return 'inorganic, or with a metal'
    return 'single ions' if Chem.GetFormalCharge(mol) else 'organic, one fragment'


class Chemprop:
    """Chemprop with RDKit's 2D descriptors, in an environment of its own; each answer is kept.

    Its answers are clipped at the lowest and the highest value of its table: a descriptor far outside the range that it was trained on
    makes it say 10^20, and the comparison would be about that molecule alone."""
    def __init__(self, program: Path | None, kept: Path):
        self.program, self.kept = program, kept

    def predict(self, train: pd.DataFrame, ask: list[str]) -> np.ndarray | None:
        "Train on a table with `smiles`, `value` and `split`, and ask about molecules; None without the program."
        text = train.to_csv(index=False) + '\n'.join(ask)
        file = self.kept / f'chemprop-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json'
        if not file.exists():
            if self.program is None: return None
            file.parent.mkdir(parents=True, exist_ok=True)
            can = np.array([self.can_read(s) for s in ask])
            said = np.full(len(ask), np.nan)
            said[can] = self.run(train[[self.can_read(s) for s in train.smiles]], [s for s, yes in zip(ask, can) if yes])
            file.write_text(json.dumps(said.tolist()))
        return np.clip(np.array(json.loads(file.read_text()), dtype=float), train.value.min(), train.value.max())

    @staticmethod
    def can_read(smiles: str) -> bool:
        "Chemprop stops at a molecule for which one of RDKit's descriptors is infinite; of large molecules `Ipc` is."
        with np.errstate(over='ignore'): values = np.array(list(Descriptors.CalcMolDescriptors(Chem.MolFromSmiles(smiles)).values()), dtype=np.float32)
        return not np.isinf(values).any()

    def run(self, train: pd.DataFrame, ask: list[str]) -> list[float]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            train.to_csv(folder / 'table.csv', index=False)
            pd.DataFrame(dict(smiles=ask)).to_csv(folder / 'asked.csv', index=False)
            features = ['-s', 'smiles', '--molecule-featurizers', 'rdkit_2d', '--accelerator', 'cpu']
            self.call('train', '-i', folder / 'table.csv', '-o', folder / 'model', '--target-columns', 'value', '-t', 'regression',
                      '--splits-column', 'split', '--pytorch-seed', '0', *features)
            self.call('predict', '-i', folder / 'asked.csv', '-o', folder / 'said.csv', '--model-paths', folder / 'model', *features)
            return pd.read_csv(folder / 'said.csv').value.tolist()

    def call(self, *arguments):
        done = subprocess.run([self.program, *map(str, arguments)], capture_output=True, text=True, env=os.environ | ONE_THREAD)
        if done.returncode: sys.exit(f"{self.program} {arguments[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def split_table(dataset: Dataset, split: Split) -> pd.DataFrame:
    part = np.full(len(dataset), 'train', dtype=object)
    part[split.val], part[split.test] = 'val', 'test'
    return pd.DataFrame(dict(smiles=dataset.smiles, value=dataset.y, split=part))


def compared(said: dict[str, np.ndarray], measured: np.ndarray) -> str:
    "The error of each model, and the paired difference of ours to it, on the molecules that all of them can read."
    read = np.isfinite(list(said.values())).all(axis=0)
    said, measured = {name: predicted[read] for name, predicted in said.items()}, measured[read]
    ours, rows = said['accurate'], []
    for name, predicted in sorted(said.items(), key=lambda item: rmse(measured, item[1])):
        error = bootstrap_rmse(measured, predicted)
        d = paired_rmse_difference(measured, ours, predicted)
        rows.append([name, f'{error.value:.3f} ({error.low:.2f} … {error.high:.2f})', f'{mae(measured, predicted):.3f}',
                     '' if name == 'accurate' else f'{d.value:+.3f} ({d.low:+.3f} … {d.high:+.3f})'])
    lost = f'\n\n{(~read).sum()} of the molecules, for which Chemprop computes an infinite descriptor, are left out here.' if not read.all() else ''
    if 'chemprop + RDKit 2D' in said: lost += "\n\nChemprop's answers are clipped at the lowest and the highest value of its table."
    return table(['model', 'RMSE (95 % over molecules)', 'MAE', 'accurate − it'], rows) + lost


# --- parts

def unknown_to(esol: Dataset, data: Dataset) -> tuple[list[str], np.ndarray]:
    "The molecules that ESOL does not hold, stereochemistry apart, and their values."
    def flat(s: str) -> str: return canonical_smiles(Chem.MolToSmiles(Chem.MolFromSmiles(s), isomericSmiles=False))
    known = set(map(flat, esol.smiles))
    new = [i for i, s in enumerate(data.smiles) if flat(s) not in known]
    return [data.smiles[i] for i in new], data.y[new].astype(float)


def outside(data: Dataset, folder: Path, chemprop: Chemprop) -> str:
    esol, uri = load_esol(), sqlite_uri(folder / 'esol.db')
    smiles, measured = unknown_to(esol, data)
    rival = chemprop.predict(split_table(esol, scaffold_split(esol.smiles)), smiles)
    champion, seconds = trained(esol, uri, 'accurate', folder)
    answers = asked(champion, smiles, measured)
    whole = [row(f'{name}, {where}', g, len(answers[answers.kind == name])) for name, of in answers.groupby('kind') for where, g in of.groupby('domain')]
    organic = answers[answers.kind == 'organic, one fragment']
    mean = esol.y[scaffold_split(esol.smiles).train].mean()
    said = {'accurate': organic.predicted.to_numpy(), "mean of ESOL's training molecules": np.full(len(organic), mean)}
    said['ridge'] = asked(ridge(esol, uri, 'ridge', folder), organic.smiles.tolist(), organic.measured.to_numpy()).predicted.to_numpy()
    if rival is not None: said['chemprop + RDKit 2D'] = rival[organic.index]
    within = (organic.domain == 'inside').to_numpy()
    inner = {name: p[within] for name, p in said.items()}
    return '\n\n'.join([
        f"**Trained on ESOL's scaffold split, asked about {len(answers):,} molecules that ESOL does not hold** (the preset in {seconds:.0f} s; predictions lie "
        f"between {answers.predicted.min():.1f} and {answers.predicted.max():.1f}; a salt is answered as its largest fragment, and always outside)",
        table(HEAD, whole),
        f'**Beside other models: organic molecules of one fragment, all {len(organic):,}**', compared(said, organic.measured.to_numpy()),
        f'**The same, inside the applicability domain of `accurate`, {within.sum():,}**', compared(inner, organic.measured.to_numpy()[within]),
        '**All readable molecules by similarity to the training molecules, size, fragments and predicted value**', by_newness(answers)])


def own_split(data: Dataset, folder: Path, chemprop: Chemprop) -> str:
    split, uri = scaffold_split(data.smiles), sqlite_uri(folder / 'own.db')
    smiles, measured = [data.smiles[i] for i in split.test], data.y[split.test].astype(float)
    rival = chemprop.predict(split_table(data, split), smiles)
    model, seconds = trained(data, uri, 'own', folder)
    answers = asked(model, smiles, measured)
    said = {'accurate': answers.predicted.to_numpy(), 'mean of the training molecules': np.full(len(answers), data.y[split.train].mean())}
    said['ridge'] = asked(ridge(data, uri, 'own-ridge', folder), smiles, measured).predicted.to_numpy()
    if rival is not None: said['chemprop + RDKit 2D'] = rival
    places = [row(where, g, len(answers)) for where, g in answers.groupby('domain')]
    return '\n\n'.join([
        f"**Trained on the table's own scaffold split: {len(split.train):,} training, {len(split.val):,} validation and {len(split.test):,} test molecules, "
        f"salts as they are written** (the preset for a table of this size: {seconds / 60:.1f} minutes on {Grid().workers} cores)",
        compared(said, measured),
        '**Intervals and applicability domain on the test molecules**', table(HEAD, [row('all', answers, len(answers)), *places]), by_newness(answers)])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, default=EXTERNAL, metavar='CSV', help='a table of log10 solubilities in mol/L')
    p.add_argument('--smiles-column', default='SMILES')
    p.add_argument('--target', default='Solubility')
    p.add_argument('--chemprop', type=Path, metavar='PATH', help='the program chemprop of the other environment')
    p.add_argument('--kept', type=Path, default=HERE / 'external', metavar='FOLDER', help="where Chemprop's answers are kept")
    p.add_argument('--output', type=Path, metavar='FILE', help='gets the tables; printed only when not given')
    a = p.parse_args()
    RDLogger.DisableLog('rdApp.*')
    if not a.data.is_file(): sys.exit(f'{a.data} is not there: give --data, a table such as AqSolDB (doi:10.1038/s41597-019-0151-1)')
    data = load_table(a.data, smiles_column=a.smiles_column, target=a.target, salts='as-is', skip_bad_rows=True)
    chemprop = Chemprop(a.chemprop and a.chemprop.absolute(), a.kept)
    with tempfile.TemporaryDirectory() as name:
        parts = [part(data, Path(name), chemprop) for part in (outside, own_split)]
    says = f"`make bench-external` ({a.data.name}, {len(data):,} molecules; errors in log10 mol/L; {machine()['processor']})."
    text = '\n\n'.join([says, *parts]) + '\n'
    print(text)
    if a.output: a.output.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
