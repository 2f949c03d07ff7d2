"""The first notebook in JupyterLab: runs, draws, survives saving, reopening and export."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "00_first_trace.ipynb"
VIEWS = ".jp-NotebookPanel .gptoss-view[data-live] .foot"


def check_views(page):
    """All three views are live and dark, and the tokens answer the pointer."""
    page.locator(VIEWS).nth(2).wait_for(state="attached")
    assert page.locator(".gptoss-view[data-theme=dark]").count() == 3
    token = page.locator('[data-kind="tokens"] .token').nth(8)
    token.scroll_into_view_if_needed()
    token.hover()
    assert page.locator('[data-kind="tokens"] .line').inner_text().startswith("token 8 “")


def test_the_notebook_runs_in_lab_and_survives_saving_and_export(
    notebook, lab, harness, tab, tmp_path
):
    page, seen = notebook(NOTEBOOK)
    assert harness.run_all(page) == []
    check_views(page)
    page.screenshot(path=tmp_path / "lab_dark.png")
    matrix = page.locator('[data-kind="experts"] canvas.top').first
    matrix.scroll_into_view_if_needed()
    matrix.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert '"token":1' in page.locator('[data-kind="experts"] .foot code').inner_text()
    assert page.evaluate("document.activeElement.className") == "top"  # Lab did not take the keys
    harness.command(page, "docmanager:save")
    book = harness.saved(lab.root / NOTEBOOK.name)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert not [out for cell in cells for out in cell.outputs if out.output_type == "error"]
    assert seen.errors == [] and seen.blocked == []
    page.context.close()
    page, seen = notebook(NOTEBOOK.name, kernel=False)
    check_views(page)
    assert seen.errors == [] and seen.blocked == []
    export(tab, book, tmp_path)


def export(tab, book, folder):
    from nbconvert import HTMLExporter

    text, _ = HTMLExporter().from_notebook_node(book)
    path = folder / "export.html"
    path.write_text(text)
    page, _ = tab(path.as_uri())
    page.locator(".gptoss-view[data-live] .foot").nth(2).wait_for(state="attached")
    assert page.locator('[data-kind="attention"] button.thumb').count() == 8
