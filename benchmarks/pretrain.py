"""Teach three D-MPNNs what is measured of more molecules than any table of solubilities has, and write their weights.

    pip install chemicals==1.5.2
    python benchmarks/pretrain.py --output bioai_esol/models/pretrained-1.safetensors

The general solubility equation says logS = 0.5 − 0.01 · (melting point in °C − 25) − logP (Ran and Yalkowsky 2001,
doi:10.1021/ci000338c), so a network that knows lipophilicity and how firmly a crystal holds together knows half of
what decides a solubility. The package `chemicals` (MIT licence) ships measured values: logP of Syracuse Research
(PHYSPROP) and the CRC Handbook, melting points of the Open Notebook Science collection, boiling points of Yaws. Taken
are organic molecules of one fragment without stereo marks, the median where a molecule has several values. **No molecule
of ESOL is among them**, so that no test molecule of any split was seen, not even by another property. One thread and
seeds: on one kind of processor the file is the same to the bit. Five minutes.
"""
import argparse
import json
import math
from pathlib import Path

import chemicals
import numpy as np
import pandas as pd
import torch
from chemicals import environment, phase_change
from chemicals.identifiers import pubchem_db
from rdkit import Chem, rdBase
from safetensors.torch import save_file
from tqdm.auto import tqdm

from bioai_esol import load_esol
from bioai_esol.chem.bond_graphs import cut_bonds, pack_bonds
from bioai_esol.models.dmpnn import DMPNN
from bioai_esol.models.kaxis import generator, hidden_layer, init_theta, init_uniform, one_thread
from bioai_esol.training.optimiser import BlockAdam, clip_rows, lr_factor

TASKS = dict(logP=[(environment, 'logP_data_Syrres', 'logP'), (environment, 'logP_data_CRC', 'logP')],
             melting_point=[(phase_change, 'Tm_ON_data', 'Tm')],
             boiling_point=[(phase_change, 'Tb_data_Yaws', 'Tb')])
ELEMENTS = {'B', 'C', 'N', 'O', 'F', 'Si', 'P', 'S', 'Cl', 'As', 'Se', 'Br', 'I'}
LARGEST = 5.  # standard deviations: what is farther off is an error of typing more often than a molecule
HELD_OUT = 1000
SEEDS = (1, 2, 3)  # one network each: they disagree where they know little, and their mean errs less
HIDDEN_DIM, POOLING, EPOCHS, BATCH_SIZE, LR = 128, 'mean-sum', 30, 32, 2e-3


def plain(smiles: str) -> str | None:
    "Canonical SMILES without stereo of an organic molecule; None for any other."
    with rdBase.BlockLogs(): mol = Chem.MolFromSmiles(smiles)
    if mol is None or len(Chem.GetMolFrags(mol)) > 1: return None
    symbols = {atom.GetSymbol() for atom in mol.GetAtoms()}
    if 'C' not in symbols or symbols - ELEMENTS or any(atom.GetIsotope() for atom in mol.GetAtoms()): return None
    Chem.RemoveStereochemistry(mol)
    return Chem.MolToSmiles(mol)


def measured() -> pd.DataFrame:
    "One row per molecule with `smiles` and a column per task, in its unit; NaN where nothing was measured."
    pubchem_db.autoload_main_db()
    parts = []
    for task, sources in TASKS.items():
        for module, name, column in sources:
            table = getattr(module, name)[column].dropna()
            known = [(pubchem_db.search_CAS(int(cas.replace('-', ''))), value) for cas, value in table.items()]
            parts.append(pd.DataFrame([(m.smiles, task, value) for m, value in known if m], columns=['smiles', 'task', 'value']))
    table = pd.concat(parts)
    canonical = {smiles: plain(smiles) for smiles in table.smiles.unique()}
    table = table.assign(smiles=table.smiles.map(canonical)).dropna()
    esol = {plain(smiles) for smiles in load_esol().smiles}
    table = table[~table.smiles.isin(esol)]
    return table.groupby(['smiles', 'task']).value.median().unstack()[list(TASKS)].reset_index()


