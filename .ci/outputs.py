"""Runs the analysis notebooks and keeps what they show, for the site: python .ci/outputs.py [NAME …]

The store is the one that MLFLOW_TRACKING_URI names, else ./mlflow.db, as `make run` leaves it. A page shows no sliders and no progress bars, so what
needs a kernel to be looked at is left out; paths of this machine are an error."""
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from bioai_esol.store.client import store_uri

WIDGET = 'application/vnd.jupyter.widget-view+json'


def run(path: Path):
    "Execute one notebook in its place, and save it with its outputs."
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1200, kernel_name='python3', resources=dict(metadata=dict(path=str(path.parent)))).execute()
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get('data', {}) and o.get('name') != 'stderr']
            for o in cell.outputs:
                text = str(o.get('text', '')) + ''.join(str(v) for kind, v in o.get('data', {}).items() if kind.startswith('text/'))
                assert str(Path.home()) not in text and str(ROOT) not in text, f'{path.name} shows a path of this machine: {text[:300]}'
    notebook.metadata.pop('widgets', None)  # what the kernel knew of the sliders
    nbformat.write(notebook, path)
    print(f'{path.relative_to(ROOT)}: {sum("image/png" in o.get("data", {}) for c in notebook.cells for o in c.get("outputs", []))} figures')


if __name__ == '__main__':
    os.environ['MLFLOW_TRACKING_URI'] = store_uri(None)
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    for path in sorted((ROOT / 'nbs/lab').glob('*.ipynb')):
        if not sys.argv[1:] or path.stem in sys.argv[1:]:
            run(path)
