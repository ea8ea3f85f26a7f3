"""Simulated lives of a champion that is watched after every molecule, as tables in Markdown.

    make bench-monitoring                                # every part, written to benchmarks/monitoring.md
    python benchmarks/monitoring.py promise pairs        # some parts, printed only
    python benchmarks/monitoring.py --lives 500
    python benchmarks/monitoring.py stream --external AQSOLDB.csv

promise    the e-process of misses for three promises: false alarms in a life, delay after a jump
methods    other ways to watch misses, on the same lives
clumps     molecules that come one chemical series at a time
pairs      would going back help: differences of errors on the same molecules
decisions  both questions together: how often a champion goes back, or is no longer trusted
stream     measured molecules instead of simulated ones: a champion trained on ESOL meets AqSolDB, from near to far

The part `stream` trains an ensemble and a network in a store of its own and lets both answer 6,700 molecules, which takes
most of its time. AqSolDB (doi:10.1038/s41597-019-0151-1) is not part of this repository: the table is
`shared/data/aqsoldb_external.csv` beside the project, or --external CSV, with the columns SMILES and Solubility. Without it
the part says so and is left out.

The code that is measured is `bioai_esol.stats.eprocess`, the same that watches a champion. Libraries that do something
similar are measured by rivals.py in an environment of their own (see there), and left out when there is none.
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
from scipy.stats import binomtest, norm
from tqdm.auto import tqdm

from bioai_esol.benchmark.boards import DEFAULT_GCN
from bioai_esol.chem.split import SERIES_SIMILARITY
from bioai_esol.monitoring.observations import load_observations, Observations, observe
from bioai_esol.monitoring.watch import evidence_about, judge, Watch, watch
from bioai_esol.registry.policy import e_value, Policy
from bioai_esol.registry.promotion import promote
from bioai_esol.serving.predictor import load_version
from bioai_esol.stats.eprocess import (FALSE_ALARM, alarm_look, log_evidence_of_excess, log_evidence_of_harm, log_wealth,
                                       series_means, uniform_nodes)
from bioai_esol.stats.metrics import paired_rmse_difference, rmse
from bioai_esol.store.client import connect, sqlite_uri
from bioai_esol.sweep.ensemble import PRESET_GAP_THRESHOLD, run_preset
from bioai_esol.sweep.grid import cores, Grid
from bioai_esol.sweep.runner import run_sweep

HERE = Path(__file__).resolve().parent
RIVALS = HERE.parent / '.rivals/bin/python'
EXTERNAL = HERE.parent.parent / 'shared/data/aqsoldb_external.csv'
MOLECULES = 2000             # in a life
CHUNK = 500                  # lives at once
BATCH = 20                   # molecules of a batch, for methods that judge batches
SERIES = 10                  # molecules of a chemical series
SERIES_CORRELATION = .2      # between misses of one series
GOOD, BAD = .10, .40         # miss rate before and after a jump
SD = .8                      # of errors, log10 units
CLIP = 1.                    # of differences, log10 units
BOOTSTRAP_LIVES = 100        # lives with a bootstrap per batch, in each stream
BOOTSTRAP_DRAWS = 500
SHUFFLES = 100               # of the real stream
STRETCHES = 5                # of the real stream
TIMED = 10_000               # observations whose judging is timed


# --- lives

def jump(after: int, before: float = GOOD, rate: float = BAD) -> np.ndarray:
    "The miss rate of each molecule of a life, which jumps after so many good ones."
    return np.where(np.arange(MOLECULES) < after, before, rate)


def drift(start: int = 100, length: int = 1000) -> np.ndarray:
    "The miss rate of each molecule of a life, which grows slowly from 10 % to 40 %."
    return GOOD + (BAD - GOOD) * np.clip((np.arange(MOLECULES) - start) / length, 0, 1)


def independent(gen: np.random.Generator, lives: int, rates: np.ndarray) -> np.ndarray:
    return gen.random((lives, MOLECULES)) < rates


def clumped(gen: np.random.Generator, lives: int, rate: float) -> np.ndarray:
    "Misses of molecules that come in series: each series has a miss rate of its own, from a beta distribution."
    strength = 1 / SERIES_CORRELATION - 1
    of_series = gen.beta(rate * strength, (1 - rate) * strength, size=(lives, MOLECULES // SERIES))
    return gen.random((lives, MOLECULES)) < of_series.repeat(SERIES, axis=1)


def error_pairs(gen: np.random.Generator, lives: int, tails: str = 'normal') -> tuple[np.ndarray, np.ndarray]:
    "Errors of two equally good models that share 80 % of their variance."
    draw = dict(normal=gen.standard_normal, laplace=lambda size: gen.laplace(size=size) / 2**.5)[tails]
    shared, a, b = (draw(size=(lives, MOLECULES)) for _ in range(3))
    return SD * (.8**.5 * shared + .2**.5 * a), SD * (.8**.5 * shared + .2**.5 * b)


# --- ways to watch misses: (lives, molecules) of 0 and 1 → (lives,) molecules before the first alarm, infinite where there is none

def first(alarms: np.ndarray, each: int = 1) -> np.ndarray:
    return np.where(alarms.any(axis=1), (alarms.argmax(axis=1) + 1.) * each, np.inf)


def bad_batches(misses: np.ndarray, promise: float) -> np.ndarray:
    "Batches with more misses than a one-sided z-test at the 5 % level allows."
    count = misses.reshape(len(misses), -1, BATCH).sum(axis=2)
    return (count - BATCH * promise) / np.sqrt(BATCH * promise * (1 - promise)) > norm.ppf(.95)


def e_process(misses: np.ndarray, promise: float) -> np.ndarray:
    return alarm_look(log_evidence_of_excess(misses, promise))


def e_process_one_start(misses: np.ndarray, promise: float) -> np.ndarray:
    p, shares = uniform_nodes(promise, 1)
    reserve = [1.] + [0.] * misses.shape[1]
    return alarm_look(log_wealth(misses - promise, (p - promise) / (promise * (1 - promise)), shares, reserve))


def e_process_of_series(misses: np.ndarray, promise: float) -> np.ndarray:
    "A series is one observation: the share of its molecules that missed."
    shares = misses.reshape(len(misses), -1, SERIES).mean(axis=2)
    return SERIES * alarm_look(log_evidence_of_excess(shares, promise))


def z_test(misses: np.ndarray, promise: float) -> np.ndarray:
    return first(bad_batches(misses, promise), BATCH)


def two_of_five(misses: np.ndarray, promise: float) -> np.ndarray:
    bad = bad_batches(misses, promise)
    recent = sum(np.pad(bad, ((0, 0), (shift, 0)))[:, :bad.shape[1]].astype(int) for shift in range(5))
    return first(recent >= 2, BATCH)


METHODS = {'e-process (ours)': e_process, 'e-process with a single start': e_process_one_start,
           f'z-test per batch of {BATCH}, 5 %': z_test, f'2 of the last 5 batches of {BATCH}': two_of_five}


# --- ways to watch pairs

def paired_bootstrap(champion: np.ndarray, former: np.ndarray) -> np.ndarray:
    "The champion is worse in a batch when the 90 % interval of the difference in RMSE lies above zero: 5 % on that side."
    def alarms(a, b):
        zero = np.zeros(BATCH)
        batches = zip(a.reshape(-1, BATCH), b.reshape(-1, BATCH))
        return [paired_rmse_difference(zero, x, y, draws=BOOTSTRAP_DRAWS, level=.9).low > 0 for x, y in batches]
    return first(np.array([alarms(a, b) for a, b in zip(champion, former)]), BATCH)


def harm(champion: np.ndarray, former: np.ndarray) -> np.ndarray:
    return alarm_look(log_evidence_of_harm(np.abs(champion) - np.abs(former), CLIP))


# --- what was found

@dataclass(frozen=True)
class Looks:
    "First alarms of many lives in which something breaks after `change` molecules; infinite: never."
    looks: np.ndarray
    change: float   # infinite where nothing breaks

    @property
    def false(self) -> str:
        "Lives with an alarm although nothing is wrong (yet), with a 95 % Clopper-Pearson interval."
        k, n = int((self.looks <= self.change).sum() if np.isfinite(self.change) else np.isfinite(self.looks).sum()), len(self.looks)
        low, high = binomtest(k, n).proportion_ci(method='exact')
        return f'{k / n:.2%} ({low:.2%} … {high:.2%})'

    @property
    def delays(self) -> np.ndarray:
        return self.looks[self.looks > self.change] - self.change

    def quantile(self, share: float) -> float:
        if not len(self.delays): return np.nan
        return float(np.quantile(self.delays, share, method='higher'))

    def cell(self, limit: float | None = None) -> str:
        "Median and 90 % delay, and the median in units of the information limit."
        median, slow = (f'{q:.0f}' if np.isfinite(q) else '–' for q in (self.quantile(.5), self.quantile(.9)))
        ratio = f', **{self.quantile(.5) / limit:.2f}** × limit' if limit and median not in ('–', 'nan') else ''
        return f'{median} / {slow}{ratio}' if median != 'nan' else 'none without an earlier alarm'


def kl(q: float, p: float) -> float:
    return q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))


def limit(rates: np.ndarray, promise: float) -> int | float:
    "Molecules after which one who knows all rates has log(1/δ) on average: the information limit."
    told = np.cumsum([kl(rate, promise) for rate in rates])
    return float(np.interp(-np.log(FALSE_ALARM), told, np.arange(1, len(told) + 1)))


def table(header: list[str], rows: list[list]) -> str:
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in [header, ['---'] * len(header), *rows])


# --- running them

class Measurement:
    "Tasks in chunks on all cores; the lives depend on the seed, the stream and the chunk alone."

    def __init__(self, lives: int, workers: int, external: Path = EXTERNAL):
        self.lives, self.workers, self.external = lives, workers, external

    def run(self, part: str, work: Callable, streams: list) -> dict:
        "`work(generator, lives, index, *stream)` for every stream and chunk → {stream: {name: looks}}."
        sizes = [min(CHUNK, self.lives - begin) for begin in range(0, self.lives, CHUNK)]
        results = {stream: [None] * len(sizes) for stream in streams}
        with ProcessPoolExecutor(self.workers) as pool:
            jobs = {pool.submit(chunk, part, work, stream, i, size): (stream, i)
                    for stream in streams for i, size in enumerate(sizes)}
            for job in tqdm(as_completed(jobs), desc=part, total=len(jobs)):
                stream, i = jobs[job]
                results[stream][i] = job.result()
        return {stream: {name: np.concatenate([r[name] for r in found if name in r]) for name in found[0]}
                for stream, found in results.items()}


def chunk(part: str, work: Callable, stream: tuple, index: int, lives: int) -> dict:
    key = [index, *(part + repr(stream)).encode()]
    return work(np.random.default_rng(key), lives, index, *stream)


# --- the parts

PROMISES = (.10, .13, .17)
JUMPS = (0, 100, 500)


def promise_work(gen, lives, index, promise, after):
    rates = np.full(MOLECULES, promise) if after is None else jump(after)
    return dict(ours=e_process(independent(gen, lives, rates), promise))


def promise(m: Measurement, rivals: Path) -> str:
    found = m.run('promise', promise_work, [(p, after) for p in PROMISES for after in (None, *JUMPS)])
    rows = []
    for p in PROMISES:
        bound = -np.log(FALSE_ALARM) / kl(BAD, p)
        rows.append([f'{p:.2f}', Looks(found[p, None]['ours'], np.inf).false, f'{bound:.1f}',
                     *(Looks(found[p, after]['ours'], after).cell(bound) for after in JUMPS)])
    head = ['promise p0', 'false alarms in a life at p0 (95 %)', 'information limit', *(f'jump after {after}' for after in JUMPS)]
    return (f"**Is the promise kept: {m.lives:,} lives of {MOLECULES:,} molecules, a look after each, alarm at E ≥ {1 / FALSE_ALARM:.0f}** "
            f"(jump of the miss rate from {GOOD:.0%} to {BAD:.0%}; delay in molecules: median / 90 % of lives; information limit: "
            f"log({1 / FALSE_ALARM:.0f}) / KL, what one who knows both rates and the moment needs on average)\n\n{table(head, rows)}")


WATCHED = {'keeps the promise': (np.full(MOLECULES, GOOD), np.inf), 'jump at the start': (jump(0), 0), 'jump after 100': (jump(100), 100),
           'jump after 500': (jump(500), 500), 'slow drift after 100': (drift(), 100)}


def methods_work(gen, lives, index, stream, folder):
    misses = independent(gen, lives, WATCHED[stream][0])
    np.save(Path(folder) / f'{stream}.{index:03}.npy', misses)
    return {name: watch(misses, GOOD) for name, watch in METHODS.items()}


def rival_looks(python: Path, folder: str, stream: str, promise: float = GOOD) -> dict[str, np.ndarray]:
    "What libraries say of the first lives of a stream, from another environment."
    lives = np.concatenate([np.load(path) for path in sorted(Path(folder).glob(f'{stream}.[0-9]*.npy'))[:4]])
    path = Path(folder) / f'{stream}.npy'
    np.save(path, lives)
    command = [python, HERE / 'rivals.py', path, str(promise), str(FALSE_ALARM)]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {name: np.array([np.inf if look is None else look for look in looks]) for name, looks in answer.items()}


def rival_versions(python: Path) -> dict[str, str]:
    return json.loads(subprocess.run([python, HERE / 'rivals.py'], check=True, capture_output=True, text=True).stdout)


def not_measured(rivals: Path) -> str:
    return f'MAPIE and ville were not measured: neither can be imported by `{rivals.name}`; benchmarks/rivals.py says how to install them.'


def methods(m: Measurement, rivals: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        found = {stream: looks for (stream, _), looks in m.run('methods', methods_work, [(s, folder) for s in WATCHED]).items()}
        libraries = rival_versions(rivals)
        with ProcessPoolExecutor(m.workers) as pool:
            jobs = {stream: pool.submit(rival_looks, rivals, folder, stream) for stream in WATCHED} if libraries else {}
            for stream, job in tqdm(jobs.items(), desc='libraries'):
                found[stream] |= job.result()
    rows = []
    for name in found['keeps the promise']:
        looks = {stream: Looks(found[stream][name], change) for stream, (_, change) in WATCHED.items()}
        cells = [looks[stream].cell() for stream in WATCHED if stream != 'keeps the promise']
        rows.append([name, f"{len(looks['keeps the promise'].looks):,}", looks['keeps the promise'].false, *cells])
    limits = [f'{limit(rates[int(change):], GOOD):.0f}' for rates, change in WATCHED.values() if np.isfinite(change)]
    rows.append(['information limit', '', '', *limits])
    head = ['method', 'lives', 'false alarms in a life (95 %)', *(s for s in WATCHED if s != 'keeps the promise')]
    missing = '' if libraries else f'\n\n{not_measured(rivals)}'
    return (f"**Other ways to watch misses, on the same lives** (promise {GOOD:.0%}; delay in molecules: median / 90 % of the lives that had "
            f"no alarm before the change; –: more than {MOLECULES:,} molecules; the drift leads from {GOOD:.0%} to {BAD:.0%} within 1,000)\n\n"
            f"{table(head, rows)}{missing}")


CLUMPS = [(.10, .10), (.17, .10), (.17, .17), (.10, .40), (.17, .40)]  # promise, miss rate


def clumps_work(gen, lives, index, promise, rate):
    misses = clumped(gen, lives, rate)
    return dict(molecule=e_process(misses, promise), series=e_process_of_series(misses, promise))


def clumps(m: Measurement, rivals: Path) -> str:
    found = m.run('clumps', clumps_work, CLUMPS)
    rows = []
    for (p, rate), looks in found.items():
        cells = [Looks(looks[name], np.inf).false if rate <= p else Looks(looks[name], 0).cell() for name in ('molecule', 'series')]
        rows.append([f'{p:.2f}', f'{rate:.2f}', 'false alarms' if rate <= p else 'delay', *cells])
    head = ['promise p0', 'miss rate', '', 'each molecule is an observation', f'each series of {SERIES} is one']
    return (f"**Molecules that come one chemical series at a time** ({SERIES} molecules per series, each series with a miss rate of its own, "
            f"beta-distributed, so that misses of one series have a correlation of {SERIES_CORRELATION}; {m.lives:,} lives of {MOLECULES:,} molecules). "
            "Given the molecules before it, a relative of one that missed misses more often than promised. That breaks the assumption, and "
            f"the false alarms show it. Judged as one observation per series, the promise holds, for some delay.\n\n{table(head, rows)}")


PAIRS = {'both equally good': (1., 0, 'normal'), 'both equally good, Laplace errors': (1., 0, 'laplace'), 'champion 10 % better': (.9, 0, 'normal'),
         'errors × 1.25 from the start': (1.25, 0, 'normal'), 'errors × 1.5 from the start': (1.5, 0, 'normal'), 'errors × 1.5 after 500': (1.5, 500, 'normal'),
         'errors × 1.5 from the start, Laplace': (1.5, 0, 'laplace')}


def pair_errors(gen, lives, stream):
    factor, after, tails = PAIRS[stream]
    champion, former = error_pairs(gen, lives, tails)
    return champion * np.where(np.arange(MOLECULES) < after, 1, factor), former


def pairs_work(gen, lives, index, stream):
    champion, former = pair_errors(gen, lives, stream)
    looks = dict(ours=harm(champion, former))
    if index == 0:
        looks['bootstrap'] = paired_bootstrap(champion[:BOOTSTRAP_LIVES], former[:BOOTSTRAP_LIVES])
    return looks


def best_growth(stream: str) -> float:
    "Growth of log E per molecule by the best stake, for one who knows it."
    champion, former = pair_errors(np.random.default_rng(0), 100, stream)
    worse = (np.abs(champion) - np.abs(former))[:, PAIRS[stream][1]:]
    gains = np.clip(worse, -CLIP, CLIP) / CLIP
    return max(float(np.log1p(stake * gains).mean()) for stake in np.linspace(.02, .98, 49))


def pairs(m: Measurement, rivals: Path) -> str:
    found = m.run('pairs', pairs_work, [(s,) for s in PAIRS])
    rows = []
    for (stream,), looks in found.items():
        factor, after, _ = PAIRS[stream]
        if factor <= 1:
            rows.append([stream, '', *(f'{Looks(looks[name], np.inf).false} false' for name in ('ours', 'bootstrap'))])
        else:
            bound = -np.log(FALSE_ALARM) / best_growth(stream)
            rows.append([stream, f'{bound:.0f}', Looks(looks['ours'], after).cell(bound), Looks(looks['bootstrap'], after).cell()])
    head = ['the champion and its predecessor', 'limit', 'e-process (ours)', f'paired bootstrap per batch of {BATCH}, 5 %']
    return (f"**Would going back help: is the champion worse than its predecessor?** (errors with a standard deviation of {SD} log units, of which both share "
            f"80 % of the variance; differences clipped at {CLIP:g}; {m.lives:,} lives, {BOOTSTRAP_LIVES} for the bootstrap; limit: log(100) over the growth "
            f"per molecule by the best stake)\n\n{table(head, rows)}")


# factors of the errors of champion and predecessor after the change; the champion's 90 % interval is exact before it
BROKEN = norm.ppf(.95) / norm.ppf(1 - BAD / 2)  # times as large, errors miss 40 % of their 90 % intervals
DECISIONS = {'promise kept, predecessor as good': (1., 1., 0), 'promise kept, predecessor 25 % better': (1., .8, 0),
             'promise broken, predecessor just as bad': (BROKEN, BROKEN, 0), 'promise broken, predecessor keeps it': (BROKEN, 1., 0),
             'promise broken after 500, predecessor keeps it': (BROKEN, 1., 500)}


def decisions_work(gen, lives, index, stream):
    of_champion, of_former, after = DECISIONS[stream]
    champion, former = error_pairs(gen, lives)
    changed = np.arange(MOLECULES) >= after
    champion *= np.where(changed, of_champion, 1)
    former *= np.where(changed, of_former, 1)
    broken = e_process(np.abs(champion) > norm.ppf(.95) * SD, GOOD)
    return dict(broken=broken, back=np.maximum(broken, harm(champion, former)))


def decisions(m: Measurement, rivals: Path) -> str:
    rows = []
    for (stream,), looks in m.run('decisions', decisions_work, [(s,) for s in DECISIONS]).items():
        _, of_former, after = DECISIONS[stream]
        right = stream.startswith('promise broken') and of_former == 1
        share = f"{np.isfinite(looks['back']).mean():.1%}" if right else Looks(looks['back'], np.inf).false
        wrong = Looks(looks['broken'], np.inf).false
        broken = Looks(looks['broken'], after).cell() if stream.startswith('promise broken') else f'{wrong} false'
        rows.append([stream, broken, share, Looks(looks['back'], after).cell() if right else ''])
    head = ['life', 'promise found broken', 'lives in which the champion goes back', 'delay']
    return (f"**Both questions together** (promise {GOOD:.0%}; a champion goes back when the promise is broken and going back helps, each with E ≥ 100; "
            f"{m.lives:,} lives of {MOLECULES:,} molecules)\n\n{table(head, rows)}")


# --- a real stream

def train_champions(uri: str):
    "A default network as the first champion, and the ensemble of the preset as the next; both trained on ESOL."
    settings = {name: getattr(DEFAULT_GCN, name) for name in DEFAULT_GCN.hyperparameters}
    run_sweep(Grid(**settings, seed=DEFAULT_GCN.seed, run_tag='single'), tracking_uri=uri)
    run_preset('accurate', run_tag='ensemble', tracking_uri=uri)
    for run_tag in ('single', 'ensemble'):
        done = promote(run_tag, Policy(gap_threshold=PRESET_GAP_THRESHOLD), tracking_uri=uri, allow_dirty=True)
        if not done.approved: sys.exit(f'{run_tag} could not be promoted: {done.reason}')


@dataclass(frozen=True)
class Real:
    "A champion, its predecessor, and what both say of molecules that neither had seen."
    observations: Observations
    look: Watch                # with the champion's life
    champion: str              # in words
    former: str
    seconds: float             # that reading all observations and judging them takes

    @property
    def promise(self) -> float:
        "The miss rate that the champion's intervals may have, given how many molecules calibrated them."
        return self.look.evidence.promised

    def order(self, domain: str) -> pd.DataFrame:
        "Molecules inside or outside the domain from near to far, as `judge` gives them."
        life = self.look.life
        chosen = life[(life.domain == domain) & ~life.known.astype(bool) & life.low.notna()]
        chosen = chosen.sort_values('similarity', ascending=False, kind='stable').assign(counts=True)
        return judge(chosen, self.observations, self.look.evidence.former)


def answered(external: Path) -> Real:
    "Train, promote and let both champions answer, as a user does it."
    with tempfile.TemporaryDirectory() as folder:
        uri = sqlite_uri(Path(folder) / 'mlflow.db')
        train_champions(uri)
        observe(external, smiles_column='SMILES', target='Solubility', skip_bad_rows=True, tracking_uri=uri)
        observations = load_observations(connect(uri))
        began = time.perf_counter()
        look = watch(dry_run=True, tracking_uri=uri)
        seconds = time.perf_counter() - began
        names = [repr(load_version(v, tracking_uri=uri)) for v in (look.evidence.champion, look.evidence.former)]
    return Real(observations, look, *names, seconds)


def judging_seconds(real: Real) -> float:
    "Of ten thousand observations: those of the stream, again and again under other names."
    times = -(-TIMED // len(real.look.life))
    def renamed(table: pd.DataFrame, k: int, *columns: str) -> pd.DataFrame:
        return table.assign(**{c: table[c] + f'/{k}' for c in columns})
    life = pd.concat([renamed(real.look.life, k, 'molecule', 'series') for k in range(times)], ignore_index=True)[:TIMED]
    answers = pd.concat([renamed(real.observations.answers, k, 'molecule') for k in range(times)], ignore_index=True)
    observations = Observations(life, answers, real.observations.versions, 1)
    began = time.perf_counter()
    evidence_about(life, observations, real.look.evidence.champion, real.look.evidence.former, Policy())
    return time.perf_counter() - began


def evidence_of_series(judged: pd.DataFrame, promise: float) -> tuple[np.ndarray, np.ndarray]:
    "log E after each series of relatives, which all come with the first of them, and the molecules until then."
    sizes = judged.groupby('series', sort=False).size()
    return log_evidence_of_excess(series_means(judged.missed, judged.series), promise), sizes.cumsum().to_numpy()


def series_look(judged: pd.DataFrame, promise: float) -> float:
    evidence, molecules = evidence_of_series(judged, promise)
    look = alarm_look(evidence)
    return float(molecules[int(look) - 1]) if np.isfinite(look) else np.inf


def orders(n: int) -> np.ndarray:
    "From near to far, and a hundred times in any order: (1 + shuffles, molecules)."
    gen = np.random.default_rng(0)
    return np.array([np.arange(n), *(gen.permutation(n) for _ in range(SHUFFLES))])


RELATIVES, EACH = 'e-process (ours), relatives as one observation', 'e-process (ours), each molecule'


def stream_looks(judged: pd.DataFrame, promise: float) -> dict[str, np.ndarray]:
    "By method, the first alarm in each of the orders."
    order = orders(len(judged))
    misses = judged.missed.to_numpy()[order].astype(float)
    whole = misses[:, :misses.shape[1] // BATCH * BATCH]  # batches are judged when they are full
    of_series = np.array([series_look(judged.iloc[rows], promise) for rows in order])
    ways = {EACH if way is e_process else name: way for name, way in METHODS.items()}
    return {RELATIVES: of_series} | {name: way(whole if 'batch' in name else misses, promise) for name, way in ways.items()}


def stream_rivals(m: Measurement, rivals: Path, judged: pd.DataFrame, promises: tuple[float, ...]) -> dict[float, dict[str, np.ndarray]]:
    "The same of the libraries, by promise; nothing where there are none."
    if not rival_versions(rivals): return {p: {} for p in promises}
    misses = judged.missed.to_numpy()[orders(len(judged))].astype(int)
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(m.workers) as pool:
        jobs = {}
        for p in promises:
            for name, lives in (('near', misses[:1]), ('shuffled', misses[1:])):
                np.save(Path(folder) / f'{name}-{p}.000.npy', lives)
                jobs[p, name] = pool.submit(rival_looks, rivals, folder, f'{name}-{p}', p)
        found = {key: job.result() for key, job in tqdm(jobs.items(), desc='libraries')}
    return {p: {name: np.concatenate([looks, found[p, 'shuffled'][name]]) for name, looks in found[p, 'near'].items()} for p in promises}


def after(look: float) -> str:
    return f'after {look:,.0f}' if np.isfinite(look) else 'none'


def shuffled(looks: np.ndarray) -> str:
    found = looks[np.isfinite(looks)]
    return f'{len(found) / len(looks):.0%}' + (f', after {np.median(found):,.0f}' if len(found) else '')


def percent(share: float) -> str:
    return f'{share:.0%}' if share == round(share, 2) else f'{share:.1%}'


def quality(part: pd.DataFrame) -> tuple[str, str]:
    "Coverage and RMSE."
    return f'{1 - part.missed.mean():.1%}', f'{rmse(part.measured, part.predicted):.3f}'


def stretches(judged: pd.DataFrame, promises: tuple[float, ...]) -> str:
    "What a fifth of the stream after another was like."
    of_molecules = {p: log_evidence_of_excess(judged.missed.astype(float), p) for p in promises}
    of_series = {p: evidence_of_series(judged, p)[0] for p in promises}
    rows = []
    for places in np.array_split(np.arange(len(judged)), STRETCHES):
        part, seen = judged.iloc[places], judged.iloc[:places[-1] + 1]
        cells = [e_value(e) for p in promises for e in (of_series[p][seen.series.nunique() - 1], of_molecules[p][len(seen) - 1])]
        rows.append([f'{places[0] + 1:,} … {len(seen):,}', f'{part.similarity.iloc[0]:.2f} … {part.similarity.iloc[-1]:.2f}', *quality(part), *cells])
    rows.append(['all', '', *quality(judged), *[''] * 2 * len(promises)])
    head = [f'E at {percent(p)}, {each}' for p in promises for each in ('relatives as one', 'each molecule')]
    return table(['molecules', 'similarity', 'coverage', 'RMSE', *head], rows)


def methods_on_stream(found: dict[float, dict[str, np.ndarray]]) -> str:
    "When each method would have raised an alarm."
    names = list(next(iter(found.values())))
    rows = [[name, *(cell for looks in found.values() for cell in (after(looks[name][0]), shuffled(looks[name][1:])))] for name in names]
    head = [f'{order}, promise {percent(p)}' for p in found for order in ('near to far', 'shuffled')]
    return table(['method', *head], rows)


def told(real: Real, judged: pd.DataFrame, found: dict[str, np.ndarray]) -> str:
    "What the real stream shows, at the promise that the package watches."
    evidence, p, rate = real.look.evidence, real.promise, judged.missed.mean()
    _, course = evidence_about(judged, real.observations, evidence.champion, evidence.former, Policy())
    each = log_evidence_of_excess(judged.missed.astype(float), p)
    top = judged[judged.similarity == judged.similarity.max()]
    alarms = {name: f'{np.isfinite(times[1:]).mean():.0%}' for name, times in found.items()}
    others = [f'{alarms[name]} ({name})' for name in found if name not in (RELATIVES, EACH)]
    return ' '.join([
        f"What it shows. {percent(rate)} of the measured values lie outside intervals that are to hold 90 %:",
        f"{'not more' if rate <= p else 'more'} than the {percent(p)} that may, with so few calibration molecules.",
        f"Of the nearest fifth {percent(misses_of(judged, 0))} do, of the farthest {percent(misses_of(judged, -1))},",
        f"of the {len(top)} molecules with a similarity of {top.similarity.iloc[0]:.2f}, which belong to {top.series.nunique()} series,",
        f"{int(top.missed.sum())} do. Counted molecule by molecule, the stream from near to far has",
        f"{alarm(found[EACH][0])} (largest e-value {e_value(each.max())}, in the end {e_value(each[-1])});",
        f"with relatives as one observation it has {alarm(found[RELATIVES][0])}",
        f"(largest e-value {e_value(course.log_against.max())}, in the end {e_value(course.log_against.iloc[-1])}).",
        f"Of the shuffled orders, {alarms[RELATIVES]} have an alarm where relatives are one observation, {alarms[EACH]} where each molecule is;",
        f"with other methods: {', '.join(others)}.",
        f"Going back: the e-value for the predecessor being better was never above {e_value(course.log_for_former.max())};",
        f"on average its |error| is {abs(evidence.worse_by):.2f} log units {'larger' if evidence.worse_by < 0 else 'smaller'} than the champion's."])


def alarm(look: float) -> str:
    return f'an alarm after {look:,.0f} molecules' if np.isfinite(look) else 'no alarm'


def calibration(real: Real) -> int:
    "Molecules that calibrated the champion's intervals."
    versions = real.observations.versions
    [n] = versions.calibration[versions.version == real.look.evidence.champion]
    return int(n)


def misses_of(judged: pd.DataFrame, stretch: int) -> float:
    return judged.missed.to_numpy()[np.array_split(np.arange(len(judged)), STRETCHES)[stretch]].mean()


def outside(real: Real) -> str:
    "What would have happened if molecules outside the domain were judged like those inside."
    judged, p = real.order('outside'), real.promise
    coverage, error = quality(judged)
    each = alarm_look(log_evidence_of_excess(judged.missed.astype(float), p))
    return (f"Outside the domain, where nothing is promised and nothing counts: {len(judged):,} molecules, coverage {coverage}, RMSE {error}. "
            f"Judged like the others, from near to far at {percent(p)}, they would have had {alarm(series_look(judged, p))} where relatives are "
            f"one observation, and {alarm(float(each))} where each molecule is.")


def stream(m: Measurement, rivals: Path) -> str:
    if not m.external.exists():
        return (f'**A real stream** was left out: there is no {m.external.name} beside the project. AqSolDB (doi:10.1038/s41597-019-0151-1) can be given '
                'with `--external`, as a table with the columns SMILES and Solubility.')
    real = answered(m.external)
    judged, promises = real.order('inside'), (GOOD, real.promise)
    libraries = stream_rivals(m, rivals, judged, promises)
    found = {p: stream_looks(judged, p) | libraries[p] for p in promises}
    seconds, life = judging_seconds(real), real.look.life
    head = ' '.join([
        f"**A real stream: measured molecules of AqSolDB that ESOL does not hold** (champion: {real.champion}; predecessor: {real.former};",
        f"of {len(life):,} molecules {len(judged):,} are inside the champion's domain and were not in its training set. They come from near to far:",
        "in the order of their largest Tanimoto similarity to a training molecule. They are",
        f"{judged.series.nunique():,} series of relatives, with a similarity of at least {SERIES_SIMILARITY:g} to the leader of the series; where relatives",
        f"are one observation, all come with the nearest of them. Promise: {percent(GOOD)}, and {percent(real.promise)},",
        f"which is what the package watches, since it allows for the chance in {calibration(real)} calibration molecules;",
        f"E: e-value after the last of these molecules, alarm at {1 / FALSE_ALARM:.0f})"])
    when = (f"When each method would have raised an alarm (molecules until then, from near to far; of {SHUFFLES} shuffled orders the share with an alarm, "
            f"and the median of those)")
    took = (f"Judging {TIMED:,} observations (these, repeated under other names) took {seconds:.2f} s; a whole `watch`, which reads {len(life):,} observations "
            f"with the answers of two versions from the store, {real.seconds:.2f} s.")
    return '\n\n'.join([head, stretches(judged, promises), when, methods_on_stream(found), *([] if libraries[GOOD] else [not_measured(rivals)]),
                        told(real, judged, found[real.promise]), outside(real), took])


PARTS = dict(promise=promise, methods=methods, clumps=clumps, pairs=pairs, decisions=decisions, stream=stream)
SECONDS_PER_LIFE = .028  # of one core, all simulated parts together, on the machine of benchmarks/monitoring.md
RIVALS_SECONDS = 120     # of one core, the libraries
STREAM_SECONDS = 1800    # of one core, training, answers and libraries


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('parts', nargs='*', choices=[[], *PARTS], default=[], metavar='PART', help=f"{', '.join(PARTS)}; all when not given")
    p.add_argument('--lives', type=int, default=10_000, help='of each stream (default 10000)')
    p.add_argument('--workers', type=int, default=cores(), help='processes (default: cores)')
    p.add_argument('--rivals', type=Path, default=RIVALS if RIVALS.exists() else Path(sys.executable),
                   help='a Python that can import mapie and ville; see rivals.py (default .rivals/bin/python)')
    p.add_argument('--external', type=Path, default=EXTERNAL, help='AqSolDB, for the part stream (default shared/data/aqsoldb_external.csv beside the project)')
    p.add_argument('--output', type=Path, help='also write the tables to this file')
    a = p.parse_args()
    names = a.parts or list(PARTS)
    simulated = len({*names} - {'stream'}) / (len(PARTS) - 1)
    seconds = (a.lives * SECONDS_PER_LIFE * simulated + RIVALS_SECONDS * ('methods' in names)) / a.workers
    if 'stream' in names and a.external.exists(): seconds += STREAM_SECONDS / a.workers
    print(f'{a.lives:,} lives of {MOLECULES:,} molecules in each stream, {a.workers} processes: about {seconds / 60:.1f} minutes', flush=True)
    began, measurement = time.perf_counter(), Measurement(a.lives, a.workers, a.external)
    text = []
    for name in names:
        text.append(PARTS[name](measurement, a.rivals))
        print(f'\n{text[-1]}\n', flush=True)
    command = 'make bench-monitoring' if names == list(PARTS) else f"python benchmarks/monitoring.py {' '.join(names)}"
    head = (f"`{command}`, {time.strftime('%Y-%m-%d')}: Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}; "
            f"{(time.perf_counter() - began) / 60:.1f} minutes on {a.workers} of {os.cpu_count()} cores.")
    print(head)
    if a.output: a.output.write_text('\n\n'.join([head, *text]) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
