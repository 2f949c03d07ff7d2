"""Arithmetic and logic, lane by lane. A fused multiply-add is exact in float64, then rounded."""

from collections.abc import Callable

import numpy as np
from ptx_operands import KINDS, Step, source, target
from ptx_program import Instruction, Program

from gptoss_kernels.triton.bits import narrow, widen

MODIFIERS = {"rn", "ftz", "approx", "full", "lo", "rni"}
"""Words of an opcode that change nothing here: the rounding is to nearest even everywhere"""


def _fused(a, b, c):
    if np.result_type(a) == np.float32:
        return (np.asarray(a).astype(np.float64) * b + c).astype(np.float32)
    return a * b + c


def _quotient(a, b):
    if np.result_type(a).kind == "f":
        return a / b
    b = np.where(b == 0, 1, b).astype(np.result_type(a))
    return (a - np.fmod(a, b)) // b


def _remainder(a, b):
    return np.fmod(a, np.where(b == 0, 1, b).astype(np.result_type(a)))


def _population(a):
    return np.bitwise_count(a).astype(np.uint32)


def _leading(a):
    bits = 8 * np.result_type(a).itemsize
    return (bits - np.frexp(np.asarray(a).astype(np.float64))[1] * (a != 0)).astype(np.uint32)


def _same(operation: Callable) -> Callable:
    """numpy's result brought back to the type of the first operand."""
    return lambda *values: np.asarray(operation(*values)).astype(np.result_type(values[0]))


ELEMENTWISE: dict[str, Callable] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": _quotient,
    "rem": _remainder,
    "fma": _fused,
    "mad": _fused,
    "min": lambda *values: _fold(np.fmin, values),
    "max": lambda *values: _fold(np.fmax, values),
    "neg": lambda a: np.negative(a),
    "abs": np.abs,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "sqrt": np.sqrt,
    "rsqrt": _same(lambda a: 1 / np.sqrt(a)),
    "rcp": _same(lambda a: 1 / a),
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "copysign": lambda a, b: np.copysign(b, a),
    "popc": _population,
    "clz": _leading,
}
PROPAGATING = {"min": np.minimum, "max": np.maximum}


def _fold(operation: Callable, values: tuple):
    """Two or, from sm_100 on, three operands."""
    out = values[0]
    for value in values[1:]:
        out = operation(out, value)
    return out


def _elementwise(each: Instruction, program: Program) -> Step:
    name, modifiers, kind = each.words[0], set(each.words[1:-1]), each.words[-1]
    operation = ELEMENTWISE[name]
    if "NaN" in modifiers and name in PROPAGATING:
        keeps = PROPAGATING[name]
        operation, modifiers = (lambda *v: _fold(keeps, v)), modifiers - {"NaN"}
    if "wide" in modifiers:
        return _wide(each, program)
    if "hi" in modifiers and name == "mul":
        return _high(each, program)
    if each.words[-2:] == ("f32", "bf16") and name in ("add", "sub", "fma"):
        return _mixed(each, program)
    if modifiers - MODIFIERS or kind not in KINDS:
        raise NotImplementedError(f"PTX: {each.opcode} is not known to the emulator")
    operation = {"bf16": _bfloat, "bf16x2": _pair, "f32x2": _float_pair}.get(
        kind, lambda given: given
    )(operation)
    reads = [source(text, kind, program) for text in each.operands[1:]]
    write = target(each.operands[0], program)

    def step(lanes, mask) -> None:
        write(lanes, operation(*(read(lanes) for read in reads)), mask)

    return step


def _bfloat(operation: Callable) -> Callable:
    """On bfloat16 patterns, rounded once."""
    exact = (lambda a, b, c: a.astype(np.float64) * b + c) if operation is _fused else operation

    def run(*patterns):
        wide = (widen(np.atleast_1d(pattern)) for pattern in patterns)
        return narrow(np.asarray(exact(*wide)))

    return run


def _pair(operation: Callable) -> Callable:
    """On two bfloat16 in a register."""
    one = _bfloat(operation)

    def run(*words):
        words = [np.atleast_1d(word) for word in words]
        low = one(*((word & 0xFFFF).astype(np.uint16) for word in words))
        high = one(*((word >> 16).astype(np.uint16) for word in words))
        return low.astype(np.uint32) | high.astype(np.uint32) << 16

    return run


def _float_pair(operation: Callable) -> Callable:
    """On two float32 in a register, from sm_100 on."""

    def run(*words):
        halves = (np.atleast_1d(word).view(np.float32).reshape(-1, 2) for word in words)
        found = np.ascontiguousarray(operation(*halves), dtype=np.float32)
        return found.view(np.uint64)[:, 0]

    return run


def _mixed(each: Instruction, program: Program) -> Step:
    """bfloat16 operands and, last, a float32 one, from sm_100 on."""
    operation = ELEMENTWISE[each.words[0]]
    if set(each.words[1:-2]) - MODIFIERS:
        raise NotImplementedError(f"PTX: {each.opcode} is not known to the emulator")
    narrow_ones = [source(text, "bf16", program) for text in each.operands[1:-1]]
    last, write = source(each.operands[-1], "f32", program), target(each.operands[0], program)

    def step(lanes, mask) -> None:
        wide = [widen(np.atleast_1d(read(lanes))) for read in narrow_ones]
        write(lanes, operation(*wide, last(lanes)), mask)

    return step


WIDER = {"s16": np.int32, "u16": np.uint32, "s32": np.int64, "u32": np.uint64}


