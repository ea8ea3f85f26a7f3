"""Which search is worth it: a thousand replays of each, from histories that are stored once.

    python benchmarks/search.py --output search.md              # the replays; a minute
    python benchmarks/search.py --optuna 200                    # those of Optuna too, kept beside the histories; half an hour
    python benchmarks/search.py --train sqlite:///search.db --seeds 8-15     # more seeds; some minutes each on two cores, continues

The histories are the default grid with several seeds: 162 configurations, 200 epochs each. A replay shuffles the seeds: a
search sees 10 of them, and the configuration that it picks is judged by the others, which nobody has seen: its error is its
mean best_val_rmse over these. Its regret is that error less the one of the best configuration, which nobody knows: it lies
between the lowest mean over all seeds, which is low by luck too, and what the grid with all seeds but one picks, judged by
that one. Epochs are counted as they are trained: successive halving, Hyperband and ASHA go on from where they paused; a race
begins each rung anew.
"""
import argparse
import functools
import json
import math
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from md_table import table as table_of

from bioai_esol.sweep.race import BEST, climb, plan_rungs, Trained

matplotlib.use('Agg')
HERE = Path(__file__).resolve().parent
HISTORIES = HERE / 'search'   # a file for each batch of seeds, and nothing is ever rewritten
OPTUNA = HERE / 'search/optuna.json'
AXES = ['hidden_dim', 'batch_size', 'lr', 'dropout', 'weight_decay']
SEEN = 10         # seeds that a search may use; the others judge
STEP = 2e-4       # of the stored errors, log10 mol/L: they are whole numbers of it
REPLAYS = 1000
MAX_GAP = .3      # that the policy of promotion allows
BLUE, GREY, ORANGE, GREEN = '#3b6ea5', '#9a9a9a', '#d8853b', '#4d8a57'


# --- histories

def train(uri, seeds):
    "The runs, seed by seed; what is there already is not trained again."
    import bioai_esol as esol
    for seed in seeds:
        result = esol.run_sweep(esol.Grid(seed=seed, run_tag='histories'), tracking_uri=uri)
        if len(result.failed): sys.exit(f'{len(result.failed)} runs failed')
        print(f'seed {seed}: {result.seconds:.0f} s', file=sys.stderr)


