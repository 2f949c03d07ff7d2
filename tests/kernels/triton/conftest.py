"""Kernels run in Triton's interpreter; compiling for real targets takes processes of its own.

`pytest -p on_ptx` (kernels/verify/triton) runs the same tests on compiled PTX instead.
"""

import os
import sys
from importlib.util import find_spec

import pytest

MISSING = None if find_spec("triton") else "triton is not installed"
if not MISSING:
    from gptoss_kernels.triton.launch import interpreting

    if not interpreting() and "on_ptx" not in sys.modules:
        MISSING = "triton was imported before TRITON_INTERPRET=1 was set"
collect_ignore_glob = ["test_*.py"] if MISSING else []
if MISSING and os.environ.get("CI"):
    raise pytest.UsageError(f"Triton kernels cannot be tested: {MISSING}")


def pytest_terminal_summary(terminalreporter) -> None:
    if MISSING:
        terminalreporter.write_line(f"Triton kernels were not tested: {MISSING}")
