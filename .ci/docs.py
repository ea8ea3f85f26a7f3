"""Renders the documentation site into _docs/ and writes README.md from nbs/index.ipynb.

    python .ci/docs.py                  # both
    python .ci/docs.py --readme-only    # README.md alone, without running anything

Any Quarto can render the same project from _quarto.yml; this script needs only pip packages.
"""
import argparse
import ast
import gc
import json
import posixpath
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path, PurePosixPath

import yaml

ROOT = Path(__file__).resolve().parent.parent
NBS, PROC, PACKAGE = ROOT / 'nbs', ROOT / '_proc', 'bioai_esol'
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]  # the package is this tree's, and the other scripts are beside this one


# ---- where things are

def notebooks() -> list[PurePosixPath]:
    "Every notebook, from the folder of notebooks."
    found = (p.relative_to(NBS) for p in NBS.rglob('*.ipynb'))
    return sorted(PurePosixPath(p.as_posix()) for p in found if not any(part[0] in '._' for part in p.parts))


def staged(notebook: PurePosixPath) -> PurePosixPath:
    "Where a notebook stands on the site: its folder and its name, without the number that orders it for whoever reads the source."
    return notebook.with_name(re.sub(r'^\d+_', '', notebook.name))


def page(notebook: PurePosixPath) -> PurePosixPath:
    "The page of a notebook."
    return staged(notebook).with_suffix('.html')


# ---- text that a page takes from elsewhere

def included(text: str) -> str:
    """`text` with every line `<!-- include PATH -->` replaced by that file, and every `<!-- rows PATH | NAME | NAME -->` by the
    rows of its first table that begin with these names."""
    text = re.sub(r'^<!-- include (\S+) -->$', lambda m: (ROOT / m[1]).read_text(encoding='utf-8').strip(), text, flags=re.M)
    return re.sub(r'^<!-- rows (\S+) \| (.*) -->$', lambda m: rows_of((ROOT / m[1]).read_text(encoding='utf-8'), m[2].split(' | ')), text, flags=re.M)


def rows_of(page: str, names: list[str]) -> str:
    "The head of the first table of `page`, and its rows with these names in the first column; four columns of it."
    lines = [line for line in page.split('\n\n')[2].splitlines() if line.startswith('|')]
    table = ['|'.join(line.split('|')[:5]) + '|' for line in lines]
    rows = {line.split('|')[1].strip(): line for line in table[2:]}
    missing = [name for name in names if name not in rows]
    if missing: raise SystemExit(f'no row {missing[0]!r}: there are {", ".join(rows)}')
    return '\n'.join([*table[:2], *(rows[name] for name in names)])


def links_to_files(text: str, notebook: PurePosixPath, files: str) -> str:
    "`text` of a notebook with links to files beside the notebooks leading into the repository at the address `files`; `x.py#name` to where that begins."
    def link(m):
        target = PurePosixPath(posixpath.normpath(PurePosixPath('nbs', notebook).parent / m[1]))
        if target.parts[0] == 'nbs': return m[0]
        if not (ROOT / target).exists(): raise SystemExit(f'nbs/{notebook} links to {m[1]}, and there is no {target}')
        if target.suffix != '.py' or not m[2]: return f']({files}/{target}{m[2] or ""})'
        lines = (ROOT / target).read_text(encoding='utf-8').splitlines()
        found = [n for n, code in enumerate(lines, 1) if re.match(rf'(def|class) {m[2][1:]}\b', code)]
        if not found: raise SystemExit(f'{target} has no {m[2][1:]}, and nbs/{notebook} links to it')
        return f']({files}/{target}#L{found[0]})'
    return re.sub(r'\]\(((?:\.\./)+[^()\s#]+)(#[^()\s]+)?\)', link, text)


def links_between(text: str, notebook: PurePosixPath) -> str:
    "`text` of a notebook with its links to other notebooks leading to where these are staged."
    def link(m):
        target = PurePosixPath(posixpath.normpath(notebook.parent / m[1]))
        if not (NBS / target).is_file(): raise SystemExit(f'nbs/{notebook} links to {m[1]}, and there is no nbs/{target}')
        return f']({staged(PurePosixPath(m[1]))}{m[2] or ""})'
    return re.sub(r'\]\((?!\w+:)([^()\s#]+\.ipynb)(#[^()\s]+)?\)', link, text)


