"What a model says of molecules unlike any that it was taught."
import pytest

from bioai_esol import load_esol
from bioai_esol.chem.domain import HIGHEST_SOLUBILITY, LOWEST_SOLUBILITY
from bioai_esol.serving.predictor import Predictor
from bioai_esol.training.config import TrainConfig
from bioai_esol.training.engine import make_task, train

PEPTIDE = 'N' + 'CC(=O)N' * 19 + 'CC(=O)O'  # twenty glycines
DYE = '.'.join(['[Na+]'] * 10 + ['O=S(=O)([O-])c1ccc(N=Nc2ccc3cc(S(=O)(=O)[O-])ccc3c2)cc1'] * 5)
STRANGE = dict(  # a word of the reason
    [('CC(=O)[O-].[Na+]', 'largest fragment'), ('O.OC(=O)CC(O)(CC(=O)O)C(=O)O', 'largest fragment'),
     ('[Fe+2].c1cc[cH-]c1.c1cc[cH-]c1', 'largest fragment'), ('C' * 60, '60 heavy atoms'), (PEPTIDE, 'donors'),
     (DYE, 'largest fragment'), ('[Na+].[Cl-]', 'the element Na'), ('C[Si](C)(C)C', 'the element Si'),
     ('CC#P', 'the triple bond C–P'), ('CCCC[N+](C)(C)C', 'a net charge')])
USUAL = ['CCO', 'c1ccccc1', 'Cc1ccc(C)cc1Cl', 'CCCCCCCC']


def as_kept(model, task):
    info = model.info | dict(domain=task.domain, reading=dict(salts='parent'))
    return Predictor(type(model)(info, model.weights), '1')


@pytest.fixture(scope='module')
def predictors():
    "A model with one spread for all, and one that knows its own; as they are kept."
    def taught(config):
        task = make_task(load_esol(), config)
        return as_kept(train([config], task)[0].model, task)
    return [taught(TrainConfig(architecture=name)) for name in ('ridge', 'gaussian-process')]


@pytest.mark.parametrize('smiles,word', STRANGE.items(), ids=(
    'acetate', 'hydrate', 'ferrocene', 'chain', 'peptide', 'dye', 'salt', 'silane', 'phosphaalkyne', 'ammonium'))
def test_what_it_was_never_taught_it_says(predictors, smiles, word):
    for predictor in predictors:
        [answer] = predictor.predict(smiles).to_dict('records')
        assert answer['domain'] == 'outside' and word in answer['why'], answer['why']
        assert LOWEST_SOLUBILITY <= answer['log_solubility'] <= HIGHEST_SOLUBILITY
        assert answer['low'] <= answer['log_solubility'] <= answer['high']


def test_usual_molecules_are_inside(predictors):
    for predictor in predictors:
        answers = predictor.predict(USUAL)
        assert answers.domain.tolist() == ['inside'] * len(USUAL) and not any(answers.why)


def test_an_answer_that_nothing_carries_is_a_bound():
    "A network that adds up atoms, asked about a chain of a hundred carbons."
    config = TrainConfig(architecture='dmpnn', hidden_dim=32, lr=3e-3, epochs=10)
    task = make_task(load_esol(), config)
    predictor = as_kept(train([config], task)[0].model, task)
    [answer] = predictor.predict('C' * 100).to_dict('records')
    assert answer['log_solubility'] == LOWEST_SOLUBILITY and answer['domain'] == 'outside'
    assert 'the model itself says -' in answer['why'] and answer['low'] < answer['log_solubility'] <= answer['high']


def test_intervals_are_wider_outside(predictors):
    "Calibrated apart: never narrower than inside, in units of the spread."
    for predictor in predictors:
        inside, outside = predictor.model.info['factors']
        n, rank = predictor.model.info['promise']
        assert outside >= inside > 0 and 22 <= n < 113 and rank > .9 * n
