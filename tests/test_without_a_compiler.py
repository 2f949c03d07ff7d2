"""Where no C++ compiler is found, all that is not native still works and passes its tests."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.compile

ROOT = Path(__file__).parents[1]
FAST = "not (browser or full or oracle or compile or gpu or weights)"
PACKAGES = ("kernels", "hooks", "workbench")
SUITE = ("tests/kernels", "tests/hooks", "tests/parity", "tests/workbench")
SLOWEST = ("nano", "views", "harmony", "routing", "patching", "checkpoint", "heads", "lens")
"""Parts of tests/workbench that take minutes and meet the kernels through the model alone."""


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """bare(*arguments): run Python on a copy without the compiled library and without compilers."""
    copy = tmp_path_factory.mktemp("bare")
    built = shutil.ignore_patterns("_native.so", "__pycache__", "results", "*.ipynb")
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=built)
    for name in ("pyproject.toml", "hatch_build.py"):
        shutil.copy(ROOT / name, copy)
    (copy / "no programs").mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "CC", "CXX")}
    paths = os.pathsep.join(str(copy / name) for name in PACKAGES)
    environment = kept | {"PATH": str(copy / "no programs"), "PYTHONPATH": paths}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True
        )

    return run


def test_the_build_names_what_to_install(bare):
    done = bare("-m", "gptoss_kernels.native.build")
    assert done.returncode == 1
    assert "no C++17 compiler found. Install one" in done.stderr


def test_the_reference_is_chosen(bare):
    script = "from gptoss_kernels import backend; print(backend.__file__, backend.available())"
    assert bare("-c", script).stdout.strip().endswith("backend.py ('reference',)")


def test_doctor_says_that_the_reference_is_used_and_why(bare):
    script = "from gptoss_workbench.cli import app; app(['doctor'])"
    said = " ".join(bare("-c", script).stdout.split())
    assert "load() takes reference" in said and "needs a C++ compiler" in said


def test_the_suite_passes_on_the_reference(bare):
    without = [f"--ignore=tests/workbench/{part}" for part in SLOWEST]
    done = bare("-m", "pytest", "-q", "-m", FAST, *SUITE, *without)
    assert done.returncode == 0, done.stdout[-8000:]
    assert "native kernels were not tested: it is not built" in done.stdout
