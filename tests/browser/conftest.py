"""Headless Chromium without a network: requests that leave this machine are refused and noted."""

import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
]  # fmt: skip
PATIENCE = 240_000
"""Milliseconds until a wait fails: a shared machine may be slow, a right answer is never late."""


@pytest.fixture(scope="session")
def chromium():
    """A browser of the system: playwright downloads none."""
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.fail("browser tests need Chromium: apt-get install chromium fonts-dejavu-core")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=ARGUMENTS, timeout=PATIENCE
        )
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium):
    """Open a page: tab(address, scheme="dark", allowed=...); problems are listed on it."""
    opened = []

    def go(address, *, scheme="light", allowed=("file:", "data:", "blob:")):
        context = chromium.new_context(
            color_scheme=scheme, viewport={"width": 1280, "height": 1000}
        )
        context.set_default_timeout(PATIENCE)
        page, seen = context.new_page(), SimpleNamespace(errors=[], blocked=[])
        opened.append(context)

        def gate(route):
            if route.request.url.startswith(tuple(allowed)):
                route.continue_()
            else:
                seen.blocked.append(route.request.url)
                route.abort()

        page.route("**/*", gate)
        page.on("console", lambda m: seen.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.goto(address, wait_until="domcontentloaded", timeout=PATIENCE)
        return page, seen

    yield go
    for context in opened:
        context.close()


@pytest.fixture(scope="session")
def harness():
    """`lab.py` beside this file."""
    spec = spec_from_file_location("lab", Path(__file__).with_name("lab.py"))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def lab(tmp_path_factory, harness):
    """A server of its own on a folder of its own, for all notebooks."""
    with harness.serving(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture
def notebook(tab, lab, harness):
    """Open a notebook in Lab: a path is copied there first, a name is there already."""

    def go(which, *, kernel=True):
        if isinstance(which, Path):
            shutil.copy(which, lab.root)
            which = which.name
        page, seen = tab(lab.address(which), allowed=(lab.base, "data:", "blob:"))
        harness.opened(page)
        if kernel:
            harness.ready(page)
        return page, seen

    return go
