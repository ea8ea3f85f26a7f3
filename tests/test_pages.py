"The pages' commands: found, run in a folder of their own, written under their blocks, and held against the program."
import json
import time

import pytest
from helpers import script

pages = script('pages')
SHELL = '```sh\n{}\n```'
PYTHON = '```python\n{}\n```'
OUTPUT = '```\n{}\n```'


@pytest.fixture
def page(tmp_path):
    "page(cell, …): a page of these Markdown cells, read from its notebook."
    def make(*cells):
        path = tmp_path / 'page.ipynb'
        sources = [dict(cell_type='markdown', id=f'0000000{i}', metadata={}, source=cell.splitlines(keepends=True))
                   for i, cell in enumerate(cells)]
        path.write_text(json.dumps(dict(cells=sources, metadata={}, nbformat=4, nbformat_minor=5)))
        return pages.read_page(path)
    return make


@pytest.fixture
def printed(tmp_path):
    "printed(page): the page as it is written after its commands were run in a new folder."
    def run(page):
        base = tmp_path / 'base'
        base.mkdir(exist_ok=True)
        record = '<!-- outputs: commit 1234, 2026-01-01; form ab, blocks cd -->'
        text = pages.written(page, pages.run_page(page, base), record)
        page.path.write_text(text)
        return [''.join(cell['source']) for cell in json.loads(text)['cells']]
    return run


def test_every_block_of_the_project_is_run_or_says_why_not():
    found = [(page, block) for page in pages.all_pages() for block in page.blocks]
    assert len(found) > 40
    silent = [f'{page.name}[{b.cell}]' for page, b in found if page.why_not(b) == '']
    assert silent == [], 'a mark that says no gives the reason'
    run = {page.path.stem for page, b in found if page.why_not(b) is None}
    assert {'index', 'tutorial', 'seeds', 'thresholds'} <= run


def test_outputs_are_written_under_their_commands(page, printed):
    cells = printed(page('# Title', f'Say it.\n\n{SHELL.format("echo new")}\n\n{OUTPUT.format("old")}\n\nProse.',
                         f'{SHELL.format("echo added")}\nMore prose.', SHELL.format('true')))
    assert cells[1] == f'Say it.\n\n{SHELL.format("echo new")}\n\n{OUTPUT.format("new")}\n\nProse.'
    assert cells[2] == f'{SHELL.format("echo added")}\n\n{OUTPUT.format("added")}\nMore prose.'
    assert cells[3].startswith(SHELL.format('true')) and cells[3].endswith('blocks cd -->')


def test_each_command_has_its_own_output_where_the_page_has_a_block_for_each(page, printed):
    two = SHELL.format("echo one \\\n  'and\na half'\ncd ..\necho two")
    [text] = printed(page(f'{two}\n\n{OUTPUT.format("a")}\n\n{OUTPUT.format("b")}'))
    assert text.startswith(f'{two}\n\n{OUTPUT.format("one and" + chr(10) + "a half")}\n\n{OUTPUT.format("two")}')
    with pytest.raises(SystemExit, match='2 commands print something, for 3 blocks'):
        printed(page(f'{two}\n' + '\n'.join([OUTPUT.format('a')] * 3)))


def test_folder_and_variables_stay_from_block_to_block(page, printed):
    cells = printed(page('<!-- run: in mine -->', SHELL.format('export NAME=ada\nmkdir deep\ncd deep'),
                         SHELL.format('echo $NAME; pwd'),
                         PYTHON.format('from pathlib import Path\nhere = Path.cwd().name'),
                         PYTHON.format('print(here)\nhere + "!"')))
    assert '\nada\n/…/deep\n' in cells[2]
    assert "```\ndeep\n'deep!'\n```" in cells[4]


def test_what_readers_do_not_see(page, printed, tmp_path):
    first = '<!-- run: first\necho "a,b" > table.csv\n-->\n' + SHELL.format('cat table.csv')
    fails = '<!-- run: exit 3 -->\n' + SHELL.format('echo no >&2; exit 3')
    raises = '<!-- run: raises ZeroDivisionError -->\n' + PYTHON.format('1/0')
    quiet = '<!-- run: quiet -->\n' + SHELL.format('echo loud | tee said')
    unrun = f'<!-- run: no, there is no such program -->\n{SHELL.format("nothing-like-it")}\n\n{OUTPUT.format("ok")}'
    cells = printed(page(first, fails, raises, quiet, unrun, 'end'))
    assert cells[0].endswith(OUTPUT.format('a,b')) and cells[1].endswith(OUTPUT.format('no'))
    assert cells[2].endswith(OUTPUT.format('ZeroDivisionError: division by zero'))
    assert cells[3:5] == [quiet, unrun] and (tmp_path / 'base/said').read_text() == 'loud\n'


@pytest.mark.parametrize('cell, said', [
    (SHELL.format('exit 3'), 'ends with 3: exit 3'),
    ('<!-- run: exit 2 -->\n' + SHELL.format('exit 3'), 'ends with 3'),
    (PYTHON.format('1/0'), 'ZeroDivisionError is raised'),
    ('<!-- run: raises KeyError -->\n' + PYTHON.format('1'), 'nothing is raised'),
    (SHELL.format('echo "'), 'a command that does not end'),
])
def test_what_was_not_to_be_expected_stops_the_run(page, printed, cell, said):
    with pytest.raises(SystemExit, match=said):
        printed(page(cell))


