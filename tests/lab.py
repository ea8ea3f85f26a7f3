"JupyterLab as a person has it: the real server on loopback, with nobody's settings, and a notebook worked on in the browser."
import contextlib
import json
import os
import re
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from stores import answers, free_port, process


@dataclass(frozen=True)
class Lab:
    "A running JupyterLab."
    url: str
    token: str
    notebooks: Path

    def open(self, page, notebook):
        "Open a notebook and wait until its kernel can be asked."
        page.goto(f'{self.url}/lab/tree/{notebook}?token={self.token}&reset')
        page.locator('.jp-NotebookPanel:visible .jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(timeout=60_000)
        return page

    def run_all(self, page, seconds=120):
        "Run → Run All Cells, and wait until every cell has been; a cell that fails is an error here, with its traceback."
        from playwright.sync_api import expect
        page.get_by_role('menuitem', name='Run', exact=True).click()
        page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
        cells = page.locator('.jp-NotebookPanel:visible .jp-CodeCell')
        expect(cells.locator('.jp-InputPrompt').filter(has_text=re.compile(r'\[(\*| |)\]'))).to_have_count(0, timeout=seconds * 1000)
        errors = page.locator('.jp-NotebookPanel:visible .jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')
        assert not errors.count(), errors.first.inner_text()

    def stop_kernels(self, page):
        "Kernels outlive the page they were opened from."
        for kernel in page.request.get(f'{self.url}/api/kernels?token={self.token}').json():
            page.request.delete(f"{self.url}/api/kernels/{kernel['id']}?token={self.token}")


@contextlib.contextmanager
def jupyterlab(folder, home):
    "`make lab` in a folder with Makefile, notebooks and a store; settings, history and home lie under `home`, and nobody is asked for news."
    port, token, home = free_port(), secrets.token_hex(16), Path(home)
    settings = {'config/jupyter_server_config.json': dict(ServerApp=dict(port=port, port_retries=0, open_browser=False, allow_root=True),
                                                          IdentityProvider=dict(token=token), LabApp=dict(extension_manager='readonly')),
                'config/labconfig/page_config.json': dict(disabledExtensions={'@jupyterlab/apputils-extension:announcements': True})}
    for name, values in settings.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(json.dumps(values))
    env = dict(HOME=home, IPYTHONDIR=home / 'ipython', XDG_CACHE_HOME=home / 'cache', PYTHONPATH=os.pathsep.join(filter(None, sys.path)),
               **{f'JUPYTER_{kind.upper()}_DIR': home / kind for kind in ('config', 'data', 'runtime')})
    command = ['make', '-o', '.venv/.ready', f'BIN={Path(sys.executable).parent}', 'lab']  # -o: the environment that runs the tests is the one
    url = f'http://127.0.0.1:{port}'
    with process(command, home / 'lab.log', lambda: answers(f'{url}/api/status?token={token}'), {k: str(v) for k, v in env.items()}, folder):
        yield Lab(url, token, Path(folder) / 'nbs')


def slider(page, name):
    "The handle of a slider; the keyboard moves it when it has the focus."
    return page.locator('.widget-slider', has_text=name).locator('.noUi-handle')


def figure(page):
    "A digest of the picture that a widget shows; None while it is being changed."
    return page.locator('img.widget-image').evaluate("""async img => {
        try { await img.decode(); return Array.from(new Uint8Array(await crypto.subtle.digest('SHA-256', await (await fetch(img.src)).arrayBuffer()))).join() }
        catch (e) { return null }  // its address was taken back while we looked
    }""")


def until(page, true, what, seconds=30):
    "Look again and again, while the page lives on."
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f'waited {seconds} s for {what}'
        page.wait_for_timeout(100)
