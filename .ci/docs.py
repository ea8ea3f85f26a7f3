"""Renders the documentation site into _docs/ and writes README.md from nbs/index.ipynb.

    python .ci/docs.py                  # both
    python .ci/docs.py --readme-only    # README.md alone, without running anything

Any Quarto can render the same project from _quarto.yml; this script needs only pip packages.
"""
import gc
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROC = ROOT / '_proc'


def short(name: str) -> str:
    "A page's file name without its reading-order number."
    return re.sub(r'^\d\d_', '', name)


def cell_markdown(cell: dict) -> str:
    "A cell of index.ipynb as Markdown; code cells there are text for the reader and have no outputs worth repeating."
    source = ''.join(cell['source'])
    return source if cell['cell_type'] == 'markdown' else f'```python\n{source}\n```'


def included(text: str) -> str:
    "`text` with every line `<!-- include PATH -->` replaced by that file."
    return re.sub(r'^<!-- include (\S+) -->$', lambda m: (ROOT / m[1]).read_text(encoding='utf-8').strip(), text, flags=re.M)


def lines_of_tests(text: str, files: str) -> str:
    "`text` with links to a test, `../tests/test_x.py#test_y`, leading to its line in the repository at the address `files`."
    def line(link):
        lines = (ROOT / link[1]).read_text(encoding='utf-8').splitlines()
        found = [n for n, code in enumerate(lines, 1) if code.startswith(f'def {link[2]}(')]
        if not found: raise SystemExit(f'{link[1]} has no {link[2]}, and a page links to it')
        return f']({files}/{link[1]}#L{found[0]})'
    return re.sub(r'\]\((?:\.\./)+(tests/\w+\.py)#(\w+)\)', line, text)


def readme() -> str:
    "README.md: the cells of index.ipynb, with paths as they are from the top of the repository."
    cells = json.loads((ROOT / 'nbs/index.ipynb').read_text(encoding='utf-8'))['cells']
    text = included('\n\n'.join(cell_markdown(c) for c in cells))
    text = re.sub(r'\]\((images/|analysis/|stores/|howto/|\w+\.ipynb)', r'](nbs/\1', text)
    return f'<!-- written from nbs/index.ipynb by make docs: edit the notebook -->\n\n{text}\n'


def stage():
    "Processed notebooks, pictures and configuration under _proc/, with page names and links as the site has them."
    from nbdev import processors
    from nbdev.config import get_config
    from nbdev.serve import proc_nbs
    names = processors._def_names
    processors._def_names = lambda *args: names(*args)[::-1]  # nbdev puts each right behind its cell, so that the last would stand first
    settings = get_config()
    home, files = re.escape(settings.doc_host + settings.doc_baseurl), f'{settings.git_url}/blob/{settings.branch}'
    shutil.rmtree(PROC, ignore_errors=True)
    sys.path.insert(0, str(ROOT))  # the package is this tree's, and renderer.py is beside this script
    proc_nbs(n_workers=0)  # one process, so that PyTorch and MLflow are imported once
    gc.freeze()  # IPython searches the whole heap for garbage at the end, once for every notebook
    for path in sorted(PROC.rglob('*.ipynb')):
        page = json.loads(path.read_text(encoding='utf-8'))
        for cell in page['cells']:
            if cell['cell_type'] == 'markdown': cell['source'] = lines_of_tests(included(''.join(cell['source'])), files)
        text = json.dumps(page)
        depth = '../' * (len(path.relative_to(PROC).parts) - 1)
        text = re.sub(home + r'/([\w./-]+\.html)', depth + r'\1', text)  # nbdev links by doc_host
        text = re.sub(r'\[(`_\w+`)\]\([^)]+\)', r'\1', text)  # what is private has no place on the site
        text = re.sub(r'(\.html#\w+)\.\w+', r'\1', text)  # methods stand with their class
        text = re.sub(r'output-file: [\w.-]+\.html(\\n)?', '', text)  # nbdev's, the file names are ours already
        text = re.sub(r'(\]\((?:\.\./)?)\d\d_(\w+\.ipynb)', r'\1\2', text)  # links between notebooks
        target = path.with_name(short(path.name))
        path.unlink()
        target.write_text(text, encoding='utf-8')
    config = (ROOT / '_quarto.yml').read_text(encoding='utf-8').replace('nbs/', '')
    config = re.sub(r'render:\n(?: +- .*\n)+', 'render:\n    - "**/*.ipynb"\n', config)
    config = re.sub(r'\b\d\d_(\w+\.ipynb)', r'\1', config)
    (PROC / '_quarto.yml').write_text(config, encoding='utf-8')
    shutil.copytree(ROOT / 'nbs/images', PROC / 'images', dirs_exist_ok=True)
    shutil.copy(ROOT / '.ci/site.css', PROC / 'site.css')


def render():
    "The site, checked for broken links and leftovers."
    tool = Path(sys.executable).with_name('smalldocs')
    subprocess.run([tool, 'render', '--strict', PROC], check=True)
    subprocess.run([tool, 'check', PROC], check=True)
    shutil.rmtree(ROOT / '_docs', ignore_errors=True)
    shutil.move(PROC / '_docs', ROOT / '_docs')
    shutil.rmtree(PROC)
    print(f'site: {ROOT / "_docs" / "index.html"}')


if __name__ == '__main__':
    (ROOT / 'README.md').write_text(readme(), encoding='utf-8')
    if '--readme-only' not in sys.argv[1:]:
        stage()
        render()
