"""Versions that were registered before the modules moved into wings still load, answer, are served, compared and rolled back.

`data/store_42f4fc3.tar.xz` is a store as commit 42f4fc3 wrote it: two sweeps of one run (hidden_dim 8), both promoted, so version 2 is
champion and version 1 its predecessor. The numbers below are what that commit's `bioai-esol predict` printed from it."""
import tarfile
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from helpers import ROOT, uri_of
from helpers import readdress

import bioai_esol as esol

SMILES = ['CCO', 'c1ccccc1', 'CC(=O)Oc1ccccc1C(=O)O']
ANSWERS = dict(log_solubility=[-2.1720457077026367, -3.8516974449157715, -3.3742880821228027],
               low=[-5.7379150390625, -7.417566776275635, -6.940157413482666], similarity=[1., 1., .4])


@pytest.fixture
def older(tmp_path):
    with tarfile.open(ROOT / 'tests/data/store_42f4fc3.tar.xz') as archive:
        archive.extractall(tmp_path, filter='data')
    readdress(tmp_path, Path('/tmp/frozen-store'))
    return uri_of(tmp_path)


def agrees(table):
    for column, values in ANSWERS.items():
        assert table[column].tolist() == pytest.approx(values, abs=1e-5)  # another processor rounds differently


def test_the_champion_answers_as_it_did(older):
    champion = esol.load_champion(tracking_uri=older)
    assert champion.version == '2'
    agrees(champion.predict(SMILES))


def test_its_loader_finds_its_class(older, monkeypatch):
    "MLflow runs the three lines that were stored beside the weights: from bioai_esol.serving import SolubilityModel."
    monkeypatch.setenv('MLFLOW_TRACKING_URI', older)
    [loader] = {p.read_text() for p in Path(older.removeprefix('sqlite:///')).parent.glob('mlartifacts/*/artifacts/model/loader.py')}
    assert 'from bioai_esol.serving import SolubilityModel' in loader
    model = mlflow.pyfunc.load_model('models:/EsolPrediction@champion')
    agrees(model.predict(pd.DataFrame(dict(smiles=SMILES))))


def test_the_registry_is_whole_and_goes_on(older):
    assert esol.check(tracking_uri=older).holds.all()
    assert esol.status(tracking_uri=older).version.tolist() == ['2', '1']
    assert len(esol.load_runs('second', tracking_uri=older)) == 1
    assert esol.compare('1', '2', tracking_uri=older).versions == ('1', '2')
    esol.rollback('drift', tracking_uri=older)
    assert esol.load_champion(tracking_uri=older).version == '1'
    assert esol.check(tracking_uri=older).holds.all()
