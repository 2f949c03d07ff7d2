"""PTX that Triton compiled, run on the CPU: blocks side by side, one numpy lane per thread.

It runs what the compiler produced: layouts, ldmatrix and mma fragments, asynchronous copies, shared
memory, inline assembly. Every access is checked against the tensors given; memory and registers
start as NaN; what an asynchronous copy brings appears as late as the code allows, or as early.
Warps of a block run in lock-step, or one after another up to each barrier, so that a barrier that
is missing shows. sm_80 to sm_89 and sm_120; wgmma, tcgen05 and TMA raise NotImplementedError.
An mma's products and its sum are added in float64 and rounded once, which no GPU promises.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
import ptx_arithmetic
import ptx_matrix
import ptx_moves
import ptx_transfers
import ptx_warp
from ptx_memory import Shared, Tensors
from ptx_operands import Step, poison
from ptx_program import Instruction, Program, parse
from torch import Tensor

OPCODES = (
    ptx_arithmetic.OPCODES
    | ptx_matrix.OPCODES
    | ptx_moves.OPCODES
    | ptx_transfers.OPCODES
    | ptx_warp.OPCODES
)
SIDE_BY_SIDE = 8192
"""lanes that run together; more blocks wait until these are done"""


class Run(NamedTuple):
    """How warps and copies are timed, within what the hardware may do."""

    warps: Literal["together", "forward", "backward"] = "together"
    """in lock-step, or one warp after another up to each barrier, first or last warp first"""
    copies: Literal["late", "early"] = "late"
    """when cp.async brings its data: at its wait, or at once"""


class Deadlock(Exception):
    """Threads wait at a barrier for others that never come."""


def run(
    ptx: str,
    grid: Sequence[int],
    arguments: Sequence[Tensor | int | float],
    threads: int,
    shared: int,
    how: Run = Run(),  # noqa: B008
) -> int:
    """Run a kernel on tensors in place; gives how many instructions were executed.

    `arguments` are those that the compiled kernel has as parameters, in order; hidden ones that
    follow (scratch memory) are 0.
    """
    program, steps = _decoded(ptx)
    memory = Tensors(each for each in arguments if isinstance(each, Tensor))
    values = _parameters(program, arguments)
    places = np.array(list(product(*(range(n) for n in _three(grid)[::-1]))), np.uint32)[:, ::-1]
    count, most = 0, max(1, SIDE_BY_SIDE // threads)
    with np.errstate(all="ignore"):
        for start in range(0, len(places), most):
            blocks = places[start : start + most]
            side = Blocks(memory, Shared(len(blocks), shared), values, blocks, _three(grid), how)
            count += side.run(steps, threads)
    return count


class Control(NamedTuple):
    """What ends straight-line code: a branch to `target`, the end, or a barrier."""

    verb: Literal["branch", "exit", "barrier"]
    target: int = 0
    """an instruction, or the number of a barrier"""
    threads: int = 0
    """how many a barrier waits for; 0 is all"""


class Decoded(NamedTuple):
    step: Step | Control
    guard: str | None
    negated: bool


@lru_cache(256)
def _decoded(ptx: str) -> tuple[Program, tuple[Decoded, ...]]:
    program = parse(ptx)
    steps = (Decoded(_step(e, program), e.guard, e.negated) for e in program.instructions)
    return program, tuple(steps)


def _step(each: Instruction, program: Program) -> Step | Control:
    first, rest = each.words[0], each.words[1:]
    if first == "bra":
        return Control("branch", program.labels[each.operands[-1]])
    if first in ("ret", "exit"):
        return Control("exit")
    if first in ("bar", "barrier") and "sync" in rest and "warp" not in rest:
        numbers = [int(text, 0) for text in each.operands]
        return Control("barrier", *numbers)
    if first not in OPCODES:
        raise NotImplementedError(f"PTX: {each.opcode} is not known to the emulator")
    return OPCODES[first](each, program)


def _three(grid: Sequence[int]) -> tuple[int, ...]:
    return (*grid, *(1,) * (3 - len(grid)))


def _parameters(program: Program, arguments: Sequence[Tensor | int | float]) -> dict[str, int]:
    given = [*arguments, *(0,) * (len(program.parameters) - len(arguments))]
    if len(given) > len(program.parameters):
        raise ValueError(f"PTX: {len(program.parameters)} parameters, {len(given)} arguments")
    pairs = zip(program.parameters, given, strict=True)
    return {name: _bits(kind, value) for (kind, name), value in pairs}


def _bits(kind: str, value: Tensor | int | float) -> int:
    if isinstance(value, Tensor):
        return value.data_ptr()
    if kind in ("f32", "f64"):
        wide = kind == "f64"
        return int(np.array(value, kind[1:] and f"f{4 << wide}").view(f"u{4 << wide}"))
    return int(value) & ((1 << 64) - 1)


class Blocks:
    """Blocks that run side by side: what they share, and their groups of lanes."""

    def __init__(
        self,
        memory: Tensors,
        shared: Shared,
        parameters: Mapping[str, int],
        places: np.ndarray,
        grid: tuple[int, ...],
        how: Run,
    ) -> None:
        self.memory, self.shared, self.parameters = memory, shared, parameters
        self.places, self.grid, self.how = places, grid, how

    def run(self, steps: tuple[Decoded, ...], threads: int) -> int:
        groups = list(self._groups(steps, threads))
        while True:
            for group in groups:
                group.run()
            if not self._release(groups):
                break
        return sum(group.executed for group in groups)

    def _groups(self, steps: tuple[Decoded, ...], threads: int) -> Iterator["Lanes"]:
        if self.how.warps == "together":
            yield Lanes(self, steps, np.arange(threads), threads)
            return
        warps = [np.arange(start, start + 32) for start in range(0, threads, 32)]
        for warp in warps if self.how.warps == "forward" else warps[::-1]:
            yield Lanes(self, steps, warp, threads)

    def _release(self, groups: list["Lanes"]) -> bool:
        """Let those go on whose barrier is complete; whether there were any."""
        waiting = [group.waiting for group in groups]
        if not any(each.any() for each in waiting):
            return False
        block = np.concatenate([group.block for group in groups])
        live = np.concatenate([group.pc < group.end for group in groups])
        barrier = np.concatenate([group.barrier for group in groups])
        needed = np.concatenate([group.needed for group in groups])
        all_live = np.bincount(block[live], minlength=len(self.places))
        free = np.zeros(len(block), bool)
        stand = np.concatenate(waiting)
        for number in np.unique(barrier[stand]):
            here = stand & (barrier == number)
            arrived = np.bincount(block[here], minlength=len(self.places))[block]
            wanted = np.where(needed > 0, needed, all_live[block])
            free |= here & (arrived >= wanted)
        if not free.any():
            number = int(barrier[stand][0])
            raise Deadlock(f"{stand.sum()} threads wait at barrier {number}, others never come")
        start = 0
        for group in groups:
            group.waiting &= ~free[start : start + len(group.waiting)]
            start += len(group.waiting)
        return True


class Lanes:
    """Threads that run in lock-step, 32 neighbours a warp: registers, places in the code."""

    def __init__(
        self, side: Blocks, steps: tuple[Decoded, ...], threads: np.ndarray, in_block: int
    ) -> None:
        self.side, self.steps, self.end = side, steps, len(steps)
        self.block = np.repeat(np.arange(len(side.places)), len(threads))
        self.count = len(self.block)
        self.thread = np.tile(threads, len(side.places)).astype(np.uint32)
        self.in_block = in_block
        self.registers: dict[str, np.ndarray] = {}
        self.pc = np.zeros(self.count, np.int64)
        self.waiting = np.zeros(self.count, bool)
        self.barrier, self.needed = (np.zeros(self.count, np.int64) for _ in range(2))
        self.copies = ptx_transfers.Copies(side.how.copies == "early")
        self.executed = 0

    def read(self, name: str, stored: type) -> np.ndarray:
        values = self.registers.get(name)
        return poison(self.count, stored) if values is None else values

    def write(self, name: str, values, mask, stored: type) -> None:
        if mask is not None:
            values = np.where(mask, values, self.read(name, stored))
        self.registers[name] = self.every(values)

    def every(self, value) -> np.ndarray:
        """One value for all lanes, or each its own, as an array."""
        if np.shape(value) == (self.count,):
            return value
        return np.full(self.count, value)

    def special(self, name: str) -> np.ndarray:
        """%tid.x and the like."""
        register, _, axis = name.partition(".")
        along = "xyz".index(axis) if axis else 0
        if register == "%ctaid":
            return self.side.places[self.block, along]
        if register == "%nctaid":
            return np.full(self.count, self.side.grid[along], np.uint32)
        if register in ("%tid", "%ntid") and along:
            return np.full(self.count, int(register == "%ntid"), np.uint32)
        if register == "%ntid":
            return np.full(self.count, self.in_block, np.uint32)
        return {"%tid": self.thread, "%laneid": self.thread % 32, "%warpid": self.thread // 32}[
            register
        ]

    def run(self) -> None:
        """Run until every lane is done or waits; lanes that are behind go first."""
        while True:
            runnable = ~self.waiting & (self.pc < self.end)
            if not runnable.any():
                return
            at = int(self.pc[runnable].min())
            active = runnable & (self.pc == at)
            ahead = self.pc[runnable & ~active]
            stop = int(ahead.min()) if len(ahead) else self.end
            self._straight(at, stop, active)

    def _straight(self, at: int, stop: int, active: np.ndarray) -> None:
        everywhere = None if active.all() else active
        while at < stop:
            step, guard, negated = self.steps[at]
            mask, at = everywhere, at + 1
            if guard:
                truth = self.read(guard, np.bool_)
                truth = ~truth if negated else truth
                mask = truth if mask is None else truth & mask
            self.executed += 1
            if isinstance(step, Control):
                self._turn(step, at, active, active if mask is None else mask)
                return
            step(self, mask)
        self.pc[active] = at

    def _turn(self, control: Control, following: int, active: np.ndarray, mask: np.ndarray) -> None:
        self.pc[active] = following
        if control.verb == "barrier":
            self.waiting |= mask
            self.barrier[mask], self.needed[mask] = control.target, control.threads
        else:
            self.pc[mask] = self.end if control.verb == "exit" else control.target
