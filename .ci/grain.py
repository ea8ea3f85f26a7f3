"""The grain of the code: python .ci/grain.py [FOLDER] [MODULE …] fails on what is too long or too dense

An exported cell is one idea, and one thing stands on a line; CONTRIBUTING.md says why. FOLDER is a checkout, this one
when not given. MODULE is a wing (chem), a module (chem.split) or the name of a notebook (05_split); without any the
whole package is measured, and only then the density counts."""
import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

CELL_LINES, COLUMNS, FUNCTION_LINES, NODES_PER_LINE = 25, 120, 60, 20
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
EXPORTED = re.compile(r'(\s*#\s*\|.*\n)*?\s*#\s*\|\s*export')
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# what a nested comprehension has no room for
BESIDE = {'a ternary': ast.IfExp, 'a walrus': ast.NamedExpr, 'a lambda': ast.Lambda, 'a `*`': ast.Starred}
PLAIN = (ast.Name, ast.Attribute, ast.Constant, ast.Subscript, ast.UnaryOp)  # nothing is computed


@dataclass(frozen=True)
class Cell:
    "An exported cell of a notebook."
    notebook: str   # its path in nbs/
    module: str     # what it is exported to
    index: int      # in the notebook, from 0
    source: str


@dataclass(frozen=True)
class Offence:
    cell: Cell
    line: int       # in the cell, from 1
    kind: str       # what the totals count
    text: str

    def __str__(self):
        return f'{self.cell.notebook}[{self.cell.index}] {self.line}: {self.text}'


def exported_cells(folder: Path) -> list[Cell]:
    "The exported cells of all notebooks of a checkout."
    cells = []
    for path in sorted((folder / 'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' in path.parts:
            continue
        cells_of = json.loads(path.read_text('utf-8'))['cells']
        code = [(i, ''.join(c['source'])) for i, c in enumerate(cells_of) if c['cell_type'] == 'code']
        found = re.search(r'^#\s*\|\s*default_exp\s+(\S+)', '\n'.join(source for _, source in code), re.MULTILINE)
        if found:
            name = path.relative_to(folder / 'nbs').as_posix()
            cells += [Cell(name, found[1], i, source) for i, source in code if EXPORTED.match(source)]
    return cells


def lines_of(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1


def density(function: ast.AST) -> float:
    "Syntax nodes per line."
    return sum(1 for _ in ast.walk(function)) / lines_of(function)


def functions(cell: Cell) -> list[ast.AST]:
    return [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, FUNCTIONS)]


def by_position(node: ast.AST) -> bool:
    "Is it `x[1]`, with a number that is written there?"
    if not isinstance(node, ast.Subscript):
        return False
    index = node.slice.operand if isinstance(node.slice, ast.UnaryOp) else node.slice
    return isinstance(index, ast.Constant) and isinstance(index.value, int)


def docstring_lines(node: ast.AST) -> range:
    "The lines of a docstring of more than one line: documentation for Shift+Tab is not code that has to be held in mind."
    if not isinstance(node, (*FUNCTIONS, ast.ClassDef)) or not ast.get_docstring(node):
        return range(0)
    text = node.body[0]
    return range(text.lineno, text.end_lineno + 1) if text.end_lineno > text.lineno else range(0)


def length_offences(cell: Cell):
    "A cell with too many lines, or lines with too many columns."
    lines = cell.source.splitlines()
    documentation = {n for node in ast.walk(ast.parse(cell.source)) for n in docstring_lines(node)}
    code = [line for n, line in enumerate(lines, 1) if line.strip() and not re.match(r'\s*#\s*\|', line) and n not in documentation]
    if len(code) > CELL_LINES:
        yield Offence(cell, 1, 'long cells', f'{len(code)} lines, {CELL_LINES} are the limit of an exported cell')
    for number, line in enumerate(lines, 1):
        if len(line) > COLUMNS:
            yield Offence(cell, number, 'long lines', f'{len(line)} columns, {COLUMNS} are the limit')


def semicolon_offences(cell: Cell):
    for token in tokenize.generate_tokens(io.StringIO(cell.source).readline):
        if token.type == tokenize.OP and token.string == ';':
            yield Offence(cell, token.start[0], 'semicolons', 'a semicolon: one statement per line')


def comprehension_offence(node: ast.AST) -> str | None:
    "Why a comprehension with another one in it is too much: a third one, or a construct beside the two."
    inside = [n for n in ast.walk(node) if n is not node]
    nested = [n for n in inside if isinstance(n, COMPREHENSIONS)]
    if not nested:
        return None
    more = [name for name, kind in BESIDE.items() if any(isinstance(n, kind) for n in inside)]
    if len(nested) > 1:
        more.append('a third comprehension')
    if any(len(n.generators) > 1 for n in [node, *nested]):
        more.append('a second `for`')
    return ', '.join(more) or None


def unlike(node: ast.AST) -> bool:
    "Is it `a, b = x, y` with values of different kinds, such as a call and an empty list?"
    if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)):
        return False
    if not isinstance(node.targets[0], ast.Tuple):
        return False
    kinds = {'plain' if isinstance(v, PLAIN) else type(v).__name__ for v in node.value.elts}
    return len(kinds) > 1


