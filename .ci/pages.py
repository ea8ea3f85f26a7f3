"""Runs the commands on the pages and writes what they print under them: python .ci/pages.py [--check] [--list] [PAGE …]

Home, tutorial, how-to pages and stores, in the order of the sidebar, in one new folder, at one commit. A block of `sh`
or `python` is run as a person would type it; the block without a language that follows is its output and is written
anew. With several commands in a block and as many output blocks behind it, each gets its own. What the page does not
show stands in comments in front of a block, where readers do not see it:

    <!-- run: no, REASON -->         this block is not run; `not on this page, REASON` holds for the whole page
    <!-- run: quiet -->              run, and the output is not shown
    <!-- run: exit 2 -->             commands that end with another status than 0 are an error, unless it is this one
    <!-- run: raises ConfigError --> the same for Python
    <!-- run: until TEXT -->         goes on in the background, from the line with TEXT on, to the end of the page
    <!-- run: in FOLDER -->          the page's folder, in the one of the pages; made where there is none
    <!-- run: first                  commands of `sh` that nobody sees
    head -3 table.csv
    -->

The last cell of a page records at which commit its outputs were made. `--check` runs one small sweep and its promotion,
and fails where the program prints another form than it did for the pages, where commands or outputs of a page are not
those that were recorded, and where the prose names a figure (with three decimals or more) that no output shows."""
import argparse
import contextlib
import getpass
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import date
from importlib import import_module
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
FORM = ROOT / '.ci/form.txt'
FENCE = re.compile(r'^```([\w.-]*)[^\n]*\n(.*?)^```[ \t]*$', re.MULTILINE | re.DOTALL)
MARK = re.compile(r'<!-- run: (.*?)\s*-->', re.DOTALL)
RECORD = re.compile(r'\n*<!-- outputs: commit (\w+), (\S+); form (\w+), blocks (\w+) -->\n*\Z')
TIMEOUT_S = 1200
LONG_S = 60  # what takes longer is announced on the page
PROBE = ['sweep --run-tag one --hidden-dim 8 --lr 1e-2 --batch-size 64 --dropout 0 --weight-decay 0 --epochs 1',
         'promote --run-tag one --dry-run --gap-threshold 9 --allow-dirty',
         'promote --run-tag one --gap-threshold 9 --allow-dirty',
         'predict CCO',
         'sweep --run-tag two --hidden-dim 16 --lr 1e-2 --batch-size 16 --dropout 0 --weight-decay 0 --epochs 60',
         'promote --run-tag two --gap-threshold 9 --allow-dirty',
         'observe measured.csv',
         'watch --dry-run',
         'status',
         'rollback --reason probe',
         'history']


# pages as they are written

@dataclass
class Block:
    "A fenced block of a page."
    cell: int           # in the notebook, from 0
    start: int          # where its text begins and ends in the cell
    end: int
    language: str
    text: str
    marks: list[str]    # of the comments in front of it
    outputs: list['Block'] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        return self.language in ('sh', 'python')

    def mark(self, word: str) -> str | None:
        "What the mark that begins with this word says; '' when it says no more."
        found = [m.removeprefix(word).lstrip(' ,') for m in self.marks if re.match(rf'{word}\b', m)]
        return found[0] if found else None


@dataclass
class Page:
    path: Path
    notebook: dict
    blocks: list[Block]
    marks: list[str]    # those that hold for the whole page

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix() if self.path.is_relative_to(ROOT) else self.path.name

    def mark(self, word: str) -> str | None:
        found = [m.removeprefix(word).lstrip(' ,') for m in self.marks if m.startswith(word)]
        return found[0] if found else None

    def why_not(self, block: Block) -> str | None:
        "Why a block is not run; None when it is."
        return self.mark('not on this page') or block.mark('no')

    @property
    def to_run(self) -> list[Block]:
        return [b for b in self.blocks if self.why_not(b) is None]


