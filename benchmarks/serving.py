"""How fast a champion answers: a library of molecules, and requests over HTTP.

    make bench-serving                                                         # written to benchmarks/serving.md and nbs/images/serving.png
    python benchmarks/serving.py --chemprop chemprop-env/bin/chemprop          # Chemprop beside ours
    python benchmarks/serving.py --minutes 1 --molecules 2000                  # a short run of everything

Two champions, trained here on ESOL: `gcn`, the default network, and `accurate`, the ensemble of the preset.

library    molecules per second of `bioai-esol predict --input … --output …`, start of the program included, and its memory; CPU time per
           molecule of one process, beside RDKit's `CalcMolDescriptors` of the same molecules; `chemprop predict` on the same file
requests   one molecule per request, from clients that ask again as soon as they are answered: requests per second, median and 99th
           percentile; beside MLflow's own server with the same version
switches   200 requests per second while the champion changes to and fro
memory     of the server, while 8 clients ask for --minutes

The molecules are ESOL's, and those of --data (`shared/data/aqsoldb_external.csv` beside the project when not given), again and again.
All of it takes a quarter of an hour, and --minutes.
"""
import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import psutil
from rdkit import Chem, RDLogger
from rdkit.Chem import Descriptors

from md_table import table

from bioai_esol.chem.dataset import load_esol
from bioai_esol.models.kaxis import one_thread
from bioai_esol.registry.journal import MODEL, snapshot
from bioai_esol.serving.predictor import load_version
from bioai_esol.store.client import connect, sqlite_uri
from bioai_esol.store.runs import fetch_artifacts
from bioai_esol.training.lineage import machine

HERE = Path(__file__).resolve().parent
EXTERNAL = HERE.parent.parent / 'shared/data/aqsoldb_external.csv'
PROGRAM = Path(sys.executable).with_name('bioai-esol')
BLUE, GREY, ORANGE = '#3b6ea5', '#9a9a9a', '#d8853b'
EASY = ['--gap-threshold', '3', '--r2-tolerance', '0.99', '--regression-tolerance', '0.9', '--allow-dirty']


def say(text): print(text, file=sys.stderr, flush=True)


def run(command, folder, env=None):
    done = subprocess.run(list(map(str, command)), cwd=folder, env=os.environ | (env or {}), capture_output=True, text=True)
    if done.returncode: sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")


# --- two champions

CHAMPIONS = {   # how each is trained: its run tag, and the commands
    'gcn': ['train', '--run-tag', 'gcn'],
    'accurate': ['sweep', '--preset', 'accurate']}


def make_champion(name, folder):
    "Train it and promote it; its number."
    say(f'training {name}' + ' (two minutes)' * (name == 'accurate'))
    run([PROGRAM, *CHAMPIONS[name]], folder)
    run([PROGRAM, 'promote', '--run-tag', name, *EASY], folder)  # the second is better by far
    return snapshot(connect(sqlite_uri(folder / 'mlflow.db'))).aliases['champion']


def molecules(data, n):
    RDLogger.DisableLog('rdApp.*')
    smiles = list(load_esol().smiles)
    if data and data.exists():
        frame = pd.read_csv(data)
        smiles += frame[next(c for c in frame if c.lower() == 'smiles')].tolist()
    readable = [s for s in smiles if Chem.MolFromSmiles(s) is not None]
    random.Random(0).shuffle(readable)
    return [readable[i % len(readable)] for i in range(n)]


# --- a library

class Memory:
    "The largest resident memory of a process and of its children, sampled while it runs."
    def __init__(self, pid): self.process, self.parent, self.worker = psutil.Process(pid), 0, 0

    def sample(self):
        try:
            self.parent = max(self.parent, self.process.memory_info().rss)
            for child in self.process.children(recursive=True): self.worker = max(self.worker, child.memory_info().rss)
        except psutil.Error: pass


@dataclass
class Library:
    per_second: float
    memory: tuple[float, float]  # MB of the parent and of the largest worker
    ms: float = 0.       # CPU time per molecule of one process
    ratio: float = 0.    # of CalcMolDescriptors' CPU time


