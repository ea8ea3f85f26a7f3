"The real stream of benchmarks/monitoring.py: its order, what counts, and the package's own evidence."
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import monitoring as bench  # of benchmarks/

from bioai_esol.chem.dataset import load_esol
from bioai_esol.monitoring.observations import merge_observations, series_of
from bioai_esol.monitoring.watch import evidence_about, life_of
from bioai_esol.registry.policy import Policy
from bioai_esol.stats.eprocess import alarm_look


@pytest.fixture(scope='module')
def real():
    "400 molecules that two versions answered: a third outside the domain, every tenth known, far ones with larger errors."
    gen = np.random.default_rng(5)
    frame = load_esol().frame.drop_duplicates('smiles')[:400]
    n, smiles = len(frame), frame.smiles.tolist()
    molecules = pd.DataFrame(dict(molecule=smiles, smiles=smiles, name='', measured=frame.log_solubility.to_numpy(), series=series_of(smiles, 1),
                                  sequence=1, champion='2', life='now', time='', source='', who=''))
    near = gen.integers(1, 20, n) / 20
    def of_version(version, sd):
        predicted = molecules.measured + sd * (1.5 - near) * gen.standard_normal(n)
        return pd.DataFrame(dict(molecule=smiles, version=version, predicted=predicted, low=predicted - 1, high=predicted + 1, similarity=near,
                                 domain=np.where(np.arange(n) % 3, 'inside', 'outside'), why='', known=np.arange(n) % 10 == 0, error=''))
    versions = pd.DataFrame(dict(version=['2', '1'], role=['champion', 'former'], calibration=113., scale=.8))
    observations = merge_observations([dict(molecules=molecules, answers=pd.concat([of_version('2', 1.), of_version('1', 1.2)]), versions=versions)])
    life = life_of(observations, '2', 'now')
    evidence, _ = evidence_about(life, observations, '2', '1', Policy())
    return bench.Real(observations, SimpleNamespace(life=life, evidence=evidence), 'the champion', 'its predecessor', 1.)


def test_from_near_to_far(real):
    inside, outside = real.order('inside'), real.order('outside')
    counts = real.look.life[real.look.life.counts]
    assert set(inside.molecule) == set(counts.molecule) and len(inside) == real.look.evidence.judged and inside.missed.sum() == real.look.evidence.missed
    assert inside.similarity.is_monotonic_decreasing and inside.similarity.nunique() > 10
    assert set(outside.domain) == {'outside'} and not outside.known.any() and not set(outside.molecule) & set(inside.molecule)
    assert .16 < real.promise < .18


def test_relatives_are_judged_as_the_package_does(real):
    judged = real.order('inside')
    _, course = evidence_about(judged, real.observations, '2', '1', Policy())
    evidence, molecules = bench.evidence_of_series(judged, real.promise)
    assert (evidence == course.log_against).all() and (molecules == course.molecules.cumsum()).all() and molecules[-1] == len(judged) > len(molecules)
    look = alarm_look(evidence)
    assert np.isfinite(look) and bench.series_look(judged, real.promise) == molecules[int(look) - 1]
    assert bench.series_look(judged, .9) == np.inf
    found = bench.stream_looks(judged, real.promise)
    assert {len(looks) for looks in found.values()} == {1 + bench.SHUFFLES}
    assert found[bench.RELATIVES][0] == molecules[int(look) - 1]


def test_what_is_written(real, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, 'answered', lambda external: real)
    monkeypatch.setattr(bench, 'rival_versions', lambda python: {})
    text = bench.stream(bench.Measurement(1, 1, Path(bench.__file__)), Path('python'))
    judged = real.order('inside')
    assert f'{len(judged):,} are inside' in text and f'| all |  | {1 - judged.missed.mean():.1%} |' in text
    assert 'MAPIE and ville were not measured' in text and 'Judging 10,000 observations' in text and 'nan' not in text
    assert f"{len(real.order('outside')):,} molecules, coverage" in text


def test_without_the_table():
    done = subprocess.run([sys.executable, bench.__file__, 'stream', '--external', 'nowhere.csv'], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and 'was left out: there is no nowhere.csv' in done.stdout
