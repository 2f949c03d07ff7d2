"""What lanes of a warp do together: shuffles, votes, reductions; and what needs no work here."""

import numpy as np
from ptx_operands import KINDS, Step, source, target
from ptx_program import Instruction, Program


def _shuffle(each: Instruction, program: Program) -> Step:
    """Only within segments of 32 lanes, with a clamp of 31 or 0 as full warps have it."""
    mode = each.words[2]
    value, by, limit = (source(text, "u32", program) for text in each.operands[1:4])
    names = each.operands[0].split("|")
    write = target(names[0].strip(), program)
    valid = target(names[1].strip(), program) if len(names) > 1 else None
    if mode not in ("bfly", "idx", "up", "down"):
        raise NotImplementedError(f"PTX: {each.opcode} is not known to the emulator")

    def step(lanes, mask) -> None:
        lane, steps = np.arange(lanes.count) % 32, by(lanes).astype(np.int64) & 31
        bound = limit(lanes).astype(np.int64)
        segment = (bound >> 8) & 31
        first, last = lane & segment, (lane & segment) | (bound & 31 & ~segment)
        if mode == "up":
            origin, inside = lane - steps, lane - steps >= last
        elif mode == "down":
            origin, inside = lane + steps, lane + steps <= last
        else:
            origin = lane ^ steps if mode == "bfly" else first | (steps & ~segment)
            inside = origin <= last
        origin = np.where(inside, origin, lane) + np.arange(lanes.count) // 32 * 32
        write(lanes, lanes.every(value(lanes))[origin], mask)
        if valid:
            valid(lanes, lanes.every(inside), mask)

    return step


def _vote(each: Instruction, program: Program) -> Step:
    mode = next((word for word in each.words if word in ("all", "any", "ballot")), None)
    if mode is None:
        raise NotImplementedError(f"PTX: {each.opcode} is not known to the emulator")
    text = each.operands[1]
    read, write = source(text.lstrip("!"), "pred", program), target(each.operands[0], program)

    def step(lanes, mask) -> None:
        truth = lanes.every(read(lanes)) ^ text.startswith("!")
        active = np.ones(lanes.count, bool) if mask is None else mask
        truth, active = truth.reshape(-1, 32), active.reshape(-1, 32)
        if mode == "ballot":
            bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
            out = ((truth & active) * bits).sum(1).astype(np.uint32)
        else:
            out = (truth | ~active).all(1) if mode == "all" else (truth & active).any(1)
        write(lanes, np.repeat(out, 32), mask)

    return step


REDUCTIONS = {
    "add": np.add, "min": np.minimum, "max": np.maximum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


def _reduce(each: Instruction, program: Program) -> Step:
    verb, kind = each.words[2], each.words[-1]
    if verb not in REDUCTIONS or kind not in KINDS:
        raise NotImplementedError(f"PTX: {each.opcode} is not known to the emulator")
    read, write = source(each.operands[1], kind, program), target(each.operands[0], program)

    def step(lanes, mask) -> None:
        if mask is not None and (mask.reshape(-1, 32).any(1) != mask.reshape(-1, 32).all(1)).any():
            raise NotImplementedError(f"PTX: {each.opcode} of a part of a warp")
        values = lanes.every(read(lanes)).reshape(-1, 32)
        out = REDUCTIONS[verb].reduce(values, axis=1, dtype=values.dtype)
        write(lanes, np.repeat(out, 32), mask)

    return step


def _elect(each: Instruction, program: Program) -> Step:
    """elect.sync: the first lane of each warp."""
    write = target(each.operands[0].split("|")[1].strip(), program)

    def step(lanes, mask) -> None:
        active = np.ones(lanes.count, bool) if mask is None else mask
        active = active.reshape(-1, 32)
        first = active & (np.cumsum(active, 1) == 1)
        write(lanes, first.reshape(-1), mask)

    return step


def _nothing(each: Instruction, program: Program) -> Step:
    """Lanes of a warp run in lock-step and memory is written in order."""
    return lambda lanes, mask: None


def _warp_barrier(each: Instruction, program: Program) -> Step:
    if "warp" not in each.words:
        raise NotImplementedError(f"PTX: {each.opcode} is not known to the emulator")
    return _nothing(each, program)


OPCODES = {
    "shfl": _shuffle,
    "vote": _vote,
    "redux": _reduce,
    "elect": _elect,
    "bar": _warp_barrier,
    "membar": _nothing,
    "fence": _nothing,
    "griddepcontrol": _nothing,
    "nanosleep": _nothing,
}
