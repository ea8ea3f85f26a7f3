"The documentation as a reader has it: built, served on this machine, and every page opened in a browser, wide and narrow, light and dark."
import argparse
import ast
import configparser
import functools
import http.server
import importlib
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import types
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from helpers import ROOT
from PIL import Image

from bioai_esol.cli.parser import make_parser

PACKAGE = ROOT / 'bioai_esol'
MODULES = sorted('.'.join(p.relative_to(PACKAGE).with_suffix('').parts) for p in PACKAGE.rglob('*.py') if not p.name.startswith('_'))
NOTEBOOKS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)


COMMANDS = next(a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
PAGES = [re.sub(r'(?:\d+_)?(\w+)\.ipynb$', r'\1.html', n.removeprefix('nbs/')) for n in NOTEBOOKS] + [f'commands/{c}.html' for c in ('index', *COMMANDS)]
READ = """() => { const heading = e => { let h = e; while (h && !/^H[1-6]$/.test(h.tagName)) h = h.previousElementSibling; return h ? h.innerText.trim() : '' };
  return {
  title: document.title, ids: [...document.querySelectorAll('[id]')].map(e => e.id), words: document.querySelector('main').innerText.length,
  raw: [...document.querySelectorAll('main p, main li, main td')].map(e => e.innerText).filter(t => /\\]\\(\\S*(html|ipynb|md)/.test(t)),
  links: [...document.querySelectorAll('a[href]')].map(e => e.href),
  named: [...document.querySelectorAll('main a[href*=".html#"]')].filter(e => e.querySelector('code')).map(e => e.innerText),
  images: [...document.images].map(e => [e.getAttribute('src').slice(0, 60), e.loading == 'lazy' || e.naturalWidth, e.alt, e.hasAttribute('width')]),
  head: Object.fromEntries([...document.querySelectorAll('meta[name], meta[property]')].map(e => [e.name || e.getAttribute('property'), e.content])),
  lang: document.documentElement.lang, copy: document.querySelector('link[rel=alternate][type="text/markdown"]')?.href,
  bytes: [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')].reduce((sum, e) => sum + e.decodedBodySize, 0),
  called: [...document.querySelectorAll('.signature')].map(e => [heading(e), e.innerText.replace(/\\s*source$/, '')]),
  tables: [...document.querySelectorAll('.arguments, .options')].map(e =>
    [heading(e), [...e.querySelectorAll('tbody tr')].map(r => [...r.cells].map(c => c.innerText.trim()))]),
  sources: [...document.querySelectorAll('a.source')].map(e => e.href)} }"""
# what is wider than the window or than its own box, at the width that the page has now
CUT = """() => { const w = document.documentElement.clientWidth, scrolls = p => /auto|scroll|hidden/.test(getComputedStyle(p).overflowX);
  const boxes = e => { const all = []; for (let p = e; p && p.tagName != 'MAIN'; p = p.parentElement) all.push(p); return all.filter(scrolls) };
  const cut = e => boxes(e).some(p => p.scrollWidth > p.clientWidth + 1), text = e => e.innerText.slice(0, 100);
  return { page: document.documentElement.scrollWidth - w,
    beyond: [...document.querySelectorAll('main *')].filter(e => { const r = e.getBoundingClientRect();
      return r.width && r.right > w + 1 && !boxes(e.parentElement).length }).slice(0, 3).map(e => e.outerHTML.slice(0, 120)),
    tables: [...document.querySelectorAll('main table')].filter(cut).map(text), blocks: [...document.querySelectorAll('main pre')].filter(cut).map(text) } }"""
# text that stands out too little from what is behind it: its contrast, as WCAG reckons it
FAINT = """() => { const rgba = s => { const n = (s.match(/[\\d.]+/g) || []).map(Number), k = s.startsWith('color(') ? 255 : 1;
    return [n[0] * k, n[1] * k, n[2] * k, n.length > 3 ? n[3] : 1] };
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const behind = e => { const all = [];
    for (let p = e; p; p = p.parentElement) { const c = rgba(getComputedStyle(p).backgroundColor); if (c[3]) all.push(c); if (c[3] == 1) break }
    return all.reverse().reduce((under, c) => over(c, under), [255, 255, 255, 1]) };
  const linear = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => .2126 * linear(c[0]) + .7152 * linear(c[1]) + .0722 * linear(c[2]);
  const contrast = e => { const b = behind(e), a = over(rgba(getComputedStyle(e).color), b);
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05) };
  const told = '#quarto-header a, #quarto-sidebar a, #TOC a, main :is(p, li, td, th, a, code, summary, pre span, h1, h2, h3), .footer *';
  return [...document.querySelectorAll(told)].filter(e => e.innerText && e.innerText.trim() && e.checkVisibility())
    .filter(e => contrast(e) < (e.innerText.trim().length > 1 ? 4.5 : 3))  // a mark alone needs less than letters do
    .slice(0, 3).map(e => contrast(e).toFixed(1) + ' ' + e.outerHTML.slice(0, 140)) }"""
BY_WIDTH = ['target-size', 'scrollable-region-focusable', 'aria-hidden-focus']  # rules of axe that may be kept on a wide screen and broken on a phone
SHIFTS = """window.moved = 0;
new PerformanceObserver(all => all.getEntries().forEach(e => { if (!e.hadRecentInput) window.moved += e.value }))
  .observe({type: 'layout-shift', buffered: true})"""
DARK = "() => document.documentElement.classList.contains('quarto-dark') && document.documentElement.dataset.bsTheme == 'dark'"


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The site, made by `.ci/docs.py` in a copy of what git knows, so that nothing is written under the tree that is worked on."
    copy = tmp_path_factory.mktemp('site') / 'copy'
    names = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split('\0')):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    env = {k: v for k, v in os.environ.items() if not k.startswith(('PYTEST', 'MLFLOW', 'COV'))}
    done = subprocess.run([sys.executable, '.ci/docs.py'], cwd=copy, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert not (copy / '_proc').exists()
    return copy / '_docs'


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope='module')
def address(site):
    "Where the site is served: below the top, as a project's pages are."
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(_Quiet, directory=site.parent))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/{site.name}/'
    server.shutdown()
    server.server_close()


