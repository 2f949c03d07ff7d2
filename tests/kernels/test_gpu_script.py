"""The GPU script goes through all of its parts on a CPU, and times nothing that is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "kernels" / "bench"


def run(*options: str, code: str | None = None) -> subprocess.CompletedProcess:
    command = ["-c", code] if code else [str(BENCH / "gpu.py"), *options]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(BENCH)}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=500
    )


@pytest.mark.compile
def test_the_dry_run_compares_and_times_everything():
    done = run("--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DOES NOT HOLD" not in done.stdout and done.stdout.count("holds") > 30
    for what in ("prefill 3", "decode at 2", "hooks off, no graph", "residual + routing"):
        assert what in done.stdout
    assert "stored in" not in done.stdout


@pytest.mark.compile
def test_a_wrong_operation_is_seen_and_nothing_is_timed():
    spoil = (
        "import sys, gpu, gpu_agreement as a; compare = a.operations\n"
        "a.operations = lambda triton, *rest: compare("
        "triton._replace(rotate=lambda x, *_: x), *rest)\n"
        "sys.argv = ['gpu.py', '--dry-run']; import typer; typer.run(gpu.main)"
    )
    done = run(code=spoil)
    assert done.returncode == 1 and "nothing is timed" in done.stdout
    assert [line for line in done.stdout.splitlines() if "DOES NOT" in line and "rotate" in line]


def test_without_a_gpu_it_says_what_to_do():
    done = run()
    assert done.returncode == 2 and "--dry-run goes through all of it" in done.stderr
