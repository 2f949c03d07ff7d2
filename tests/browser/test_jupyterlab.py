"""The first notebook in JupyterLab: runs, draws, survives saving, reopening and export."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

pytestmark = pytest.mark.browser
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "00_first_trace.ipynb"
PATIENCE = 600
VIEWS = ".jp-NotebookPanel .gptoss-view[data-live] .foot"
ERRORS = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]'
FINISHED = f"""() => document.querySelector('{ERRORS}') ||
  [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]
    .every(prompt => /\\d/.test(prompt.textContent))"""
READY = """() => {
  const widget = window.jupyterapp?.shell?.currentWidget;
  const kernel = widget?.context?.sessionContext?.session?.kernel;
  return widget?.context?.isReady && kernel?.status === 'idle';
}"""


def free_port():
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def write_settings(folder, theme):
    extension = folder / "@jupyterlab" / "apputils-extension"
    extension.mkdir(parents=True)
    (extension / "themes.jupyterlab-settings").write_text(json.dumps({"theme": theme}))
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (extension / "notification.jupyterlab-settings").write_text(json.dumps(quiet))


def start(root, port, token):
    own = root / ".lab"
    write_settings(own / "settings", "JupyterLab Dark")
    folders = {f"JUPYTER_{name}_DIR": str(own / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    folders |= {f"JUPYTERLAB_{n.upper()}_DIR": str(own / n) for n in ("settings", "workspaces")}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}",
        "--ServerApp.terminals_enabled=False", "--LabApp.extension_manager=readonly",
        "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    return subprocess.Popen(
        command,
        env=os.environ | folders | {"IPYTHONDIR": str(own / "ipython")},
        cwd=root,
        stdout=(own / "server.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for(server, address, log):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            return urllib.request.urlopen(address, timeout=10).read()
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server of its own on a folder that holds the notebook; its address and the folder."""
    root, port, token = tmp_path_factory.mktemp("lab"), free_port(), secrets.token_hex(16)
    shutil.copy(NOTEBOOK, root)
    server = start(root, port, token)
    base = f"http://127.0.0.1:{port}"
    wait_for(server, f"{base}/api?token={token}", root / ".lab" / "server.log")
    yield base, token, root
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if server.poll() is None:
            os.killpg(server.pid, ending)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                continue


def open_notebook(tab, lab):
    base, token, _ = lab
    page, seen = tab(
        f"{base}/lab/tree/{NOTEBOOK.name}?reset&token={token}", allowed=(base, "data:", "blob:")
    )
    page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell", timeout=PATIENCE * 1000)
    page.wait_for_selector("#jupyterlab-splash", state="detached", timeout=PATIENCE * 1000)
    return page, seen


def saved(root):
    return nbformat.read(root / NOTEBOOK.name, as_version=4)


def check_views(page):
    """All three views are live and dark, and the tokens answer the pointer."""
    page.locator(VIEWS).nth(2).wait_for(state="attached", timeout=PATIENCE * 1000)
    assert page.locator(".gptoss-view[data-theme=dark]").count() == 3
    token = page.locator('[data-kind="tokens"] .token').nth(8)
    token.scroll_into_view_if_needed()
    token.hover()
    assert page.locator('[data-kind="tokens"] .line').inner_text().startswith("token 8 “")


def test_the_notebook_runs_in_lab_and_survives_saving_and_export(tab, lab, tmp_path):
    page, seen = open_notebook(tab, lab)
    page.wait_for_function(READY, timeout=PATIENCE * 1000)
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(FINISHED, timeout=PATIENCE * 1000)
    assert page.locator(ERRORS).all_inner_texts() == []
    check_views(page)
    page.screenshot(path=tmp_path / "lab_dark.png")
    matrix = page.locator('[data-kind="experts"] canvas.top').first
    matrix.scroll_into_view_if_needed()
    matrix.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert '"token":1' in page.locator('[data-kind="experts"] .foot code').inner_text()
    assert page.evaluate("document.activeElement.className") == "top"  # Lab did not take the keys
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    cells = [cell for cell in saved(lab[2]).cells if cell.cell_type == "code"]
    assert not [out for cell in cells for out in cell.outputs if out.output_type == "error"]
    assert seen.errors == [] and seen.blocked == []
    page.context.close()
    reopen(tab, lab)
    export(tab, lab, tmp_path)


def reopen(tab, lab):
    page, seen = open_notebook(tab, lab)
    check_views(page)
    assert seen.errors == [] and seen.blocked == []


def export(tab, lab, folder):
    from nbconvert import HTMLExporter

    text, _ = HTMLExporter().from_notebook_node(saved(lab[2]))
    path = folder / "export.html"
    path.write_text(text)
    page, _ = tab(path.as_uri())
    page.locator(".gptoss-view[data-live] .foot").nth(2).wait_for(state="attached")
    assert page.locator('[data-kind="attention"] button.thumb').count() == 8