def pack(uri, seeds):
    "The histories of a store as a small file of their own."
    import bioai_esol as esol
    runs = esol.load_runs('histories', tracking_uri=uri)
    runs = runs[runs.seed.isin(seeds)].sort_values([*AXES, 'seed'])
    curves = esol.load_histories(runs, ['val_rmse', 'train_rmse'], tracking_uri=uri)
    wide = curves.pivot(index='run_id', columns=['metric', 'epoch'], values='value').loc[runs.run_id]
    shape = (-1, len(seeds), wide.shape[1] // 2)
    errors = {name: np.clip(np.rint(wide[name].to_numpy() / STEP), 0, 65535).astype(np.uint16).reshape(shape) for name in ('val_rmse', 'train_rmse')}
    about = dict(data=runs.dataset_version.iloc[0], split=runs.split_digest.iloc[0], processor=runs.processor.iloc[0])
    HISTORIES.mkdir(exist_ok=True)
    np.savez_compressed(HISTORIES / f'seeds-{seeds[0]}-{seeds[-1]}.npz', about=json.dumps(about), seeds=np.array(seeds),
                        axes=runs[runs.seed == seeds[0]][AXES].to_numpy(float), **errors)


@dataclass
class Histories:
    axes: np.ndarray     # (configurations, axes)
    best: np.ndarray     # (configurations, seeds, epochs) lowest val_rmse so far
    gap: np.ndarray      # (configurations, seeds, epochs) val_rmse - train_rmse
    about: dict

    @property
    def last(self): return self.best[:, :, -1]  # (configurations, seeds) what a run to the end says


@functools.cache
def load():
    "All batches as one."
    batches = []
    for path in sorted(HISTORIES.glob('seeds-*.npz')):
        with np.load(path, allow_pickle=False) as file: batches.append(dict(file))
    if not batches: sys.exit(f'no histories in {HISTORIES}: --train makes them')
    first = batches[0]
    if any(str(b['about']) != str(first['about']) or not np.array_equal(b['axes'], first['axes']) for b in batches):
        sys.exit(f'the histories in {HISTORIES} are not of one kind of processor, table and grid')
    seeds = np.concatenate([b['seeds'] for b in batches]).tolist()
    if len(set(seeds)) < len(seeds): sys.exit(f'some seeds are in two files in {HISTORIES}')
    val, training = (np.concatenate([b[name] for b in batches], axis=1) * STEP for name in ('val_rmse', 'train_rmse'))
    return Histories(first['axes'], np.minimum.accumulate(val, axis=2), val - training, json.loads(str(first['about'])))


# --- searches: each sees the errors (configurations, seeds, epochs) of the seeds that it may use, and gives what it picks and
# what it has spent, once or at several moments

def grid(seen, gap, gen, seeds=1):
    yield seen[:, :seeds, -1].mean(axis=1).argmin(), seen.shape[0] * seeds * seen.shape[2]


def grid_below(seen, gap, gen, limit=MAX_GAP):
    "What the policy of promotion takes: the lowest error with a gap below the limit."
    yield np.where(gap[:, 0, -1] < limit, seen[:, 0, -1], np.inf).argmin(), seen.shape[0] * seen.shape[2]


def random(seen, gap, gen):
    k, _, epochs = seen.shape
    order = gen.permutation(k)
    for n in (5, 10, 20, 40, 81):
        yield order[seen[order[:n], 0, -1].argmin()], n * epochs


def top_after_one(seen, gap, gen):
    k, _, epochs = seen.shape
    order = seen[:, 0, 0].argsort(kind='stable')
    for n in (5, 10, 20, 40, 81):
        yield order[seen[order[:n], 0, -1].argmin()], k + n * (epochs - 1)


def halved(seen, left, at, keep, eta):
    "The best of some configurations, of which `keep` of them go on from rung to rung, and what it cost."
    epochs = seen.shape[2]
    spent = len(left) * at
    while at < epochs:
        left = left[seen[left, 0, at - 1].argsort(kind='stable')][:max(1, keep(len(left)))]
        after = min(epochs, at * eta)
        spent += len(left) * (after - at)
        at = after
    return left[seen[left, 0, -1].argmin()], spent


def halving(seen, gap, gen, eta=3):
    "Successive halving of the whole grid, for several lengths of the first rung."
    k = seen.shape[0]
    for first in (2, 7, 22, 67):
        yield halved(seen, np.arange(k), first, lambda n: math.ceil(n / eta), eta)


def hyperband(seen, gap, gen, eta=3):
    k, _, epochs = seen.shape
    depth = int(math.log(epochs / 2, eta))
    brackets = [(math.ceil((depth + 1) / (s + 1) * eta ** s), max(1, round(epochs / eta ** s))) for s in range(depth, -1, -1)]
    pick, lowest, spent = None, np.inf, 0
    for repetition in range(1, 9):
        for n, first in brackets:
            best, cost = halved(seen, gen.permutation(k)[:n], first, lambda left: left // eta, eta)
            spent += cost
            if seen[best, 0, -1] < lowest: pick, lowest = best, seen[best, 0, -1]
        if repetition in (1, 2, 4, 8): yield pick, spent


def asha(seen, gap, gen, eta=3):
    "One worker, for several lengths of the first rung."
    for first in (7, 22, 67): yield promoted(seen, gen, first, eta)


def promoted(seen, gen, first, eta):
    "Promote where the best third of a rung holds somebody who has not been promoted, else begin another; what is best, and what it cost."
    k, _, epochs = seen.shape
    rungs = [first]
    while rungs[-1] < epochs: rungs.append(min(epochs, rungs[-1] * eta))
    reached = [[] for _ in rungs]
    gone = [set() for _ in rungs]
    waiting, spent = list(gen.permutation(k)), 0
    def task():
        for r in range(len(rungs) - 2, -1, -1):
            top = sorted(reached[r], key=lambda i: seen[i, 0, rungs[r] - 1])[:len(reached[r]) // eta]
            for i in top:
                if i not in gone[r]:
                    gone[r].add(i)
                    return r + 1, i
        return (0, waiting.pop()) if waiting else None
    while (job := task()) is not None:
        r, i = job
        spent += rungs[r] - (rungs[r - 1] if r else 0)
        reached[r].append(i)
    return min(reached[-1], key=lambda i: seen[i, 0, -1]), spent


def race(seen, gap, gen, gap_threshold=math.inf, finalists=6, seeds=SEEN, rungs=3):
    "The project's own code. On all rungs but the last the seeds are drawn, and may come again on a later one."
    k, n, epochs = seen.shape
    plan = plan_rungs(k, epochs, rungs, finalists, seeds)
    before_last = sum(rung.seeds for rung in plan[:-1])
    def trained(places, seeds, epochs, number):
        columns = [s - before_last for s in seeds] if number == len(plan) - 1 else gen.permutation(n)[:len(seeds)]
        return Trained(seen[places][:, columns, epochs - 1], gap[places][:, columns, epochs - 1], np.zeros(len(places), bool))
    climbs = list(climb(plan, trained, gap_threshold=gap_threshold))
    table = climbs[-1].table
    yield table.index[table.outcome == BEST][0], sum(done.trained * done.epochs for done in climbs)


SEARCHES = {
    'grid, one seed': grid, 'grid, two seeds': lambda *a: grid(*a, seeds=2), 'grid, four seeds': lambda *a: grid(*a, seeds=4),
    'grid, ten seeds': lambda *a: grid(*a, seeds=SEEN), 'grid, one seed, gap below 0.3': grid_below, 'random': random, 'best after one epoch': top_after_one,
    'successive halving': halving, 'Hyperband': hyperband, 'ASHA': asha, 'race, no gap limit': race,
    'race, gap below 0.3 (the default)': lambda *a: race(*a, gap_threshold=MAX_GAP)}


# --- Optuna's

def optuna_study(kind, seen, axes, seed):
    "A study over the grid; what it picks after some shares of the grid's epochs."
    import optuna
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings('ignore')
    k, n, epochs = seen.shape
    values = [sorted(set(axes[:, j])) for j in range(axes.shape[1])]
    place = {tuple(row): i for i, row in enumerate(axes)}
    pruner = optuna.pruners.MedianPruner() if kind == 'median' else optuna.pruners.WilcoxonPruner()
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed), pruner=pruner)
    trials, spent, picks = {}, 0, []
    marks = [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
    while marks:
        trial = study.ask()
        i = place[tuple(trial.suggest_categorical(name, options) for name, options in zip(AXES, values))]
        again = trials[i] = trials.get(i, -1) + 1   # a configuration that comes again has the next seed
        state, value = optuna.trial.TrialState.COMPLETE, None
        if kind == 'median':
            for epoch in range(10, epochs + 1, 10):
                value = seen[i, again % n, epoch - 1]
                spent += 10
                trial.report(value, epoch)
                if epoch < epochs and trial.should_prune():
                    state = optuna.trial.TrialState.PRUNED
                    break
        else:
            for s in range(n):
                spent += epochs
                trial.report(seen[i, s, -1], s)
                value = seen[i, :s + 1, -1].mean()
                if s + 1 < n and trial.should_prune(): break   # as its documentation has it: the mean so far is the value
        study.tell(trial, value if state == optuna.trial.TrialState.COMPLETE else None, state)
        while marks and spent >= marks[0] * k * epochs:
            marks.pop(0)
            best = study.best_trial
            picks.append((int(place[tuple(best.params[name] for name in AXES)]), int(spent)))
    return picks


def optuna_replay(job):
    kind, replay = job
    histories = load()
    return optuna_study(kind, histories.best[:, shuffled(replay, histories)[:SEEN]], histories.axes, replay)


def run_optuna(replays):
    from tqdm.auto import tqdm
    jobs = [(kind, replay) for kind in ('median', 'Wilcoxon') for replay in range(replays)]
    with ProcessPoolExecutor(2) as pool:
        picks = list(tqdm(pool.map(optuna_replay, jobs), total=len(jobs)))
    kept = {f'TPE, {kind} pruner': [p for (name, _), p in zip(jobs, picks) if name == kind] for kind in ('median', 'Wilcoxon')}
    OPTUNA.write_text(json.dumps(dict(seeds=load().best.shape[1], picks=kept)) + '\n')


def kept_picks(histories):
    "What Optuna picked in its replays."
    kept = json.loads(OPTUNA.read_text()) if OPTUNA.exists() else dict(seeds=0)
    if kept['seeds'] == histories.best.shape[1]: return kept['picks']
    print('Optuna has not replayed these histories: --optuna N does', file=sys.stderr)
    return {}


# --- replays

def shuffled(replay, histories): return np.random.default_rng([replay, 1]).permutation(histories.best.shape[1])


def replays_of(search, histories, n):
    picks = []
    for replay in range(n):
        seeds = shuffled(replay, histories)[:SEEN]
        gen = np.random.default_rng([replay, 2])
        picks.append([(int(k), int(spent)) for k, spent in search(histories.best[:, seeds], histories.gap[:, seeds], gen)])
    return picks


def references(histories):
    "The error of the best configuration is between these two: the lowest mean of all, and what all seeds but one pick."
    last = histories.last
    without = (last.sum(axis=1, keepdims=True) - last) / (last.shape[1] - 1)
    return last.mean(axis=1).min(), np.mean([last[k, seed] for seed, k in enumerate(without.argmin(axis=0))])


def judged(name, picks, histories):
    "One row per moment of a search: epochs, the error over unseen seeds with its interval, gap, replays."
    level = histories.last - histories.last.mean(axis=0) + histories.last.mean()  # without what a seed does to all configurations
    rows = []
    for moment in range(max(map(len, picks))):
        there = [(replay, p[moment]) for replay, p in enumerate(picks) if len(p) > moment]
        errors = np.array([level[k, shuffled(replay, histories)[SEEN:]].mean() for replay, (k, _) in there])
        half = 1.96 * errors.std(ddof=1) / math.sqrt(len(errors))
        gaps = np.array([histories.gap[k, :, -1].mean() for _, (k, _) in there])
        rows.append(dict(search=name, epochs=np.mean([spent for _, (_, spent) in there]), error=errors.mean(), half=half,
                         worst=np.quantile(errors, .9), gap=gaps.mean(), wide=np.mean(gaps >= MAX_GAP), replays=len(there)))
    return rows


def everything(histories):
    rows = []
    for name, search in SEARCHES.items(): rows += judged(name, replays_of(search, histories, REPLAYS), histories)
    for name, picks in kept_picks(histories).items(): rows += judged(name, picks, histories)
    table = pd.DataFrame(rows)
    k, _, epochs = histories.best.shape
    return table.assign(share=table.epochs / (k * epochs))


# --- page and figure

def shown(name, table):
    "A row of the page."
    error = f'{table.error:.4f} ± {table.half:.4f}'
    return [name, f'{table.share:.0%}', error, f'{table.worst:.4f}', f'{table.gap:.2f}', f'{table.wide:.0%}', f'{table.replays:,}']


def left_by_race(table, best):
    "What the race leaves of the regret of the grid with one seed, when the best configuration has this error."
    raced, at_once = (table[table.search == name].error.iloc[0] - best for name in ('race, no gap limit', 'grid, one seed'))
    return raced / at_once


def page(table, histories):
    "The figures as Markdown: what each search reaches for the price of the grid at most, and for more."
    k, seeds, epochs = histories.best.shape
    header = ['search', 'epochs spent', 'error over new seeds', '9 of 10 below', 'gap', 'too wide', 'replays']
    affordable = table[table.share <= 1.02].sort_values('epochs').groupby('search', sort=False).tail(1)
    dear = table[table.share > 1.02].sort_values('epochs')
    rows = [[shown(row.search, row) for row in part.itertuples()] for part in (affordable.sort_values('error'), dear)]
    noise = math.sqrt(histories.last.var(axis=1, ddof=1).mean())
    lucky, without_one = references(histories)
    left = [f'{max(left_by_race(table, best), 0):.0%}' for best in (lucky, without_one)]
    return '\n'.join([
        f'{k} configurations × {seeds} seeds × {epochs} epochs, trained on {histories.about["processor"]}; a search sees '
        f'{SEEN} seeds, {seeds - SEEN} judge. The means of the configurations have a standard deviation of {histories.last.mean(axis=1).std():.3f} '
        f'log10 mol/L, the seeds of one configuration {noise:.3f}. Errors in log10 mol/L, with the 95 % interval of their mean over replays of '
        f'these same seeds, and the error that nine of ten replays stay below. The gap is that of the picked configurations, '
        f'the mean over all seeds at the last epoch, and too wide from {MAX_GAP} on.', '',
        'For the price of the grid, or less:', '', table_of(header, rows[0]), '', 'For more:', '', table_of(header, rows[1]), '',
        f'The error of the best configuration is between {lucky:.4f}, the lowest mean over all {seeds} seeds, which is low by luck too, and '
        f'{without_one:.4f}, what {seeds - 1} seeds pick, judged by the one that is left. The race without a limit on the gap leaves {left[0]} '
        f'of the regret of the grid with one seed by the first, and {left[1]} by the second.', ''])


COLOURS = {'grid': GREY, 'random': '#56B4E9', 'best after one epoch': '#CC79A7', 'successive halving': GREEN, 'Hyperband': ORANGE, 'ASHA': '#8c6d31',
           'TPE, median pruner': '#7b5ea7', 'TPE, Wilcoxon pruner': '#b07aa1', 'race, no gap limit': BLUE}


def draw(table, histories, path):
    "Error against epochs."
    from matplotlib import pyplot as plt
    free = table[~table.search.str.contains('gap below')]
    lines = free.assign(line=free.search.where(~free.search.str.startswith('grid'), 'grid'))
    fig, ax = plt.subplots(figsize=(7.4, 4.2))
    for name, part in lines.groupby('line', sort=False):
        part = part.sort_values('epochs')
        style = dict(color=COLOURS[name], capsize=2, lw=1.2, marker='o', ms=4)
        if name.startswith('race'): style |= dict(marker='*', ms=15, zorder=5)
        ax.errorbar(part.share, part.error, part.half, label=name, **style)
    ax.set(xscale='log', xlabel='epochs spent, in those of the grid with one seed', ylabel='error over new seeds, log10 mol/L')
    ax.xaxis.set_major_formatter(lambda x, _: f'{x:g}')
    ax.axhspan(*references(histories), color='#e9e9e9', lw=0, zorder=0, label='the best configuration')
    ax.axvline(1, color='#cccccc', lw=.8, zorder=0)
    ax.spines[['top', 'right']].set_visible(False)
    ax.legend(frameon=False, fontsize='small', ncols=2)
    fig.tight_layout()
    fig.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--train', metavar='URI', help='train histories in this store, and add them to those that are kept')
    parser.add_argument('--seeds', default='8-15', metavar='A-B', help='with which seeds, that are not there yet (default %(default)s)')
    parser.add_argument('--optuna', metavar='N', type=int, help='replay the searches of Optuna N times, and keep what they pick')
    parser.add_argument('--output', type=Path, metavar='FILE', help='write the page there instead of printing it')
    parser.add_argument('--figure', type=Path, metavar='PNG', help='and the figure there')
    args = parser.parse_args()
    if args.train:
        first, last = map(int, args.seeds.split('-'))
        seeds = list(range(first, last + 1))
        train(args.train, seeds)
        pack(args.train, seeds)
    if args.optuna: run_optuna(args.optuna)
    histories = load()
    if histories.best.shape[1] <= SEEN: sys.exit(f'a search sees {SEEN} seeds, and there are {histories.best.shape[1]}: --train makes more')
    table = everything(histories)
    text = page(table, histories)
    if args.output: args.output.write_text(text)
    else: print(text)
    if args.figure: draw(table, histories, args.figure)


if __name__ == '__main__': main()
