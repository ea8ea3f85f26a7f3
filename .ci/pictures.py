"""The picture of JupyterLab in README and site, made from a store with a full sweep: python .ci/pictures.py

The store is the one that MLFLOW_TRACKING_URI names, else ./mlflow.db, as `make run` leaves it; it is only read."""
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
from browser import remember, started
from lab import jupyterlab, slider

NOTEBOOK, PICTURE, LIMIT = 'analysis/sweep_analysis.ipynb', ROOT / 'nbs' / 'images' / 'explorer.png', 300_000


def explorer(uri: str) -> bytes:
    "JupyterLab on the analysis notebook, run to its end, with the policy explorer in view."
    with tempfile.TemporaryDirectory() as folder, jupyterlab(folder, MLFLOW_TRACKING_URI=uri) as lab, started() as browser:
        page = remember(browser.new_page(viewport=dict(width=1440, height=900), device_scale_factor=2))
        lab.open(page, NOTEBOOK)
        lab.run_all(page)
        slider(page, 'gap threshold').evaluate("e => e.closest('.jp-Cell').scrollIntoView()")
        page.wait_for_function("() => [...document.querySelectorAll('img.widget-image')].every(e => e.complete && e.naturalWidth)")
        assert not page.troubles, page.troubles
        return page.screenshot()


def small(png: bytes) -> bytes:
    "The same picture with as many colours as its size allows."
    for colours in (256, 128, 64, 32):
        out = io.BytesIO()
        Image.open(io.BytesIO(png)).convert('RGB').quantize(colours, dither=Image.Dither.NONE).save(out, 'PNG', optimize=True)
        if len(out.getvalue()) < LIMIT:
            return out.getvalue()
    raise SystemExit(f'the picture has {len(out.getvalue()):,} bytes with {colours} colours, and {LIMIT:,} is the limit')


if __name__ == '__main__':
    from bioai_esol.store import store_uri
    PICTURE.write_bytes(small(explorer(store_uri(None))))
    print(f'{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size:,} bytes')