def blocks_of(cell: int, text: str) -> list[Block]:
    "The blocks of a cell that are run, each with the output blocks that follow it."
    found, position, last = [], 0, None
    for fence in FENCE.finditer(text):
        between = text[position:fence.start()]
        marks = [m[1] for m in MARK.finditer(between)]
        block = Block(cell, fence.start(), fence.end(), fence[1], fence[2], marks)
        if block.runs:
            found.append(block)
            last = block
        elif not block.language and last and not between.strip():
            last.outputs.append(block)
        else:
            last = None
        position = fence.end()
    return found


def read_page(path: Path) -> Page:
    notebook = json.loads(path.read_text(encoding='utf-8'))
    blocks, marks = [], []
    for index, cell in enumerate(notebook['cells']):
        text = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            blocks += blocks_of(index, text)
            whole = [m[1] for m in MARK.finditer(text) if re.match(r'not on this page|in |first', m[1])]
            marks += [m for m in whole if not m.startswith('first')]
    return Page(path, notebook, blocks, marks)


def all_pages() -> list[Page]:
    "Home, tutorial, how-to pages and stores, as the sidebar orders them."
    website = yaml.safe_load((ROOT / '_quarto.yml').read_text(encoding='utf-8'))['website']
    def listed(items):
        for item in items:
            if isinstance(item, str):
                yield item
            elif 'contents' in item:
                inside = item['contents']
                yield from listed([inside] if isinstance(inside, str) else inside)
            else:
                yield item['href']
    wanted = re.compile(r'nbs/(index|tutorial|howto/\w+|stores/\w+)\.ipynb')
    return [read_page(ROOT / name) for name in listed(website['sidebar']['contents']) if wanted.fullmatch(name)]


def written(page: Page, printed: dict[int, list[str]], record: str) -> str:
    "The page with these outputs, by the position of their block among all, and a record of where they are from."
    cells = page.notebook['cells']
    texts = {i: ''.join(c['source']) for i, c in enumerate(cells)}
    for number in reversed(range(len(page.blocks))):
        if number in printed:
            block = page.blocks[number]
            end = block.outputs[-1].end if block.outputs else block.end
            shown = ''.join(f'\n\n```\n{text}```' for text in printed[number])
            texts[block.cell] = texts[block.cell][:block.end] + shown + texts[block.cell][end:]
    last = max(i for i, c in enumerate(cells) if c['cell_type'] == 'markdown')
    texts[last] = RECORD.sub('', texts[last]).rstrip('\n') + '\n\n' + record
    for index, text in texts.items():
        cells[index]['source'] = text.splitlines(keepends=True)
    return json.dumps(page.notebook, sort_keys=True, indent=1, ensure_ascii=False) + '\n'


def digest(page: Page) -> str:
    "Of everything that was run, and what it printed."
    content = [(b.language, b.text, b.marks, [o.text for o in b.outputs]) for b in page.to_run]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:12]


def record_of(page: Page) -> re.Match | None:
    markdown = [''.join(c['source']) for c in page.notebook['cells'] if c['cell_type'] == 'markdown']
    return RECORD.search(markdown[-1])


# running them

def commands(text: str) -> list[str]:
    "The commands of a block: a line each, or more where a line goes on."
    found, lines = [], []
    for line in text.splitlines():
        lines.append(line)
        chunk = '\n'.join(lines)
        parsed = subprocess.run(['bash', '-n', '-c', chunk], capture_output=True)
        if parsed.returncode == 0 and not line.endswith('\\'):
            found += [chunk] if chunk.strip() else []
            lines = []
    if lines:
        raise SystemExit(f'a command that does not end, or that no shell reads: {chr(10).join(lines)}')
    return found


