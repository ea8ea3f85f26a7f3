"The linked charts in a browser without a network: something is dragged, and every chart follows."
import time

import pytest
from helpers import uri_of

import bioai_esol as esol
from bioai_esol.analysis.interactive import configurations

READY = "document.querySelector('.view') && document.querySelector('.view').view"


@pytest.fixture(scope='module')
def sweep(tmp_path_factory):
    "Eight configurations with two seeds each, and where their store is."
    uri = uri_of(tmp_path_factory.mktemp('charts'))
    grid = esol.Grid(hidden_dim=(8, 16), lr=(3e-3, 1e-2), batch_size=32, dropout=(0, .2), weight_decay=0, seed=(1, 2), epochs=10, run_tag='small')
    esol.run_sweep(grid, tracking_uri=uri)
    return esol.load_runs('small', tracking_uri=uri), uri


@pytest.fixture(scope='module')
def file(sweep, tmp_path_factory):
    runs, uri = sweep
    return esol.explore(runs, tracking_uri=uri).save(tmp_path_factory.mktemp('page') / 'sweep.html')


@pytest.fixture
def charts(page, file):
    page.goto(file.as_uri())
    page.wait_for_function(READY)
    yield page
    assert page.troubles == []


def tally(page):
    return page.locator('g.tally_marks text').text_content()


def listed(page):
    "The configurations of the table, from top to bottom."
    texts = page.locator('g.column_name_marks text').all()
    return [text.text_content() for text in sorted(texts, key=lambda text: text.bounding_box()['y'])]


def drag(page, x, y, to_x, to_y):
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(to_x, to_y, steps=6)
    page.mouse.up()
    page.wait_for_timeout(300)  # the charts follow in the next frame


def middle(locator):
    box = locator.bounding_box()
    return box['x'] + box['width'] / 2, box['y'] + box['height'] / 2


def around(page, mark):
    "Drag a rectangle around a mark of the left panel."
    x, y = middle(mark)
    drag(page, x - 12, y - 12, x + 12, y + 12)


def selected(page, everything, name):
    "What lies in a selection, by its own account of its edges."
    stored = page.evaluate(f"document.querySelector('.view').view.data('{name}_store')[0]")
    rows = everything
    for field, edges in zip(stored['fields'], stored['values']):
        rows = rows[rows[field['field']].between(min(edges), max(edges))]
    assert len(rows), (stored["values"], everything[["name", "best_val_rmse", "generalisation_gap"]].values.tolist())
    return rows.name.tolist()


def test_a_seed_is_no_configuration(charts, sweep):
    runs, _ = sweep
    assert len(runs) == 16 and tally(charts) == '8 of 8 configurations selected'
    assert charts.locator('g.every_left_marks path').count() == 8
    assert listed(charts) == configurations(runs).name.tolist()


def test_what_is_dragged_in_one_chart_shows_in_all(charts, sweep):
    rows = configurations(sweep[0]).round(4)
    around(charts, charts.locator('g.every_left_marks path').nth(4))
    inside = selected(charts, rows, 'left')
    assert 1 <= len(inside) < 8
    assert tally(charts).startswith(f"{len(inside)} of 8 configurations") and listed(charts) == inside
    lit = charts.evaluate("""() => Object.fromEntries([...document.querySelectorAll('svg g.mark-rule, svg g.mark-line, svg g.mark-symbol')].map(
        (g, i) => [g.getAttribute('class').split(' ').pop() + ' ' + i, g.childElementCount]))""")
    assert sum(n == len(inside) for n in lit.values()) >= 3 + 3, lit  # both panels, three stretches, curves
    x, y = middle(charts.locator('g.every_left_marks path').first)
    charts.mouse.dblclick(x, y)
    charts.wait_for_function("document.querySelector('g.tally_marks text').textContent.startsWith('8 of 8')")


