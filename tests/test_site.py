"The documentation as a reader has it: built, served on this machine, and every page opened in a browser."
import ast
import configparser
import functools
import http.server
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import types
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from helpers import ROOT

MODULES = sorted(p.stem for p in (ROOT / 'bioai_esol').glob('*.py') if p.stem not in ('__init__', '_modidx'))
NOTEBOOKS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
PAGES = [re.sub(r'\d\d_(\w+)\.ipynb$', r'\1.ipynb', n.removeprefix('nbs/')).replace('.ipynb', '.html') for n in NOTEBOOKS]
READ = """() => ({
  title: document.title, ids: [...document.querySelectorAll('[id]')].map(e => e.id), words: document.querySelector('main').innerText.length,
  raw: [...document.querySelectorAll('main p, main li, main td')].map(e => e.innerText).filter(t => /\\]\\(\\S*(html|ipynb)/.test(t)),
  links: [...document.querySelectorAll('a[href]')].map(e => e.href),
  images: [...document.images].map(e => [e.getAttribute('src').slice(0, 60), e.naturalWidth]),
  tables: [...document.querySelectorAll('h3[id] ~ .arguments, .arguments')].map(e => {
    let h = e.previousElementSibling; while (h && h.tagName != 'H3') h = h.previousElementSibling;
    return [h ? h.innerText.trim() : '', [...e.querySelectorAll('tbody tr')].map(r => [...r.cells].map(c => c.innerText.trim())), e.innerText.trim()]}),
  sources: [...document.querySelectorAll('a.source')].map(e => e.href)})"""
WIDER = """() => { const w = document.documentElement.clientWidth, held = e => {
    for (let p = e.parentElement; p; p = p.parentElement) if (/auto|scroll|hidden/.test(getComputedStyle(p).overflowX)) return true; return false };
  return [document.documentElement.scrollWidth - w, [...document.querySelectorAll('main *')].filter(e => {
    const r = e.getBoundingClientRect(); return r.width && r.right > w + 1 && !held(e) }).slice(0, 3).map(e => e.outerHTML.slice(0, 120))] }"""


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
    done = subprocess.run([sys.executable, '.ci/docs.py'], cwd=copy, env=env, capture_output=True, text=True, timeout=300)
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
    "What stands on every page, and every trouble and request on the way; and by how much each is too wide for a phone."
    from browser import remember
    wide, phone = chromium.new_context(viewport=dict(width=1280, height=900)), chromium.new_context(viewport=dict(width=390, height=844), is_mobile=True)
    page, narrow, found = remember(wide.new_page()), phone.new_page(), {}
    asked = []
    page.on('request', lambda r: asked.append(r.url))
    for name in PAGES:
        page.goto(address + name, wait_until='load')
        narrow.goto(address + name, wait_until='load')
        found[name] = dict(page.evaluate(READ), troubles=page.troubles[:], asked=asked[:], wider=narrow.evaluate(WIDER))
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


def test_a_phone_does_not_scroll_sideways(read):
    assert {name: p['wider'] for name, p in read.items() if p['wider'][0] > 0 or p['wider'][1]} == {}


def public(module):
    "The functions and classes that a module says are for others."
    m = importlib.import_module(f'bioai_esol.{module}')
    return {n: o for n in m.__all__ if isinstance(o := getattr(m, n), (type, types.FunctionType))}


def parameters(module, name):
    "The names of the arguments of a function, as they stand in the source."
    tree = ast.parse((ROOT / f'bioai_esol/{module}.py').read_text(encoding='utf-8'))
    a = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name).args
    return [*(x.arg for x in a.posonlyargs + a.args), *([f'*{a.vararg.arg}'] if a.vararg else []), *(x.arg for x in a.kwonlyargs),
            *([f'**{a.kwarg.arg}'] if a.kwarg else [])]


