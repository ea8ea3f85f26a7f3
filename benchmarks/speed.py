"""How fast the sweep engine is, as tables in Markdown.

    make bench                                   # all three parts, written to benchmarks/speed.md
    python benchmarks/speed.py cells             # one part, printed only
    python benchmarks/speed.py cells --rounds 1

1. cells    training alone, one thread: this package beside a plain PyTorch Geometric loop, in turns
2. sweep    `bioai-esol sweep` as a user runs it: time from start to end, and memory of every process
3. growth   9, 27, 81 and 162 configurations with 1 and 2 workers

The plain loop is a script of its own (`shared/bench/plain_loop.py` beside the project, or --plain-loop PATH):
what one writes first with PyTorch Geometric, one configuration at a time. It does less than an epoch
here does, since it never evaluates the training molecules. These machines are shared: read the ratios.
"""
import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch
from tqdm.auto import tqdm

from bioai_esol.chem.dataset import load_esol
from bioai_esol.chem.graphs import N_FEATURES
from bioai_esol.sweep.grid import cores, Grid
from bioai_esol.sweep.runner import run_sweep
from bioai_esol.training.engine import make_task, Task, train
from bioai_esol.training.config import TrainConfig
from bioai_esol.models.kaxis import one_thread

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / 'bioai_esol/chem/esol.csv'
CELLS = [(hidden_dim, batch_size) for hidden_dim in (32, 64, 128) for batch_size in (16, 32)]


def table(header: list[str], rows: list[list]) -> str:
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)


def machine() -> str:
    names = [line.split(':', 1)[1].strip() for line in open('/proc/cpuinfo') if line.startswith('model name')] if Path('/proc/cpuinfo').exists() else []
    return (f"{names[0] if names else platform.processor() or platform.machine()}, {cores()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
            f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")


# --- 1. cells

def block(hidden_dim: int, batch_size: int, epochs: int) -> list[TrainConfig]:
    "The 27 configurations of the specification's grid in one cell."
    return Grid(hidden_dim=hidden_dim, batch_size=batch_size, epochs=epochs).configs()


def gemm_speed(n: int = 1024) -> float:
    "Floating point operations a second of a large single-precision matrix product on one thread."
    a, b, seconds = torch.randn(n, n), torch.randn(n, n), []
    with one_thread():
        for _ in range(9):
            start = time.perf_counter()
            a @ b
            seconds.append(time.perf_counter() - start)
    return 2 * n**3 / statistics.median(seconds)


def epoch_flops(task: Task, d: int) -> float:
    """Operations in the matrix products of one epoch of one configuration, as the model is defined: forward and backward on
    the training molecules (the first layer needs no gradient of its input), then evaluation of training and validation molecules."""
    n_train, n_val = (int(task.graphs.n_atoms[getattr(task.split, part)].sum()) for part in ('train', 'val'))
    forward = 2 * (N_FEATURES * d + d * d)
    return n_train * (2 * forward + 2 * d * d) + (n_train + n_val) * forward


def plain_seconds(script: Path, hidden_dim: int, batch_size: int, epochs: int) -> float:
    command = [sys.executable, script, TABLE, '--hidden', str(hidden_dim), '--batch', str(batch_size), '--epochs', str(epochs), '--threads', '1']
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)['seconds_per_epoch']


def engine_seconds(task: Task, hidden_dim: int, batch_size: int, epochs: int) -> float:
    "Median seconds an epoch and configuration; the first epoch, as in the plain loop, warms up and is not counted."
    configs, ends = block(hidden_dim, batch_size, epochs + 1), []
    train(configs, task, on_epoch=lambda *_: ends.append(time.perf_counter()))
    return statistics.median(b - a for a, b in zip(ends, ends[1:])) / len(configs)


def cells(script: Path, rounds: int, epochs: int = 5) -> str:
    task, gemm = make_task(load_esol(), TrainConfig()), []
    plain, engine = {cell: [] for cell in CELLS}, {cell: [] for cell in CELLS}
    for cell in tqdm(CELLS * rounds, desc='cells'):
        plain[cell].append(plain_seconds(script, *cell, epochs))
        engine[cell].append(engine_seconds(task, *cell, epochs))
        gemm.append(gemm_speed())
    speed, rows, ratios = statistics.median(gemm), [], []
    for cell in CELLS:
        p, e = statistics.median(plain[cell]), statistics.median(engine[cell])
        ratio = statistics.median(a / b for a, b in zip(plain[cell], engine[cell]))
        ratios.append(ratio)
        limit = epoch_flops(task, cell[0]) / speed
        rows.append([*cell, f'{1e3 * p:.0f}', f'{1e3 * e:.1f}', f'**{ratio:.1f}**', f'{1e3 * limit:.1f}', f'{e / limit:.1f}'])
    head = ['hidden_dim', 'batch_size', 'plain, ms', 'ours, ms', 'ratio', 'limit, ms', '× limit']
    return (f"**Training, one thread: milliseconds an epoch and configuration** (medians of {rounds} rounds in turns of {epochs} epochs, "
            f"27 configurations a block; ratio: the median of the rounds' ratios)\n\n{table(head, rows)}\n\n"
            f"Mean of the six ratios: **{statistics.mean(ratios):.1f}**, lowest {min(ratios):.1f}. Limit: the matrix products of an epoch at the "
            f"{speed / 1e9:.0f} GFLOP/s that a 1024 × 1024 product reached in the same run. "
            "The plain loop does not evaluate the training molecules; this package does.")


