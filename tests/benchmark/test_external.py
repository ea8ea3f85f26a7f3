"The parts of `benchmarks/external.py` that need no training: kinds of molecules, bands, and what Chemprop cannot read."
import numpy as np
import pandas as pd
from rdkit import Chem

import external  # of benchmarks/


def test_what_sort_of_substance_it_is():
    found = {s: external.kind(Chem.MolFromSmiles(s)) for s in ('CCO', 'CC(=O)[O-].[Na+]', 'CC(=O)[O-]', 'O', '[Na]CC')}
    assert list(found.values()) == ['organic, one fragment', 'salts, hydrates and mixtures', 'single ions', 'inorganic, or with a metal',
                                    'inorganic, or with a metal']
    assert external.kind(Chem.MolFromSmiles('C1CC')) == 'unreadable'


def test_every_molecule_is_in_one_band():
    part = pd.DataFrame(dict(measured=[0., 1., 2., 3.], predicted=[0., 1., 2., 5.], low=[-1., 0., 1., 4.], high=[1., 2., 3., 6.], size=[1, 10, 20, 99]))
    rows = external.bands(part, 'size', [-np.inf, 10, 20, np.inf], '.0f', 'atoms')
    assert [row[:2] for row in rows] == [['atoms below 10', '1'], ['atoms 10 to 20', '1'], ['atoms from 20', '2']]
    assert rows[2][3:6] == ['1.414', '1.000', '50.0% (1.3% … 98.7%)']  # one of two is held


def test_models_are_compared_on_what_all_of_them_read():
    y = np.linspace(-4, 0, 40)
    text = external.compared({'accurate': y + .1, 'chemprop + RDKit 2D': np.where(y < -3.9, np.nan, y + .2)}, y)
    assert '0.100 (0.10 … 0.10)' in text and '-0.100 (-0.100 … -0.100)' in text
    assert '1 of the molecules, for which Chemprop' in text


def test_chemprop_is_not_asked_about_infinite_descriptors():
    assert external.Chemprop.can_read('CCO')
    assert not external.Chemprop.can_read('C' * 190)
