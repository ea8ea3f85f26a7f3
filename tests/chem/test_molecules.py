"What becomes of molecules that are not like ESOL's: each is read by the stated rule, or is an error of its own that says why."
import numpy as np
import pytest

from bioai_esol.chem.dataset import load_esol, load_table
from bioai_esol.chem.domain import novelties, traits
from bioai_esol.chem.molecules import DEFAULT_RULE, Standardisation, canonical_smiles, parse_smiles, standardise
from bioai_esol.chem.split import cluster_split, random_split, scaffold_split
from bioai_esol.chem.molecules import similarity
from bioai_esol.errors import DataError


@pytest.fixture(scope='module')
def esol(): return load_esol()


@pytest.fixture(scope='module')
def known(esol): return frozenset().union(*traits(esol.smiles))


def test_the_default_rule_changes_no_letter_of_esol(esol):
    assert [standardise(s).smiles for s in esol.smiles] == esol.smiles
    assert all(standardise(s).changes == () for s in esol.smiles)


def test_cleanup_would_change_four_of_them(esol):
    "Why it is not part of the default: sulphoxides get charges."
    changed = [s for s in esol.smiles if standardise(s, Standardisation(cleanup=True)).changes]
    assert len(changed) == 4 and all('S(' in s for s in changed)


@pytest.mark.parametrize('smiles, seen', [
    ('CC(=O)[O-].[Na+]', 'CC(=O)[O-]'), ('O.O.O=C(O)C(=O)O', 'O=C(O)C(=O)O'), ('CCO.[Na+].[Cl-]', 'CCO'), ('c1ccccc1.[Pb]', 'c1ccccc1'),
    ('[Na+].[Cl-]', '[Na+].[Cl-]'), ('CCO ethanol', 'CCO'), ('C1CCCCC1.Cl', 'C1CCCCC1'), ('C1.C1', 'C1.C1'), ('C[C@H](O)F', 'C[C@H](O)F')])
def test_the_parent_of_a_salt_stands_for_it(smiles, seen):
    assert canonical_smiles(standardise(smiles).smiles) == canonical_smiles(seen)


@pytest.mark.parametrize('smiles, why', [
    ('CC |$foo$|', 'extension of CXSMILES'), ('CCO>>CC=O', 'it is a reaction'), ('c1cccc1', 'RDKit cannot read it'), ('', 'the SMILES is empty'),
    ('C' * 201, '201 heavy atoms, at most 200'), ('C' * 4900, '4,900 heavy atoms'), (7, 'it is a number')])
def test_what_is_no_molecule_says_why(smiles, why):
    with pytest.raises(DataError, match=why):
        standardise(smiles)


@pytest.mark.parametrize('smiles', ['[U].CCCCO', 'c1ccccc1.[Pb]', 'CC(=O)O[Hg]c1ccccc1', '[Na+].[O-]C(=O)c1ccccc1', 'CCO.[Na+].[Cl-]',
                                    'c1ccccc1[Se]C', 'OB(O)c1ccccc1', '*c1ccccc1', '[NH3][Pt]([NH3])(Cl)Cl', '[2H]O[2H]', '[Li]F', '[H+]', 'CC~CC'])
def test_nothing_that_esol_never_showed_is_inside(smiles, known):
    "As it is written it has something new; as the rule reads it, it has, or it is one of several fragments."
    assert novelties(smiles, known)
    read = standardise(smiles)
    assert novelties(read.smiles, known) or 'largest fragment' in read.changes


def test_a_rule_is_part_of_the_version(tmp_path):
    table = tmp_path / 'salts.csv'
    table.write_text('smiles,logS\nCCO,1.1\nCC(=O)[O-].[Na+],0.9\n')
    plain, as_is = load_table(table), load_table(table, salts='as-is')
    assert plain.smiles == ['CCO', 'CC(=O)[O-]'] and plain.as_written == {1: 'CC(=O)[O-].[Na+]'}
    assert as_is.smiles == ['CCO', 'CC(=O)[O-].[Na+]'] and plain.version != as_is.version
    with pytest.raises(DataError, match='line 3: .*holds 2 fragments'):
        load_table(table, salts='refuse')
    table.write_text('smiles,logS\nCCO,1.1\nCC(=O)O,0.9\n')
    assert load_table(table).version == load_table(table, neutralise=True).version  # which changes nothing here


def test_a_mass_is_that_of_the_salt(tmp_path):
    "82.03 g of sodium acetate are one mol, whatever stands for it in the model."
    table = tmp_path / 'mass.csv'
    table.write_text('smiles,g\nCC(=O)[O-].[Na+],82.034\n')
    assert load_table(table, target='g', unit='g/L').y[0] == pytest.approx(0, abs=1e-4)


def test_a_cluster_split_keeps_neighbours_together(esol):
    near = {}
    for split in (scaffold_split, cluster_split, random_split):
        parts = split(esol.smiles)
        train = [esol.smiles[i] for i in parts.train]
        near[split.__name__] = np.median(similarity([esol.smiles[i] for i in parts.test], train))
        assert sorted([*parts.train, *parts.val, *parts.test]) == list(range(len(esol)))
    assert near['cluster_split'] < near['scaffold_split'] < near['random_split']
    assert DEFAULT_RULE == Standardisation() and parse_smiles('CCO').GetNumAtoms() == 3