@pytest.fixture(scope='module')
def read(chromium, address):
    "What stands on every page, and every trouble and request on the way; what is cut off, wide and on a phone; what is faint, light and dark."
    from browser import axe_script, barriers, remember
    wide = chromium.new_context(viewport=dict(width=1400, height=900), reduced_motion='reduce')  # colours change at once
    phone = chromium.new_context(viewport=dict(width=390, height=844), is_mobile=True)
    for context in (wide, phone):
        context.add_init_script(axe_script())
        context.add_init_script(SHIFTS)
    page, narrow, found = remember(wide.new_page()), phone.new_page(), {}
    asked = []
    page.on('request', lambda r: asked.append(r.url))
    for name in PAGES:
        page.emulate_media(color_scheme='light')
        page.goto(address + name, wait_until='load')
        narrow.goto(address + name, wait_until='load')
        found[name] = dict(page.evaluate(READ), troubles=page.troubles[:], asked=asked[:], wide=page.evaluate(CUT), phone=narrow.evaluate(CUT))
        main = dict(include=[['main']])  # what is around it is the same on all; colours are judged by FAINT, which is quicker
        found[name]['barriers'] = barriers(page, besides=['color-contrast'], within=main) + barriers(narrow, only=BY_WIDTH, within=main)
        found[name]['moved'] = max(page.evaluate('moved'), narrow.evaluate('moved'))
        found[name]['light'] = page.evaluate(FAINT)
        page.emulate_media(color_scheme='dark')
        page.wait_for_function(DARK)
        found[name]['dark'] = page.evaluate(FAINT)
        page.troubles.clear()
        asked.clear()
    wide.close()
    phone.close()
    return found


def test_every_page_opens_without_a_trouble(read, address):
    assert {name: p['troubles'] for name, p in read.items() if p['troubles']} == {}
    strangers = {url for p in read.values() for url in p['asked'] if not url.startswith((address, 'data:', 'blob:'))}
    assert strangers == set(), 'a reader without a network would miss something'
    for name, p in read.items():
        assert p['words'] > 300 and 'bioai-esol' in p['title'], name
        assert p['raw'] == [], f'{name}: Markdown that was not understood'


