"""What looking and editing cost: a kernel with a hook counted against the same kernel without.

    python kernels/verify/triton/hooks_cost.py [target ...]

A warp executes what lies outside the main loop once and the loop as often as it turns. Blocks that
a turn may leave out (`sass.passed_over`: masks) count in so many turns as need them, other branches
as taken. A hook may add nothing to a turn of the loop and MOST to the whole. ABOVE holds what is
above these bars, and must not get worse.
"""

import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import NamedTuple

import gate  # sets TRITON_INTERPRET before triton is imported

# isort: split
import devices
import offline
import sass
import torch
from cases.attention import ask
from cases.moe import forward

from gptoss_kernels.attention import AttentionTap
from gptoss_kernels.triton.attention import AttentionEdits

MOST = 0.03
ABOVE: Mapping[tuple[str, str], tuple[int, int, float]] = {
    ("attention, a prompt of 2048: keys hidden", "sm_90"): (1, 0, MOST),
    ("attention, a prompt of 2048: keys hidden", "sm_120"): (27, 0, 0.076),
    ("attention, a prompt of 2048: keys hidden", "gfx942"): (1, 0, MOST),
    ("attention in a window of 128: gain", "sm_80"): (1, 0, 0.058),
    ("attention in a window of 128: gain", "sm_90"): (0, 0, 0.061),
    ("attention in a window of 128: gain", "sm_100"): (0, 0, 0.036),
    ("attention in a window of 128: gain", "sm_120"): (1, 0, 0.054),
    ("attention in a window of 128: gain", "gfx942"): (0, 0, 0.083),
    ("attention in a window of 128: keys hidden", "sm_90"): (1, 0, 0.034),
    ("attention in a window of 128: keys hidden", "sm_100"): (0, 0, 0.039),
    ("attention in a window of 128: keys hidden", "sm_120"): (31, 0, 0.091),
    ("attention in a window of 128: keys hidden", "gfx942"): (14, 12, 0.092),
    ("experts, decode: gate and up seen", "sm_100"): (6, 0, MOST),
    ("experts, a prompt of 2048: gate and up seen", "sm_90"): (1, 0, MOST),
    ("experts, a prompt of 2048: gate and up seen", "sm_100"): (4, 0, MOST),
    ("experts, a prompt of 2048: gate and up seen", "gfx942"): (4, 0, MOST),
    ("experts, a prompt of 2048: edited", "sm_80"): (4, 0, MOST),
    ("experts, a prompt of 2048: edited", "sm_90"): (1, 0, 0.034),
}
"""For a hook on a target: instructions it adds to a turn, works among them, and share of the whole.
The source's loop is the same, the compiler allocates anew: on sm_120 it copies scores where a mask
may follow a mask, on gfx942 it keeps scalars in lanes. A gain multiplies z once it is rounded, as a
hook would: five instructions a pair of values, which three turns in a window do not outweigh."""
WORKS = ("mma", "ldsm", "lds", "sts", "copy", "tma", "tmem", "ldg", "stg", "spill", "mufu", "shfl")


class Hooked(NamedTuple):
    """A call with a hook and one without, at the same shapes."""

    name: str
    kernel: str
    plain: Callable[[], object]
    hooked: Callable[[], object]
    turns: int
    """of the main loop, in a program of the work that is named"""
    masked: int = 0
    """of those, the turns that need what others leave aside"""


class Cost(NamedTuple):
    """What a hook adds on one target."""

    name: str
    target: str
    loop: int
    """instructions of a turn, without it"""
    added: int
    works: int
    """of those added, loads, stores, products and the like: of each kind, the rise"""
    share: float
    """of the instructions a warp executes in the whole kernel"""
    faults: list[str]


def executed(found: sass.Statistics, turns: int, masked: int) -> int:
    """Instructions of one warp in the whole program."""
    outside = found.total["all"] - found.loop["all"]
    return outside + turns * found.turn["all"] + masked * (found.aside["all"] - found.rare)


def weigh(pair: Hooked, plain: sass.Statistics, hooked: sass.Statistics) -> Cost:
    """Compare and judge."""
    added = hooked.turn["all"] - plain.turn["all"]
    works = sum(max(0, hooked.turn.get(kind, 0) - plain.turn.get(kind, 0)) for kind in WORKS)
    length = pair.turns, pair.masked
    share = executed(hooked, *length) / executed(plain, *length) - 1
    most_added, most_works, most_share = ABOVE.get((pair.name, plain.target), (0, 0, MOST))
    faults = []
    if works > most_works:
        faults.append(f"{works} loads, stores or products more in a turn")
    if added > most_added:
        faults.append(f"{added} of {plain.turn['all']} instructions more in a turn")
    if share > most_share:
        faults.append(f"{share:.1%} more in the whole kernel")
    if hooked.stack:
        faults.append(f"{hooked.stack} bytes of stack")
    return Cost(pair.name, plain.target, plain.turn["all"], added, works, share, faults)


def compiled(kernel: str, call: Callable[[], object], target: str) -> sass.Statistics:
    """The first launch of a kernel in a call."""
    with offline.compiling(target) as launches:
        call()
    return sass.statistics(next(e.kernel for e in launches if e.name == kernel), target)


def look(x: torch.Tensor) -> torch.Tensor:
    return x


GAIN = AttentionEdits(gain=torch.ones(64))
HIDDEN = AttentionEdits(hidden=torch.zeros(1, 64, 512, dtype=torch.bool))
PROMPT, WINDOW = partial(ask, 512, 512), partial(ask, 512, 512, 128)
DECODE, PREFILL = partial(forward, 1), partial(forward, 2048)
HOOKED = (
    Hooked("attention, a prompt of 2048: sums seen", "attend_kernel", PROMPT,
           partial(PROMPT, tap=AttentionTap(sink=look)), 16, 1),
    Hooked("attention, a prompt of 2048: gain", "attend_kernel", PROMPT,
           partial(PROMPT, edits=GAIN), 16, 1),
    Hooked("attention, a prompt of 2048: keys hidden", "attend_kernel", PROMPT,
           partial(PROMPT, edits=HIDDEN), 16, 1),
    Hooked("attention in a window of 128: gain", "attend_kernel", WINDOW,
           partial(WINDOW, edits=GAIN), 3, 2),
    Hooked("attention in a window of 128: keys hidden", "attend_kernel", WINDOW,
           partial(WINDOW, edits=HIDDEN), 3, 2),
    Hooked("experts, decode: gate and up seen", "up_kernel", DECODE,
           partial(DECODE, tapped=True), 23),
    Hooked("experts, decode: edited", "up_kernel", DECODE, partial(DECODE, edited=True), 23),
    Hooked("experts, a prompt of 2048: gate and up seen", "up_kernel", PREFILL,
           partial(PREFILL, tapped=True), 23),
    Hooked("experts, a prompt of 2048: edited", "up_kernel", PREFILL,
           partial(PREFILL, edited=True), 23),
)  # fmt: skip


def costs(target: str) -> list[Cost]:
    """Every hook on one target."""
    known = cache(partial(compiled, target=target))
    return [
        weigh(pair, known(pair.kernel, pair.plain), known(pair.kernel, pair.hooked))
        for pair in HOOKED
    ]


def main() -> None:
    found = gate.each_kept(costs, sys.argv[1:] or devices.GATED)
    for each in (Cost(*cost) for target in found for cost in target):
        verdict = "; ".join(each.faults) or "passes"
        print(f"{each.name}, {each.target}: {each.added:+} a turn, {each.share:+.1%}: {verdict}")
    sys.exit(any(cost[-1] for target in found for cost in target))


if __name__ == "__main__":
    main()
