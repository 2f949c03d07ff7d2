"""Moving, packing, choosing, comparing and converting."""

from collections.abc import Callable

import numpy as np
from ptx_operands import KINDS, Step, members, source, target
from ptx_program import Instruction, Program

from gptoss_kernels.triton.bits import narrow, widen
from gptoss_kernels.triton.inline_ptx import OPERATIONS


def _move(each: Instruction, program: Program) -> Step:
    to, given = each.operands
    if to.startswith("{"):
        return _unpack(each, program)
    if given.startswith("{"):
        return _pack(each, program)
    read, write = source(given, each.words[-1], program), target(to, program)
    return lambda lanes, mask: write(lanes, read(lanes), mask)


def _unpack(each: Instruction, program: Program) -> Step:
    total, parts = int(each.words[-1][1:]), members(each.operands[0])
    width = total // len(parts)
    read = source(each.operands[1], f"u{total}", program)
    writes = [target(name, program) for name in parts]

    def step(lanes, mask) -> None:
        whole = read(lanes)
        for j, write in enumerate(writes):
            write(lanes, (whole >> whole.dtype.type(width * j)).astype(f"u{width // 8}"), mask)

    return step


def _pack(each: Instruction, program: Program) -> Step:
    total, parts = int(each.words[-1][1:]), members(each.operands[1])
    width, wide = total // len(parts), np.dtype(f"u{total // 8}").type
    reads = [source(name, f"u{width}", program) for name in parts]
    write = target(each.operands[0], program)

    def step(lanes, mask) -> None:
        whole = wide(0)
        for j, read in enumerate(reads):
            whole = whole | read(lanes).astype(wide) << wide(width * j)
        write(lanes, whole, mask)

    return step


def _choose(each: Instruction, program: Program) -> Step:
    """selp"""
    a, b = (source(text, each.words[-1], program) for text in each.operands[1:3])
    which, write = source(each.operands[3], "pred", program), target(each.operands[0], program)
    return lambda lanes, mask: write(lanes, np.where(which(lanes), a(lanes), b(lanes)), mask)


COMPARISONS: dict[str, Callable] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: (a != b) & (a == a) & (b == b),
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lo": lambda a, b: a < b,
    "ls": lambda a, b: a <= b,
    "hi": lambda a, b: a > b,
    "hs": lambda a, b: a >= b,
    "equ": lambda a, b: (a == b) | (a != a) | (b != b),
    "neu": lambda a, b: a != b,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}
COMBINED: dict[str, Callable] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}


def _compare(each: Instruction, program: Program) -> Step:
    """setp, and setp with a predicate that it is combined with."""
    verb, kind, others = each.words[1], each.words[-1], each.words[2:-1]
    unknown = [word for word in others if word not in COMBINED and word != "ftz"]
    if verb not in COMPARISONS or unknown or kind not in KINDS or "|" in each.operands[0]:
        raise NotImplementedError(f"PTX: {each.opcode} is not known to the emulator")
    compare = COMPARISONS[verb]
    combine = next((COMBINED[word] for word in others if word in COMBINED), None)
    reads = [source(text, kind, program) for text in each.operands[1:3]]
    other = source(each.operands[3].lstrip("!"), "pred", program) if combine else None
    inverted, bfloat = combine and each.operands[3].startswith("!"), kind == "bf16"
    write = target(each.operands[0], program)

    def step(lanes, mask) -> None:
        a, b = (read(lanes) for read in reads)
        if bfloat:
            a, b = widen(np.atleast_1d(a)), widen(np.atleast_1d(b))
        found = compare(a, b)
        if combine and other:
            found = combine(found, ~other(lanes) if inverted else other(lanes))
        write(lanes, found, mask)

    return step


def _permute(each: Instruction, program: Program) -> Step:
    if each.opcode != "prmt.b32":
        raise NotImplementedError(f"PTX: {each.opcode} is not known to the emulator")
    reads = [source(text, "u32", program) for text in each.operands[1:4]]
    write, permute = target(each.operands[0], program), OPERATIONS["prmt.b32"]

    def step(lanes, mask) -> None:
        write(lanes, permute(*(lanes.every(read(lanes)) for read in reads)), mask)

    return step


FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
TO_WHOLE = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}


def _convert(each: Instruction, program: Program) -> Step:
    to, given = each.words[-2:]
    modifiers = set(each.words[1:-2]) - {"ftz"}
    convert, kinds = _conversion(to, given, modifiers)
    if convert is None:
        raise NotImplementedError(f"PTX: {each.opcode} is not known to the emulator")
    reads = [source(text, kinds, program) for text in each.operands[1:]]
    write = target(each.operands[0], program)

    def step(lanes, mask) -> None:
        write(lanes, convert(*(np.atleast_1d(read(lanes)) for read in reads)), mask)

    return step


def _conversion(to: str, given: str, modifiers: set[str]) -> tuple[Callable | None, str]:
    """What turns `given` into `to`, and how its operands are read."""
    if (to, given) == ("bf16x2", "f32") and modifiers in ({"rn"}, {"rz"}):
        one = narrow if "rn" in modifiers else _truncate
        return (lambda high, low: _two(one(low), one(high))), "f32"
    if (to, given) == ("bf16", "f32") and modifiers == {"rz"}:
        return _truncate, "f32"
    if (to, given) == ("bf16x2", "e2m1x2") and modifiers <= {"rn"}:
        return (lambda code: _two(narrow(_fp4(code)), narrow(_fp4(code >> 4)))), "u8"
    if (to, given) == ("f16x2", "e2m1x2") and modifiers <= {"rn"}:
        return (lambda code: _two(_half(_fp4(code)), _half(_fp4(code >> 4)))), "u8"
    if (to, given) == ("bf16x2", "ue8m0x2"):
        return (lambda code: _two(_power(code & 255), _power(code >> 8))), "u16"
    if to not in KINDS or given not in KINDS or "x2" in to + given:
        return None, given
    return _plain(to, given, modifiers), given


def _plain(to: str, given: str, modifiers: set[str]) -> Callable | None:
    real = {"f16", "bf16", "f32", "f64"}
    if to in real:
        whole = next((TO_WHOLE[word] for word in modifiers if word in TO_WHOLE), None)
        if modifiers - {"rn"} - set(TO_WHOLE):
            return None
        return lambda x: _real(to, whole(_wide(given, x)) if whole else _wide(given, x))
    if given in real:
        whole = next((TO_WHOLE[word] for word in modifiers if word in TO_WHOLE), None)
        return (lambda x: _integer(whole(_wide(given, x)), KINDS[to])) if whole else None
    return None if modifiers else lambda x: x.astype(KINDS[to])


def _wide(kind: str, x: np.ndarray) -> np.ndarray:
    return widen(x) if kind == "bf16" else x


def _real(kind: str, x: np.ndarray) -> np.ndarray:
    if kind != "bf16":
        return x.astype(KINDS[kind])
    return narrow(x if x.dtype == np.float64 else x.astype(np.float32))


def _integer(x: np.ndarray, wanted: type) -> np.ndarray:
    """Saturated; NaN is 0."""
    limits = np.iinfo(wanted)
    x = np.where(np.isnan(x), 0, x).astype(np.float64)
    inside = np.clip(x, limits.min, limits.max)
    out = inside.astype(np.int64 if limits.max < 2**62 else wanted).astype(wanted)
    return np.where(x >= float(limits.max), wanted(limits.max), out)


def _two(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low.astype(np.uint32) | high.astype(np.uint32) << 16


def _truncate(x: np.ndarray) -> np.ndarray:
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def _half(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).view(np.uint16)


def _fp4(code: np.ndarray) -> np.ndarray:
    return np.where(code & 8, -FP4[code & 7], FP4[code & 7])


def _power(code: np.ndarray) -> np.ndarray:
    """2^(code - 127) as a bfloat16 pattern; 255 is NaN."""
    code = code.astype(np.uint16)
    return np.where(code == 255, 0x7FFF, np.where(code == 0, 0x0040, code << 7)).astype(np.uint16)


OPCODES = {
    "mov": _move,
    "selp": _choose,
    "setp": _compare,
    "prmt": _permute,
    "cvt": _convert,
    "cvta": _move,
}
