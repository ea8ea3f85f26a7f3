"The notebooks' widgets as a person uses them: `make lab`, a browser, a slider moved, and the figure seen to change."
import contextlib
import json
import re
import subprocess

import nbformat
import nbformat.reader
import pytest
from helpers import PROGRAM, ROOT, fresh, uri_of
from lab import jupyterlab, slider, until, wrong

SWEEP = ['--hidden-dim', '32,64', '--lr', '1e-2,3e-3', '--batch-size', '32', '--dropout', '0,0.2', '--weight-decay', '0', '--epochs', '100']  # the gaps differ
LONG = ['--hidden-dim', '8,10,12,14,16,18', '--lr', '1e-2,3e-3', '--batch-size', '16,24,32', '--dropout', '0', '--weight-decay', '0', '--epochs', '100',
        '--workers', '1']  # two runs at a time, and longer than anybody looks
IMPORTS = 'from bioai_esol.analysis.explorer import *\nfrom bioai_esol.analysis.live_sweep import *\nfrom bioai_esol.store.runs import *\n'
EASY = 'from bioai_esol.registry.policy import Policy\nPolicyExplorer(load_runs("lab"), Policy(gap_threshold=3, r2_tolerance=.99))'


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


def value(page, name):
    return round(float(slider(page, name).get_attribute('aria-valuetext')), 6)  # steps add up to 0.21499999999999997


def shown(page):
    "What the page drew last: the parameters of the first chart."
    text = page.locator('[data-shown]').first.get_attribute('data-shown')
    return text and json.loads(text)


def said(page):
    "All that widgets say in words."
    return '\n'.join(page.locator('.widget-html').all_inner_texts())


def verdict(folder, page):
    "What the policy says of the sweep under the thresholds that the sliders show."
    from bioai_esol.registry.policy import choose_candidate, Policy
    from bioai_esol.store.runs import load_runs
    names = dict(gap_threshold='gap threshold', r2_tolerance='R² tolerance')
    return choose_candidate(load_runs('lab', tracking_uri=uri_of(folder)), Policy(**{key: value(page, name) for key, name in names.items()}))


def follows(folder, page):
    "Wait until words and chart say what the policy says; gives it."
    choice = verdict(folder, page)
    def true():
        drawn = shown(page)
        return choice.reason in said(page) and drawn['passes'] == choice.runs.eligible.tolist() and drawn['gap'] == value(page, 'gap threshold')
    until(page, true, choice.reason)
    return choice


def test_verdict_chart_and_rules_follow_the_sliders(folder, notebook):
    page = notebook('PolicyExplorer(load_runs("lab"))')
    page.locator('[data-shown]').first.wait_for()
    one = follows(folder, page)
    assert one.approved
    handle = slider(page, 'gap threshold')
    handle.focus()
    while value(page, 'gap threshold') > one.chosen['generalisation_gap']:
        page.keyboard.press('ArrowLeft')
    two = follows(folder, page)
    assert not two.approved or two.chosen['run_id'] != one.chosen['run_id']
    page.keyboard.press('Home')
    assert not follows(folder, page).approved, 'the smallest threshold of the slider lets no run of this sweep pass'
    assert 'no candidate' in said(page) and shown(page)['chosen'] is None
    assert page.get_by_role('button', name='Promote …').is_disabled()
    track = page.locator('.widget-slider', has_text='gap threshold').locator('.noUi-base').bounding_box()
    knob = handle.bounding_box()
    page.mouse.move(knob['x'] + knob['width'] / 2, knob['y'] + knob['height'] / 2)
    page.mouse.down()
    page.mouse.move(track['x'] + track['width'], knob['y'], steps=8)
    page.mouse.up()
    assert value(page, 'gap threshold') == float(handle.get_attribute('aria-valuemax'))
    follows(folder, page)
    slider(page, 'R² tolerance').focus()
    page.keyboard.press('End')
    assert follows(folder, page).runs.eligible.sum() > one.runs.eligible.sum()
    assert "esol.promote('lab', esol.Policy(gap_threshold=1.0, r2_tolerance=0.5))" in said(page)
    page.locator('.vega-embed .mark-symbol path').last.hover()
    page.locator('#vg-tooltip-element').get_by_text('best_val_rmse').wait_for()
    assert wrong(page) == []


WATCHED = """() => {
    const place = document.querySelector('[data-shown]'), handle = document.querySelector('.noUi-handle'), times = [];
    let moved = null;
    new MutationObserver(() => { moved ??= performance.now(); }).observe(handle, {attributeFilter: ['aria-valuetext']});
    new MutationObserver(() => {
        const gap = JSON.parse(place.dataset.shown).gap, asked = Number(handle.getAttribute('aria-valuetext'));
        if (moved === null || Math.abs(gap - asked) > 1e-6) return;
        times.push(performance.now() - moved);
        moved = null;
    }).observe(place, {attributeFilter: ['data-shown']});
    window.times = times;
}"""
MANY = """runs = load_runs('lab')
many = pd.concat([runs] * {n}, ignore_index=True).head({runs})
many = many.assign(run_id=[f'r{{i}}' for i in range(len(many))])
PolicyExplorer(many)"""


