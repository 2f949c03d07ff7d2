"""How fast live views answer: first paint and head switch of 64 heads x 512 tokens.

    python kernels/bench/views.py [--repeats 10]

A real JupyterLab and headless Chromium. First paint: from running the cell that makes and shows
the view until its matrix is drawn. Head switch: from the click on a head that was not sent until
its matrix is drawn, kernel included. Medians, printed and stored under results/.
"""

import csv
import platform
import shutil
import statistics
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory

import typer

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
TARGETS = {"first paint": 1500, "head switch": 50}
"""Milliseconds."""
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
SETUP = """
import torch
from types import SimpleNamespace
import gptoss_workbench as wb
n, heads = {tokens}, {heads}
scores = 2 * torch.randn(heads, n, n + 1, generator=torch.Generator().manual_seed(0))
scores[:, :, 1:].masked_fill_(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf)
weights = scores.softmax(-1)
name = "blocks.0.attn.hook_"
trace = SimpleNamespace(
    tokens=torch.arange(n)[None], mask=torch.ones(1, n, dtype=torch.bool),
    strings=[[f" t{{i}}" for i in range(n)]], spans=None, places=tuple(range(n)), context=None,
    activations={{name + "pattern": weights[None, ..., 1:], name + "sink": weights[None, ..., 0]}},
    config={{"num_hidden_layers": 1, "layer_types": ["full_attention"], "sliding_window": 128}},
    provenance={{}},
)
wb.views.attention(trace, heads=[0]).live().close()  # imports are not part of a paint
"""
SHOW = "wb.views.attention(trace, head=0).live()"
DRAWN = "document.querySelectorAll('.gptoss-view[data-kind=attention] .stage[data-head]')"
PAINT = f"""async (cell) => {{
  const book = window.jupyterapp.shell.currentWidget.content;
  book.activeCellIndex = cell;
  const last = () => {DRAWN}[{DRAWN}.length - 1];
  const before = last(), start = performance.now();
  window.jupyterapp.commands.execute('notebook:run-cell');
  while (!last() || last() === before) await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return performance.now() - start;
}}"""
SWITCH = f"""(head) => new Promise((resolve) => {{
  const stage = {DRAWN}[{DRAWN}.length - 1], start = performance.now();
  new MutationObserver((_, watch) => {{
    if (stage.dataset.head !== String(head)) return;
    watch.disconnect();
    resolve(performance.now() - start);
  }}).observe(stage, {{ attributes: true }});
  stage.querySelectorAll('button.thumb')[head].click();
}})"""


def main(repeats: int = 10, heads: int = 64, tokens: int = 512) -> None:
    """Measure, print and store."""
    lab = harness()
    with TemporaryDirectory() as folder:
        root = Path(folder)
        cells = [SETUP.format(tokens=tokens, heads=heads), SHOW]
        lab.write_notebook(root / "views.ipynb", cells)
        with lab.serving(root) as server:
            measured = measure(lab, server.address("views.ipynb"), repeats)
    rows = [(name, f"{statistics.median(ms):.0f}", TARGETS[name]) for name, ms in measured.items()]
    for name, median, target in rows:
        print(f"{name:<12} {median:>6} ms, median of {repeats} (target {target} ms)")
    print(f"{heads} heads x {tokens} tokens, {platform.system()} {platform.machine()}, Chromium")
    store(rows, f"{heads}x{tokens}")


def harness():
    """The server and waits of the browser tests."""
    spec = spec_from_file_location("lab", ROOT / "tests" / "browser" / "lab.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(lab, address: str, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every paint and switch."""
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        raise SystemExit("needs Chromium: apt-get install chromium fonts-dejavu-core")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(lab.PATIENCE * 1000)
        page.goto(address, wait_until="domcontentloaded")
        lab.opened(page)
        lab.ready(page)
        page.evaluate("window.jupyterapp.shell.currentWidget.content.activeCellIndex = 0")
        lab.command(page, "notebook:run-cell")
        lab.ready(page)
        paints = [page.evaluate(PAINT, 1) for _ in range(repeats)]
        switches = [page.evaluate(SWITCH, head) for head in range(1, repeats + 1)]
        browser.close()
    return {"first paint": paints, "head switch": switches}


def store(rows: list, shape: str) -> None:
    """One CSV for each kind of machine."""
    RESULTS.mkdir(exist_ok=True)
    machine = f"{platform.system()}-{platform.machine()}"
    with (RESULTS / f"views-{machine}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "median_ms", "target_ms", "shape"])
        writer.writerows([*row, shape] for row in rows)


if __name__ == "__main__":
    typer.run(main)
