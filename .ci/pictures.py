"""The pictures in README and site, made from a store with a full sweep and a champion: python .ci/pictures.py

The store is the one that MLFLOW_TRACKING_URI names, else ./mlflow.db, as `make run`, the seeds of
nbs/lab/sweep_analysis and then nbs/lab/promotion with the preset `accurate` leave it; it is only read. JupyterLab is started for the last one."""
import io
import sys
import tempfile
from pathlib import Path

import pandas as pd
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
from bioai_esol.store.client import connect, store_uri

URI = store_uri(None)  # now, because the modules of the tests forget what the variable says

from browser import remember, started
from lab import jupyterlab, slider

from bioai_esol.analysis.effects import configuration_names
from bioai_esol.analysis.figures import plot_choice, plot_stability
from bioai_esol.store.runs import load_predictions, load_runs
from bioai_esol.analysis.error_analysis import plot_intervals, plot_predictions
from bioai_esol.registry.policy import choose_candidate, Policy
from bioai_esol.registry.promotion import champion_run

LIMIT = 300_000


def figures(uri: str) -> dict:
    "The figures that need no browser, by the name of their picture."
    runs, policy = load_runs('grid_sweep', tracking_uri=uri), Policy()
    choice, again = choose_candidate(runs, policy), load_runs(f'{runs.run_tag[0]}.seeds', tracking_uri=uri)
    several = pd.concat([runs[configuration_names(runs).isin(configuration_names(again))], again], ignore_index=True)
    predictions = load_predictions(champion_run(connect(uri))['run_id'], tracking_uri=uri)
    return dict(choice=plot_choice(choice.runs, policy.gap_threshold, choice.r2_floor, choice.chosen['run_id']), stability=plot_stability(several),
                molecules=plot_predictions(predictions), intervals=plot_intervals(predictions))


def explorer(uri: str) -> bytes:
    "JupyterLab on the analysis notebook, run to its end, with the policy explorer in view."
    with tempfile.TemporaryDirectory() as folder, jupyterlab(folder, MLFLOW_TRACKING_URI=uri) as lab, started() as browser:
        page = remember(browser.new_page(viewport=dict(width=1440, height=900), device_scale_factor=2))
        lab.open(page)
        lab.run_all(page)
        slider(page, 'gap threshold').evaluate("e => e.closest('.jp-Cell').scrollIntoView()")
        page.locator('[data-shown]').first.wait_for()
        assert not page.troubles, page.troubles
        return page.screenshot()


def save(name: str, png: bytes):
    "The same picture with as many colours as its size allows."
    path = ROOT / 'nbs/images' / f'{name}.png'
    for colours in (256, 128, 64, 32):
        out = io.BytesIO()
        Image.open(io.BytesIO(png)).convert('RGB').quantize(colours, dither=Image.Dither.NONE).save(out, 'PNG', optimize=True)
        if len(out.getvalue()) < LIMIT:
            path.write_bytes(out.getvalue())
            return print(f'{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes')
    raise SystemExit(f'{name} has {len(out.getvalue()):,} bytes with {colours} colours, and {LIMIT:,} is the limit')


if __name__ == '__main__':
    for name, fig in figures(URI).items():
        out = io.BytesIO()
        fig.savefig(out, format='png', dpi=150)
        save(name, out.getvalue())
        if not (ROOT / 'nbs/images/explorer.png').exists():
            save('explorer', out.getvalue())  # the notebook shows it, and must find something there the first time
    save('explorer', explorer(URI))