class Terminal:
    "A terminal and a notebook of one page: folder and environment are kept from block to block."

    def __init__(self, base: Path, folder: str | None):
        self.base, self.kernel, self.left_running = base, None, []
        self.folder = base / folder if folder else base
        self.folder.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
        kept_out = {k: v for k, v in os.environ.items() if not k.startswith(('MLFLOW_', 'AWS_', 'PG'))}
        self.env = kept_out | dict(PATH=path, PYTHONPATH=str(ROOT), PYTHONUNBUFFERED='1', COLUMNS='100',
                                   XDG_STATE_HOME=str(base / '.state'))

    def masked(self, text: str) -> str:
        "What a command printed, without the place of the folder and the name of who ran it."
        text = re.sub(re.escape(str(self.base)) + r'(/[\w.-]+)?(?=/)', '/…', text)
        text = text.replace(str(self.folder), '/…').replace(str(self.base), '/…')
        text = text.replace(str(ROOT), '/…').replace(str(Path.home()) + '/', '~/')
        return re.sub(rf'\b{re.escape(getpass.getuser())}@[\w.-]+', 'ada@vm', text)

    def sh(self, command: str) -> tuple[int, str]:
        "Exit status and output of a command."
        state = self.base / '.terminal'
        script = f"trap '{{ pwd; env -0; }} > {state}' EXIT\ncd {self.folder}\n{command}"
        done = subprocess.run(['bash', '-c', script], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              stdin=subprocess.DEVNULL, timeout=TIMEOUT_S)  # as bytes: text would turn \r into \n
        folder, _, variables = state.read_text(encoding='utf-8').partition('\n')
        self.folder = Path(folder)
        self.env = dict(v.split('=', 1) for v in variables.split('\0') if '=' in v)
        return done.returncode, self.masked(done.stdout.decode())

    def until(self, command: str, text: str) -> str:
        "The output of a command that stays, up to a line."
        log = self.base / f'.background-{len(self.left_running)}'
        with open(log, 'w') as out:
            process = subprocess.Popen(['bash', '-c', f'exec {command}'], env=self.env, cwd=self.folder, stdout=out,
                                       stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)
        self.left_running.append(process)
        end = time.monotonic() + 120
        while text not in log.read_text(encoding='utf-8'):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f'{command} did not say {text!r}:\n{log.read_text(encoding="utf-8")}')
            time.sleep(.2)
        return self.masked(log.read_text(encoding='utf-8'))

    def python(self, code: str) -> tuple[str, str]:
        "Name of the error, or '', and output of a cell."
        from jupyter_client.manager import start_new_kernel
        if self.kernel is None:
            self.kernel = start_new_kernel(kernel_name='python3', cwd=str(self.folder), env=self.env)
        shown, error = [], []

        def take(message):
            content = message['content']
            if message['msg_type'] == 'stream' and content['name'] == 'stdout':
                shown.append(content['text'])
            elif message['msg_type'] == 'execute_result':
                shown.append(content['data']['text/plain'] + '\n')
            elif message['msg_type'] == 'error':
                error.append(content['ename'])
                shown.append(f"{content['ename']}: {content['evalue']}\n")
        self.kernel[1].execute_interactive(code, output_hook=take, timeout=TIMEOUT_S)
        return ''.join(error), self.masked(''.join(shown))

    def close(self):
        for process in self.left_running:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(60)
        if self.kernel:
            self.kernel[1].stop_channels()
            self.kernel[0].shutdown_kernel(now=True)


def run_block(terminal: Terminal, block: Block, place: str) -> list[str]:
    "What a block printed: all of it as one text, or one for each command where the page has a block for each."
    first = block.mark('first')
    if first is not None:
        status, text = terminal.sh(first)
        if status:
            raise SystemExit(f'{place}: the preparation ends with {status}:\n{text}')
    if block.language == 'python':
        error, text = terminal.python(block.text)
        if error != (block.mark('raises') or ''):
            raise SystemExit(f'{place}: {error or "nothing"} is raised:\n{block.text}\n{text}')
        return [text]
    texts, until = [], block.mark('until')
    for command in commands(block.text):
        if until:
            texts.append(terminal.until(command, until))
            continue
        status, text = terminal.sh(command)
        if status not in (0, int(block.mark('exit') or 0)):
            raise SystemExit(f'{place}: ends with {status}: {command}\n{text}')
        texts.append(text)
    told = [t for t in texts if t]
    if len(block.outputs) < 2:
        return [''.join(told)] if told else []
    if len(block.outputs) != len(told):
        raise SystemExit(f'{place}: {len(told)} commands print something, for {len(block.outputs)} blocks of output')
    return told


