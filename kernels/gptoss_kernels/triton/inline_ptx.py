"""Straight-line inline PTX on 32-bit registers, evaluated with numpy for the interpreter."""

import re
from collections.abc import Callable, Sequence

import numpy as np

from gptoss_kernels.triton.bits import narrow, widen

NUMBER = re.compile(r"^(0x[0-9a-fA-F]+|0b[01]+|\d+)U?$")


def run(
    asm: str, inputs: Sequence[np.ndarray], outputs: Sequence[np.dtype], pack: int
) -> list[np.ndarray]:
    """Evaluate `asm` for every `pack` neighbours of the last axis.

    Registers are numbered as in the constraint string: outputs first ($0 ...), then inputs.
    Raises NotImplementedError for an instruction that is not known here.
    """
    shape = inputs[0].shape
    groups = int(np.prod(shape)) // pack
    words = [pack * kind.itemsize // 4 for kind in outputs]
    registers: dict[str, np.ndarray] = {}
    place = sum(words)
    for value in inputs:
        packed = np.ascontiguousarray(value).reshape(groups, pack)
        packed = packed.view(np.uint8).reshape(groups, -1).copy().view(np.uint32)
        for column in packed.T:
            registers[f"${place}"], place = column, place + 1
    for statement in _statements(asm):
        _step(statement, registers, groups)
    results, place = [], 0
    for kind, count in zip(outputs, words, strict=True):
        columns = [registers[f"${place + j}"] for j in range(count)]
        results.append(np.stack(columns, 1).view(kind).reshape(shape))
        place += count
    return results


def _statements(asm: str) -> list[str]:
    """Without comments and scopes; the parts of a register, {a, b}, become (a b)."""
    code = re.sub(r"//[^\n]*", "", asm)
    code = re.sub(r"\{([^{};]*)\}", lambda m: f"({m[1].replace(',', ' ')})", code)
    code = code.replace("{", "").replace("}", "")
    found = (statement.strip() for statement in code.split(";"))
    return [statement for statement in found if statement and not statement.startswith(".")]


def _step(statement: str, registers: dict[str, np.ndarray], groups: int) -> None:
    op, rest = statement.split(None, 1)
    if op not in OPERATIONS:
        raise NotImplementedError(f"inline PTX: {op} is not known to the interpreter")
    target, *sources = (part.strip() for part in rest.split(","))
    args = [
        np.broadcast_to(np.uint32(int(part.rstrip("U"), 0)), (groups,))
        if NUMBER.match(part)
        else registers[part]
        for part in sources
    ]
    if target.startswith("("):
        parts = target.strip("()").split()
        width = 32 // len(parts)
        for i, part in enumerate(parts):
            registers[part] = args[0] >> np.uint32(width * i) & np.uint32((1 << width) - 1)
        return
    registers[target] = np.asarray(OPERATIONS[op](*args), np.uint32)


def _pairs(op: Callable) -> Callable:
    """An operation on two bfloat16 in a register, each rounded once."""

    def run(*values: np.ndarray) -> np.ndarray:
        low = narrow(op(*(widen((v & 0xFFFF).astype(np.uint16)) for v in values)))
        high = narrow(op(*(widen((v >> 16).astype(np.uint16)) for v in values)))
        return low.astype(np.uint32) | high.astype(np.uint32) << 16

    return run


def _permute(a: np.ndarray, b: np.ndarray, select: np.ndarray) -> np.ndarray:
    """prmt: byte i is byte (select nibble i) of b:a, or its sign where bit 3 is set."""
    source = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    out = np.zeros_like(a)
    for i in range(4):
        nibble = (select >> np.uint32(4 * i)) & np.uint32(15)
        byte = (source >> ((nibble & 7).astype(np.uint64) * np.uint64(8))) & np.uint64(255)
        byte = np.where(nibble & 8, np.where(byte & np.uint64(128), 255, 0), byte)
        out = out | byte.astype(np.uint32) << np.uint32(8 * i)
    return out


def _logic(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
    """lop3: bit (4a + 2b + c) of the table, bit by bit."""
    code, out = int(table.flat[0]), np.zeros_like(a)
    for i in range(8):
        if code >> i & 1:
            out |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return out


E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)


def _from_e2m1(byte: np.ndarray) -> np.ndarray:
    """Two 4-bit codes to two bfloat16, the low nibble to the low half."""
    halves = [
        narrow(np.copysign(E2M1[code & 7], np.where(code & 8, -1.0, 1.0).astype(np.float32)))
        for code in (byte & 15, byte >> 4 & 15)
    ]
    return halves[0].astype(np.uint32) | halves[1].astype(np.uint32) << 16


OPERATIONS: dict[str, Callable] = {
    "mov.b32": lambda a: a,
    "and.b32": np.bitwise_and,
    "or.b32": np.bitwise_or,
    "xor.b32": np.bitwise_xor,
    "not.b32": np.bitwise_not,
    "shl.b32": np.left_shift,
    "shr.b32": np.right_shift,
    "shr.u32": np.right_shift,
    "add.u32": np.add,
    "prmt.b32": _permute,
    "lop3.b32": _logic,
    "mul.bf16x2": _pairs(lambda a, b: a * b),
    "mul.rn.bf16x2": _pairs(lambda a, b: a * b),
    "fma.rn.bf16x2": _pairs(lambda a, b, c: a.astype(np.float64) * b + c),
    "cvt.rn.bf16x2.e2m1x2": _from_e2m1,
    "ex2.approx.ftz.f32": lambda a: np.exp2(a.view(np.float32)).astype(np.float32).view(np.uint32),
}
