"""What the outputs of a notebook look like: python .ci/shapes.py fails where a cell ends in a value and shows none

`shape` reduces outputs to what another processor does not change: kinds of output, columns of frames, keys of dicts,
names of fields. `.ci/outputs.py --compare` holds the stored outputs of a notebook against those of today with it."""
import ast
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WIDGETS = {'LiveSweep', 'PolicyExplorer', 'RunBrowser'}  # nothing of them can be looked at without a kernel
QUIET = re.compile(r'(\w+\.)*(test_\w+|print|assert_\w+)')  # calls that are not made for their value
NAME = r'[A-Za-z_]\w*'


def notebooks(folder: Path) -> list[Path]:
    "All notebooks below a folder, as nbdev finds them."
    found = sorted(folder.rglob('*.ipynb'))
    return [p for p in found if not any(part[0] in '._' for part in p.relative_to(folder).parts)]


def read(path: Path) -> dict:
    "A notebook, with each source and each text as one string."
    notebook = json.loads(path.read_text(encoding='utf-8'))
    for cell in notebook['cells']:
        cell['source'] = ''.join(cell['source'])
    return notebook


def text_of(part) -> str:
    "A text of an output, which a notebook keeps as a string or as a list of lines."
    return ''.join(part) if isinstance(part, list) else part


def is_analysis(path: Path) -> bool:
    "Is it a notebook on the runs of a store? Those are in nbs/lab/, and the gallery."
    return path.parent.name == 'lab' or path.stem == 'gallery'


def evaluated(source: str) -> bool:
    "Does nbdev run this cell?"
    return not re.search(r'^#\s*\|\s*(eval:\s*false|slow)', source, re.MULTILINE)


def ends_in_value(source: str) -> bool:
    "Is the last statement an expression that is made to be looked at?"
    if not evaluated(source):
        return False
    code = ''.join('\n' if line.lstrip().startswith(('%', '!')) else line for line in source.splitlines(keepends=True))
    body = ast.parse(code).body
    if not body or not isinstance(body[-1], ast.Expr):
        return False
    value = body[-1].value
    rest = '\n'.join(code.splitlines()[value.end_lineno - 1:]).encode()[value.end_col_offset:]
    if rest.lstrip().startswith(b';'):
        return False
    if isinstance(value, ast.Constant) and isinstance(value.value, str) and len(body) == 1:
        return False  # a comment in the form of a text
    name = ast.unparse(value.func) if isinstance(value, ast.Call) else ''
    return not QUIET.fullmatch(name) and name not in WIDGETS


def missing(notebook: dict) -> list[int]:
    "The cells, from 0, that end in a value and have no output."
    code = [(i, c) for i, c in enumerate(notebook['cells']) if c['cell_type'] == 'code']
    return [i for i, c in code if not c['outputs'] and ends_in_value(c['source'])]


def columns_of(html: str) -> list[str]:
    "The columns of the tables in a page, table by table."
    heads = re.findall(r'<thead.*?</thead>', html, re.DOTALL)
    cells = [cell for head in heads for cell in re.findall(r'<th\b[^>]*>(.*?)</th>', head, re.DOTALL)]
    return [re.sub(r'<[^>]+>', '', cell).strip() for cell in cells]


def labels(text: str) -> dict:
    "Keys of dicts, names of fields, and the columns of a frame that was printed."
    first = text.strip('\n').partition('\n')[0]
    words = re.split(r'\s+', first.strip())
    head = words if len(words) > 1 and all(re.fullmatch(NAME, w) for w in words) and '  ' in first else []
    return dict(columns=head, keys=sorted(set(re.findall(rf"'({NAME})':", text))),
                fields=sorted(set(re.findall(rf'\b({NAME})=', text))))


def shape(outputs: list[dict]) -> list[dict]:
    "What another processor does not change in the outputs of a cell."
    shapes = []
    for output in outputs:
        if output['output_type'] == 'stream':
            shapes.append(dict(kinds=['stream']) | labels(text_of(output['text'])))
        else:
            data = output.get('data', {})
            html, plain = text_of(data.get('text/html', '')), text_of(data.get('text/plain', ''))
            parts = dict(columns=columns_of(html), keys=[], fields=[]) if html else labels(plain)
            shapes.append(dict(kinds=sorted(data)) | parts)
    return shapes


def differences(stored: list[dict], today: list[dict]) -> list[str]:
    "In words, what the stored outputs of a cell have and those of today have not, and the other way round."
    if stored and not today:
        return ['an output is stored, and the cell shows none today']
    if today and not stored:
        return ['the cell shows a value, and no output is stored']
    old, new = shape(stored), shape(today)
    if [s['kinds'] for s in old] != [s['kinds'] for s in new]:
        kinds = [' and '.join('+'.join(s['kinds']) for s in shapes) for shapes in (old, new)]
        return [f'the stored output is {kinds[0]}, today it is {kinds[1]}']
    found = []
    for before, now in zip(old, new):
        for what in ('columns', 'keys', 'fields'):
            if before[what] != now[what]:
                gone = [x for x in before[what] if x not in now[what]]
                more = [x for x in now[what] if x not in before[what]]
                parts = [f'without {", ".join(more)}'] * bool(more) + [f'with {", ".join(gone)}'] * bool(gone)
                found.append(f'{what} are stored {" and ".join(parts) or "in another order"}, unlike those of today')
    return found


def main() -> int:
    lacking = [f'{path.relative_to(ROOT)}[{i}]' for path in notebooks(ROOT / 'nbs') for i in missing(read(path))]
    for place in lacking:
        print(f'{place}: ends in a value and has no output: run .ci/outputs.py on it, or end it with a semicolon')
    return bool(lacking)


if __name__ == '__main__':
    sys.exit(main())
