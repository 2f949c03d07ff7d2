"""Tests of the tools in `kernels/verify/triton`; what compiles runs in processes of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[4]
VERIFY = ROOT / "kernels" / "verify" / "triton"


@pytest.fixture(scope="session")
def verify() -> Callable[[str], ModuleType]:
    """verify(name): a module of `kernels/verify/triton`."""

    def module(name: str) -> ModuleType:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(VERIFY))
            return import_module(name)

    return module


@pytest.fixture(scope="session")
def compiling() -> Callable[..., subprocess.CompletedProcess[str]]:
    """compiling(*arguments): Python in a process where Triton compiles; its output is captured."""

    def start(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(VERIFY)}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    return start