def predicted(folder, version, file):
    "Seconds and memory of the command, which asks the champion."
    start = time.monotonic()
    command = [PROGRAM, 'predict', '--input', file, '--output', folder / f'predicted-{version}.csv']
    p = subprocess.Popen(list(map(str, command)), cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    memory = Memory(p.pid)
    while p.poll() is None:
        memory.sample()
        time.sleep(.1)
    if p.returncode: sys.exit(f'{command} ended with {p.returncode}')
    return time.monotonic() - start, (memory.parent / 2**20, memory.worker / 2**20)


def cpu_times(folder, version, smiles):
    "Milliseconds of CPU time per molecule: a prediction, and RDKit's descriptors, in turns."
    champion = load_version(version, tracking_uri=sqlite_uri(folder / 'mlflow.db'))
    champion.predict(smiles[:10])
    ours, theirs = [], []
    for _ in range(3):
        start = time.process_time()
        champion.predict(smiles)
        ours.append(time.process_time() - start)
        with one_thread():
            start = time.process_time()
            for s in smiles: Descriptors.CalcMolDescriptors(Chem.MolFromSmiles(s))
            theirs.append(time.process_time() - start)
    return 1e3 * np.median(ours) / len(smiles), float(np.median(np.array(ours) / theirs))


def chemprop_per_second(chemprop, folder, file, n):
    "Molecules per second of `chemprop predict`; how well it was trained does not change its speed."
    esol = folder / 'esol.csv'
    pd.DataFrame(dict(smiles=load_esol().smiles, y=load_esol().y)).to_csv(esol, index=False)
    common = ['--accelerator', 'cpu', '--devices', '1']
    run([chemprop, 'train', '-i', esol, '-o', folder / 'chemprop', '--epochs', '3', *common], folder)
    [model] = (folder / 'chemprop').rglob('best.pt')
    start = time.monotonic()
    run([chemprop, 'predict', '-i', file, '-o', folder / 'chemprop.csv', '--model-paths', model, '--smiles-columns', 'smiles', *common], folder)
    return n / (time.monotonic() - start)


# --- requests

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@contextmanager
def server(command, folder, env=None):
    "A server, on a port of its own, from the moment that it answers to the end of the block: its process and its port."
    port = free_port()
    command = [*command, '--port', port]
    with open(folder / 'server.log', 'a') as log:
        p = subprocess.Popen(list(map(str, command)), cwd=folder, env=os.environ | (env or {}), stdout=log, stderr=log, start_new_session=True)
    try:
        asyncio.run(_ready(p, port))
        yield p, port
    finally:
        os.killpg(p.pid, signal.SIGTERM)
        try: p.wait(30)
        except subprocess.TimeoutExpired: os.killpg(p.pid, signal.SIGKILL)


async def _ready(p, port):
    for _ in range(600):
        if p.poll() is not None: sys.exit('a server ended before it was ready; see server.log')
        try:
            await Client(port).ask('CCO')
            return
        except OSError: await asyncio.sleep(.2)
    sys.exit('a server did not answer')


class Client:
    "A connection that is kept."
    def __init__(self, port):
        self.port = port
        self.reader = self.writer = None

    async def ask(self, smiles):
        "Status and body."
        if self.writer is None: self.reader, self.writer = await asyncio.open_connection('127.0.0.1', self.port)
        body = json.dumps(dict(dataframe_split=dict(columns=['smiles'], data=[[smiles]]))).encode()
        self.writer.write(b'POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n'
                          b'Content-Length: %d\r\n\r\n' % len(body) + body)
        head = (await self.reader.readuntil(b'\r\n\r\n')).lower()
        text = await self.reader.readexactly(int(head.split(b'content-length:')[1].split(b'\r\n')[0]))
        return int(head.split()[1]), text


@dataclass
class Asked:
    latency: list[float] = field(default_factory=list)                    # seconds
    answers: list[tuple[float, int, str]] = field(default_factory=list)   # when it was sent, status, version
    seconds: float = 0.

    def __str__(self): return f'{len(self.latency) / self.seconds:,.0f}'

    def ms(self, share): return f'{1e3 * np.quantile(self.latency, share):.1f}'

    @property
    def failed(self): return sum(status != 200 for _, status, _ in self.answers)


async def _ask_on(port, asked, smiles, until, every, seed):
    client, chosen = Client(port), random.Random(seed)
    while (start := time.monotonic()) < until:
        status, text = await client.ask(chosen.choice(smiles))
        asked.latency.append(time.monotonic() - start)
        row = json.loads(text)['predictions'][0] if status == 200 else {}
        asked.answers.append((start, status, row.get('model_version', '')))
        await asyncio.sleep(max(0., start + every - time.monotonic()))


async def _load(port, smiles, n, seconds, every=0., meanwhile=None):
    asked = Asked(seconds=seconds)
    until = time.monotonic() + seconds
    work = [_ask_on(port, asked, smiles, until, every, seed) for seed in range(n)]
    await asyncio.gather(*work, *([asyncio.to_thread(meanwhile)] if meanwhile else []))
    return asked


def load(*args, **kwargs): return asyncio.run(_load(*args, **kwargs))


def ours(folder, *options): return server([PROGRAM, 'serve', *options], folder)


def mlflows(folder, version):
    store = connect(sqlite_uri(folder / 'mlflow.db'))
    run_id = snapshot(store).versions[version].run_id
    model = fetch_artifacts(store, run_id, tempfile.mkdtemp(dir=folder), 'model')
    command = [Path(sys.executable).with_name('mlflow'), 'models', 'serve', '-m', model, '--env-manager', 'local']
    return server(command, folder, dict(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}"))


def switches(folder, versions, smiles):
    "The champion changes to and fro, four times, under 200 requests per second: the load, and the seconds until each was live."
    from mlflow import MlflowClient
    client = MlflowClient(sqlite_uri(folder / 'mlflow.db'))
    moved = []

    def move():
        for version in list(versions.values()) * 2:
            time.sleep(5)
            client.set_registered_model_alias(MODEL, 'champion', version)
            moved.append((time.monotonic(), version))
    with ours(folder) as (_, port): asked = load(port, smiles, 20, 27, .1, move)
    live = [min(t for t, _, v in asked.answers if v == version and t > when) - when for when, version in moved]
    return asked, live


def memory_over(folder, smiles, minutes):
    "MB of the server and its processes together, every few seconds, while 8 clients ask."
    samples = []
    with ours(folder, '--pin', '1') as (p, port):
        def sample():
            end = time.monotonic() + 60 * minutes
            while time.monotonic() < end:
                everybody = [psutil.Process(p.pid), *psutil.Process(p.pid).children(recursive=True)]
                samples.append((time.monotonic(), sum(q.memory_info().rss for q in everybody) / 2**20))
                time.sleep(2)
        asked = load(port, smiles, 8, 60 * minutes, 0., sample)
    return asked, [(t - samples[0][0], mb) for t, mb in samples]


# --- the page

def bars(ax, libraries):
    shown = ax.barh(list(libraries), list(libraries.values()), color=[GREY if 'chemprop' in name else BLUE for name in libraries])
    ax.bar_label(shown, fmt='{:,.0f}', padding=3)
    ax.set(xlabel='molecules per second', title='A library', xlim=(0, 1.35 * max(libraries.values())))
    ax.invert_yaxis()
    ax.grid(axis='y', visible=False)


def latencies(ax, requests):
    "A line for each load; ours above, MLflow's server below it."
    names = [name for name in requests if 'MLflow' not in name]
    for name, asked in requests.items():
        is_ours = 'MLflow' not in name
        y = names.index(name.partition(", MLflow")[0]) + (-.15 if is_ours else .15)
        low, mid, high = (1e3 * np.quantile(asked.latency, q) for q in (.05, .5, .99))
        ax.plot([low, high], [y, y], color=BLUE if is_ours else GREY, lw=3)
        ax.plot(mid, y, 'o', color=BLUE if is_ours else GREY)
        ax.text(high * 1.2, y, f"{asked} per second{'' if is_ours else ', MLflow'}", va='center', fontsize=10)
    ax.set(yticks=range(len(names)), yticklabels=names, xscale='log', title='Requests of one molecule', xlabel='ms: 5 %, median, 99 %')
    ax.set_xlim(right=ax.get_xlim()[1] * 30)
    ax.invert_yaxis()
    ax.grid(axis='y', visible=False)


def figure(path, libraries, requests, memory):
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    import seaborn as sns
    sns.set_theme(style='whitegrid', context='notebook')
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4), width_ratios=[1, 1.6, 1], layout='constrained')
    bars(left, libraries)
    latencies(middle, requests)
    right.plot([t / 60 for t, _ in memory], [mb for _, mb in memory], color=ORANGE)
    right.set(xlabel='minutes', ylabel='MB, all processes', title='Memory under load', ylim=(0, 1.15 * max(mb for _, mb in memory)))
    fig.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', type=Path, help='a Markdown file')
    parser.add_argument('--figure', type=Path, help='a PNG file')
    parser.add_argument('--data', type=Path, default=EXTERNAL, help='a table of molecules besides ESOL')
    parser.add_argument('--molecules', type=int, default=100_000, help='in the library')
    parser.add_argument('--seconds', type=float, default=15, help='of each load')
    parser.add_argument('--minutes', type=float, default=30, help='for the memory')
    parser.add_argument('--chemprop', type=Path, help='its program, in an environment of its own')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name: print(measure(Path(name), args))


