"""Runs notebooks and keeps what they show: python .ci/outputs.py [-j N] [--compare] [NAME or FOLDER …]

The notebooks of the modules, the pages of the wings and the map run here, without a store. `--compare` writes nothing:
it is `make test`'s run of all of them, and fails on an error, and on outputs whose kinds, columns or keys are not those
of the code today. The analysis notebooks need the runs of `make run`: they run when they are named, on the store of
MLFLOW_TRACKING_URI, else ./mlflow.db. Names are metrics, stats/01_metrics, stats or a path; all without any.

What belongs to one machine or one moment is replaced, as `masks` says, so that two runs give the same files."""
import argparse
import getpass
import hashlib
import json
import os
import pkgutil
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from multiprocessing import connection, get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / '.ci')]
import shapes

WIDGET = 'application/vnd.jupyter.widget-view+json'
TIMEOUT_S = 900
SLIDERS = '*Sliders and lists need a kernel: `make lab` shows them.*'


class Ids:
    "Stand-ins for ids that are drawn at random: the first that is seen is always replaced by the same, and so on."

    def __init__(self):
        self.seen = {}

    def __call__(self, match: re.Match) -> str:
        known = next((full for full in self.seen if full.startswith(match[0])), match[0])
        number = self.seen.setdefault(known, len(self.seen))
        return hashlib.sha256(f'id {number}'.encode()).hexdigest()[:len(match[0])]


def moment(match: re.Match) -> str:
    "Noon of a New Year's Day, as exact and in the same form as the time it replaces, so that tables keep their widths."
    day = f'2026-01-01{match[1]}12:00'
    seconds = ':00' if match[2] else ''
    fraction = '.' + '0' * (len(match[3]) - 1) if match[3] else ''
    return day + seconds + fraction + (match[4] or '')


def processor() -> str:
    "The processor's name, as the system knows it."
    info = Path('/proc/cpuinfo')
    name = re.search(r'model name\s*:\s*(.+)', info.read_text()) if info.exists() else None
    return name[1].strip() if name else platform.processor() or platform.machine()


def masks() -> list:
    "What is replaced, by what and in this order; made anew for each notebook, because ids are counted."
    git = ['git', '-C', str(ROOT), 'rev-parse', 'HEAD']
    head = subprocess.run(git, capture_output=True, text=True).stdout.strip() or 'no commit'
    temporary, ids = re.escape(tempfile.gettempdir()), Ids()
    return [
        # folders: temporary ones, the checkout, the environment, home
        (rf'(?:/private)?{temporary}/(?:[\w.-]+/)*?[\w-]*tmp[\w-]*', '/tmp/folder'),
        (re.escape(str(ROOT)), '/home/ada/bioai-esol'),
        (re.escape(sys.prefix), '/home/ada/bioai-esol/.venv'),
        (re.escape(str(Path.home())) + r'(?=/)', '/home/ada'),
        # user, host, processor
        (rf'\b{re.escape(getpass.getuser())}@[\w.-]+', 'ada@vm'),
        (rf'(?<=host)(\W{{1,6}}){re.escape(platform.node())}\b', r'\1vm'),
        (re.escape(processor()), 'a processor'),
        (r'\b\w+ \d+ \d+ [^\n\']+\((?:AVX|SSE|NEON|DEFAULT)\w*\)', 'a processor'),
        # times, durations, processes, addresses in memory
        (r'\b20\d\d-\d\d-\d\d([ T])\d\d:\d\d(:\d\d)?(\.\d+)?([+-]\d\d:?\d\d|Z)?', moment),
        (r'\b(in|after|took) \d+(?:\.\d+)? (s|ms|min)\b', r'\1 … \2'),
        (r'\bpid(\W{1,6})\d+', r'pid\g<1>12345'),
        (r'(?<=at )0x[0-9a-f]+', '0x0'),
        # the commit, ids of runs (their first eight digits too), ids that pandas gives to styled tables
        (rf'\b{head[:7]}[0-9a-f]*', lambda match: ('c0ffee' * 7)[:len(match[0])]),
        (r'\b[0-9a-f]{32}\b', ids),
        (r'(?<=\brun )[0-9a-f]{8}\b', ids),
        (r'\bT_[0-9a-f]{5}(?![0-9a-f])', 'T_table'),
    ]


