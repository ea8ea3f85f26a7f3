"""Copies the analysis notebooks into work/, for `make lab`: python .ci/lab.py prints the copy to open

The notebooks in nbs/lab/ are the project's, with its outputs, and tracked by git. The copies are yours: without
outputs, and git does not look at them. A copy that you only ran is renewed when the project's notebook has changed. One
that you edited is never touched: then the new notebook is put beside it, with a number in its name."""
import hashlib
import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / '.ci'))
import shapes

FIRST = 'sweep_analysis'
SCREENSHOT = re.compile(r'!\[[^\]]*\]\(\.\./images/explorer\.png\)\n*')  # of the widget that stands below it, alive
RECORD = '.copies.json'  # by the name of a copy: digests of the notebook it is made from, and of the copy


def digest(notebook: dict) -> str:
    "Of what is written in the cells; outputs and the number of a run are not."
    cells = [(cell['cell_type'], ''.join(cell['source'])) for cell in notebook['cells']]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def linked(text: str, path: Path, copies: Path, names: dict[str, str]) -> str:
    "Markdown with its links as they are from the folder of the copies; `names` are those of the copies."
    def there(match: re.Match) -> str:
        target, _, anchor = match[1].partition('#')
        if not target or re.match(r'[a-z]+:', target):
            return match[0]
        if target.removesuffix('.ipynb') in names:
            target = names[target.removesuffix('.ipynb')]
        else:
            target = Path(os.path.relpath((path.parent / target).resolve(), copies)).as_posix()
        return f']({target}{"#" * bool(anchor)}{anchor})'
    return re.sub(r'\]\(([^)\s]+)\)', there, SCREENSHOT.sub('', text))


def copy_of(path: Path, copies: Path, names: dict[str, str]) -> dict:
    "A notebook as it is put into the folder of the copies."
    notebook = json.loads(path.read_text(encoding='utf-8'))
    for cell in notebook['cells']:
        if cell['cell_type'] == 'code':
            cell |= dict(outputs=[], execution_count=None)
        elif cell['cell_type'] == 'markdown':
            cell['source'] = linked(''.join(cell['source']), path, copies, names).splitlines(keepends=True)
    return notebook


def place(name: str, source: str, copies: Path, record: dict) -> tuple[str, bool]:
    "The name of the copy that stands for a notebook, and whether it is to be written."
    number, copy = 1, f'{name}.ipynb'
    while (copies / copy).exists():
        made = record.get(copy, {})
        if made.get('source') == source:
            return copy, False
        try:
            now = digest(json.loads((copies / copy).read_text(encoding='utf-8')))
        except (ValueError, KeyError):
            now = 'not a notebook'
        if made.get('copy') == now:
            return copy, True
        number += 1
        copy = f'{name}-{number}.ipynb'
    return copy, True


def make(root: Path) -> tuple[str, list[str]]:
    "Bring the copies up to date; gives the one to open, from the top of the project, and what a person should know."
    copies = root / 'work'
    copies.mkdir(exist_ok=True)
    notes = root / 'work' / RECORD
    record = json.loads(notes.read_text(encoding='utf-8')) if notes.exists() else {}
    paths = [p for p in shapes.notebooks(root / 'nbs') if shapes.is_analysis(p)]
    sources = {p.stem: digest(json.loads(p.read_text(encoding='utf-8'))) for p in paths}
    places = {name: place(name, source, copies, record) for name, source in sources.items()}
    names, said = {name: copy for name, (copy, _) in places.items()}, []
    for path in paths:
        copy, new = places[path.stem]
        if not new:
            continue
        there, notebook = (copies / copy).exists(), copy_of(path, copies, names)
        (copies / copy).write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
        record[copy] = dict(source=sources[path.stem], copy=digest(notebook))
        if copy != f'{path.stem}.ipynb':
            said.append(f'work/{path.stem}.ipynb has your changes and stays; the new one is work/{copy}')
        else:
            said.append(f'work/{copy}: ' + ('renewed' if there else f'a copy of {path.relative_to(root).as_posix()}'))
    notes.write_text(json.dumps(record, indent=1) + '\n', encoding='utf-8')
    return f'work/{names[FIRST]}', said


if __name__ == '__main__':
    opened, said = make(ROOT)
    print(*said, sep='\n', end='\n' if said else '', file=sys.stderr)
    print(opened)