def test_an_axis_is_a_selection_too_and_both_must_hold(charts, sweep):
    rows = configurations(sweep[0])
    lines = charts.locator('g.sample_lr_marks line')
    boxes = [line.bounding_box() for line in lines.all()]
    left = min(box['x'] for box in boxes) + 4
    ends = charts.locator('g.sample_lr_marks').bounding_box()
    drag(charts, left, ends['y'] - 2, left, ends['y'] + ends['height'] * .3)
    charts.wait_for_function("!document.querySelector('g.tally_marks text').textContent.startsWith('8 of 8')")
    fast = set(listed(charts))
    assert fast and fast <= set(rows.name[rows.lr == rows.lr.max()])
    around(charts, charts.locator('g.every_left_marks path').nth(4))
    assert set(listed(charts)) <= fast


def test_hovering_says_who_it_is_and_a_click_keeps_it(charts, sweep):
    runs, _ = sweep
    x, y = middle(charts.locator('g.every_left_marks path').first)
    charts.mouse.move(x, y)
    tip = charts.locator('#vg-tooltip-element')
    tip.wait_for()
    name = configurations(runs).name[0]
    assert any(other in tip.inner_text() for other in configurations(runs).name), tip.inner_text()
    charts.mouse.click(x, y)
    kept = charts.evaluate("document.querySelector('.view').view.data('kept_store').map(row => row.values[0])")
    assert len(kept) == 1 and kept[0] in tip.inner_text(), (kept, name)


def test_the_table_is_put_in_another_order(charts, sweep):
    rows = configurations(sweep[0])
    order = charts.locator('.vega-bind select')
    for metric in ('generalisation_gap', 'val_r2'):
        order.select_option(metric)
        charts.wait_for_timeout(300)
        assert listed(charts) == rows.round(4).sort_values(metric, ascending=metric != 'val_r2', kind='stable').name.tolist()


def test_dark_where_the_reader_likes_it_dark(new_page, file):
    page = new_page(color_scheme='dark')
    page.goto(file.as_uri())
    page.wait_for_function(READY)
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == 'rgb(22, 24, 27)'
    assert page.locator('g.tally_marks text').get_attribute('fill') == '#ddd'


def test_each_seed_by_itself(sweep):
    runs, uri = sweep
    charts = esol.explore(runs, collapse_seeds=False, tracking_uri=uri)
    assert charts.title == 'Sweep small: 16 configurations'
    assert {row['name'] for row in charts.spec['datasets']['configurations']} == set(runs.run_name)


def test_the_report_holds_the_charts_and_stays_small(sweep, page, tmp_path):
    path = esol.write_report('small', tmp_path / 'small.html', tracking_uri=sweep[1])
    assert path.stat().st_size < 3e6
    page.goto(path.as_uri())
    page.wait_for_function(READY)
    assert tally(page) == '8 of 8 configurations selected' and page.troubles == []
    page.emulate_media(media='print')
    assert not page.locator('.charts').is_visible() and not page.get_by_role('heading', name='Explore').is_visible()


def _opened(chromium, path, viewport):
    context = chromium.new_context(viewport=viewport, offline=True)  # without a trace, which takes time
    page = context.new_page()
    begun = time.perf_counter()
    page.goto(path.as_uri())
    page.wait_for_function(READY)
    seconds = time.perf_counter() - begun
    assert tally(page).startswith('162 of 162 configurations selected')
    context.close()
    return round(seconds, 2)


@pytest.mark.alone
def test_a_report_of_162_runs_opens_within_two_seconds_without_a_network(chromium, tmp_path):
    uri = uri_of(tmp_path)
    grid = esol.Grid(epochs=20, run_tag='whole')
    esol.run_sweep(grid, tracking_uri=uri)
    path = esol.write_report('whole', tmp_path / 'whole.html', tracking_uri=uri)
    assert path.stat().st_size < 3e6
    for viewport in (dict(width=1280, height=900), dict(width=390, height=844)):
        seconds = [_opened(chromium, path, viewport) for _ in range(3)]  # a machine that does something else for a moment says nothing of the page
        print(f"{viewport['width']} pixels: {seconds} s, {path.stat().st_size / 1e6:.1f} MB")
        assert min(seconds) < 2