@pytest.mark.alone
@pytest.mark.parametrize('runs, limit_ms', [(162, 150), (10_000, 500)])
def test_a_slider_is_answered_while_it_moves(runs, limit_ms, notebook):
    "From the value of the slider to the chart that shows it, the kernel's judgement in between: the middle of twenty steps."
    page = notebook('import pandas as pd\n' + MANY.format(n=-(-runs // 8), runs=runs))
    page.locator('[data-shown]').first.wait_for()
    page.evaluate(WATCHED)
    slider(page, 'gap threshold').focus()
    for n in range(20):
        page.keyboard.press('ArrowLeft')
        page.wait_for_function('n => window.times.length > n', arg=n)
    times = sorted(page.evaluate('window.times'))
    print(f'{runs} runs: {times[10]:.0f} ms in the middle, {times[18]:.0f} ms at most in 19 of 20')
    assert times[10] <= limit_ms, times
    assert wrong(page) == []


def test_the_button_promotes_after_asking(folder, notebook):
    page = notebook(EASY)
    promote, yes = page.get_by_role('button', name='Promote …'), page.get_by_role('button', name='Yes')
    assert not yes.is_visible()
    promote.click()
    page.get_by_text('as the first one?').wait_for()
    page.get_by_role('button', name='No', exact=True).click()
    assert not yes.is_visible() and esol_status(folder).empty
    promote.click()
    yes.click()
    page.get_by_text('is the champion already, as version 1').wait_for(timeout=120_000)
    assert esol_status(folder).alias.tolist() == ['champion'] and promote.is_disabled()
    assert wrong(page) == []


def esol_status(folder):
    import bioai_esol as esol
    return esol.status(tracking_uri=uri_of(folder))


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


def test_a_running_sweep_is_watched_paused_and_stopped(folder, page, notebook):
    "Watched by another process than its own, through the store alone."
    from bioai_esol.errors import BioaiError
    from bioai_esol.store.live import sweep_state
    from bioai_esol.store.runs import load_runs
    sweep = subprocess.Popen([PROGRAM, 'sweep', *LONG, '--run-tag', 'live'], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    def state():
        return sweep_state('live', tracking_uri=uri_of(folder))
    def begun():
        assert sweep.poll() is None, sweep.stderr.read()
        with contextlib.suppress(BioaiError):  # no such sweep yet
            return len(load_runs('live', tracking_uri=uri_of(folder)))
    shares, counts = [], []
    def risen():
        assert sweep.poll() is None, f'the sweep ended, and what was seen of it is {shares}'
        words = said(page)
        for pattern, seen in ((r'(\d+)% of the epochs', shares), (r'(\d+) of 36 runs finished', counts)):
            found = re.search(pattern, words)
            if found and int(found[1]) not in seen:
                seen.append(int(found[1]))
        return len(shares) >= 3 and len(counts) >= 2
    try:
        until(page, begun, 'the sweep to begin', 60)
        notebook('LiveSweep("live", seconds=1)')
        until(page, risen, 'the sweep to go on', 90)
        assert shares == sorted(shares) and counts == sorted(counts) and 'left' in said(page) and '1 worker' in said(page)
        page.locator('.vega-embed .mark-line path').first.wait_for()
        page.get_by_role('button', name='Pause', exact=True).click()
        page.get_by_text(re.compile(r'^paused on ')).wait_for()
        page.wait_for_timeout(4_000)  # until the workers' last ticks are told
        before = state()
        page.wait_for_timeout(5_000)
        assert (state().share, state().status, sweep.poll()) == (before.share, 'paused', None)
        page.get_by_role('button', name='Go on', exact=True).click()
        until(page, lambda: state().share > before.share, 'the sweep to go on after its pause', 60)
        page.get_by_role('button', name='Stop …').click()
        page.get_by_role('button', name='Yes').click()
        assert sweep.wait(60) == 130
        assert 'stopped as it was asked to after' in (words := sweep.stderr.read()) and 'the same command continues' in words, words
        page.get_by_text(re.compile(r'^stopped: \d+ of 36 runs finished; the same command continues it')).wait_for()
        assert set(load_runs('live', tracking_uri=uri_of(folder)).status) <= {'FINISHED', 'KILLED'}
        assert wrong(page) == []
    finally:
        sweep.kill()
        sweep.wait(60)


def test_linked_charts_are_drawn_in_a_cell(notebook):
    page = notebook("import bioai_esol as esol\nesol.explore(load_runs('lab'))")
    charts = page.frame_locator('iframe[title^="Sweep lab"]')
    charts.locator('g.tally_marks text').wait_for()
    assert charts.locator('g.tally_marks text').text_content() == '8 of 8 configurations selected'
    height = page.locator('iframe[title^="Sweep lab"]').bounding_box()['height']
    assert height >= charts.locator('svg.marks').bounding_box()['height']  # nothing is cut off
    assert not wrong(page)