def test_nothing_is_cut_off_on_a_wide_screen(read):
    "1400 pixels: no table and no block of code is wider than its box, so that nothing has to be scrolled for."
    assert {name: p['wide'] for name, p in read.items() if any(p['wide'].values())} == {}


def test_a_phone_does_not_scroll_sideways(read):
    assert {name: p['phone'] for name, p in read.items() if p['phone']['page'] > 0 or p['phone']['beyond']} == {}


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_everything_can_be_read(read, scheme):
    assert {name: p[scheme] for name, p in read.items() if p[scheme]} == {}


def test_nobody_is_kept_out(read):
    "axe: nothing serious on any page, wide and on a phone."
    assert {name: p['barriers'][:5] for name, p in read.items() if p['barriers']} == {}


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 390])
def test_nobody_is_kept_out_by_colours(chromium, address, width, scheme):
    "axe as a whole, sidebar and colours too, on one page of each kind."
    from browser import axe_script, barriers
    context = chromium.new_context(viewport=dict(width=width, height=844), is_mobile=width < 500, color_scheme=scheme, reduced_motion='reduce')
    context.add_init_script(axe_script())
    page, found = context.new_page(), {}
    for name in ('index', 'lab/sweep_analysis', 'commands/promote', 'chem/dataset', 'gallery'):
        page.goto(f'{address}{name}.html', wait_until='load')
        found[name] = barriers(page)
    context.close()
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_pages_are_light_and_nothing_moves(read):
    "What a page needs, unpacked, charts and their program included; and by how much it jumps while it is read in (0.1 is good, says Lighthouse)."
    assert {name: p['bytes'] for name, p in read.items() if p['bytes'] > 3_000_000} == {}
    assert {name: round(p['moved'], 3) for name, p in read.items() if p['moved'] > .05} == {}
    assert [(name, *picture) for name, p in read.items() for picture in p['images'] if not picture[3]] == [], 'pictures that do not say how large they are'


def test_pages_say_what_they_are(read, site):
    "To search engines, to whoever shares a link, and to programs, which get a copy in Markdown."
    for name, p in read.items():
        head = p['head']
        assert p['lang'] == 'en' and 'width=device-width' in head['viewport'], name
        assert head['description'] == head['og:description'] and head['og:title'] in p['title'], name
        picture = urlsplit(head['og:image']).path.split('/images/')[1]
        assert (site / 'images' / picture).is_file()
        assert p['copy'].endswith(name.removesuffix('.html') + '.llms.md'), name
    assert len({p['title'] for p in read.values()}) == len(read), 'two pages have one title'


def test_programs_read_markdown(site, read, address):
    "llms.txt lists the copy of every page once; a copy has the title and the words of its page, no HTML, and links that lead somewhere."
    listed = re.findall(r'^- \[.+\]\(https?://[^/]+/[^/]+/(.+?)\.llms\.md\)', (site / 'llms.txt').read_text(encoding='utf-8'), flags=re.M)
    assert sorted(f'{name}.html' for name in listed) == sorted(PAGES)
    for name in PAGES:
        place = site / name.replace('.html', '.llms.md')
        copy = place.read_text(encoding='utf-8')
        assert copy.startswith('# ') and len(copy.split()) > 60, name
        prose = re.sub(r'^(`{3,}).*?^\1$|(`+)[^`\n]+?\2|^    .*?$', '', copy, flags=re.M | re.S)
        assert re.findall(r'</?(?:div|p|span|code|table|t[rdh]|svg|iframe|style|script)\b|^:::|&#\d+;', prose, flags=re.M) == [], name
        for link in re.findall(r'\]\((?!\w+:)([^)\s#]+)', prose):
            assert (place.parent / unquote(link)).exists(), f'{name}: {link}'
    metrics = (site / 'stats/metrics.llms.md').read_text(encoding='utf-8')
    assert '`rmse(y, p) → float` ([source](' in metrics and '| `y` | `ArrayLike` |  | (n,) measured |' in metrics


def test_links_lead_somewhere(read, site, address):
    broken, seen = [], 0
    for name, p in read.items():
        for link in p['links']:
            if urlsplit(link).netloc != urlsplit(address).netloc: continue
            seen += 1
            target, _, anchor = unquote(link.removeprefix(address)).partition('#')
            target = target or 'index.html'
            if not (site / target).is_file(): broken.append(f'{name}: no {target}')
            elif anchor and target in read and anchor not in read[target]['ids']: broken.append(f'{name}: no #{anchor} in {target}')
    assert broken == [] and seen > 1000