def test_links_to_the_code_lead_to_its_line(read):
    """They go to the address that settings.ini names; the line is that of the function, class or test."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / 'settings.ini')
    files = '{git_url}/blob/{branch}/'.format(**settings['DEFAULT'])
    links = {(link.removeprefix(files).split('#L')[0], int(link.split('#L')[1])) for p in read.values() for link in p['links'] if link.startswith(files)}
    wrong = [f'{path}:{line}' for path, line in links if not re.match(r'@|def |class |[A-Z]\w* = ', (ROOT / path).read_text('utf-8').splitlines()[line - 1])]
    assert wrong == [] and {path.split('/')[0] for path, _ in links} == {'bioai_esol', 'tests'}
    assert len(links) > 150


@pytest.mark.parametrize('module', MODULES)
def test_every_argument_is_explained(read, module):
    page = read[f'{module}.html']
    tables = {title: (rows, text) for title, rows, text in page['tables']}
    assert len(page['sources']) >= len(tables)
    assert [title for title in tables if title in public(module)] == list(public(module)), 'in the order of the source'
    for name, thing in public(module).items():
        rows, text = tables[name]
        told = [row[0] for row in rows if row[0] != 'returns']
        if isinstance(thing, types.FunctionType): assert told == parameters(module, name), name
        elif hasattr(thing, 'model_fields'): assert told == list(thing.model_fields), name
        elif hasattr(thing, '__dataclass_fields__'): assert told == [f for f, d in thing.__dataclass_fields__.items() if d.init], name
        assert rows or text == 'No arguments.', name
        assert [row for row in rows if row[0] != 'returns' and not row[3]] == [], f'{name}: say what it is, beside the argument or in .ci/words.yml'


def test_every_notebook_is_in_the_sidebar():
    website = yaml.safe_load((ROOT / '_quarto.yml').read_text(encoding='utf-8'))['website']
    def hrefs(items):
        for item in items:
            if isinstance(item, str): yield item
            elif 'contents' in item: yield from hrefs(item['contents'])
            else: yield item['href']
    listed = list(hrefs(website['sidebar']['contents']))
    assert sorted(listed) == NOTEBOOKS
    assert all((ROOT / item['href']).is_file() for item in website['navbar']['left'])  # every entry leads to a page


@pytest.mark.parametrize('words, landing', [
    ('rollback_decision', 'policy.html'), ('scaffold_split', 'split.html'), ('interrupted sweep', 'howto/interrupted.html')])
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
    tab_to(page, 'benchmarks.html')  # the last of the sidebar
    page.keyboard.press('/')
    page.keyboard.type('choose_candidate')
    first_result(page, 'choose_candidate')
    page.keyboard.press('ArrowDown')
    page.keyboard.press('Enter')
    page.wait_for_url('**/policy.html#*')
    assert page.troubles == []


def test_a_phone_has_sidebar_and_search(new_page, address):
    page = new_page(viewport=dict(width=390, height=844), is_mobile=True, has_touch=True)
    page.goto(address + 'policy.html')
    first, last = (page.locator('#quarto-sidebar a').locator(f'visible=true >> nth={n}') for n in (0, -1))
    def x(link): return link.bounding_box()['x']
    assert x(first) < 0, 'closed, it is beside the screen'
    page.locator('.quarto-btn-toggle').tap()
    page.wait_for_function("() => document.querySelector('#quarto-sidebar').getBoundingClientRect().x == 0")
    header = page.locator('#quarto-header').bounding_box()
    assert first.bounding_box()['y'] >= header['y'] + header['height'], 'nothing of it is behind the header'
    last.tap()  # it scrolls that far
    page.wait_for_url('**/benchmarks.html')
    page.locator('.navbar-toggler').tap()
    page.locator('.smalldocs-search input:visible').press_sequentially('rollback_decision')
    first_result(page, 'rollback_decision').tap()
    page.wait_for_url('**/policy.html#*')
    assert page.troubles == []


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
