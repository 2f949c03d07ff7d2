"""A JupyterLab server of one's own, and what to wait for in its page. Nothing leaves loopback."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from typing import NamedTuple

import nbformat

PATIENCE = 600
"""Seconds until a wait fails: a shared machine may be slow."""
ERRORS = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]'
FINISHED = f"""() => document.querySelector('{ERRORS}') ||
  [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]
    .every(prompt => /\\d/.test(prompt.textContent))"""
READY = """() => {
  const widget = window.jupyterapp?.shell?.currentWidget;
  const kernel = widget?.context?.sessionContext?.session?.kernel;
  return widget?.context?.isReady && kernel?.status === 'idle';
}"""


class Lab(NamedTuple):
    """A server that runs."""

    base: str
    token: str
    root: object
    """The folder it serves."""

    def address(self, name):
        """Where a notebook opens."""
        return f"{self.base}/lab/tree/{name}?reset&token={self.token}"


def settings(folder, theme):
    extension = folder / "@jupyterlab" / "apputils-extension"
    extension.mkdir(parents=True)
    (extension / "themes.jupyterlab-settings").write_text(json.dumps({"theme": theme}))
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (extension / "notification.jupyterlab-settings").write_text(json.dumps(quiet))


def start(root, port, token, environment):
    own = root / ".lab"
    settings(own / "settings", "JupyterLab Dark")
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
        env=os.environ | folders | {"IPYTHONDIR": str(own / "ipython")} | environment,
        cwd=root,
        stdout=(own / "server.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def answer(server, address, log):
    """Wait until the server answers."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            return urllib.request.urlopen(address, timeout=10).read()
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


def stop(server):
    """End the server's own process group."""
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if server.poll() is None:
            os.killpg(server.pid, ending)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                continue


@contextmanager
def serving(root, **environment):
    """Run a server on a folder while the block runs."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        port = made.getsockname()[1]
    token = secrets.token_hex(16)
    server = start(root, port, token, environment)
    try:
        base = f"http://127.0.0.1:{port}"
        answer(server, f"{base}/api?token={token}", root / ".lab" / "server.log")
        yield Lab(base, token, root)
    finally:
        stop(server)


def write_notebook(path, cells):
    """Write a notebook of code cells."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    for i, source in enumerate(cells):
        book.cells.append(nbformat.v4.new_code_cell(source.strip(), id=f"cell-{i}"))
    nbformat.write(book, path)


def opened(page):
    """Wait until the notebook's cells stand in the page."""
    page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell", timeout=PATIENCE * 1000)
    page.wait_for_selector("#jupyterlab-splash", state="detached", timeout=PATIENCE * 1000)


def ready(page):
    """Wait until the kernel is idle."""
    page.wait_for_function(READY, timeout=PATIENCE * 1000)


def command(page, name):
    """Run one of Lab's commands."""
    page.evaluate("name => window.jupyterapp.commands.execute(name)", name)


def run_all(page):
    """Run all cells and give the errors shown."""
    command(page, "notebook:run-all-cells")
    page.wait_for_function(FINISHED, timeout=PATIENCE * 1000)
    return page.locator(ERRORS).all_inner_texts()


def saved(path):
    """Read a notebook."""
    return nbformat.read(path, as_version=4)