def measure(folder, args):
    smiles = molecules(args.data, args.molecules)
    file = folder / 'library.csv'
    pd.DataFrame(dict(smiles=smiles)).to_csv(file, index=False)
    libraries, requests, versions = {}, {}, {}
    for name in CHAMPIONS:
        version = versions[name] = make_champion(name, folder)
        say(f'library: {name}')
        seconds, memory = predicted(folder, version, file)
        libraries[name] = Library(len(smiles) / seconds, memory, *cpu_times(folder, version, smiles[:1000]))
    speeds = {name: each.per_second for name, each in libraries.items()}
    if args.chemprop:
        say('library: chemprop')
        speeds['chemprop'] = chemprop_per_second(args.chemprop.absolute(), folder, file, len(smiles))
    for name, version in versions.items():
        say(f'requests: {name}')
        with ours(folder, '--pin', version) as (_, port):
            for n in (1, 32): requests[f'{name}, {n} at a time'] = load(port, smiles, n, args.seconds)
        with mlflows(folder, version) as (_, port):
            for n in (1, 32): requests[f"{name}, {n} at a time, MLflow's server"] = load(port, smiles, n, args.seconds)
    say('switches')
    switched, live = switches(folder, versions, smiles)
    say(f'memory: {args.minutes:g} minutes')
    asked, memory = memory_over(folder, smiles, args.minutes)
    text = page(args, libraries, speeds, requests, switched, live, asked, memory)
    if args.output: args.output.write_text(text + '\n')
    if args.figure: figure(args.figure, speeds, requests, memory)
    return text