# --- 2. sweep

class Memory(threading.Thread):
    "Samples the resident memory of a process and its children until it ends."
    def __init__(self, pid: int, every: float = 0.5):
        super().__init__(daemon=True)
        self.process, self.every, self.samples = psutil.Process(pid), every, []  # samples: (time, parent, [workers])

    def run(self):
        start = time.monotonic()
        while True:
            try:
                children = [c.memory_info().rss for c in self.process.children() if 'spawn_main' in ' '.join(c.cmdline())]
                self.samples.append((time.monotonic() - start, self.process.memory_info().rss, children))
            except psutil.Error:
                if not self.process.is_running() or self.process.status() == psutil.STATUS_ZOMBIE: return
            time.sleep(self.every)

    def worker_peak(self, first: float, last: float) -> float:
        "Largest resident memory of a worker in a part of the run (fractions of its duration), in bytes."
        end = self.samples[-1][0]
        return max((m for t, _, children in self.samples if first * end <= t <= last * end for m in children), default=math.nan)


def sweep() -> str:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process = subprocess.Popen([Path(sys.executable).with_name('bioai-esol'), 'sweep'], cwd=folder,
                                   env=os.environ | dict(MLFLOW_TRACKING_URI=f'sqlite:///{folder}/mlflow.db'), stdout=subprocess.DEVNULL)
        memory = Memory(process.pid)
        memory.start()
        if process.wait(): sys.exit(f"bioai-esol sweep ended with {process.returncode}")
        seconds = time.perf_counter() - start
        memory.join()
        size = sum(f.stat().st_size for f in Path(folder).rglob('*') if f.is_file())
    mib = 2**20
    rows = [[f'{seconds / 60:.1f} min', max(len(children) for *_, children in memory.samples),
             f'{memory.worker_peak(0, 1) / mib:.0f} MiB', f'{memory.worker_peak(0.1, 0.4) / mib:.0f} MiB', f'{memory.worker_peak(0.6, 1) / mib:.0f} MiB',
             f'{max(parent for _, parent, _ in memory.samples) / mib:.0f} MiB', f'{size / mib:.0f} MiB']]
    head = ['wall time', 'workers', 'worker, peak', 'first part', 'last part', 'parent, peak', 'store on disk']
    return ("**The whole sweep, 162 configurations × 200 epochs, as `bioai-esol sweep` with everything it logs** "
            f"(resident memory; first part: 10 to 40 % of the time, last: from 60 %)\n\n{table(head, rows)}")


# --- 3. growth

def growth(epochs: int = 60) -> str:
    axes = {9: dict(weight_decay=0, seed=42), 27: dict(seed=42), 81: dict(seed=(42, 43, 44)), 162: dict(seed=(42, 43, 44, 45, 46, 47))}
    seconds = {}
    for workers, n in tqdm([(w, n) for w in (1, 2) for n in axes], desc='growth'):
        grid = Grid(hidden_dim=64, batch_size=32, epochs=epochs, workers=workers, **axes[n])
        assert len(grid) == n
        with tempfile.TemporaryDirectory() as folder:
            seconds[workers, n] = run_sweep(grid, tracking_uri=f'sqlite:///{folder}/mlflow.db').seconds
    rows, before = [], None
    for n in axes:
        more = [f'{(seconds[w, n] - seconds[w, before]) / (n - before):.2f}' if before else '' for w in (1, 2)]
        rows.append([n, f'{seconds[1, n]:.0f}', more[0], f'{seconds[2, n]:.0f}', more[1], f'{seconds[1, n] / seconds[2, n]:.2f}'])
        before = n
    head = ['configurations', '1 worker, s', 's for each more', '2 workers, s', 's for each more', 'gain of the second']
    return (f"**Growth: `run_sweep` with {epochs} epochs at hidden_dim 64, batch_size 32, a new store and the start of the workers included** "
            f"(9 = lr × dropout, 27 with weight_decay, 81 and 162 with three and six seeds; each more: the difference to the row above)\n\n{table(head, rows)}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('part', nargs='?', choices=['cells', 'sweep', 'growth', 'all'], default='all')
    p.add_argument('--rounds', type=int, default=3, help='rounds of part 1 (default 3)')
    p.add_argument('--plain-loop', type=Path, default=ROOT.parent / 'shared/bench/plain_loop.py', help='the script that part 1 compares with')
    p.add_argument('--output', type=Path, help='also write the tables to this file')
    a = p.parse_args()
    if a.part in ('cells', 'all') and not a.plain_loop.exists():
        p.error(f"{a.plain_loop} does not exist: give --plain-loop PATH, or one of the parts sweep and growth")
    parts = dict(cells=lambda: cells(a.plain_loop, a.rounds), sweep=sweep, growth=growth)
    text = [f"`{'make bench' if a.part == 'all' else 'python benchmarks/speed.py ' + a.part}`, {time.strftime('%Y-%m-%d')}: {machine()}."]
    for name, measure in parts.items():
        if a.part in (name, 'all'):
            text.append(measure())
            print(f'\n{text[-1]}\n', flush=True)
    print(text[0])
    if a.output: a.output.write_text('\n\n'.join(text) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