class Network(DMPNN):
    "A D-MPNN with one answer per task."
    @property
    def shapes(self):
        body = {name: shape for name, shape in super().shapes.items() if not name.startswith('head')}
        return body | {'tasks.weight': (self.hidden_dim, len(TASKS)), 'tasks.bias': (len(TASKS),)}

    def init(self, name, shape, generator):
        if name.startswith('tasks'): return init_uniform(shape, self.hidden_dim ** -.5, generator)
        return super().init(name, shape, generator)

    def forward(self, params, batch, dropout=None):  # (n_molecules, n_tasks)
        hidden = hidden_layer(self.pooled(params, batch), params)
        return (hidden @ params['tasks.weight'] + params['tasks.bias'][:, None])[0]


def teach(network, graphs, target, rows, seed):  # (1, n_params)
    "The weights of one network after all epochs."
    theta = init_theta(network, generator(seed, 'init'))[None].clone()
    params = {name: p.requires_grad_() for name, p in network.split(theta).items()}
    adam, order = BlockAdam(theta, [LR], [0.]), generator(seed, 'order')
    step, steps = 0, EPOCHS * math.ceil(len(rows) / BATCH_SIZE)
    for _ in tqdm(range(EPOCHS), f'teaching, seed {seed}', unit='epoch'):
        for batch in cut_bonds(graphs, rows[torch.randperm(len(rows), generator=order)], BATCH_SIZE):
            wanted = target[batch.y.long()]
            known = ~wanted.isnan()
            loss = ((network.forward(params, batch) - wanted)[known] ** 2).mean()
            gradients = torch.autograd.grad(loss, list(params.values()))
            adam.step(clip_rows(torch.cat([g.flatten(1) for g in gradients], dim=1)), lr_factor('cosine', step, steps))
            step += 1
    return theta.detach()


@torch.no_grad()
def answers(network, theta, graphs, rows):  # (n_rows, n_tasks)
    return torch.cat([network.forward(network.split(theta), batch) for batch in cut_bonds(graphs, rows, 256)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', type=Path, required=True)
    args = parser.parse_args()
    table = measured()
    y = table[list(TASKS)].to_numpy(float)
    mean, sd = np.nanmean(y, axis=0), np.nanstd(y, axis=0)
    target = torch.tensor(np.clip((y - mean) / sd, -LARGEST, LARGEST), dtype=torch.float32)
    shuffled = torch.randperm(len(table), generator=generator(SEEDS[0], 'held out'))
    held_out, rows = shuffled[:HELD_OUT], shuffled[HELD_OUT:]
    graphs = pack_bonds(table.smiles.tolist(), np.arange(len(table)))
    vocabulary = graphs.vocabulary(rows)
    graphs = graphs.encoded(vocabulary)
    network = Network(HIDDEN_DIM, len(vocabulary['atoms']), len(vocabulary['bonds']), POOLING)
    with one_thread():
        taught = [teach(network, graphs, target, rows, seed) for seed in SEEDS]
        said = torch.stack([answers(network, theta, graphs, held_out) for theta in taught]).mean(0)
    error = np.sqrt(np.nanmean((said - target[held_out]).numpy() ** 2, axis=0)) * sd
    told = dict(tasks=list(TASKS), mean=mean.tolist(), sd=sd.tolist(), vocabulary=vocabulary, hidden_dim=HIDDEN_DIM,
                pooling=POOLING, molecules=len(rows), values=int(np.isfinite(y[rows.numpy()]).sum()), networks=len(SEEDS),
                held_out_rmse=error.tolist(), source=f'chemicals {chemicals.__version__}', seeds=SEEDS, epochs=EPOCHS)
    weights = {f'{i}/{name}': p[0].contiguous() for i, theta in enumerate(taught) for name, p in network.split(theta).items()}
    save_file(weights, args.output, dict(told=json.dumps(told)))
    print({task: f'{e:.3g}' for task, e in zip(TASKS, error)}, f"over {HELD_OUT} molecules that were held out of {len(table):,}")


if __name__ == '__main__': main()
