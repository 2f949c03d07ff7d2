"""A static yardstick: how close the instructions of a main loop let it come to the device's limit.

    clocks of a pipe = instructions of its kind in one turn × warps / what it takes a clock
    share            = max(matrix units, memory) / max(all pipes)

at best, with everything overlapped. It ranks spills, arithmetic on ordinary lanes and decoding that
costs too much; it knows nothing of caches, bank conflicts, clocks or tails, and is not a speed.
"""

from typing import NamedTuple

from case import Case
from devices import TARGETS
from sass import Statistics


class Bound(NamedTuple):
    """Lower bounds for one turn of the main loop of one block, in clocks."""

    clocks: dict[str, float]
    """by pipe"""
    tightest: str
    share: float
    """of the roofline: the matrix units' or the memory's clocks over the tightest pipe's"""


def bound(found: Statistics, case: Case) -> Bound:
    """What holds the main loop back, at best."""
    device, loop = TARGETS[found.target], found.turn

    def pipe(rate: float, *kinds: str) -> float:
        return sum(loop.get(kind, 0) for kind in kinds) * found.warps / rate / case.turns

    clocks = {
        "issue": pipe(device.issue, "all"),
        "integer": pipe(device.alu, "alu"),
        "float": pipe(device.fp, "fp"),
        "exp2": pipe(device.mufu, "mufu"),
        "load and store": pipe(device.lsu, "lds", "ldsm", "sts", "spill", "ldg", "shfl"),
        "matrix": case.flop / device.mma,
        "memory": case.nbytes / (device.bandwidth / device.units / device.clock),
    }
    tightest = max(clocks, key=lambda name: clocks[name])
    return Bound(clocks, tightest, max(clocks["matrix"], clocks["memory"]) / clocks[tightest])


def blocks(found: Statistics) -> int:
    """Resident blocks of an SM, by registers, shared memory and warps."""
    device = TARGETS[found.target]
    step = 8 * device.warp
    per_warp = -(-found.registers * device.warp // step) * step
    limits = [device.blocks, device.warps // found.warps]
    if per_warp:
        limits.append(device.registers // (per_warp * found.warps))
    if found.shared:
        limits.append(device.shared // (found.shared + (1024 if device.warp == 32 else 0)))
    return min(limits)


def per_unit(found: Statistics, case: Case) -> float | None:
    """Lane instructions per MXFP4 weight, or warp instructions per 64 × 64 scores; None without."""
    every = found.turn["all"] * found.warps / case.turns
    if case.weights:
        return every * TARGETS[found.target].warp / case.weights
    return every * 64 * 64 / case.scores if case.scores else None
