"Many molecules are answered in blocks, with a bar that says how long it will take; the answers are those of one block."
import io

import numpy as np
import pandas as pd
import pytest

from bioai_esol.chem.dataset import load_esol
from bioai_esol.monitoring import observations
from bioai_esol.monitoring.observations import _Asked, _bar
from bioai_esol.serving.predictor import Predictor
from bioai_esol.sweep.grid import Grid
from bioai_esol.training.engine import make_task, train

EPOCH = dict(hidden_dim=16, lr=1e-2, batch_size=128, dropout=0, weight_decay=0, epochs=1)


@pytest.mark.parametrize('kind, settings', [('gcn', EPOCH), ('dmpnn', EPOCH), ('ridge', {}), ('gaussian-process', {}),
                                            ('gradient-boosting-pretrained', {})])
def test_blocks_change_no_answer(kind, settings, monkeypatch):
    [config] = Grid(architecture=kind, **settings).configs()
    result = train([config], make_task(load_esol(), config))[0]
    asked = _Asked('champion', Predictor(result.model, '1'), frozenset())
    smiles = load_esol().frame.smiles.tolist()[:560]
    smiles[7:7] = smiles[300:300] = ['no molecule', 'nor this']
    frame = pd.DataFrame(dict(smiles=smiles, molecule=smiles))
    told = []
    blocks = asked.answers(frame, told.append)
    assert told == [258, 306] and blocks.error.ne('').sum() == 4  # 256 that can be read and two that cannot; the rest
    monkeypatch.setattr(observations, 'PREDICTION_BATCH_SIZE', 10_000)
    whole = asked.answers(frame, told.append)
    assert told[2:] == [564]
    if kind == 'gaussian-process':  # on some processors BLAS adds up in another order in blocks of another size
        pd.testing.assert_frame_equal(blocks, whole, rtol=1e-12, atol=1e-12)
    else:
        pd.testing.assert_frame_equal(blocks, whole, check_exact=True)
    assert np.isfinite(whole.predicted).sum() == 560


class Terminal(io.StringIO):
    def isatty(self): return True


@pytest.mark.parametrize('stream, total, seen', [(Terminal(), 512, True), (Terminal(), 511, False), (io.StringIO(), 9999, False), (None, 9999, False)])
def test_the_bar_is_for_somebody_who_waits(stream, total, seen, monkeypatch):
    monkeypatch.setattr('sys.stderr', stream)
    monkeypatch.delitem(__import__('sys').modules, 'ipykernel', raising=False)
    with _bar(total) as bar:
        bar.update(256)
        assert bar.disable is not seen
    assert stream is None or ('observing' in stream.getvalue()) is seen