def run_page(page: Page, base: Path) -> dict[int, list[str]]:
    "What the blocks of a page print, by their position among all blocks."
    printed, terminal = {}, Terminal(base, page.mark('in'))
    with contextlib.closing(terminal):
        for number, block in enumerate(page.blocks):
            if page.why_not(block) is not None:
                continue
            began, place = time.monotonic(), f'{page.name}[{block.cell}]'
            texts = run_block(terminal, block, place)
            seconds = time.monotonic() - began
            late = f'; more than {LONG_S} s: does the page say so before?' if seconds > LONG_S else ''
            print(f'{place}: {seconds:.0f} s  {block.text.splitlines()[0][:70]}{late}', flush=True)
            if block.mark('quiet') is None:
                printed[number] = [plain(text) for text in texts if text.strip()]
    return printed


def plain(text: str) -> str:
    "Without progress bars and what else a terminal overwrites, and with one newline at the end."
    lines = []
    for line in text.replace('\r\n', '\n').split('\n'):
        last = line.rpartition('\r')[2]
        wiped = '\r' in line and not last.strip()
        if not wiped and not re.search(r'\d%\|.*\|', last):
            lines.append(last)
    return '\n'.join(lines).strip('\n') + '\n'


# the form of what the program prints

def form(text: str) -> str:
    "The text without numbers, ids, names and times, and whatever hangs on them."
    text = re.sub(r'\b\S+@[\w.-]+', 'WHO', text)
    text = re.sub(r'\b(?=[0-9a-f]*\d)[0-9a-f]{7,40}\b', 'ID', text)
    text = re.sub(r'(✓ )?clean_tree: .*', 'clean_tree: …', text)
    text = re.sub(r'[-−]?\d[\d.,:]*(e[-+]?\d+)?', '#', text)
    text = re.sub(r'[✓✗]', '•', text).replace('worse', 'better')
    return '\n'.join(re.sub(r'\s+', ' ', line).strip() for line in text.splitlines()) + '\n'


def probe() -> str:
    "What the commands of PROBE print today, in their form."
    sys.path.insert(0, str(ROOT))
    os.environ |= dict(COLUMNS='100', PYTHONPATH=str(ROOT))
    os.environ.pop('MLFLOW_TRACKING_URI', None)
    main, texts, back = import_module('bioai_esol.cli.commands').main, [], Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.environ['XDG_STATE_HOME'] = folder
        os.chdir(folder)
        Path(folder, 'measured.csv').write_text('smiles,logS\nCCCCCCCCCCO,-3.6\nCc1ccccc1C,-2.8\n', encoding='utf-8')
        for command in PROBE:
            out, messages = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(messages):
                status = main(command.split())
            if status:
                raise SystemExit(f'bioai-esol {command} ends with {status}:\n{out.getvalue()}{messages.getvalue()}')
            texts.append(f'$ bioai-esol {command}\n' + form(out.getvalue().replace(folder, '/…')))
        os.chdir(back)
    return '\n'.join(texts)


def form_digest(text: str) -> str:
    "Of the words; where lines are broken depends on how long the figures are."
    return hashlib.sha256(' '.join(text.split()).encode()).hexdigest()[:12]


def first_difference(old: str, new: str) -> tuple[str, str]:
    "The words around the first that is not the same."
    a, b = old.split(), new.split()
    at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return ' '.join(a[max(0, at - 4):at + 4]), ' '.join(b[max(0, at - 4):at + 4])


def unsupported(page: Page) -> list[str]:
    "Figures of the prose, with three decimals or more, that are in no output of the page, rounded or not."
    output = ' '.join(o.text for b in page.to_run for o in b.outputs) + ' '.join(b.text for b in page.blocks)
    shown = re.findall(r'\d+\.\d+', output)
    missing = []
    for cell in page.notebook['cells']:
        prose = FENCE.sub('', ''.join(cell['source'])) if cell['cell_type'] == 'markdown' else ''
        prose = re.sub(r'<!--.*?-->', '', prose, flags=re.DOTALL)
        for number in re.findall(r'(?<![\w./-])\d+\.\d{3,}(?![\w-]|\.\d)', prose):
            decimals = len(number.partition('.')[2])
            if not any(f'{float(s):.{decimals}f}' == number for s in shown):
                missing.append(number)
    return missing


