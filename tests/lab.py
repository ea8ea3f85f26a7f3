"JupyterLab as a person has it: the real server on loopback, with nobody's settings, and a notebook worked on in the browser."
import contextlib
import json
import os
import re
import secrets
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from helpers import ROOT
from stores import answers, free_port, process


@dataclass(frozen=True)
class Lab:
    "A running JupyterLab."
    url: str
    token: str
    project: Path    # a copy of the project; its work/ holds the notebooks that `make lab` opens

    def open(self, page, notebook=None):
        "Open a notebook of work/, or what `make lab` opens, and wait until its kernel can be asked."
        page.goto(f'{self.url}/' + (f'lab/tree/work/{notebook}' if notebook else '') + f'?token={self.token}&reset')
        page.locator('#jp-main-statusbar').get_by_text(re.compile(r'\| Idle$')).wait_for(timeout=60_000)  # what is run before is dropped without a word
        return page

    def run_all(self, page, seconds=300):
        "Run → Run All Cells, and wait until every cell has been; a cell that fails is an error here, with its traceback."
        page.get_by_role('menuitem', name='Run', exact=True).click()
        page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
        cells = page.locator('.jp-NotebookPanel:visible .jp-CodeCell')
        failed, waiting = (cells.locator(what).filter(has_text=text) for what, text in
                           (('.jp-OutputArea-output', 'Traceback (most recent call last)'), ('.jp-InputPrompt', re.compile(r'\[[* ]\]'))))
        def all_ran():
            assert not failed.count(), failed.first.inner_text()
            return not waiting.count()
        until(page, all_ran, 'all cells to run', seconds)

    def stop_kernels(self, page):
        "Kernels outlive the page they were opened from."
        for kernel in page.request.get(f'{self.url}/api/kernels?token={self.token}').json():
            page.request.delete(f"{self.url}/api/kernels/{kernel['id']}?token={self.token}")


@contextlib.contextmanager
def jupyterlab(folder, **env):
    "`make lab` on a copy of the project in `folder`; settings, history and home are of its own, and nobody is asked for news."
    folder, port, token = Path(folder), free_port(), secrets.token_hex(16)
    home, url = folder / 'home', f'http://127.0.0.1:{port}'
    shutil.copy(ROOT / 'Makefile', folder)
    for part in ('nbs', '.ci'):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns('.ipynb_checkpoints', '__pycache__'))
    settings = {'config/jupyter_server_config.json': dict(ServerApp=dict(port=port, port_retries=0, open_browser=False, allow_root=True),
                                                          IdentityProvider=dict(token=token), LabApp=dict(extension_manager='readonly')),
                'config/labconfig/page_config.json': dict(disabledExtensions={'@jupyterlab/apputils-extension:announcements': True})}
    for name, values in settings.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(json.dumps(values))
    env |= dict(HOME=home, IPYTHONDIR=home / 'ipython', XDG_CACHE_HOME=home / 'cache', PYTHONPATH=os.pathsep.join(filter(None, sys.path)),
                **{f'JUPYTER_{kind.upper()}_DIR': home / kind for kind in ('config', 'data', 'runtime')})
    command = ['make', '-o', '.venv/.ready', f'BIN={Path(sys.executable).parent}', 'lab']  # -o: the environment that runs the tests is the one
    with process(command, folder / 'lab.log', lambda: answers(f'{url}/api/status?token={token}'), {k: str(v) for k, v in env.items()}, folder):
        yield Lab(url, token, folder)


def slider(page, name):
    "The handle of a slider; the keyboard moves it when it has the focus."
    return page.locator('.widget-slider', has_text=name).locator('.noUi-handle')


def until(page, true, what, seconds=30):
    "Look again and again, while the page lives on."
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f'waited {seconds} s for {what}'
        page.wait_for_timeout(100)


def wrong(page):
    "What went wrong on the page, and what the kernel wrote outside of a cell: JupyterLab puts an error of a widget's callback into a log that nobody opens."
    logged = page.locator('.jp-LogConsoleStatusItem [title]').evaluate_all('items => items.map(item => item.title)')
    return page.troubles + [line for line in logged if not re.search(r'\b0 log entries', line)]
