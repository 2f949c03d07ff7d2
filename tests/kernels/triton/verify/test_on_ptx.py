"""The ordinary parity tests hold on compiled PTX, run on the CPU, and notice faults there."""

import re

import pytest

FOLDER = "tests/kernels/triton"


@pytest.fixture
def on_ptx(compiling):
    """on_ptx(target, *arguments): pytest with the plugin, on tests of this folder's parent."""

    def run(target, *arguments):
        start = ("-m", "pytest", "-q", "-x", "-p", "on_ptx", f"--ptx-target={target}")
        return compiling(*start, *arguments)

    return run


def launches(done) -> int:
    found = re.search(r"(\d+) launches ran on the PTX", done.stdout)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    return int(found[1])


def test_parity_on_ptx(on_ptx):
    done = on_ptx("sm_80", f"{FOLDER}/test_rms_norm.py", "-k", "33 or company or looking")
    assert done.returncode == 0, done.stdout[-2000:]
    assert launches(done) >= 10


@pytest.mark.compile
def test_a_fault_fails_parity(on_ptx):
    tests = (f"{FOLDER}/test_rms_norm.py", "-k", "test_bfloat16_is_rounded_once")
    done = on_ptx("sm_80", *tests, "--ptx-fault=barriers_dropped")
    assert done.returncode == 1 and launches(done), done.stdout[-2000:]
    assert "AssertionError" in done.stdout
