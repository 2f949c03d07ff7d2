"""How fast live views answer: first paint and head switch of 64 heads x 512 tokens.

    python kernels/bench/views.py [--repeats 10]

A real JupyterLab and headless Chromium, each repeat a new view. First paint: from running the cell
that makes and shows it until its matrix is drawn. Unfetched head: a head drawn by lot is clicked as
soon as the view stands, when the page has not fetched it: the kernel's answer is part of the time.
Next head: the arrow key, pressed every half second. Far head: another by lot, clicked after those.
A switch lasts from the browser's event until the frame with the new matrix is made. Medians,
printed and stored under results/.
"""

import random
import shutil
import statistics
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory

import machine
import typer

ROOT = Path(__file__).parents[2]
TARGETS = {"first paint": 1500, "unfetched head": 50, "next head": 50, "far head": 50}
"""Milliseconds."""
STEPS, PAUSE = 4, 500
"""Next heads taken in each view, and milliseconds before each."""
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
WATCH = f"""(head) => {{
  const stage = {DRAWN}[{DRAWN}.length - 1], thumb = stage.querySelectorAll('button.thumb')[head];
  let start;
  const began = (event) => {{ start = event.timeStamp; }};
  addEventListener('click', began, {{ capture: true, once: true }});
  addEventListener('keydown', began, {{ capture: true, once: true }});
  window.drawn = new Promise((resolve) => new MutationObserver((_, watch) => {{
    if (stage.dataset.head !== String(head)) return;
    watch.disconnect();
    requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - start)));
  }}).observe(stage, {{ attributes: true }}));
  thumb.scrollIntoView({{ block: 'nearest' }});
  const box = thumb.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
}}"""


def main(repeats: int = 10, heads: int = 64, tokens: int = 512) -> None:
    """Measure, print and store."""
    lab = harness()
    with TemporaryDirectory() as folder:
        root = Path(folder)
        cells = [SETUP.format(tokens=tokens, heads=heads), SHOW]
        lab.write_notebook(root / "views.ipynb", cells)
        with lab.serving(root) as server:
            measured = measure(lab, server.address("views.ipynb"), repeats, heads)
    rows = [(name, f"{statistics.median(ms):.0f}", TARGETS[name]) for name, ms in measured.items()]
    for name, median, target in rows:
        count = len(measured[name])
        print(f"{name:<15} {median:>6} ms, median of {count} (target {target} ms)")
    print(f"{heads} heads x {tokens} tokens, {machine.machine()}, Chromium")
    columns, shape = ["what", "median_ms", "target_ms", "shape"], f"{heads}x{tokens}"
    machine.store("views", columns, ([*row, shape] for row in rows))


def harness():
    """The server and waits of the browser tests."""
    spec = spec_from_file_location("lab", ROOT / "tests" / "browser" / "lab.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(lab, address: str, repeats: int, heads: int) -> dict[str, list[float]]:
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
        lots, out = random.Random(0), {name: [] for name in TARGETS}
        for _ in range(repeats):
            head = lots.randrange(heads // 4, heads - STEPS)
            out["first paint"].append(page.evaluate(PAINT, 1))
            out["unfetched head"].append(click(page, head))
            for step in range(1, STEPS + 1):
                page.wait_for_timeout(PAUSE)
                out["next head"].append(press(page, head + step))
            page.wait_for_timeout(PAUSE)
            out["far head"].append(click(page, (head + heads // 2) % heads))
        browser.close()
    return out


def click(page, head: int) -> float:
    """Choose a head with the mouse."""
    x, y = page.evaluate(WATCH, head)
    page.mouse.click(x, y)
    return page.evaluate("window.drawn")


def press(page, head: int) -> float:
    """Choose the head behind the one that has the focus."""
    page.evaluate(WATCH, head)
    page.keyboard.press("ArrowRight")
    return page.evaluate("window.drawn")


if __name__ == "__main__":
    typer.run(main)
