"The notebooks' widgets as a person uses them: `make lab`, a browser, a slider moved, and the figure seen to change."
import contextlib
import re
import subprocess

import nbformat
import nbformat.reader
import pytest
from helpers import PROGRAM, ROOT, fresh, uri_of
from lab import figure, jupyterlab, slider, until, wrong

SWEEP = ['--hidden-dim', '32,64', '--lr', '1e-2,3e-3', '--batch-size', '32', '--dropout', '0,0.2', '--weight-decay', '0', '--epochs', '100']  # the gaps differ
LONG = ['--hidden-dim', '8,10,12,14,16,18', '--lr', '1e-2,3e-3', '--batch-size', '16,24,32', '--dropout', '0', '--weight-decay', '0', '--epochs', '100',
        '--workers', '1']  # two runs at a time, and longer than anybody looks
IMPORTS = 'from bioai_esol.analysis.explorer import *\nfrom bioai_esol.store.runs import *\n'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A project folder after `make run`, with a sweep that takes seconds."
    folder = tmp_path_factory.mktemp('project')
    fresh(folder)
    done = subprocess.run([PROGRAM, 'sweep', *SWEEP, '--run-tag', 'lab'], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope='module')
def lab(chromium, folder):
    with jupyterlab(folder) as lab:
        yield lab


@pytest.fixture
def notebook(lab, page):
    "notebook(code): the page of a new notebook of one cell, which has run."
    def run(code):
        kernel = dict(name='python3', display_name='python3')
        new = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(IMPORTS + code)], metadata=dict(kernelspec=kernel))
        nbformat.write(new, lab.project / 'work/new.ipynb')
        lab.open(page, 'new.ipynb')
        lab.run_all(page)
        return page
    yield run
    lab.stop_kernels(page)


@pytest.fixture
def analysis(lab, page):
    "What `make lab` opens, run to its end."
    lab.open(page)
    lab.run_all(page)
    yield page
    lab.stop_kernels(page)


def choice(folder, page):
    "What the policy says of the sweep under the thresholds that the sliders show."
    from bioai_esol.store.runs import load_runs
    from bioai_esol.registry.policy import choose_candidate, Policy
    thresholds = {key: value(page, name) for key, name in dict(gap_threshold='gap threshold', r2_tolerance='R² tolerance').items()}
    return choose_candidate(load_runs('lab', tracking_uri=uri_of(folder)), Policy(**thresholds))


def value(page, name):
    return float(slider(page, name).get_attribute('aria-valuetext'))


def told(page):
    "The text that the widget shows under its figure, and the runs of its first table."
    text = page.locator('.widget-html', has=page.locator('p, table')).first  # a progress bar has neither
    rows = text.locator('table').first.locator('tbody tr td:first-child')
    return text.inner_text(), rows.all_inner_texts()


def follows(folder, page, before):
    "Wait until the page says what the policy says, and the figure is another one; gives both."
    made = choice(folder, page)
    eligible = list(made.runs.run_name[made.runs.eligible])
    def true():
        text, runs = told(page)
        return made.reason in text and (runs == eligible if made.approved else 'no candidate' in text)
    until(page, true, f'{eligible} and: {made.reason}')
    until(page, lambda: figure(page) not in (None, before), 'another figure')
    return made, figure(page)


