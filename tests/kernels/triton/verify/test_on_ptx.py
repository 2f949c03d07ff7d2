"""The ordinary parity tests hold on compiled PTX, run on the CPU, and notice faults there."""

import re
from concurrent.futures import ThreadPoolExecutor

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


PARITY = {
    "rope": "equals or company",
    "linear": "rounded or company or gradient or one_program",
    "moe": "few or 128",
    "moe_gradient": "few or bfloat16",
    "decode": "bits or plain",
    "attention": "rounded or order_of_keys or hidden",
    "attention_pattern": "sum_to_1 or left_alone and pattern",
    "attention_gradient": "bfloat16 or same_bits",
    "lens": "to_the_bit or equal_logits",
    "sae": "top_k_is or company",
    "route": "equals or company or router",
    "route_edited": "company or bits",
    "unembed": "bits",
}
"""Tests of each file that run on PTX too, as pytest's -k takes them. What is left out takes
minutes; without -k a whole file runs, as shown in kernels/verify/triton/on_ptx.py.
"""


@pytest.mark.compile
@pytest.mark.parametrize("name", PARITY)
def test_parity_of_every_operation_on_ptx(on_ptx, name):
    with ThreadPoolExecutor(2) as pool:
        tests = (f"{FOLDER}/test_{name}.py", "-k", PARITY[name])
        found = list(pool.map(lambda target: on_ptx(target, *tests), ("sm_80", "sm_120")))
    for done in found:
        assert done.returncode == 0, done.stdout[-3000:]
        assert launches(done)


@pytest.mark.compile
@pytest.mark.parametrize("fault", ["copies_not_awaited", "fragments_swapped", "sums_swapped"])
@pytest.mark.parametrize("name", ["linear", "attention"])
def test_a_fault_in_a_product_fails_parity(on_ptx, name, fault):
    done = on_ptx("sm_80", f"{FOLDER}/test_{name}.py", "-k", "rounded", f"--ptx-fault={fault}")
    noticed = "AssertionError" in done.stdout or "MemoryFault" in done.stdout  # a wrong place read
    assert done.returncode == 1 and noticed, done.stdout[-2000:]


@pytest.mark.compile
def test_a_fault_fails_parity(on_ptx):
    tests = (f"{FOLDER}/test_rms_norm.py", "-k", "test_bfloat16_is_rounded_once")
    done = on_ptx("sm_80", *tests, "--ptx-fault=barriers_dropped")
    assert done.returncode == 1 and launches(done), done.stdout[-2000:]
    assert "AssertionError" in done.stdout
