"""docs/methods.md names tests that exist, whole, and nothing that a reader cannot look up."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
METHODS = (ROOT / "docs" / "methods.md").read_text()
ROWS = [line for line in METHODS.splitlines() if line.startswith("| ") and "::" in line]


def named_tests(row: str) -> list[tuple[str, str]]:
    """(file, test) of a row; a test without a file is in the one named before it."""
    out, file = [], ""
    for path, name in re.findall(r"([\w/]+\.py)?(?:::)?\b(test_\w+)(?!\w*\.py)", row):
        file = path or file
        out.append((file, name))
    return out


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_every_named_test_is_there(row):
    named = named_tests(row)
    assert named
    for file, name in named:
        places = [
            path for path in (ROOT / "tests").rglob("*.py") if f"/{path}".endswith(f"/{file}")
        ]
        assert places, f"no file tests/**/{file}"
        assert any(f"def {name}(" in path.read_text() for path in places), f"{file}::{name}"


def test_nothing_is_cut_off_or_left_empty():
    assert "``" not in METHODS and "design section" not in METHODS
    assert not re.search(r"test_\w*(?:\.\.\.|…)|\w_, _\w|\(summary only\)", METHODS)
