"""Compiled PTX runs right on the CPU, and no fault put into it goes unnoticed."""

import json
from pathlib import Path

import pytest

TARGETS = ("sm_80", "sm_120")


@pytest.fixture(scope="module")
def outcomes(compiling, verify) -> list[dict]:
    done = compiling(Path(verify("ptx_faults").__file__).with_name("probe.py"))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", ["product", "centred"])
def test_without_a_fault_every_order_of_warps_and_copies_is_right(outcomes, kernel, target):
    found = [
        o for o in outcomes if (o["kernel"], o["target"], o["fault"]) == (kernel, target, None)
    ]
    assert {o["how"].split(", ")[0] for o in found} == {"together", "forward", "backward"}
    assert [o["seen"] for o in found] == [None] * 6


@pytest.mark.parametrize("target", TARGETS)
def test_every_fault_has_a_place_and_is_noticed(outcomes, verify, target):
    placed = [o for o in outcomes if o["target"] == target and o["placed"]]
    assert {o["fault"] for o in placed} == set(verify("ptx_faults").FAULTS)
    assert [o for o in placed if o["seen"] is None] == []
