"The split against a second, independent writing of DeepChem's rule."
import numpy as np
from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold

from bioai_esol.chem.dataset import load_esol
from bioai_esol.chem.split import scaffold_split


def deepchem_rule(smiles, frac_train=0.8, frac_valid=0.1):
    "Written from DeepChem's documented behaviour: sets of indices, sorted by (size, first index), largest first, filled greedily."
    scaffolds = {}
    for index, text in enumerate(smiles):
        core = MurckoScaffold.MurckoScaffoldSmiles(mol=Chem.MolFromSmiles(text), includeChirality=False)
        scaffolds.setdefault(core, set()).add(index)
    ranked = [sorted(members) for members in scaffolds.values()]
    ranked.sort(key=lambda members: members[0], reverse=True)
    ranked.sort(key=len, reverse=True)  # stable: within one size the later first index stays in front
    train_cutoff, valid_cutoff = frac_train * len(smiles), (frac_train + frac_valid) * len(smiles)
    train, valid, test = [], [], []
    for members in ranked:
        if len(train) + len(members) > train_cutoff:
            (test if len(train) + len(valid) + len(members) > valid_cutoff else valid).extend(members)
        else:
            train.extend(members)
    return train, valid, test


def test_equals_deepchems_rule_on_esol():
    smiles = load_esol().frame.smiles.tolist()
    ours, theirs = scaffold_split(smiles), deepchem_rule(smiles)
    assert [len(p) for p in theirs] == [902, 113, 113]
    for mine, other in zip((ours.train, ours.val, ours.test), theirs, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_equals_deepchems_rule_on_other_tables():
    smiles = load_esol().frame.smiles.tolist()
    rng = np.random.default_rng(0)
    for n in (50, 200, 700):
        some = [smiles[i] for i in rng.permutation(len(smiles))[:n]]
        for mine, other in zip(vars(scaffold_split(some, 0.7, 0.15)).values(), deepchem_rule(some, 0.7, 0.15), strict=True):
            np.testing.assert_array_equal(mine, other)


def test_the_tie_break_matters():
    smiles = load_esol().frame.smiles.tolist()
    ours = set(scaffold_split(smiles).test)
    groups = {}
    for i, s in enumerate(smiles):
        groups.setdefault(MurckoScaffold.MurckoScaffoldSmiles(s, includeChirality=False), []).append(i)
    train, val, test = [], [], []
    for g in sorted(groups.values(), key=lambda g: (-len(g), g[0])):
        part = train if len(train) + len(g) <= 902.4 else val if len(train) + len(val) + len(g) <= 1015.2 else test
        part += g
    assert len(ours & set(test)) == 32


def test_the_digest_is_the_one_on_record():
    assert scaffold_split(load_esol().frame.smiles).digest.startswith('d90b91f131504220')