def test_pictures_are_there(read):
    pictures = [(name, *picture) for name, p in read.items() for picture in p['images']]
    assert len(pictures) >= 2
    assert [p for p in pictures if not p[2]] == []
    assert [p[:2] for p in pictures if not p[3]] == [], 'pictures without words for whoever cannot see them'


def public(module):
    "The functions and classes that a module says are for others."
    m = importlib.import_module(f'bioai_esol.{module}')
    return {n: o for n in m.__all__ if isinstance(o := getattr(m, n), (type, types.FunctionType, functools._lru_cache_wrapper))}


def methods(cls):
    "The public methods and properties in a class's body, in the order of its source."
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    checks = {'field_validator', 'model_validator', 'field_serializer'}
    def check(node): return any(getattr(getattr(d, 'func', d), 'id', '') in checks for d in node.decorator_list)
    return [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith('_') and not check(node)]


def parameters(function):
    "The names of the arguments of a function, as they stand in the source."
    a = function.args
    names = [*(x.arg for x in a.posonlyargs + a.args), *([f'*{a.vararg.arg}'] if a.vararg else []), *(x.arg for x in a.kwonlyargs),
             *([f'**{a.kwarg.arg}'] if a.kwarg else [])]
    return [n for n in names if n not in ('self', 'cls')]