def page(args, libraries, speeds, requests, switched, live, asked, memory):
    rows = [[name, f'{each.per_second:,.0f}', f'{each.ms:.2f}', f'{100 * each.ratio:.0f} %', *[f'{mb:.0f}' for mb in each.memory]]
            for name, each in libraries.items()]
    if 'chemprop' in speeds: rows.append(['chemprop', f"{speeds['chemprop']:,.0f}", '', '', '', ''])
    first = table(['champion', 'molecules per second', 'CPU ms per molecule', "of CalcMolDescriptors' CPU time", 'MB, parent', 'MB, worker'], rows)
    rows = [[name, str(a), a.ms(.5), a.ms(.99), a.failed] for name, a in requests.items()]
    second = table(['one molecule per request', 'requests per second', 'median, ms', '99 %, ms', 'failed'], rows)
    quarter = max(1, len(memory) // 4)
    begin, end = (np.median([mb for _, mb in part]) for part in (memory[quarter:2 * quarter], memory[-quarter:]))
    place = machine()['processor']
    return (f'`make bench-serving` ({os.cpu_count()} cores, {place}; {args.molecules:,} molecules, {args.seconds:g} s for each load).\n\n'
            "**A library**, from a file into a file, start of the program included; with interval, domain and error column"
            f"{'; Chemprop gives the number alone' if 'chemprop' in speeds else ''}\n\n{first}\n\n"
            f"**Requests**, from clients that ask again as soon as they are answered, on the same machine\n\n{second}\n\n"
            f"**Switches**: {len(switched.latency) / switched.seconds:.0f} requests per second while the version that is served changed "
            f"{len(live)} times: {switched.failed} failed, live after {', '.join(f'{s:.1f}' for s in live)} s.\n\n"
            f"**Memory** under {asked} requests per second for {args.minutes:g} minutes: {begin:.0f} MB in the second quarter, "
            f"{end:.0f} MB in the last.")


if __name__ == '__main__': main()
