"A registered model outside of this package: its files, its schema, MLflow's own loader, with pickle forbidden."
import json
import os
import pickletools
import subprocess
import sys
import zipfile

import pytest
import yaml
from helpers import copied, uri_of

from bioai_esol.registry.journal import snapshot
from bioai_esol.serving.predictor import load_champion
from bioai_esol.store.client import connect

ASKED = ['CCO', 'c1ccccc1', 'C1CC', 'C']
NO_PICKLE = dict(MLFLOW_ALLOW_PICKLE_DESERIALIZATION='false')


@pytest.fixture
def uri(with_champion): return uri_of(with_champion)


@pytest.fixture
def model(uri, with_champion): return with_champion / 'mlartifacts' / snapshot(connect(uri)).versions['1'].run_id / 'artifacts' / 'model'


def is_pickle(raw):
    "A stream of pickle opcodes from its first byte to a STOP; plain text may look like one for a few bytes, never with a protocol in front."
    if raw[:1] != b'\x80':
        return False
    try:
        return any(op.name == 'STOP' for op, _, _ in pickletools.genops(raw))
    except (ValueError, UnicodeDecodeError):
        return False


def test_no_file_of_a_registered_model_is_a_pickle(model):
    import pickle
    assert is_pickle(pickle.dumps(dict(a=1)))  # the scan finds one
    files = [p for p in model.rglob('*') if p.is_file()]
    assert {'MLmodel', 'weights.safetensors', 'model.json'} <= {p.name for p in files}
    for p in files:
        assert p.suffix not in ('.pkl', '.pickle', '.pt', '.pth', '.joblib'), p
        assert not is_pickle(p.read_bytes()) and not zipfile.is_zipfile(p), p
    flavour = yaml.safe_load((model / 'MLmodel').read_text())['flavors']['python_function']
    assert flavour['model_code_path'] and 'python_model' not in flavour  # models from code


def test_the_schema_says_smiles_in_and_log_solubility_with_its_unit_out(model):
    signature = yaml.safe_load((model / 'MLmodel').read_text())['signature']
    assert [(c['name'], c['type']) for c in json.loads(signature['inputs'])] == [('smiles', 'string')]
    assert [c['name'] for c in json.loads(signature['outputs'])][:5] == ['smiles', 'log_solubility', 'low', 'high', 'unit']


def in_another_process(uri):
    code = (f"import mlflow, pandas as pd; mlflow.set_tracking_uri({uri!r}); m = mlflow.pyfunc.load_model('models:/EsolPrediction@champion'); "
            f"print(m.predict(pd.DataFrame(dict(smiles={ASKED!r}))).to_json(orient='records'))")
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=dict(os.environ, **NO_PICKLE), timeout=120)


def agrees(rows, uri):
    here = load_champion(tracking_uri=uri).predict(ASKED)
    assert [r['model_version'] for r in rows] == ['1'] * 4 and {r['unit'] for r in rows} == {'log10(mol/L)'}
    assert [bool(r['error']) for r in rows] == [False, False, True, False]
    for r, mine in zip(rows, here.log_solubility):
        assert r['log_solubility'] == pytest.approx(mine, nan_ok=True) if r['log_solubility'] is not None else mine != mine


def test_mlflow_loads_it_in_another_process(uri):
    done = in_another_process(uri)
    assert done.returncode == 0, done.stderr
    agrees(json.loads(done.stdout.splitlines()[-1]), uri)


def test_altered_weights_answer_nobody(with_champion, tmp_path):
    "MLflow's own loader does not know our checksums; the model compares them itself."
    uri = copied(with_champion, tmp_path)
    [weights] = tmp_path.glob('mlartifacts/*/artifacts/model/artifacts/weights.safetensors')
    weights.write_bytes(weights.read_bytes()[:-1] + b'\1')
    done = in_another_process(uri)
    assert done.returncode != 0 and 'not the registered ones' in done.stderr
