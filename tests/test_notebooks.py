"""Every notebook runs from top to bottom, keeps its claims, and is committed without outputs."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LONGEST_CELL = 12


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_there_are_notebooks():
    assert FOLDER / "00_first_trace.ipynb" in NOTEBOOKS


def test_a_notebook_is_committed_without_outputs(notebook):
    assert all(not cell.outputs and cell.execution_count is None for cell in code_of(notebook))
    assert "widgets" not in notebook.metadata


def test_cells_are_short(notebook):
    lengths = [len(cell.source.splitlines()) for cell in code_of(notebook)]
    assert max(lengths) <= LONGEST_CELL


def test_a_notebook_runs_and_its_claims_hold(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("GPTOSS_SNAPSHOT", "1")
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    shown = [out.data for cell in code_of(notebook) for out in cell.outputs if "data" in out]
    pages = [data["text/html"] for data in shown if "gptoss-view" in data.get("text/html", "")]
    assert pages and all("data:image/png" in page for page in pages)
    assert "http" not in json.dumps([page.split("gptoss-payload")[0] for page in pages])