def test_links_to_the_code_lead_to_its_line(read):
    """They go to the address that settings.ini names; the line is that of the function, class, method or test. A page links to its notebook."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / 'settings.ini')
    files = '{git_url}/blob/{branch}/'.format(**settings['DEFAULT'])
    links = {tuple(unquote(link.removeprefix(files)).split('#L')) for p in read.values() for link in p['links'] if link.startswith(files)}
    plain = {path for path, *line in links if not line}
    assert plain >= set(NOTEBOOKS) and [path for path in plain if not (ROOT / path.split('#')[0]).exists()] == []
    lines = [(path, int(line[0])) for path, *line in links if line]
    def code(path, line): return (ROOT / path).read_text('utf-8').splitlines()[line - 1]
    wrong = [f'{path}:{line}' for path, line in lines if not re.match(r' *(@|(async )?def |class )|[A-Z]\w* = ', code(path, line))]
    assert wrong == [] and {path.split('/')[0] for path, _ in lines} == {'bioai_esol', 'tests'}
    assert len(lines) > 150


@pytest.mark.parametrize('module', MODULES)
def test_every_argument_is_explained(read, module):
    page = read[f"{module.replace('.', '/')}.html"]
    called, tables = dict(page['called']), {title: rows for title, rows in page['tables']}
    source = {node.name: node for node in ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding='utf-8')).body if hasattr(node, 'name')}
    assert [title for title in called if '.' not in title] == list(public(module)), 'in the order of the source'
    assert len(page['sources']) == len(page['called'])
    def told(title): return [row[0] for row in tables.get(title, []) if row[0] != 'returns']
    for name, thing in public(module).items():
        if not isinstance(thing, type): assert told(name) == parameters(source[name]), name
        elif hasattr(thing, 'model_fields'): assert told(name) == list(thing.model_fields), name
        elif hasattr(thing, '__dataclass_fields__'): assert told(name) == [f for f, d in thing.__dataclass_fields__.items() if d.init], name
        if not isinstance(thing, type): continue
        own = methods(thing)
        assert [title for title in called if title.startswith(f'{name}.')] == [f'{name}.{m.name}' for m in own]
        for m in own:
            kinds = {getattr(d, 'id', getattr(d, 'attr', '')) for d in m.decorator_list}
            if not kinds & {'property', 'cached_property'}: assert told(f'{name}.{m.name}') == parameters(m), f'{name}.{m.name}'
    silent = [f'{title}: {row[0]}' for title, rows in tables.items() for row in rows if row[0] != 'returns' and not row[3]]
    assert silent == [], 'say what it is, in a comment beside the argument'


def test_a_word_is_a_link_only_where_it_is_a_function(read):
    "`promote` is a command, `similarity` a column, `code_version` a rule: a link to the function of that name is a call, or has a dot."
    strings = set()
    for path in PACKAGE.rglob('*.py'):
        if not path.name.startswith('_'):
            tree = ast.parse(path.read_text(encoding='utf-8'))
            used = (n for node in tree.body if not isinstance(node, ast.Assign) for n in ast.walk(node))
            strings |= {n.value for n in used if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    links = {(name, word) for name, p in read.items() for word in p['named']}
    assert {'promote', 'rollback', 'status', 'train', 'similarity', 'code_version'} <= strings and len(links) > 10
    assert [link for link in links if link[1] in strings and link[1][:1].islower() and '.' not in link[1]] == []


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_has_its_page(read, command):
    rows = [(re.split(r'[ ,]', row[0])[0], row[-1]) for _, rows in read[f'commands/{command}.html']['tables'] for row in rows]
    actions = [a for a in COMMANDS[command]._actions if not isinstance(a, argparse._HelpAction)]
    expected = [a.option_strings[0] if a.option_strings else str(a.metavar or a.dest) for a in actions]
    assert sorted(name for name, _ in rows) == sorted(expected)
    assert all(text for _, text in rows)


def entries(items):
    "(where it leads, the name it has there, or None for the title of the page) of everything in a bar."
    for item in items:
        if isinstance(item, str): yield item, None
        else:
            if 'href' in item: yield item['href'], item.get('text') or item.get('section')
            yield from entries(item.get('contents', []))


def test_every_page_is_in_the_sidebar_once(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / '.ci'))
    site = importlib.import_module('docs').configuration(['index', *COMMANDS])['website']
    listed = [re.sub(r'\.(ipynb|md)$', '.html', href) for href, _ in entries(site['sidebar']['contents'])]
    assert sorted(listed) == sorted(PAGES)
    names = dict(entries(site['sidebar']['contents']))
    top = dict(entries(site['navbar']['left']))
    assert top and {href for href in top if href not in names} == set()
    assert {href: name for href, name in top.items() if names[href] not in (name, None)} == {}, 'one page has one name'


def test_the_navbar_says_what_the_page_says(page, address):
    page.goto(address)
    for link in page.locator('#quarto-header .navbar-nav a.nav-link[href]:has(.menu-text)').all():
        beside = page.locator(f'#quarto-sidebar a[href="{link.get_attribute("href")}"]')
        assert beside.first.inner_text() == link.inner_text()


def test_a_command_is_found_before_its_module(page, address):
    page.goto(address)
    box = page.locator('.smalldocs-search input:visible').first
    for command in COMMANDS:
        for words in (command, f'bioai-esol {command}'):
            box.fill(words)
            page.wait_for_function("href => document.querySelector('.search-result')?.getAttribute('href').endsWith(href)", arg=f'commands/{command}.html')
    assert page.troubles == []


@pytest.mark.parametrize('words, landing', [
    ('decide_rollback', 'registry/policy.html'), ('scaffold_split', 'chem/split.html'), ('interrupted sweep', 'howto/interrupted.html'),
    ('bioai-esol rollback', 'commands/rollback.html'), ('--require-significance', 'commands/promote.html')])
def test_search_finds_the_page(page, address, words, landing):
    page.goto(address)
    page.locator('.smalldocs-search input:visible').first.press_sequentially(words)
    page.locator(f'.smalldocs-search-results a[href*="{landing}"]:visible').first.click()
    page.wait_for_url(f'**/{landing}*')
    assert words.split('_')[0] in page.locator('main').inner_text().lower()
    assert page.troubles == []


def test_search_knows_every_page(site):
    entries = json.loads((site / 'search.json').read_text(encoding='utf-8'))
    assert {e['href'].split('#')[0] for e in entries} == set(PAGES)


def first_result(page, word):
    "The first result of the search, once it speaks of the whole word: what half of it found stands there before."
    found = page.locator('.search-result >> nth=0').filter(has_text=word)
    found.wait_for()
    return found


FOCUS = """() => { const e = document.activeElement, s = getComputedStyle(e);
  return { href: e.href || '', seen: s.outlineStyle != 'none' || s.boxShadow != 'none', shown: e.checkVisibility({visibilityProperty: true}) } }"""


def tab_to(page, end, most=90):
    "Press Tab until the link that ends so has the focus; whatever has it on the way can be seen."
    for _ in range(most):
        page.keyboard.press('Tab')
        at = page.evaluate(FOCUS)
        assert at['seen'] and at['shown'], at
        if at['href'].endswith(end): return
    raise AssertionError(f'{most} times Tab, and no link to {end}')


def test_every_page_is_reached_from_the_keyboard(page, address):
    page.goto(address + 'stores/aws.html')
    tab_to(page, 'howto/policy.html')
    page.keyboard.press('Enter')
    page.wait_for_url('**/howto/policy.html')
    section = page.locator('a.sidebar-item-toggle[aria-expanded=false]').first
    section.focus()
    page.keyboard.press('Enter')
    page.wait_for_function("() => document.activeElement.ariaExpanded == 'true'")
    tab_to(page, 'benchmarks.html')  # the last of the sidebar
    page.keyboard.press('/')
    page.keyboard.type('choose_candidate')
    first_result(page, 'choose_candidate')
    page.keyboard.press('ArrowDown')
    page.keyboard.press('Enter')
    page.wait_for_url('**/registry/policy.html#*')
    assert page.troubles == []


def test_a_phone_has_sidebar_and_search(new_page, address):
    page = new_page(viewport=dict(width=390, height=844), is_mobile=True, has_touch=True)
    page.goto(address + 'registry/policy.html')
    first, last = (page.locator('#quarto-sidebar a').locator(f'visible=true >> nth={n}') for n in (0, -1))
    def x(link): return link.bounding_box()['x']
    assert x(first) < 0, 'closed, it is beside the screen'
    page.locator('.quarto-btn-toggle').tap()
    page.wait_for_function("() => document.querySelector('#quarto-sidebar').getBoundingClientRect().x == 0")
    header, sidebar = (page.locator(f'#quarto-{part}').bounding_box() for part in ('header', 'sidebar'))
    assert sidebar['y'] > header['y'] + header['height'] - 1, 'nothing of it is behind the header'
    here = page.locator('#quarto-sidebar .sidebar-link.active').bounding_box()
    assert sidebar['y'] <= here['y'] < sidebar['y'] + sidebar['height'], 'it opens where one is'
    last.tap()  # it scrolls that far
    page.wait_for_url('**/benchmarks.html')
    assert page.locator('button:visible').count() == 1, 'one menu'
    page.locator('.smalldocs-search input:visible').press_sequentially('decide_rollback')
    first_result(page, 'decide_rollback').tap()
    page.wait_for_url('**/registry/policy.html#*')
    assert page.troubles == []


def test_the_sidebar_shows_where_one_is(page, address):
    for name in (PAGES[len(NOTEBOOKS) - 1], 'commands/migrate.html', next(p for p in PAGES if p.endswith('report.html'))):
        page.goto(address + name)
        here = page.locator('#quarto-sidebar .sidebar-link.active')
        assert here.count() == 1
        box, bar = here.bounding_box(), page.locator('#quarto-sidebar').bounding_box()
        assert bar['y'] <= box['y'] and box['y'] + box['height'] <= min(bar['y'] + bar['height'], 900), name


def test_light_and_dark_are_a_choice_that_stays(page, address):
    page.goto(address)
    def behind(): return page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert behind() == 'rgb(255, 255, 255)'
    page.locator('.quarto-color-scheme-toggle:visible').click()
    page.wait_for_function("() => document.documentElement.dataset.bsTheme == 'dark'")
    dark = behind()
    page.goto(address + 'tutorial.html')
    assert behind() == dark != 'rgb(255, 255, 255)'


def test_a_figure_can_be_enlarged(page, address):
    page.goto(address + 'lab/sweep_analysis.html')
    figure = page.locator('main img.enlarges').first
    figure.click()
    box = page.locator('dialog.enlarged[open] img')
    assert box.bounding_box()['width'] > figure.bounding_box()['width']
    page.keyboard.press('Escape')
    box.wait_for(state='detached')
    figure.press('Enter')
    box.wait_for()
    assert page.troubles == []


def test_prompts_are_not_copied(new_page, address):
    page = new_page(permissions=['clipboard-read', 'clipboard-write'])
    for name, prompt, first in (('analysis/interactive', '>>> ', 'import bioai_esol as esol'), ('index', '$ ', 'git clone')):
        page.goto(f'{address}{name}.html')
        block = page.locator('.code-copy-outer-scaffold:has(.prompt)').first
        assert block.locator('.prompt').first.evaluate("e => getComputedStyle(e, '::before').content") == f'"{prompt}"'
        block.locator('.code-copy-button').click()
        page.wait_for_function("text => navigator.clipboard.readText().then(t => t.startsWith(text) && !t.includes('>>>'))", arg=first)


def test_charts_follow_the_scheme_of_the_page(page, address):
    "They are a page of their own in a frame: light letters stand on a dark page, by the reader's system and by the switch."
    page.goto(address + 'analysis/interactive.html')
    frame = page.frame_locator('main iframe').last
    def is_dark(): return frame.locator('html').evaluate("e => e.classList.contains('dark')")
    def behind():
        corner = page.locator('main iframe').last.screenshot()
        return Image.open(io.BytesIO(corner)).convert('L').getpixel((2, 2))
    frame.locator('svg').first.wait_for()
    assert not is_dark() and behind() > 240
    page.locator('.quarto-color-scheme-toggle:visible').click()
    frame.locator('html.dark svg').first.wait_for()
    assert behind() < 60
    page.locator('.quarto-color-scheme-toggle:visible').click()
    frame.locator('html:not(.dark) svg').first.wait_for()
    page.emulate_media(color_scheme='dark')
    page.reload()  # the switch has been used, and goes before the system
    frame.locator('html:not(.dark) svg').first.wait_for()
    assert page.troubles == []


def test_the_gallery_shows_every_figure_and_its_line():
    from bioai_esol.analysis import error_analysis, figures
    cells = json.loads((ROOT / 'nbs/gallery.ipynb').read_text(encoding='utf-8'))['cells']
    code = [(''.join(c['source']), {kind for o in c['outputs'] for kind in o.get('data', {})}) for c in cells if c['cell_type'] == 'code'][1:]
    assert len(code) >= 15 and [source for source, _ in code if '\n' in source] == [], 'one line each'
    assert [source for source, kinds in code if not kinds & {'image/png', 'image/svg+xml', 'text/html'}] == []
    drawn = {name for module in (figures, error_analysis) for name in module.__all__ if name.startswith('plot_')}
    assert drawn == {name for name in drawn if any(source.startswith(f'{name}(') for source, _ in code)}


def test_pages_lead_on_and_say_their_version(page, address):
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / 'settings.ini')
    page.goto(address)
    page.locator('.nav-page-next a').click()
    page.wait_for_url('**/tutorial.html')
    assert page.locator('.nav-page-previous a').count() == 1
    footer = page.locator('footer')
    assert settings['DEFAULT']['version'] in footer.inner_text()
    home = settings['DEFAULT']['git_url']
    assert [a.get_attribute('href') for a in footer.locator('a').all()] == [home, f'{home}/issues/new']
    assert page.locator('.toc-action', has_text='Report an issue').get_attribute('href') == f'{home}/issues/new'


def test_the_workflows_ask_for_little():
    "Pinned to a major version, without rights that nobody needs; what is deployed is what `make docs` writes."
    flows = {path.stem: yaml.safe_load(path.read_text(encoding='utf-8')) for path in (ROOT / '.github/workflows').glob('*.yml')}
    assert all(flow['permissions'] == dict(contents='read') for flow in flows.values())
    steps = {name: [step for job in flow['jobs'].values() for step in job['steps']] for name, flow in flows.items()}
    assert all(re.fullmatch(r'actions/[\w-]+@v\d+', step['uses']) for found in steps.values() for step in found if 'uses' in step)
    build, deploy = (flows['pages']['jobs'][name] for name in ('build', 'deploy'))
    assert any(step.get('run', '').startswith('make docs') for step in build['steps']) and 'permissions' not in build
    assert next(step['with']['path'] for step in build['steps'] if 'pages-artifact' in step.get('uses', '')) == '_docs'
    assert (deploy['permissions'], deploy['needs']) == ({'pages': 'write', 'id-token': 'write'}, 'build')
