"What `make check` says of code that is too long or too dense, on a checkout with one notebook."
import json

import pytest
from helpers import script

grain = script('grain')
LOOP = 'def f(a):\n' + '    a += 1\n' * 60


@pytest.fixture
def measured(tmp_path, capsys):
    "measured(code): exit status and output of the script on one exported cell."
    def run(*sources, args=(), export='#| export\n'):
        code = ['#| default_exp chem.split', *(export + source for source in sources)]
        cells = [dict(cell_type='code', source=text) for text in code]
        (tmp_path / 'nbs/chem').mkdir(parents=True, exist_ok=True)
        (tmp_path / 'nbs/chem/05_split.ipynb').write_text(json.dumps(dict(cells=cells)))
        return grain.main([str(tmp_path), *args]), capsys.readouterr().out
    return run


@pytest.mark.parametrize('source, said', [
    ('a = 1\n' * 26, '1: 26 lines'),
    ('a = "' + 'x' * 116 + '"', '2: 122 columns'),
    (LOOP, '2: `f` has 61 lines'),
    ('a = 1; b = 2', '2: a semicolon'),
    ('f(1, g(a := 2))', '2: `a :=` inside the arguments'),
    ('f(key=(a := 2))', '2: `a :=` inside the arguments'),
    ('[[a if b else c for b in d] for d in e]', '2: a nested comprehension with a ternary'),
    ('x = [f(*(b for b in d)) for d in e]', '2: a nested comprehension with a `*`'),
    ('[[[a for a in b] for b in c] for c in d]', '2: a nested comprehension with a third comprehension'),
    ('{a: [b for c in d for b in c] for a in e}', '2: a nested comprehension with a second `for`'),
    ('c = a[1][-1]', '2: `a[1][-1]`'),
    ('a, b = {}, f(1)', '2: `(a, b) =` assigns unlike things'),
])
def test_each_rule_says_no(measured, source, said):
    code, out = measured(source)
    assert code == 1 and f'chem/05_split.ipynb[1] {said}' in out, out


@pytest.mark.parametrize('source', [
    'a = 1\n' * 25, '\n\n'.join(['a = 1'] * 25), 'a = "' + 'x' * 114 + '"', 'a = ";"  # ; and more',
    'if (a := f(1)) > 2: b = a', '[[a for a in b] for b in c]', '[a for b in c for a in b if a]',
    'b = a[1]["name"]', 'b = a["name"][0]', 'b = a[i][0]',
    'a, b = b, a', 'a, b = f(1), f(2)', 'a, b = x.y, x["y"]', 'a, b = f()'])
def test_what_is_allowed(measured, source):
    code, out = measured(source)
    assert code == 0 and 'nothing too long or too dense' in out, out


def test_directives_and_other_cells_do_not_count(measured):
    assert measured('a = 1\n' * 25, export='#| export\n#| eval: false\n')[0] == 0
    code, out = measured('b = 1', args=['05_split'])
    assert code == 0 and 'grain: 1 exported cells' in out, 'the cell above names the module, and exports nothing'


def test_density_counts_for_the_whole_package(measured):
    dense = '\n'.join(f'def f{i}(a, b, c): return [a + b * c for a in (b, c, a, b) if a > b > c]' for i in range(20))
    code, out = measured(dense)
    assert code == 1 and '`f0` has 39.0 syntax nodes per line' in out, out
    code, out = measured(dense, args=['chem'])
    assert code == 0 and '90th percentile 39.0' in out


def test_a_module_that_is_not_there(measured, capsys):
    with pytest.raises(SystemExit) as e:
        measured('a = 1', args=['stats'])
    assert e.value.code == 2 and 'no exported cell of stats' in capsys.readouterr().err