def faults(pages: list[Page], recorded: str, today: str) -> list[str]:
    "What is not of today on the pages; `recorded` and `today` are what `probe` said for them and says now."
    found = []
    if form_digest(recorded) != form_digest(today):
        old, new = first_difference(recorded, today)
        found.append(f'the program prints {new!r} where it printed {old!r} when the pages were made')
    for page in pages:
        for number in unsupported(page) if page.to_run else []:
            found.append(f'{page.name}: the prose says {number}, and no output on the page does')
        record = record_of(page)
        if not page.to_run:
            continue
        if not record:
            found.append(f'{page.name}: nothing says when its commands were run')
        elif record[3] != form_digest(recorded):
            found.append(f'{page.name}: made at commit {record[1]}, when the program printed another form')
        elif record[4] != digest(page):
            found.append(f'{page.name}: commands or outputs are not those of the run at commit {record[1]}')
    return found


def check(pages: list[Page]) -> int:
    recorded = FORM.read_text(encoding='utf-8') if FORM.exists() else ''
    found = faults(pages, recorded, probe())
    print(*found, sep='\n', end='\n' if found else '', file=sys.stderr)
    if found:
        print('run .ci/pages.py on a clean checkout', file=sys.stderr)
    return bool(found)


def tree_is_clean() -> bool:
    "Is what determines the outputs committed?"
    status = ['git', '-C', str(ROOT), 'status', '--porcelain', '--', 'bioai_esol', 'pyproject.toml', 'constraints.txt']
    return not subprocess.run(status, capture_output=True, text=True, check=True).stdout.strip()


def make(pages: list[Page], some: bool, folder: Path) -> int:
    "Run the pages and write the outputs of those that ran to their end; `some` are not all of them."
    if not tree_is_clean():
        raise SystemExit('the package has changes that are not committed: the outputs would be of no commit')
    git = ['git', '-C', str(ROOT), 'rev-parse', '--short=12', 'HEAD']
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    today = probe()
    if some and FORM.exists() and form_digest(today) != form_digest(FORM.read_text(encoding='utf-8')):
        raise SystemExit('the program prints another form than at the last run of all pages: run all of them')
    FORM.write_text(today, encoding='utf-8')
    record, failed = f'<!-- outputs: commit {commit}, {date.today()}; form {form_digest(today)}, blocks ', []
    for page in (p for p in pages if p.to_run):
        try:
            save(page, run_page(page, folder), record)
        except (SystemExit, subprocess.TimeoutExpired) as e:
            failed.append(f'{page.name} is as it was: {e}')
    print(*failed, sep='\n', end='\n' if failed else '', file=sys.stderr)
    return bool(failed)


def save(page: Page, printed: dict[int, list[str]], record: str):
    "Write a page with its outputs and a record of them, and name the figures of its prose that no output has."
    page.path.write_text(written(page, printed, f'{record}0 -->'), encoding='utf-8')
    again = read_page(page.path)
    page.path.write_text(written(again, {}, f'{record}{digest(again)} -->'), encoding='utf-8')
    for number in unsupported(again):
        print(f'{page.name}: the prose says {number}, and no output on the page does')


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description='Run the commands on the pages and write what they print under them.')
    parser.add_argument('pages', nargs='*', help='tutorial, howto/seeds, …; all when not given')
    parser.add_argument('--check', action='store_true', help='write nothing; fail where a page is not of today')
    parser.add_argument('--folder', type=Path, help='run in this folder and keep it; a new one when not given')
    parser.add_argument('--list', action='store_true', help='what is not run, and why')
    args = parser.parse_args(argv)
    pages = [p for p in all_pages() if not args.pages or any(p.name in (n, f'nbs/{n}.ipynb') for n in args.pages)]
    if args.list:
        for page in pages:
            for block in page.blocks:
                why = page.why_not(block)
                line = block.text.splitlines()[0][:60]
                print(f'{page.name}[{block.cell}] {line}: ' + (f'not run: {why}' if why is not None else 'run'))
        return 0
    if args.check:
        return check(pages)
    if args.folder:
        return make(pages, bool(args.pages), args.folder.resolve())
    with tempfile.TemporaryDirectory() as folder:
        return make(pages, bool(args.pages), Path(folder))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
