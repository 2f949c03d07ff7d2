"""Whether two instruction sets computed the same: what recorded calls left behind, side by side.

Sums run in another order and the portable lanes round products, so float32 may differ by `CLOSE`
and a bfloat16 by one step where it lay at the edge of rounding, which few do (`EDGES`). All else,
integers and where NaN and infinities are, is equal.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from calls import Call, Result, after, read_calls, read_results
from torch import Tensor

CLOSE = {"attention": 1e-5}
"""Relative L2 distance of two float32 buffers, a kernel; exp multiplies the relative error of a
score by the score, and a test draws them in the thousands"""
CLOSE_ELSE = 2e-6
EDGES = 0.01
"""Share of all bfloat16 elements that may differ"""


class Comparison(NamedTuple):
    """What was compared and what was not the same."""

    calls: dict[str, int]
    """calls a kernel"""
    elements: int
    """elements of changed buffers"""
    worst: float
    """largest relative L2 distance of a float32 buffer"""
    edges: float
    """share of bfloat16 elements that differ by a step"""
    wrong: list[str]
    """one line for each call whose results are not the same"""

    @property
    def same(self) -> bool:
        return bool(self.calls) and not self.wrong and self.edges <= EDGES


def compare(calls: Path, expected: Path, found: Path) -> Comparison:
    """Compare two results of the same calls."""
    counted: dict[str, int] = {}
    wrong, elements, worst, narrow, edges = [], 0, 0.0, 0, 0
    for at, (call, want, have) in enumerate(_side_by_side(calls, expected, found)):
        counted[call.name] = counted.get(call.name, 0) + 1
        if want.status != have.status:
            wrong.append(f"call {at}, {call.name}: status {have.status}, not {want.status}")
        for number in sorted(want.changed | have.changed):
            a, b = after(call, want, number), after(call, have, number)
            elements, apart = elements + a.numel(), distance(a, b)
            if a.dtype == torch.bfloat16:
                narrow, edges = narrow + a.numel(), edges + int((a != b).sum())
            else:
                worst = max(worst, apart)
            if apart > CLOSE.get(call.name, CLOSE_ELSE):
                wrong.append(f"call {at}, {call.name}, buffer {number}: {apart:.2g}")
    return Comparison(counted, elements, worst, edges / max(1, narrow), wrong)


def _side_by_side(
    calls: Path, expected: Path, found: Path
) -> Iterator[tuple[Call, Result, Result]]:
    with ExitStack() as stack:
        opened = [stack.enter_context(path.open("rb")) for path in (calls, calls, expected, found)]
        left = read_results(opened[2], read_calls(opened[0]))
        right = read_results(opened[3], read_calls(opened[1]))
        for (call, want), (_, have) in zip(left, right, strict=True):
            yield call, want, have


def distance(a: Tensor, b: Tensor) -> float:
    """Relative L2 distance, bfloat16 less a step each; infinite where NaN, inf, integers differ."""
    if torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
        return 0.0
    if not a.is_floating_point():
        return torch.inf
    finite = a.isfinite()
    same = (a == b) | (a.isnan() & b.isnan())
    if not torch.equal(finite, b.isfinite()) or not same[~finite].all():
        return torch.inf
    wide, apart = a[finite].double(), (a[finite].double() - b[finite].double()).abs()
    if a.dtype == torch.bfloat16:
        apart = (apart - step(a[finite])).clamp_min(0)
    return float(apart.norm() / wide.norm().clamp_min(1e-300))


def step(a: Tensor) -> Tensor:
    """The distance to the next bfloat16 away from zero."""
    return torch.ldexp(torch.ones_like(a, dtype=torch.float64), a.double().frexp().exponent - 8)
