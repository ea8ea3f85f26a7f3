"Weights that were taught on other properties: what they know, and that a model builds on the file it was trained with."
import json

import numpy as np
import pytest

from bioai_esol import load_esol
from bioai_esol.chem.bond_graphs import pack_bonds
from bioai_esol.errors import DataError
from bioai_esol.models.fitted import load_model, MoleculeSet, save_model
from bioai_esol.models.pretrained import learned_table, load_pretrained
from bioai_esol.sweep.ensemble import EnsembleConfig, make_any_task, train_any
from bioai_esol.training.config import TrainConfig
from bioai_esol.training.engine import make_task, train

KINDS = ('dmpnn-pretrained', 'gradient-boosting-pretrained', 'gaussian-process-pretrained')
MEASURED = {  # logP, melting and boiling point (°C), CRC Handbook of Chemistry and Physics
    'CCO': (-.30, -114, 78), 'c1ccccc1': (2.13, 6, 80), 'CCCCCCCC': (5.15, -57, 126), 'Oc1ccccc1': (1.48, 41, 182),
    'CC(=O)O': (-.17, 17, 118), 'c1ccc2ccccc2c1': (3.34, 80, 218), 'CC(C)=O': (-.24, -95, 56)}


def test_it_knows_what_it_was_taught():
    "Of molecules of ESOL, none of which it was taught."
    said = learned_table(pack_bonds(list(MEASURED)))[:, :3] - [0, 273.15, 273.15]
    off = np.abs(said - np.array(list(MEASURED.values()))).mean(axis=0)
    assert load_pretrained().tasks == ('logP', 'melting_point', 'boiling_point')
    assert off[0] < .5 and off[1] < 40 and off[2] < 30, off


@pytest.mark.parametrize('kind', KINDS)
def test_a_model_is_kept_and_retrained_to_the_bit(kind, tmp_path):
    "Saved without pickle, loaded, asked alone and among others; trained once more, it is the same."
    config = TrainConfig(architecture=kind, epochs=2, lr=2e-3)
    task = make_task(load_esol(), config)
    first, second = (train([config], task)[0] for _ in range(2))
    assert {n: t.numpy().tobytes() for n, t in first.weights.items()} == {n: t.numpy().tobytes() for n, t in second.weights.items()}
    assert first.summary == second.summary and first.summary['best_val_rmse'] < 1.6
    save_model(tmp_path, first.model)
    kept = load_model(tmp_path)
    smiles = tuple(load_esol().smiles[::40])
    mean, _ = kept.predict(MoleculeSet(smiles))
    np.testing.assert_array_equal(mean, first.model.predict(MoleculeSet(smiles))[0])
    alone = [kept.predict(MoleculeSet((s,)))[0][0] for s in smiles]
    np.testing.assert_allclose(alone, mean, rtol=0, atol=1e-5)


def test_of_a_file_that_is_not_there_it_says_so(tmp_path):
    "A model of a later version of this package."
    config = TrainConfig(architecture='gradient-boosting-pretrained')
    save_model(tmp_path, train([config], make_task(load_esol(), config))[0].model)
    info = tmp_path / 'model.json'
    info.write_text(json.dumps(json.loads(info.read_text()) | dict(pretrained=99)))
    with pytest.raises(DataError, match='has no pretrained weights number 99'): load_model(tmp_path)


def test_its_form_is_its_own():
    "Width and pooling are those of the weights, whatever is asked for; one seed begins where another does not."
    a, b = (TrainConfig(architecture='dmpnn-pretrained', hidden_dim=64, pooling='mean', seed=seed) for seed in (1, 2))
    assert (a.hidden_dim, a.pooling) == (128, 'mean-sum') and 'hidden_dim' not in a.hyperparameters
    assert a.digest('x') != b.digest('x') and a.digest('x') == TrainConfig(architecture='dmpnn-pretrained', seed=1).digest('x')


def test_an_ensemble_keeps_what_its_members_read(tmp_path):
    "Of one that reads descriptors and one that reads what the pretrained networks make of a molecule as well."
    members = tuple(TrainConfig(architecture=name) for name in ('ridge', 'gradient-boosting-pretrained'))
    config = EnsembleConfig(members=members)
    result = train_any(config, make_any_task(load_esol(), config))
    save_model(tmp_path, result.model)
    smiles = tuple(load_esol().smiles[::40])
    np.testing.assert_array_equal(load_model(tmp_path).predict(MoleculeSet(smiles))[0], result.model.predict(MoleculeSet(smiles))[0])
    assert result.summary['best_val_rmse'] < 1