def masked(text: str, replaced: list) -> str:
    for pattern, stand_in in replaced:
        text = re.sub(pattern, stand_in, text)
    return text


def texts_of(output: dict) -> list[str]:
    "Everything in an output that can be read."
    kinds = [part for kind, part in output.get('data', {}).items() if kind.startswith('text/') or 'svg' in kind]
    return [shapes.text_of(part) for part in [output.get('text', ''), *kinds]]


def tidy(outputs: list[dict], replaced: list) -> list[dict]:
    "Outputs as they are kept: no messages, no progress bars, nothing that needs a kernel, nothing of one machine."
    kept = []
    for output in outputs:
        data = output.get('data', {})
        if output.get('name') == 'stderr':
            continue
        if WIDGET in data:
            if '%|' in shapes.text_of(data.get('text/plain', '')):
                continue  # a progress bar
            output = dict(output_type='display_data', metadata={}, data={'text/markdown': SLIDERS})
        elif data:
            texts = {kind: part for kind, part in data.items() if kind.startswith('text/') or 'svg' in kind}
            lines = {kind: masked(shapes.text_of(part), replaced).splitlines(True) for kind, part in texts.items()}
            output = output | dict(data=data | lines)
        elif 'text' in output:
            output = output | dict(text=masked(shapes.text_of(output['text']), replaced).splitlines(True))
        kept.append(output)
    return kept


def run_here(path: Path) -> list[list[dict]]:
    "The outputs of each cell of a module's notebook, run as nbdev_test runs it."
    from execnb.nbio import read_nb
    from execnb.shell import CaptureShell, format_exc
    os.chdir(path.parent)
    shell, found = CaptureShell(path, mpl_format='png'), []
    import_module('rdkit.Chem.Draw.IPythonConsole')  # RDKit does so by itself in JupyterLab: molecules are drawn
    for index, cell in enumerate(read_nb(path).cells):
        code = cell.cell_type == 'code' and shapes.evaluated(cell.source)
        found.append([dict(output) for output in shell.run(cell.source)] if code else [])
        if code and shell.exc:
            printed = ''.join(shapes.text_of(o['text']) for o in found[-1] if o['output_type'] == 'stream')
            raise SystemExit(f'{path.relative_to(ROOT)}[{index}] fails\n{printed}{"".join(format_exc(shell.exc))}')
    return found


def run_with_store(path: Path) -> list[list[dict]]:
    "The outputs of each cell of an analysis notebook, on a kernel of its own."
    import nbformat
    from bioai_esol.store.client import store_uri  # where it is, whatever the folder of the notebook
    from nbclient import NotebookClient
    os.environ['MLFLOW_TRACKING_URI'] = store_uri(None)
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    notebook = nbformat.read(path, as_version=4)
    place = dict(metadata=dict(path=str(path.parent)))
    NotebookClient(notebook, timeout=1200, kernel_name='python3', resources=place).execute()
    return [[json.loads(json.dumps(o)) for o in cell.get('outputs', [])] for cell in notebook.cells]


def work(path: Path, result: Path):
    "In a process of its own: the tidied outputs of a notebook, as JSON."
    outputs = run_with_store(path) if shapes.is_analysis(path) else run_here(path)
    replaced = masks()
    kept = [tidy(o, replaced) for o in outputs]
    text = '\n'.join(said for cell in kept for output in cell for said in texts_of(output))
    for foreign in (str(ROOT), f'{Path.home()}/'):
        if foreign in text:
            place = text.index(foreign)
            around = text[max(0, place - 80):place + 80]
            raise SystemExit(f'{path.relative_to(ROOT)} shows a path of this machine: …{around}…')
    result.write_text(json.dumps(kept), encoding='utf-8')


def save(path: Path, outputs: list[list[dict]]):
    "Write the outputs into the notebook, in nbdev's form."
    from execnb.nbio import read_nb, write_nb
    from nbdev.clean import _nbdev_clean
    notebook = read_nb(path)
    for cell, kept in zip(notebook.cells, outputs):
        if cell.cell_type == 'code':
            cell['outputs'] = kept
    _nbdev_clean(notebook, path=None)
    write_nb(notebook, path)
    for index in shapes.missing(shapes.read(path)):
        print(f'{path.relative_to(ROOT)}[{index}]: ends in an expression that has no value: end it with a semicolon')