def test_figure_runs_and_decision_follow_the_sliders(folder, analysis):
    page, first = analysis, figure(analysis)
    one = choice(folder, page)
    assert one.approved
    handle = slider(page, 'gap threshold')
    handle.focus()
    while value(page, 'gap threshold') > one.chosen['generalisation_gap']:
        page.keyboard.press('ArrowLeft')
    two, second = follows(folder, page, first)
    assert not two.approved or two.chosen['run_id'] != one.chosen['run_id']
    page.keyboard.press('Home')
    none, third = follows(folder, page, second)
    assert not none.approved, 'the smallest threshold of the slider lets no run of this sweep pass'
    track = page.locator('.widget-slider', has_text='gap threshold').locator('.noUi-base').bounding_box()
    knob = handle.bounding_box()
    page.mouse.move(knob['x'] + knob['width'] / 2, knob['y'] + knob['height'] / 2)
    page.mouse.down()
    page.mouse.move(track['x'] + track['width'], knob['y'], steps=8)
    page.mouse.up()
    assert value(page, 'gap threshold') == float(handle.get_attribute('aria-valuemax'))
    _, fourth = follows(folder, page, third)
    slider(page, 'R² tolerance').focus()
    page.keyboard.press('End')
    wide, _ = follows(folder, page, fourth)
    assert wide.runs.eligible.sum() > one.runs.eligible.sum()
    assert wrong(page) == []


