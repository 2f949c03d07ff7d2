"""Loads, stores, asynchronous copies and whole-number atomics."""

from typing import NamedTuple

import numpy as np
from ptx_operands import KINDS, Step, address, members, source, target, unsigned
from ptx_program import Instruction, Program


def _lanes_of(lanes, mask) -> np.ndarray:
    return np.arange(lanes.count) if mask is None else np.flatnonzero(mask)


def fetch(lanes, places: np.ndarray, size: int, chosen: np.ndarray, shared: bool) -> np.ndarray:
    """[chosen lane, size] bytes."""
    if shared:
        return lanes.side.shared.load(lanes.block[chosen], places[chosen], size)
    return lanes.side.memory.load(places[chosen], size)


def put(lanes, places: np.ndarray, data: np.ndarray, chosen: np.ndarray, shared: bool) -> None:
    """Write the rows of `data`, one for each chosen lane."""
    if shared:
        lanes.side.shared.store(lanes.block[chosen], places[chosen], data)
    else:
        lanes.side.memory.store(places[chosen], data)


def _shared(each: Instruction) -> bool:
    found = {"shared", "shared::cta", "global"} & set(each.words)
    if not found:
        raise NotImplementedError(f"PTX: {each.opcode} in another memory than shared or global")
    return "global" not in found


def _vector(words: tuple[str, ...]) -> int:
    return next((int(word[1:]) for word in words if word in ("v2", "v4", "v8")), 1)


def _load(each: Instruction, program: Program) -> Step:
    kind, registers = each.words[-1], members(each.operands[0])
    writes = [target(name, program) for name in registers]
    wide, stored = KINDS[kind], unsigned(kind)
    if "param" in each.words:
        name = each.operands[1].strip("[] ")
        size = np.dtype(stored).itemsize

        def parameter(lanes, mask) -> None:
            value = lanes.side.parameters[name] & ((1 << 8 * size) - 1)
            writes[0](lanes, np.full(lanes.count, value, stored), mask)

        return parameter
    place, shared = address(each.operands[1], program), _shared(each)
    size = np.dtype(wide).itemsize * _vector(each.words)

    def load(lanes, mask) -> None:
        chosen = _lanes_of(lanes, mask)
        data = fetch(lanes, place(lanes), size, chosen, shared).view(wide)
        for j, write in enumerate(writes):
            values = data[:, j]
            if mask is not None:
                every = np.zeros(lanes.count, wide)
                every[chosen] = values
                values = every
            write(lanes, np.ascontiguousarray(values), mask)

    return load


def _store(each: Instruction, program: Program) -> Step:
    kind = each.words[-1]
    reads = [source(name, kind, program) for name in members(each.operands[1])]
    place, shared = address(each.operands[0], program), _shared(each)

    def store(lanes, mask) -> None:
        chosen = _lanes_of(lanes, mask)
        values = np.stack([lanes.every(read(lanes))[chosen] for read in reads], 1)
        put(lanes, place(lanes), values.view(np.uint8), chosen, shared)

    return store


class _Copy(NamedTuple):
    places: np.ndarray
    data: np.ndarray
    """[lane, byte], of lanes in the mask"""
    mask: np.ndarray


class _Group(NamedTuple):
    copies: list[_Copy]
    mask: np.ndarray
    """lanes that committed it and for which it has not landed"""