def outside_code(change, text: str) -> str:
    "`text` with `change` made to each line that is not in a block of code."
    inside, lines = False, []
    for line in text.split('\n'):
        fence = line.lstrip().startswith('```')
        lines.append(line if inside or fence or line.startswith('    ') else change(line))
        inside ^= fence
    return '\n'.join(lines)


# ---- README

def cell_markdown(cell: dict) -> str:
    "A cell of index.ipynb as Markdown; code cells there are text for the reader and have no outputs worth repeating."
    source = ''.join(cell['source'])
    return source if cell['cell_type'] == 'markdown' else f'```python\n{source}\n```'


def readme() -> str:
    "README.md: the cells of index.ipynb, with paths as they are from the top of the repository."
    def from_the_top(m):
        path, anchor = re.fullmatch(r'([^#]*)(#.*)?', m[2]).groups()
        if not path or not (NBS / path).exists(): return m[0]  # a heading of this page, an address, or something that is missing
        return f'{m[1]}{posixpath.normpath(posixpath.join("nbs", path))}{anchor or ""}'
    cells = json.loads((NBS / 'index.ipynb').read_text(encoding='utf-8'))['cells']
    text = included('\n\n'.join(cell_markdown(c) for c in cells))
    text = re.sub(r'^<!-- run:.*?-->\n', '', text, flags=re.M | re.S)  # what .ci/pages.py does with a block
    text = re.sub(r'(\]\(|\b(?:src|href|srcset)=")(?!\w+:)([^()"\s]+)', from_the_top, text)
    return f'<!-- written from nbs/index.ipynb by make docs: edit the notebook -->\n\n{text}\n'


# ---- links that nobody wrote

