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


def test_picked_runs_are_compared(notebook):
    page = notebook('runs = load_runs("lab")\nRunBrowser(runs, load_histories(runs))')
    runs, before = page.get_by_label('runs'), figure(page)
    assert runs.locator('option').count() == 8
    page.get_by_label('hidden_dim').select_option('64')
    until(page, lambda: runs.locator('option').count() == 4, 'only the wide networks')
    two = runs.locator('option').all_inner_texts()[1:3]
    runs.select_option(two)
    until(page, lambda: told(page)[1] == [line.split(':')[0].replace('\xa0', ' ') for line in two], 'the two runs that were picked')
    until(page, lambda: figure(page) not in (None, before), 'another figure')
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
