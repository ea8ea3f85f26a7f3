"""Renders the documentation site into _docs/ and writes README.md from nbs/index.ipynb.

    python .ci/docs.py                  # both
    python .ci/docs.py --readme-only    # README.md alone, without running anything

Any Quarto can render the same project from _quarto.yml; this script needs only pip packages.
"""
import json
import os
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


def readme() -> str:
    "README.md: the cells of index.ipynb, with paths as they are from the top of the repository."
    cells = json.loads((ROOT / 'nbs/index.ipynb').read_text(encoding='utf-8'))['cells']
    text = included('\n\n'.join(cell_markdown(c) for c in cells))
    text = re.sub(r'\]\((images/|analysis/|stores/|howto/|\w+\.ipynb)', r'](nbs/\1', text)
    return f'<!-- written from nbs/index.ipynb by make docs: edit the notebook -->\n\n{text}\n'


def stage():
    "Processed notebooks, pictures and configuration under _proc/, with page names and links as the site has them."
    from nbdev.serve import proc_nbs
    shutil.rmtree(PROC, ignore_errors=True)
    os.environ['PYTHONPATH'] = os.pathsep.join(map(str, (ROOT, ROOT / '.ci')))  # nbdev's processes import the package, and renderer.py
    proc_nbs()
    for path in sorted(PROC.rglob('*.ipynb')):
        page = json.loads(path.read_text(encoding='utf-8'))
        for cell in page['cells']:
            if cell['cell_type'] == 'markdown': cell['source'] = included(''.join(cell['source']))
        text = json.dumps(page)
        depth = '../' * (len(path.relative_to(PROC).parts) - 1)
        text = re.sub(r'https://example\.org/bioai-esol/([\w./-]+\.html)', depth + r'\1', text)  # nbdev links by doc_host
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
