"""The compile gate: every case passes on every target, and what should not pass does not."""

import json
from pathlib import Path

import pytest

SPILLING = """
import json, sys
import devices, gate, offline, probe, torch
from case import Case
from gptoss_kernels.triton.launch import launch

def call():
    x, y = torch.empty(128, 512, dtype=torch.bfloat16), torch.empty(128, 128)
    launch(probe.spilling, (1,), x, x, y, 512, SIZE=128, num_warps=1)

case = Case("spills", "spilling", call, flop=2 * 128 * 128 * 32)
print(json.dumps(gate.judge(case, sys.argv[1])._asdict()))
"""
SLOW = """
import json
import gate
from case import collect

case = next(case for case in collect() if case.name == "rotation of queries")
def broken():
    raise RuntimeError("outer") from RuntimeError("what the innermost function is told")

changed = [case._replace(weights=1, most={"sm_80": 1.0}), case._replace(flop=1.0),
           case._replace(kernel="another"), case._replace(call=lambda: None),
           case._replace(call=broken)]
print(json.dumps([gate.judge(each, "sm_80").faults for each in [case, *changed]]))
"""


@pytest.mark.compile
def test_a_kernel_that_spills_is_refused(compiling):
    done = compiling("-c", SPILLING, "sm_80")
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["stack"] > 0 and verdict["mma"] == "HMMA"
    assert any("bytes of stack" in fault for fault in verdict["faults"])
    assert any("spills in the main loop" in fault for fault in verdict["faults"])


def test_what_a_case_demands_is_judged(compiling):
    done = compiling("-c", SLOW)
    assert done.returncode == 0, done.stderr
    right, slow, without, missing, nothing, broken = json.loads(done.stdout)
    assert right == []
    assert any("the ceiling is 1.0" in fault for fault in slow)
    assert any("no matrix instructions" in fault for fault in without)
    assert missing == ["another was not started, only _kernel"]
    assert nothing == ["_kernel was not started, only "]
    assert broken == ["does not compile: what the innermost function is told"]


DEAR = """
import json
from functools import partial
import hooks_cost

another = partial(hooks_cost.ask, 1, 4096)
pair = hooks_cost.HOOKED[0]._replace(hooked=another)
plain, dear = (hooks_cost.compiled(pair.kernel, call, "sm_80") for call in pair[2:4])
print(json.dumps([hooks_cost.weigh(pair, plain, each).faults for each in (plain, dear)]))
"""


@pytest.mark.compile
def test_a_hook_that_works_in_the_loop_is_refused(compiling):
    """A loop over one token's keys, whose one warp copies all of a tile, stands for it."""
    done = compiling("-c", DEAR)
    assert done.returncode == 0, done.stderr
    nothing, dear = json.loads(done.stdout)
    assert nothing == []
    assert any("loads, stores or products more in a turn" in fault for fault in dear)
    assert any("instructions more in a turn" in fault for fault in dear)
    assert any("more in the whole kernel" in fault for fault in dear)


@pytest.mark.compile
def test_hooks_cost_nearly_nothing(compiling, verify):
    done = compiling(Path(verify("case").__file__).with_name("hooks_cost.py"))
    refused = [line for line in done.stdout.splitlines() if not line.endswith(": passes")]
    assert (refused, done.returncode) == ([], 0), done.stderr


@pytest.mark.compile
def test_every_case_passes_on_every_target(compiling, verify):
    done = compiling(Path(verify("case").__file__).with_name("gate.py"))
    refused = [line for line in done.stdout.splitlines() if not line.endswith(": passes")]
    assert (refused, done.returncode) == ([], 0), done.stderr


@pytest.mark.compile
def test_the_report_is_current(compiling, verify):
    report = Path(verify("case").__file__).with_name("report.py")
    done = compiling(report, "--check")
    assert done.returncode == 0, done.stderr
