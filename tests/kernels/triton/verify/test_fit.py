"""Devices without tiles of their own: what they take fits them, and what does not is refused."""

import json
from pathlib import Path

import pytest

REFUSED = """
import json
import devices, gate
from gptoss_kernels.triton import tiles
from sass import Statistics

def needs(shared, target):
    nothing = dict.fromkeys(Statistics._fields, 0) | {"total": {}, "loop": {}, "mma": ()}
    return gate.refused(Statistics(**nothing | {"name": "k", "target": target, "shared": shared}))

print(json.dumps({
    "faults": {target: [needs(devices.TARGETS[target].shared_block + more, target)
                        for more in (0, 1)] for target in devices.FITTED},
    "a tile of sm_80's": [needs(101377, target) for target in ("sm_80", "sm_86")],
    "columns": {target: tiles._nearest(devices.target(target)) for target in devices.FITTED},
    "fitted": devices.FITTED,
}))
"""
ROWS = """
import json
import devices, report
from gate import Verdict

found = [Verdict("a", t, [], registers=9, shared=2048, stack=0) for t in devices.FITTED]
found += [Verdict("b", "sm_86", ["b: 8 bytes of stack"], registers=7, shared=1024, stack=8)]
print(json.dumps(report.fit_rows(found)))
"""


def test_what_does_not_fit_is_refused(compiling):
    done = compiling("-c", REFUSED)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for fits, too_large in found["faults"].values():
        assert fits == [] and "shared memory" in too_large[0]
    on_80, on_86 = found["a tile of sm_80's"]
    assert on_80 == [] and on_86 == ["k: 101377 bytes of 101376 shared memory"]
    assert found["columns"] == found["fitted"]  # what the kernels themselves choose


def test_the_most_that_any_case_needs_is_shown(compiling):
    done = compiling("-c", ROWS)
    assert done.returncode == 0, done.stderr
    sm_86, sm_89 = json.loads(done.stdout)
    assert sm_86[3:] == [2, "2 of 99", 9, 8, 0, "b: b: 8 bytes of stack"]
    assert sm_89[3:] == [1, "2 of 99", 9, 0, 0, "passes"]


@pytest.mark.compile
def test_every_case_fits_devices_that_take_anothers_tiles(compiling, verify):
    gate = Path(verify("case").__file__).with_name("gate.py")
    done = compiling(gate, *verify("devices").FITTED)
    refused = [line for line in done.stdout.splitlines() if not line.endswith(": passes")]
    assert (refused, done.returncode) == ([], 0), done.stderr
