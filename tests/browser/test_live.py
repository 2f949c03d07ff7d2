"""Live views in JupyterLab: the kernel hears clicks and keys, moves the selection, sends heads."""

import json
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
HAND = Path(__file__).parents[1] / "workbench" / "views" / "conftest.py"
CELLS = [
    f"""
import json, pathlib
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("hand", {str(HAND)!r})
hand = module_from_spec(spec)
spec.loader.exec_module(hand)
import gptoss_workbench as wb
heard = pathlib.Path("heard.jsonl")
def log(view):
    def write(change):
        with heard.open("a") as file:
            file.write(json.dumps({{"view": view, **change["new"]}}) + "\\n")
    return write
trace = hand.hand_trace()
""",
    """
routing = wb.views.experts(trace).live()
routing.observe(log("experts"), "selected")
routing
""",
    """
heads = wb.views.attention(trace, layer=2, head=1).live()
heads.observe(log("attention"), "selected")
heads
""",
    "routing.selected = {'token': 7}; heads.selected = {'head': 6}",
    "routing.freeze(); heads.freeze()",
]
MEASURED = "[...document.querySelectorAll('.thumb')].every(b => b.textContent.includes('%'))"
"""The heads that nobody chose have come too."""


def heard(lab, view, timeout=60, **wanted):
    """Wait until the kernel has written down a selection like this."""
    end, lines = time.monotonic() + timeout, []
    while time.monotonic() < end:
        path = lab.root / "heard.jsonl"
        lines = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )
        lines = [line for line in lines if line["view"] == view]
        if lines and wanted.items() <= lines[-1].items():
            return
        time.sleep(0.05)
    pytest.fail(f"the kernel did not hear {wanted}; last {lines[-1:]}")


def state(page, kind):
    return json.loads(view(page, kind).locator(".foot code").inner_text())


def view(page, kind):
    return page.locator(f'.gptoss-view[data-kind="{kind}"]')


def drawn(page, head):
    """Wait until a head is drawn."""
    page.wait_for_function(
        "head => document.querySelector('[data-kind=attention] .stage').dataset.head === `${head}`",
        arg=head,
    )


def run(page, harness, cell):
    """Run one cell and wait until it is done."""
    page.evaluate("i => (window.jupyterapp.shell.currentWidget.content.activeCellIndex = i)", cell)
    harness.command(page, "notebook:run-cell")
    page.wait_for_function(
        "i => /\\d/.test(document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')[i].textContent)",
        arg=cell,
    )
    assert page.locator(harness.ERRORS).all_inner_texts() == []


def test_live_views_talk_to_the_kernel_and_freeze(notebook, lab, harness, tmp_path):
    path = tmp_path / "live.ipynb"
    harness.write_notebook(path, CELLS)
    page, seen = notebook(path)
    for cell in range(3):
        run(page, harness, cell)
    view(page, "attention").locator(".foot").wait_for()
    assert page.locator(".gptoss-view[data-theme=dark]").count() == 2

    check_experts(page, lab)
    check_attention(page, lab)
    page.screenshot(path=tmp_path / "live_dark.png")

    run(page, harness, 3)  # the kernel moves the selection
    drawn(page, 6)
    assert state(page, "experts")["token"] == 7

    run(page, harness, 4)
    harness.command(page, "docmanager:save")
    check_saved(harness.saved(lab.root / path.name))
    assert seen.errors == [] and seen.blocked == []
    page.context.close()
    page, seen = notebook(path.name, kernel=False)
    view(page, "experts").locator(".foot").wait_for(state="attached")
    assert state(page, "experts")["token"] == 7 and state(page, "attention")["head"] == 6
    assert seen.errors == [] and seen.blocked == []


def check_experts(page, lab):
    """Hover tells, a click and Enter reach the kernel, Lab does not take the keys."""
    top = view(page, "experts").locator("canvas.top").first
    top.scroll_into_view_if_needed()
    box = top.bounding_box()
    top.hover(position={"x": 0.5 * box["width"], "y": box["height"] - 8})
    line = view(page, "experts").locator(".line")
    assert line.inner_text().startswith("layer 3 · token ")
    top.click(position={"x": 0.5 * box["width"], "y": box["height"] - 8})
    clicked = state(page, "experts")["token"]
    assert clicked is not None
    heard(lab, "experts", token=clicked)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    heard(lab, "experts", token=clicked + 1)
    page.keyboard.press("Escape")
    heard(lab, "experts", token=None)
    assert page.evaluate("document.activeElement.className") == "top"


def check_attention(page, lab):
    """A head that was not sent comes from the kernel; the query held elsewhere is followed."""
    here = view(page, "attention")
    here.locator("button.thumb").nth(5).click()
    drawn(page, 5)
    heard(lab, "attention", head=5)
    page.keyboard.press("ArrowLeft")
    drawn(page, 4)
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    page.keyboard.press("ArrowRight")
    heard(lab, "attention", head=5)
    page.wait_for_function(MEASURED)
    here.get_by_role("button", name="entropy", exact=True).click()
    heard(lab, "attention", sort="entropy")
    matrix = here.locator("canvas.top")
    matrix.focus()
    for key in ("ArrowDown", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    heard(lab, "attention", query=2, head=5)
    heard(lab, "experts", token=2)  # views of one trace follow each other, in the kernel too
    assert "sink" in here.locator(".line").inner_text()


def check_saved(book):
    """Only text/html is left, and no widget state."""
    kinds = [sorted(out.data) for cell in book.cells for out in cell.outputs if "data" in out]
    assert kinds == [["text/html", "text/plain"]] * 2
    assert not book.metadata.get("widgets", {})
