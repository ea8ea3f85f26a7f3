"Many molecules are answered in pieces, with a bar that says how long it will take; the answers are those of `predict`."
import io

import numpy as np
import pandas as pd
import pytest

from bioai_esol.chem.dataset import load_esol
from bioai_esol.monitoring.observations import _Asked
from bioai_esol.serving.batch import progress
from bioai_esol.serving.predictor import PIECE, Predictor
from bioai_esol.sweep.grid import Grid
from bioai_esol.training.engine import make_task, train

EPOCH = dict(hidden_dim=16, lr=1e-2, batch_size=128, dropout=0, weight_decay=0, epochs=1)


@pytest.mark.parametrize('kind, settings', [('gcn', EPOCH), ('dmpnn', EPOCH), ('ridge', {}), ('gaussian-process', {}),
                                            ('gradient-boosting-pretrained', {})])
def test_pieces_change_no_answer(kind, settings):
    [config] = Grid(architecture=kind, **settings).configs()
    result = train([config], make_task(load_esol(), config))[0]
    asked = _Asked('champion', Predictor(result.model, '1'), frozenset())
    smiles = load_esol().frame.smiles.tolist()[:560]
    smiles[7:7] = smiles[300:300] = ['no molecule', 'nor this']
    told = []
    answers = asked.answers(pd.DataFrame(dict(smiles=smiles, molecule=smiles)), told.append)
    assert told == [PIECE, 564 - PIECE] and answers.error.ne('').sum() == 4
    alone = asked.predictor.predict(smiles)
    assert answers.error.tolist() == alone.error.tolist() and answers.domain.tolist() == alone.domain.tolist()
    for name, column in dict(predicted='log_solubility', low='low', high='high', similarity='similarity').items():
        np.testing.assert_array_equal(answers[name], alone[column])
    assert np.isfinite(answers.predicted).sum() == 560


class Terminal(io.StringIO):
    def isatty(self): return True


@pytest.mark.parametrize('stream, seen', [(Terminal(), True), (io.StringIO(), False), (None, False)])
def test_the_bar_is_for_somebody_who_waits(stream, seen, monkeypatch):
    monkeypatch.setattr('sys.stderr', stream)
    monkeypatch.delitem(__import__('sys').modules, 'ipykernel', raising=False)
    with progress(1000, 'observing', ' answers') as bar:
        assert bar.disable is not seen
        bar.update(1)
        assert stream is None or not stream.getvalue()  # not yet: it may be over at once
        if seen:
            bar.start_t -= 3
            bar.last_print_t -= 3
        bar.update(256)
    assert stream is None or ('observing' in stream.getvalue()) is seen