@cache
def spoken() -> set[str]:
    "Every string in the package. A word that is one is a column, a rule or a command as well as, perhaps, a function."
    words = set()
    for path in (ROOT / PACKAGE).rglob('*.py'):
        if path.name.startswith('_'): continue
        for statement in ast.parse(path.read_text(encoding='utf-8')).body:
            if isinstance(statement, ast.Assign) and getattr(statement.targets[0], 'id', '') == '__all__': continue
            words |= {n.value for n in ast.walk(statement) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return words


@cache
def addresses() -> dict[str, list[str]]:
    "Where what a page may name is documented: each function, class and method under all its dotted names, each module under its own."
    from nbdev.doclinks import NbdevLookup
    home, found = getattr(__import__(PACKAGE), '_HOME', {}), {}
    for module, names in NbdevLookup().entries[PACKAGE]['syms'].items():
        for name, (address, *_) in names.items():
            parts = name.split('.')
            own = parts[len(module.split('.')):]
            if any(part.startswith('_') for part in own): continue  # what is private has no place on the site
            for n in range(len(parts)): found.setdefault('.'.join(parts[n:]), []).append(address)
            if home.get(own[0]) == module.removeprefix(PACKAGE + '.'):  # one of the names that the package gives at its top
                for prefix in ('', PACKAGE + '.', 'esol.'): found[prefix + '.'.join(own)] = [address]
        if names and '.' in (short := module.removeprefix(PACKAGE + '.')):
            found[short] = found[module] = [next(iter(names.values()))[0].split('#')[0]]
    return found


def in_link(m: re.Match) -> bool:
    "Whether what was found stands in the text of a link already."
    return bool(re.match(r'[^][]*\]\(', m.string[m.end():]))


def link_code(self, m: re.Match) -> str:
    """What nbdev is to make of something in backticks: a link when it is written as a call or with a dot, when it is a class, or when
    it is nothing but a function; not when it is a word that means something else too, and not when two modules have such a name."""
    if in_link(m): return m[0]
    name, call = m[1], '()' if m[0].endswith('()`') else ''
    found = set(addresses().get(name, []))
    if len(found) != 1: return m[0]
    if not (call or '.' in name or name[0].isupper()) and name in spoken(): return m[0]
    return f'[`{name}{call}`]({found.pop()})'


def link_commands(text: str, names: set[str], up: str) -> str:
    "`text` with `bioai-esol NAME …` in backticks linked to the command's page."
    def link(m): return f'[{m[0]}]({up}commands/{m[1]}.md)' if m[1] in names and not in_link(m) else m[0]
    return outside_code(lambda line: re.sub(r'(?<!`)`bioai-esol ([\w-]+)[^`]*`(?!`)', link, line), text)


# ---- the project as it is rendered

def documents(cell) -> bool:
    "Whether a cell is run for the sake of the documentation. nbdev would also run every other one that imports something, examples included."
    from nbdev.processors import _show_docs
    if cell.cell_type != 'code' or not cell.source: return False
    return bool(cell.directives_.keys() & {'export', 'exports', 'exporti', 'exec_doc'} or _show_docs(cell.parsed_() or []))


def stage():
    "Processed notebooks, pages of commands, pictures and configuration under _proc/, with page names and links as the site has them."
    import commands
    from nbdev import processors
    from nbdev.config import get_config
    from nbdev.doclinks import NbdevLookup
    from nbdev.serve import proc_nbs
    names = processors._def_names
    processors._def_names = lambda *args: names(*args)[::-1]  # nbdev puts each right behind its cell, so that the last would stand first
    NbdevLookup._link_sym = link_code
    processors._do_eval = documents
    settings = get_config()
    home, files = re.escape(settings.doc_host + settings.doc_baseurl), f'{settings.git_url}/blob/{settings.branch}'
    shutil.rmtree(PROC, ignore_errors=True)
    proc_nbs(n_workers=0)  # one process, so that PyTorch and MLflow are imported once
    gc.freeze()  # IPython searches the whole heap for garbage at the end, once for every notebook
    told = commands.pages()
    for notebook in notebooks():
        path, up = PROC / notebook, '../' * len(notebook.parent.parts)
        processed = json.loads(path.read_text(encoding='utf-8'))
        for cell in processed['cells']:
            if cell['cell_type'] == 'raw': cell['source'] = front_matter(''.join(cell['source']), f'{files}/nbs/{notebook}')
            if cell['cell_type'] != 'markdown': continue
            text = links_to_files(included(''.join(cell['source'])), notebook, files)
            cell['source'] = link_commands(links_between(text, notebook), set(told), up)
        if is_story(notebook): fold(processed)
        name_module(processed, notebook)
        describe_pictures(processed)
        text = json.dumps(processed)
        text = re.sub(home + r'/([\w./-]+\.html)', up + r'\1', text)  # nbdev links by doc_host
        path.unlink()
        (PROC / staged(notebook)).write_text(text, encoding='utf-8')
    (PROC / 'commands').mkdir()
    for name, text in told.items(): (PROC / 'commands' / f'{name}.md').write_text(text, encoding='utf-8')
    (PROC / '_quarto.yml').write_text(yaml.safe_dump(configuration(list(told)), sort_keys=False, allow_unicode=True), encoding='utf-8')
    shutil.copytree(NBS / 'images', PROC / 'images', dirs_exist_ok=True)
    for name in ('site.css', 'head.html'): shutil.copy(ROOT / '.ci' / name, PROC / name)


def front_matter(text: str, source: str) -> str:
    "The head of a page without nbdev's name for the file, which has its own already, and with a link to the notebook behind it."
    link = json.dumps([dict(text='The notebook of this page', href=source)])
    return re.sub(r'^output-file: .*$', f'code-links: {link}', text, flags=re.M)


def name_module(processed: dict, notebook: PurePosixPath):
    "Say under the title which module the page is about: the title is for people."
    cells = json.loads((NBS / notebook).read_text(encoding='utf-8'))['cells']
    found = re.search(r'^#\| *default_exp +(\S+)', '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'code'), flags=re.M)
    head = next((n for n, cell in enumerate(processed['cells']) if cell['cell_type'] == 'raw'), None)
    if not found or head is None: return
    text = f'<p class="module"><code>{PACKAGE}.{found[1]}</code></p>'
    processed['cells'].insert(head + 1, dict(cell_type='markdown', id='module', metadata={}, source=text))


def is_story(notebook: PurePosixPath) -> bool:
    "Is it read for its sentences and pictures, and not for its code: an analysis, the opening page of a wing?"
    return notebook.parts[0] == 'lab' or notebook.stem in ('index', 'architecture')


def fold(notebook: dict, most: int = 3):
    "Close the code of more than a few lines: whoever reads such a page on the site came for its figures and sentences."
    for cell in notebook['cells']:
        if cell['cell_type'] == 'code' and len(''.join(cell['source']).strip().splitlines()) > most:
            cell['source'] = '#| code-fold: true\n#| code-summary: "Code"\n' + ''.join(cell['source'])


def describe_pictures(notebook: dict):
    "Name the section that a picture stands in, for whoever cannot see it, where the notebook gives it no text of its own."
    section = ''
    for cell in notebook['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown': section = (re.findall(r'^#+ +(.+?)(?: *\{[^}]*\})?$', source, flags=re.M) or [section])[-1]
        elif not re.search(r'^#\| *fig-alt:', source, flags=re.M) and any('image/png' in o.get('data', {}) for o in cell.get('outputs', [])):
            cell['source'] = f'#| fig-alt: {json.dumps(f"Figure: {section}", ensure_ascii=False)}\n#| fig-align: left\n' + source


def configuration(commands: list[str] = ()) -> dict:
    "What _quarto.yml says, with staged paths, and with every pattern in the sidebar replaced by the pages that it means, in the order of their numbers."
    def path(text): return str(staged(PurePosixPath(text.removeprefix('nbs/'))))
    def exists(text):
        if text.endswith('.ipynb') and '*' not in text and not (ROOT / text).is_file(): raise SystemExit(f'_quarto.yml names {text}, which is not there')
        return text
    def entries(contents, home):
        for item in [contents] if isinstance(contents, str) else contents:
            if isinstance(item, dict):
                item = {k: path(exists(v)) if k == 'href' and v.endswith('.ipynb') else v for k, v in item.items()}
                if 'contents' in item: item['contents'] = list(entries(item['contents'], item.get('href')))
                yield item
            elif item == 'commands/*.md':
                yield from (dict(text=name, href=f'commands/{name}.md') for name in commands if name != 'index')
            else:
                found = [n for n in notebooks() if PurePosixPath('nbs', n).match(item)] if '*' in item else [PurePosixPath(exists(item).removeprefix('nbs/'))]
                yield from (str(staged(n)) for n in found if str(staged(n)) != home)
    config = yaml.safe_load((ROOT / '_quarto.yml').read_text(encoding='utf-8'))
    project = config['project']
    project['render'] = ['**/*.ipynb', 'commands/*.md']
    site = config['website']
    for bar in (site['sidebar'], site['navbar']):
        for side in ('contents', 'left', 'right'):
            if side in bar: bar[side] = list(entries(bar[side], None))
    site['favicon'], site['image'] = path(site['favicon']), path(site['image'].replace('/nbs/', '/'))
    from nbdev.config import get_config
    settings = get_config()
    site['repo-url'] = settings.git_url
    site['site-url'] = settings.doc_host + settings.doc_baseurl
    links = f'[Source code]({settings.git_url}) · [Report an issue]({settings.git_url}/issues/new)'
    site['page-footer'] = dict(left=f'{settings.title} {settings.version}', right=links)
    return config


def render():
    "The site, checked for broken links and leftovers, each page touched up."
    import touch_up
    import twins
    tool = Path(sys.executable).with_name('smalldocs')
    subprocess.run([tool, 'render', '--strict', PROC], check=True)
    subprocess.run([tool, 'check', PROC], check=True)
    for path in (PROC / '_docs').rglob('*.html'):
        path.write_text(touch_up.touched_up(path.read_text(encoding='utf-8'), path), encoding='utf-8')
    for path in (PROC / '_docs').rglob('*.llms.md'):
        path.write_text(twins.plain(path.read_text(encoding='utf-8')), encoding='utf-8')
    site = yaml.safe_load((PROC / '_quarto.yml').read_text(encoding='utf-8'))['website']
    (PROC / '_docs/llms.txt').write_text(twins.index(site, PROC / '_docs'), encoding='utf-8')
    shutil.rmtree(ROOT / '_docs', ignore_errors=True)
    shutil.move(PROC / '_docs', ROOT / '_docs')
    shutil.rmtree(PROC)
    print(f'site: {ROOT / "_docs" / "index.html"}')


def report_silence():
    "The arguments that nothing explains."
    from renderer import UNTOLD
    for name in sorted(set(UNTOLD)): print(f'not explained: {name}')


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument('--readme-only', action='store_true')
    asked = options.parse_args()
    (ROOT / 'README.md').write_text(readme(), encoding='utf-8')
    if not asked.readme_only:
        stage()
        render()
        report_silence()