def test_a_server_runs_to_the_end_of_the_page(page, printed, tmp_path):
    server = ('<!-- run: until ready -->\n' + SHELL.format('bash server.sh'))
    (tmp_path / 'base').mkdir()
    loop = 'trap "echo stopped > end; exit" INT\necho ready\nwhile true; do sleep .1; done\n'
    (tmp_path / 'base/server.sh').write_text(loop)
    cells = printed(page(server, SHELL.format('ls'), 'end'))
    assert cells[0].endswith(OUTPUT.format('ready')) and 'end' not in cells[1]
    for _ in range(100):
        if (tmp_path / 'base/end').exists(): break
        time.sleep(.1)
    assert (tmp_path / 'base/end').read_text() == 'stopped\n'


def test_progress_bars_are_left_out():
    bar = '\r  0%|     | 0/4\r100%|█████| 4/4\n'
    assert pages.plain(f'one\n{bar}two\r\n\n') == 'one\ntwo\n'
    assert pages.plain('one\n\r 50%|██  |\r     \ntwo\n\nthree\n') == 'one\ntwo\n\nthree\n'


ONE = '2 trained, in 4 s\n  ✓ gap: 0.191 < 0.3\n  ✓ code_version: code version da9e4cfed72c\nada@vm  2026-01-01 05:31\n'


def test_the_form_of_an_output_is_what_another_machine_does_not_change():
    other = ('12 trained, in 31 s\n  ✗ gap:  -1.2 < 0.35\n ✓ code_version: code version 0123456789ab\n'
             'ann@pc.lan 2027-12-31 23:59\n')
    assert pages.form(ONE) == pages.form(other)
    changes = {'gap': 'generalisation_gap', 'trained': 'runs trained', 'code version': 'commit',
               '✓ gap: 0.191 < 0.3\n': ''}
    for old, new in changes.items():
        assert pages.form(ONE) != pages.form(ONE.replace(old, new)), old


@pytest.fixture
def recorded(page):
    "A page as .ci/pages.py leaves it when the program prints ONE."
    shown = OUTPUT.format('val_r2 0.1504, gap 0.191')
    made = page('# T', f'{SHELL.format("sweep")}\n\n{shown}\n\nIt is 0.150.', 'end')
    for blocks in ('0', pages.digest(made)):
        digest = pages.form_digest(pages.form(ONE))
        record = f'<!-- outputs: commit da9e4cfed72c, 2026-01-01; form {digest}, blocks {blocks} -->'
        made.path.write_text(pages.written(made, {}, record))
        made = pages.read_page(made.path)
    return made


def test_a_page_of_today_has_no_faults(recorded):
    form = pages.form(ONE)
    assert pages.faults([recorded], form, form) == []
    assert pages.faults([recorded], form, form.replace('\n', ' ')) == [], 'where lines are broken says nothing'


@pytest.mark.parametrize('old, new, said', [
    ('gap 0.191', 'gap 0.192', 'commands or outputs are not those of the run at commit da9e4cfed72c'),
    ('```sh\nsweep', '```sh\nsweep --epochs 2', 'commands or outputs are not those'),
    ('It is 0.150', 'It is 0.151', 'the prose says 0.151'),
    ('; form ', '; form 0', 'another form'),
    ('<!-- outputs:', '<!-- output:', 'nothing says when'),
])
def test_what_is_not_of_the_run_is_a_fault(recorded, old, new, said):
    notebook = json.loads(recorded.path.read_text())
    before = [''.join(cell['source']) for cell in notebook['cells']]
    for cell, text in zip(notebook['cells'], before):
        cell['source'] = [text.replace(old, new)]
    assert [cell['source'][0] for cell in notebook['cells']] != before
    recorded.path.write_text(json.dumps(notebook))
    form = pages.form(ONE)
    [fault] = pages.faults([pages.read_page(recorded.path)], form, form)
    assert said in fault


def test_a_page_older_than_the_program_is_a_fault(recorded):
    form = pages.form(ONE)
    [fault] = pages.faults([recorded], form, form.replace('gap:', 'generalisation gap:'))
    assert "prints '" in fault and 'generalisation gap:' in fault and 'when the pages were made' in fault


def test_a_page_that_fails_stays_and_the_others_are_written(page, tmp_path, monkeypatch, capsys):
    good = page('# Good', SHELL.format('echo new'), 'It is 0.123.')
    good.path.rename(tmp_path / 'good.ipynb')
    good = pages.read_page(tmp_path / 'good.ipynb')
    bad = page('# Bad', SHELL.format('exit 3'), 'end')
    before = bad.path.read_bytes()
    monkeypatch.setattr(pages, 'FORM', tmp_path / 'form.txt')
    monkeypatch.setattr(pages, 'probe', lambda: pages.form(ONE))
    monkeypatch.setattr(pages, 'tree_is_clean', lambda: True)
    assert pages.make([bad, good], False, tmp_path / 'base') == 1
    said = capsys.readouterr()
    assert 'page.ipynb is as it was: page.ipynb[1]: ends with 3' in said.err and 'the prose says 0.123' in said.out
    assert bad.path.read_bytes() == before
    [fault] = pages.faults([pages.read_page(good.path)], pages.FORM.read_text(), pages.form(ONE))
    assert 'the prose says 0.123' in fault, 'the record is that of the page'


def test_outputs_belong_to_a_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(pages, 'tree_is_clean', lambda: False)
    with pytest.raises(SystemExit, match='not committed'):
        pages.make([], False, tmp_path)
