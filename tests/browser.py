"What tests in a browser share: chromium as the system has it, a page that remembers what went wrong on it, and no host but 127.0.0.1."
import contextlib
import os
import shutil

import pytest

AXE = "o => axe.run(o.within, o.options).then(found => found.violations.map(v => [v.impact, v.id, v.nodes.map(n => n.target.join(' '))]))"
ARGS = ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-first-run',
        '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1']  # a request to anybody else fails in the browser, and so is among the troubles


def program():
    "Where chromium is; None when it is not installed."
    return next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


@contextlib.contextmanager
def started():
    "The browser, without a window."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=program(), args=ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def chromium():
    "The browser, as long as a module of tests lasts: an event loop runs with it, and other modules may want their own."
    if not program():
        assert not os.environ.get('CI'), 'chromium is not installed, and .ci/run should have done it'
        pytest.skip("chromium is not installed here: 'apt-get install chromium'")
    with started() as browser:
        yield browser


def axe_script():
    "axe, which a page or a context takes as a script."
    from axe_playwright_python.base import AXE_SCRIPT
    return AXE_SCRIPT


def barriers(page, only=(), besides=(), within=None):
    """What axe finds serious or critical on a page that has `axe_script`, by the rules `only` or all `besides` some: '[rule] where it is', one line
    each."""
    rules = {rule: dict(enabled=False) for rule in besides} | {'target-size': dict(enabled=True)}  # places to tap are optional in axe
    options = dict(runOnly=list(only)) if only else dict(rules=rules)
    found = page.evaluate(AXE, dict(within=within or dict(include=[['html']]), options=options | dict(resultTypes=['violations'])))
    return [f'[{rule}] {place}' for impact, rule, places in found if impact in ('serious', 'critical') for place in places]


def remember(page):
    "`page.troubles`: from now on every console error, uncaught exception, failed or refused request and unkind answer, one line each."
    page.troubles = []
    page.on('console', lambda m: m.type == 'error' and page.troubles.append(f"console: {m.text} ({m.location.get('url', '')})"))
    page.on('pageerror', lambda e: page.troubles.append(f'exception: {e}'))
    page.on('response', lambda r: r.status >= 400 and page.troubles.append(f'{r.status}: {r.request.method} {r.url}'))
    page.on('requestfailed', lambda r: r.failure != 'net::ERR_ABORTED' and page.troubles.append(f'{r.failure}: {r.method} {r.url}'))  # aborted: page left
    return page


@pytest.fixture
def new_page(chromium, tmp_path):
    "new_page(viewport=…, is_mobile=…, …): a page in a context of its own; of a test that fails, its picture and trace stay in the test's folder."
    contexts = []
    def new(**options):
        context = chromium.new_context(**{'viewport': dict(width=1440, height=900), 'service_workers': 'block', **options})
        context.set_default_timeout(30_000)
        context.tracing.start(screenshots=True, snapshots=True)
        contexts.append(context)
        return remember(context.new_page())
    new.contexts, new.folder, new.tracing = contexts, tmp_path, True
    yield new
    for context in contexts:
        if new.tracing:
            context.tracing.stop()
        context.close()


@pytest.fixture
def page(new_page):
    "A page of 1440 × 900; see `remember` for its `troubles`."
    return new_page()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    new = getattr(item, 'funcargs', {}).get('new_page')
    if new and report.failed and report.when == 'call':
        from playwright.sync_api import Error
        new.tracing = False
        for n, context in enumerate(new.contexts):
            kept = [new.folder / f'trace-{n}.zip', *(new.folder / f'page-{n}-{m}.png' for m in range(len(context.pages)))]
            troubles = [f'{page.url}: {trouble}' for page in context.pages for trouble in getattr(page, 'troubles', [])]
            try:
                for page, picture in zip(context.pages, kept[1:]):
                    page.screenshot(path=picture)
                context.tracing.stop(path=kept[0])
            except Error as e:  # a browser that is gone has no picture; what the test says is worth more
                troubles.append(f'no picture or trace: {e}')
            report.sections.append(('browser', '\n'.join([f'kept: {path}' for path in kept if path.exists()] + troubles)))
    return report