def syntax_offences(cell: Cell):
    "Long functions, and lines on which more than one thing stands."
    walruses, inner = set(), set()
    for node in ast.walk(ast.parse(cell.source)):  # outer nodes come before inner ones
        if isinstance(node, FUNCTIONS) and lines_of(node) > FUNCTION_LINES:
            text = f'`{node.name}` has {lines_of(node)} lines, {FUNCTION_LINES} are the limit'
            yield Offence(cell, node.lineno, 'long functions', text)
        if isinstance(node, ast.Call):
            arguments = [*node.args, *(k.value for k in node.keywords)]
            for walrus in (n for a in arguments for n in ast.walk(a) if isinstance(n, ast.NamedExpr)):
                if walrus not in walruses:
                    walruses.add(walrus)
                    text = f'`{walrus.target.id} :=` inside the arguments of a call: give it its own line'
                    yield Offence(cell, walrus.lineno, 'walruses in calls', text)
        if isinstance(node, COMPREHENSIONS) and node not in inner:
            inner.update(n for n in ast.walk(node) if isinstance(n, COMPREHENSIONS))
            why = comprehension_offence(node)
            if why:
                text = f'a nested comprehension with {why}: name the parts'
                yield Offence(cell, node.lineno, 'nested comprehensions', text)
        if unlike(node):
            text = f'`{ast.unparse(node.targets[0])} =` assigns unlike things: a line for each'
            yield Offence(cell, node.lineno, 'unlike assignments', text)
        if by_position(node) and by_position(node.value):
            text = f'`{ast.unparse(node)}`: name the fields of the record'
            yield Offence(cell, node.lineno, 'positional records', text)


def offences(cell: Cell) -> list[Offence]:
    found = [*length_offences(cell), *semicolon_offences(cell), *syntax_offences(cell)]
    return sorted(found, key=lambda o: o.line)


def percentile(values: list[float], share: float) -> float:
    "The value that this share of all does not exceed."
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.


def belongs(cell: Cell, modules: list[str]) -> bool:
    names = cell.module, cell.module.split('.')[0], Path(cell.notebook).stem
    return not modules or any(m in names for m in modules)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description='Fail on exported code that is too long or too dense.')
    here = Path(__file__).resolve().parent.parent
    parser.add_argument('folder', nargs='?', type=Path, default=here, help='a checkout; this one when not given')
    parser.add_argument('modules', nargs='*', help='wings, modules or notebooks; all when not given')
    parser.add_argument('--module', action='append', default=[], help='the same')
    parser.add_argument('--densest', type=int, default=0, metavar='N', help='list the N densest functions')
    args = parser.parse_args(argv)
    modules = args.modules + args.module
    cells = [cell for cell in exported_cells(args.folder) if belongs(cell, modules)]
    if not cells:
        parser.error(f'no exported cell of {" or ".join(modules) or "any notebook"} in {args.folder}/nbs')
    found = [offence for cell in cells for offence in offences(cell)]
    print(*found, sep='\n', end='\n' if found else '')
    dense = sorted(((density(f), f.name, cell) for cell in cells for f in functions(cell)), key=lambda d: -d[0])
    p90 = percentile([d for d, _, _ in dense], .9)
    too_dense = not modules and p90 > NODES_PER_LINE
    listed = args.densest or 20 * too_dense
    for value, name, cell in dense[:listed]:
        print(f'{cell.notebook}[{cell.index}]: `{name}` has {value:.1f} syntax nodes per line')
    totals = Counter(offence.kind for offence in found)
    counted = ', '.join(f'{n} {kind}' for kind, n in totals.most_common()) or 'nothing too long or too dense'
    print(f'grain: {len(cells)} exported cells, {len(dense)} functions; syntax nodes per line: '
          f'90th percentile {p90:.1f} (limit {NODES_PER_LINE}); {counted}')
    return 1 if found or too_dense else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