class Copies:
    """Asynchronous copies on their way to shared memory."""

    def __init__(self, early: bool) -> None:
        self.early = early
        self.pending: list[_Copy] = []
        self.groups: list[_Group] = []

    def begin(self, lanes, copy: _Copy) -> None:
        if self.early:
            self._land(lanes, copy, copy.mask)
        else:
            self.pending.append(copy)

    def commit(self, mask: np.ndarray) -> None:
        """Those begun by lanes of the mask make a group; others stay pending."""
        mine = [copy._replace(mask=copy.mask & mask) for copy in self.pending]
        rest = [copy._replace(mask=copy.mask & ~mask) for copy in self.pending]
        self.pending = [copy for copy in rest if copy.mask.any()]
        self.groups.append(_Group(mine, mask.copy()))

    def wait(self, lanes, most: int, mask: np.ndarray) -> None:
        """Land all groups of a lane but its `most` latest."""
        younger = np.zeros(lanes.count, int)
        for group in reversed(self.groups):
            due = mask & group.mask & (younger >= most)
            younger += group.mask
            if due.any():
                group.mask[due] = False
        landed = []
        for group in self.groups:
            for copy in group.copies:
                now = copy.mask & mask & ~group.mask
                if now.any():
                    self._land(lanes, copy, now)
                    copy.mask[now] = False
            landed.append(not group.mask.any())
        self.groups = [g for g, done in zip(self.groups, landed, strict=True) if not done]

    def _land(self, lanes, copy: _Copy, mask: np.ndarray) -> None:
        chosen = np.flatnonzero(mask)
        put(lanes, copy.places, copy.data[chosen], chosen, True)


def _copy(each: Instruction, program: Program) -> Step:
    if "bulk" in each.words:
        raise NotImplementedError(f"PTX: {each.opcode} (bulk copies) is not known to the emulator")

    def everywhere(lanes, mask) -> np.ndarray:
        return np.ones(lanes.count, bool) if mask is None else mask

    if "commit_group" in each.words:
        return lambda lanes, mask: lanes.copies.commit(everywhere(lanes, mask))
    if "wait_group" in each.words:
        most = int(each.operands[0], 0)
        return lambda lanes, mask: lanes.copies.wait(lanes, most, everywhere(lanes, mask))
    if "wait_all" in each.words:

        def wait_all(lanes, mask) -> None:
            lanes.copies.commit(everywhere(lanes, mask))
            lanes.copies.wait(lanes, 0, everywhere(lanes, mask))

        return wait_all
    to, place = address(each.operands[0], program), address(each.operands[1], program)
    size = int(each.operands[2], 0)
    given = source(each.operands[3], "u32", program) if len(each.operands) > 3 else None

    def begin(lanes, mask) -> None:
        mask = everywhere(lanes, mask)
        read = lanes.every(given(lanes)) if given else np.full(lanes.count, size)
        if ((read != 0) & (read != size) & mask).any():
            raise NotImplementedError(f"PTX: {each.opcode} of a part of its bytes")
        chosen = np.flatnonzero(mask & (read > 0))
        data = np.zeros((lanes.count, size), np.uint8)
        data[chosen] = fetch(lanes, place(lanes), size, chosen, False)
        lanes.copies.begin(lanes, _Copy(to(lanes), data, mask.copy()))

    return begin


ATOMICS = {
    "add": lambda old, value: old + value,
    "and": lambda old, value: old & value,
    "or": lambda old, value: old | value,
    "xor": lambda old, value: old ^ value,
    "min": min,
    "max": max,
    "exch": lambda old, value: value,
}


def _atomic(each: Instruction, program: Program) -> Step:
    """One lane after another; floats are refused, their sum has no order."""
    kind, verb = each.words[-1], next((w for w in each.words if w in ATOMICS), None)
    if verb is None or KINDS[kind] in (np.float32, np.float16, np.float64) or "bf16" in kind:
        raise NotImplementedError(f"PTX: {each.opcode} is not known to the emulator")
    returns = each.words[0] == "atom"
    write = target(each.operands[0], program) if returns else None
    place, shared = address(each.operands[returns], program), _shared(each)
    value, wide, size = source(each.operands[returns + 1], kind, program), KINDS[kind], 0
    size = np.dtype(wide).itemsize

    def atomic(lanes, mask) -> None:
        places, values, old = place(lanes), lanes.every(value(lanes)), np.zeros(lanes.count, wide)
        for lane in _lanes_of(lanes, mask):
            one = np.array([lane])
            old[lane] = fetch(lanes, places, size, one, shared).view(wide)[0, 0]
            new = np.array([[ATOMICS[verb](old[lane], values[lane])]], wide)
            put(lanes, places, new.view(np.uint8), one, shared)
        if write:
            write(lanes, old, mask)

    return atomic


OPCODES = {
    "ld": _load,
    "ldu": _load,
    "st": _store,
    "cp": _copy,
    "atom": _atomic,
    "red": _atomic,
}
