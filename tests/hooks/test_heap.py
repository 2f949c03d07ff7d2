"""Kept tensors between temporary ones: no holes while something is recorded."""

import subprocess
import sys

import pytest

from gptoss_hooks import heap

PASSES = """
import sys, torch
from contextlib import nullcontext
from gptoss_hooks.heap import large_apart

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

MB, kept = 1 << 20, []
before = anonymous()
for step in range(40):
    with large_apart() if sys.argv[1] == "apart" else nullcontext():
        between = [torch.ones(size * MB, dtype=torch.uint8) for size in (5, 3 + step % 7, 9)]
        kept.append(torch.ones(2 * MB, dtype=torch.uint8))
        between.append(torch.ones((4 + step % 5) * MB, dtype=torch.uint8))
        del between
print((anonymous() - before) / sum(each.nbytes for each in kept))
"""

glibc = pytest.mark.skipif(heap._mallopt() is None, reason="no glibc: nothing is set here")


def grown(how: str) -> float:
    """Anonymous memory after 40 passes, over what was kept of them."""
    command = [sys.executable, "-c", PASSES, how]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@glibc
def test_a_recorded_pass_leaves_no_holes():
    assert grown("apart") < 1.1


@glibc
def test_without_it_holes_are_left():
    assert grown("plain") > 1.1


@glibc
def test_what_was_usual_is_set_again_even_after_an_error(monkeypatch):
    calls = []
    monkeypatch.setattr(heap, "_mallopt", lambda: lambda *call: calls.append(call))
    with pytest.raises(RuntimeError), heap.large_apart():
        raise RuntimeError
    assert calls == [(heap.MMAP_THRESHOLD, heap.LARGE), *heap.USUAL.items()]


def test_elsewhere_nothing_is_set(monkeypatch):
    monkeypatch.setattr(heap, "_mallopt", lambda: None)
    with heap.large_apart():
        pass