def test_work_is_saved_beside_the_project(lab, analysis):
    "Saving a notebook, by hand or as JupyterLab does it by itself, changes nothing that git looks at."
    def saved():
        with contextlib.suppress(nbformat.reader.NotJSONError):  # JupyterLab empties the file before it writes
            cells = nbformat.read(lab.project / 'work/sweep_analysis.ipynb', 4).cells
            return any(c.get('outputs') for c in cells)
    assert analysis.locator('.jp-NotebookPanel:visible img[src*="explorer"]').count() == 0, 'no picture of sliders above the sliders'
    analysis.keyboard.press('Control+s')
    until(analysis, saved, 'the notebook to be saved')
    for path in (ROOT / 'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' not in path.parts:
            assert (lab.project / path.relative_to(ROOT)).read_bytes() == path.read_bytes(), path


BROWSER = 'from bioai_esol.analysis.run_browser import RunBrowser\nRunBrowser(load_runs("lab"))'


def column(page, name):
    "What the table of runs shows in a column, row by row; nothing when the column is hidden."
    names = page.locator('.dt-scroll-head th').all_inner_texts()
    if name not in names:
        return []
    return page.locator(f'.dt-scroll-body tbody tr td:nth-child({names.index(name) + 1})').all_inner_texts()


def test_runs_are_searched_sorted_and_hidden_in_a_table(notebook):
    page = notebook(BROWSER)
    until(page, lambda: len(column(page, 'run')) == 8, 'the table')
    def numbers(name): return [float(text) for text in column(page, name)]
    assert numbers('best_val_rmse') == sorted(numbers('best_val_rmse'))
    header = page.locator('.dt-scroll-head th').filter(has_text='val_r2')
    header.click()
    until(page, lambda: numbers('val_r2') == sorted(numbers('val_r2'), reverse=True), 'the highest R² first')
    header.click()
    until(page, lambda: numbers('val_r2') == sorted(numbers('val_r2')), 'the lowest R² first')
    page.locator('.dt-search input').fill('h64')
    until(page, lambda: len(column(page, 'run')) == 4, 'only the wide networks')
    page.locator('.dt-scroll-foot input[placeholder=dropout]').press_sequentially('0.2')
    until(page, lambda: len(column(page, 'run')) == 2, 'only those with dropout')
    assert 'hidden_dim' in page.locator('.dt-scroll-head th').all_inner_texts() and not column(page, 'seed')
    page.get_by_role('button', name='columns').click()
    for name in ('seed', 'dropout'):
        page.locator('.dt-button-collection').get_by_text(name, exact=True).click()
    until(page, lambda: column(page, 'seed') == ['42', '42'] and not column(page, 'dropout'), 'another choice of columns')
    assert wrong(page) == []


def test_picked_runs_are_compared_and_given_a_note(folder, notebook):
    from bioai_esol.store.runs import load_runs
    page = notebook(BROWSER)
    until(page, lambda: len(column(page, 'run')) == 8, 'the table')
    best, _, third = column(page, 'run')[:3]
    compared = page.locator('.widget-html table')
    until(page, lambda: compared.locator('thead th').all_inner_texts() == ['', best], 'the best run to be picked')
    page.locator('.dt-scroll-body tbody tr').nth(2).click()
    until(page, lambda: compared.locator('thead th').all_inner_texts() == ['', best, third], 'two runs side by side')
    rows = compared.locator('tbody tr td:first-child').all_inner_texts()
    assert 'best_val_rmse' in rows and 'batch_size' not in rows and '(+' in compared.inner_text()
    curves = page.locator('.vega-embed svg.marks')
    until(page, lambda: curves.locator('g.mark-line path').count() == 4, 'two curves of each run')
    box = curves.locator('g.mark-symbol path').nth(60).bounding_box()
    page.mouse.move(box['x'] + box['width'] / 2, box['y'] + box['height'] / 2)
    tip = page.locator('#vg-tooltip-element')
    until(page, lambda: tip.is_visible() and any(name in tip.inner_text() for name in (best, third)), 'the name of the run at the pointer')
    page.locator('.dt-search input').fill('lr')
    page.get_by_placeholder('what to remember').fill('look <again>')
    page.get_by_placeholder('name = value').fill('checked = yes')
    page.get_by_role('button', name='write to picked runs').click()
    until(page, lambda: 'look <again>' in column(page, 'note') and column(page, 'tags').count('checked = yes') == 2, 'note and tag in the table')
    assert page.locator('.dt-search input').input_value() == 'lr'
    runs = load_runs('lab', tracking_uri=uri_of(folder))
    assert set(runs.run_name[runs.note == 'look <again>']) == set(runs.run_name[runs.checked == 'yes']) == {best, third}
    page.get_by_placeholder('name = value').fill('run_tag = other')
    page.get_by_role('button', name='write to picked runs').click()
    page.get_by_text("the tag 'run_tag' cannot be set").wait_for()
    page.locator('.dt-scroll-body tbody tr').nth(2).click()
    until(page, lambda: compared.locator('thead th').all_inner_texts() == ['', best], 'one run in the new table')
    assert wrong(page) == []


def test_a_running_sweep_is_watched_without_a_click(folder, page, notebook):
    from bioai_esol.errors import BioaiError
    from bioai_esol.store.runs import load_runs
    sweep = subprocess.Popen([PROGRAM, 'sweep', *LONG, '--run-tag', 'live'], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    def begun():
        assert sweep.poll() is None, sweep.stderr.read()
        with contextlib.suppress(BioaiError):  # no such sweep yet
            return len(load_runs('live', tracking_uri=uri_of(folder)))
    counts, figures = [], []
    def risen():
        assert sweep.poll() is None, f'the sweep ended, and what was seen of it is {counts} finished runs'
        found = re.search(r'(\d+) of 36 runs', '\n'.join(page.locator('.widget-html').all_inner_texts()))
        if found and int(found[1]) not in counts:
            counts.append(int(found[1]))
            figures.append(figure(page))
        return len(counts) == 3
    try:
        until(page, begun, 'the sweep to begin', 60)
        notebook('LiveSweep("live")')
        until(page, risen, 'the number of finished runs to rise twice', 60)
        assert counts == sorted(counts)
        until(page, lambda: figure(page) not in (None, figures[0]), 'another figure')
        assert wrong(page) == []
    finally:
        sweep.terminate()
        sweep.wait(60)


def test_linked_charts_are_drawn_in_a_cell(notebook):
    page = notebook("import bioai_esol as esol\nesol.explore(load_runs('lab'))")
    charts = page.frame_locator('iframe[title^="Sweep lab"]')
    charts.locator('g.tally_marks text').wait_for()
    assert charts.locator('g.tally_marks text').text_content() == '8 of 8 configurations selected'
    height = page.locator('iframe[title^="Sweep lab"]').bounding_box()['height']
    assert height >= charts.locator('svg.marks').bounding_box()['height']  # nothing is cut off
    assert not wrong(page)