def differences(path: Path, outputs: list[list[dict]]) -> list[str]:
    "Where the stored outputs of a notebook are not of the form of those of today."
    found = []
    for index, (cell, today) in enumerate(zip(shapes.read(path)['cells'], outputs)):
        if cell['cell_type'] == 'code':
            for what in shapes.differences(cell['outputs'], today):
                found.append(f'{path.relative_to(ROOT)}[{index}]: {what}')
    return found


def names_of(path: Path) -> set[str]:
    "What a notebook can be called by: 02_conformal, conformal, stats/02_conformal, stats."
    inside = path.relative_to(ROOT / 'nbs')
    return {path.stem, re.sub(r'^\d\d_', '', path.stem), inside.with_suffix('').as_posix(), *inside.parts[:-1]}


def chosen(names: list[str]) -> list[Path]:
    "The notebooks with these names, or below these folders; all that need no store when there are none."
    def has_code(path):
        return any(cell['cell_type'] == 'code' for cell in shapes.read(path)['cells'])
    paths = [p for p in shapes.notebooks(ROOT / 'nbs') if has_code(p)]
    if not names:
        return [p for p in paths if not shapes.is_analysis(p)]
    found = []
    for name in names:
        path = Path(name).absolute()
        here = [p for p in paths if name in names_of(p) or path in (p, *p.parents)]
        if not here:
            raise SystemExit(f'no notebook with code is called {name}, or lies in such a folder')
        found += here
    return list(dict.fromkeys(found))


def preload():
    "Import the package and what it needs once, before the processes part."
    import bioai_esol
    for module in pkgutil.walk_packages(bioai_esol.__path__, 'bioai_esol.'):
        import_module(module.name)


def run_all(paths: list[Path], jobs: int, take) -> list[str]:
    "Run notebooks, a process for each, and hand their outputs to `take(path, outputs)`; gives those that failed."
    context, waiting, running, failed = get_context('fork'), list(paths), {}, []
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < jobs:
                path = waiting.pop(0)
                result = Path(folder) / f'{len(waiting)}.json'
                process = context.Process(target=work, args=(path, result))
                process.start()
                running[process.sentinel] = process, path, result, time.monotonic()
            ready = connection.wait(list(running), timeout=1)
            for sentinel, (process, path, result, began) in list(running.items()):
                seconds = time.monotonic() - began
                if sentinel not in ready and seconds < TIMEOUT_S:
                    continue
                process.kill() if sentinel not in ready else process.join()
                del running[sentinel]
                print(f'{path.relative_to(ROOT)}: {seconds:.0f} s', flush=True)
                if result.exists():
                    take(path, json.loads(result.read_text(encoding='utf-8')))
                else:
                    why = 'failed' if sentinel in ready else f'stopped after {TIMEOUT_S} s'
                    failed.append(f'{path.relative_to(ROOT)}: {why}')
    return failed


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description='Run notebooks and keep what they show.')
    parser.add_argument('names', nargs='*', help='notebooks or folders; all that need no store when not given')
    parser.add_argument('-j', '--jobs', type=int, default=2, help='how many at a time (%(default)s)')
    parser.add_argument('--compare', action='store_true', help='write nothing; fail where outputs are not of today')
    args = parser.parse_args(argv)
    paths = chosen(args.names)
    os.environ |= dict(COLUMNS='100', LINES='40', IN_TEST='1')
    os.environ.pop('MPLBACKEND', None)
    if not any(shapes.is_analysis(p) for p in paths):
        os.environ.pop('MLFLOW_TRACKING_URI', None)
    if len(paths) > 2:
        preload()
    found = []
    if args.compare:
        failed = run_all(paths, args.jobs, lambda path, outputs: found.extend(differences(path, outputs)))
    else:
        failed = run_all(paths, args.jobs, save)
    print(*failed, *found, sep='\n', end='\n' if failed or found else '', file=sys.stderr)
    if found:
        print(f'outputs: {len(found)} are not those of today: .ci/outputs.py NOTEBOOK keeps new ones', file=sys.stderr)
    if failed or found:
        return 1
    done = 'show what is stored' if args.compare else 'keep what they show'
    print(f'outputs: {len(paths)} notebooks ran, and {done}')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