def _wide(each: Instruction, program: Program) -> Step:
    """mul.wide, mad.wide: the product in twice the bits."""
    kind = each.words[-1]
    wide = WIDER[kind]
    a, b = (source(text, kind, program) for text in each.operands[1:3])
    double = f"{kind[0]}{np.dtype(wide).itemsize * 8}"
    more = [source(text, double, program) for text in each.operands[3:]]
    write = target(each.operands[0], program)

    def step(lanes, mask) -> None:
        out = a(lanes).astype(wide) * b(lanes).astype(wide)
        write(lanes, sum((read(lanes) for read in more), start=out), mask)

    return step


def _high(each: Instruction, program: Program) -> Step:
    """mul.hi: the upper half of the product."""
    kind = each.words[-1]
    if kind not in WIDER:
        return _high_of_64(each, program)
    wide, bits = WIDER[kind], np.dtype(KINDS[kind]).itemsize * 8
    a, b = (source(text, kind, program) for text in each.operands[1:3])
    write = target(each.operands[0], program)

    def step(lanes, mask) -> None:
        out = a(lanes).astype(wide) * b(lanes).astype(wide)
        write(lanes, (out >> wide(bits)).astype(KINDS[kind]), mask)

    return step


def _high_of_64(each: Instruction, program: Program) -> Step:
    kind = each.words[-1]
    a, b = (source(text, kind, program) for text in each.operands[1:3])
    write = target(each.operands[0], program)

    def step(lanes, mask) -> None:
        pairs = zip(lanes.every(a(lanes)), lanes.every(b(lanes)), strict=True)
        found = [(int(x) * int(y)) >> 64 for x, y in pairs]
        write(lanes, np.array(found, KINDS[kind]), mask)

    return step


def _shift(each: Instruction, program: Program) -> Step:
    """Beyond the register's width everything is shifted out."""
    left, kind = each.words[0] == "shl", each.words[-1]
    value, by = source(each.operands[1], kind, program), source(each.operands[2], "u32", program)
    write, wide = target(each.operands[0], program), KINDS[kind]
    bits = 8 * np.dtype(wide).itemsize

    def step(lanes, mask) -> None:
        count, x = by(lanes), value(lanes)
        inside = np.minimum(count, bits - 1).astype(wide)
        out = x << inside if left else x >> inside
        if left or np.dtype(wide).kind == "u":
            out = np.where(count < bits, out, wide(0))
        write(lanes, out, mask)

    return step


def _funnel(each: Instruction, program: Program) -> Step:
    """shf: 32 bits out of b:a."""
    low, high, by = (source(text, "u32", program) for text in each.operands[1:4])
    write, left, wrap = target(each.operands[0], program), "l" in each.words, "wrap" in each.words

    def step(lanes, mask) -> None:
        count = by(lanes).astype(np.uint64)
        count = count & np.uint64(31) if wrap else np.minimum(count, np.uint64(32))
        both = high(lanes).astype(np.uint64) << np.uint64(32) | low(lanes).astype(np.uint64)
        out = (both << count) >> np.uint64(32) if left else both >> count
        write(lanes, out.astype(np.uint32), mask)

    return step


def _logic(each: Instruction, program: Program) -> Step:
    """lop3: bit (4a + 2b + c) of the table, bit by bit."""
    reads = [source(text, "u32", program) for text in each.operands[1:4]]
    table, write = int(each.operands[4], 0), target(each.operands[0], program)

    def step(lanes, mask) -> None:
        a, b, c = (lanes.every(read(lanes)) for read in reads)
        out = np.zeros(lanes.count, np.uint32)
        for i in range(8):
            if table >> i & 1:
                out |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        write(lanes, out, mask)

    return step


def _extract(each: Instruction, program: Program) -> Step:
    """bfe: `length` bits from `place` on, with the sign of the last one if signed."""
    kind = each.words[-1]
    value = source(each.operands[1], kind, program)
    place, length = (source(text, "u32", program) for text in each.operands[2:4])
    write, wide = target(each.operands[0], program), KINDS[kind]
    bits = 8 * np.dtype(wide).itemsize
    pattern = np.dtype(f"u{bits // 8}").type

    def step(lanes, mask) -> None:
        first, count = (lanes.every(each(lanes)).astype(np.int64) & 255 for each in (place, length))
        if ((first + count > bits) | (count == 0)).any():
            raise NotImplementedError("PTX: bfe beyond the register")
        x = lanes.every(value(lanes)).view(pattern) << (bits - first - count).astype(pattern)
        write(lanes, x.view(wide) >> (bits - count).astype(wide), mask)

    return step


def _insert(each: Instruction, program: Program) -> Step:
    """bfi: the low bits of a put into b."""
    kind = each.words[-1]
    a, b = (source(text, kind, program) for text in each.operands[1:3])
    place, length = (source(text, "u32", program) for text in each.operands[3:5])
    write, wide = target(each.operands[0], program), KINDS[kind]

    def step(lanes, mask) -> None:
        first, count = place(lanes).astype(wide), length(lanes).astype(wide)
        window = ((wide(1) << count) - wide(1)) << first
        write(lanes, b(lanes) & ~window | (a(lanes) << first) & window, mask)

    return step


OPCODES = dict.fromkeys(ELEMENTWISE, _elementwise) | {
    "shl": _shift,
    "shr": _shift,
    "shf": _funnel,
    "lop3": _logic,
    "bfe": _extract,
    "bfi": _insert,
}
