"""Operands: how the text of one becomes numbers of every lane, and results go back."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from ptx_memory import POISON
from ptx_program import Program

KINDS: dict[str, type] = {
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8,
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16, "f16": np.float16, "bf16": np.uint16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32, "bf16x2": np.uint32,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64, "f64": np.float64, "f32x2": np.uint64,
    "f16x2": np.uint32, "pred": np.bool_,
}  # fmt: skip
"""numpy's type of a PTX type; bfloat16 as its pattern"""
FLOAT = re.compile(r"^0([fFdD])([0-9a-fA-F]+)$")
WHOLE = re.compile(r"^-?(0x[0-9a-fA-F]+|0b[01]+|\d+)U?$")
ADDRESS = re.compile(r"^\[\s*([%$@\w.]+)\s*(?:\+\s*(-?\w+))?\s*\]$")
SPECIAL = ("%tid.", "%ntid.", "%ctaid.", "%nctaid.", "%laneid", "%warpid")

Read = Callable[..., Any]
"""lanes -> the operand's value in each of them, or one value for all"""
Write = Callable[..., None]
"""(lanes, values, mask): put values where the mask is true"""
Step = Callable[..., None]
"""(lanes, mask): run one instruction where the mask is true; None is everywhere"""


def unsigned(kind: str) -> type:
    """The type a register of `kind` is stored as."""
    size = np.dtype(KINDS[kind]).itemsize
    return np.bool_ if kind == "pred" else np.dtype(f"u{size}").type


def source(text: str, kind: str, program: Program) -> Read:
    """How to read an operand as `kind`."""
    wanted = KINDS[kind]
    if text.startswith(SPECIAL):
        return lambda lanes: _as(lanes.special(text), wanted)
    if found := FLOAT.match(text):
        width = {"f": np.uint32, "d": np.uint64}[found[1].lower()]
        value = width(int(found[2], 16)).view(KINDS["f32" if width is np.uint32 else "f64"])
        return lambda lanes: _as(value.view(width), wanted)
    if WHOLE.match(text):
        constant = _whole(int(text.rstrip("U"), 0), wanted)
        return lambda lanes: constant
    if text in ("true", "false"):
        truth = np.bool_(text == "true")
        return lambda lanes: truth
    if text == "global_smem":
        return lambda lanes: wanted(0)
    stored = unsigned(program.kind(text))
    if stored is wanted:
        return lambda lanes: lanes.read(text, stored)
    return lambda lanes: _as(lanes.read(text, stored), wanted)


def target(text: str, program: Program) -> Write:
    """How to write a result to a register; "_" is nowhere."""
    if text == "_":
        return lambda lanes, values, mask: None
    stored = unsigned(program.kind(text))

    def write(lanes, values, mask) -> None:
        lanes.write(text, _stored(values, stored), mask, stored)

    return write


def address(text: str, program: Program) -> Read:
    """How to read `[register + offset]`, in bytes."""
    found = ADDRESS.match(text)
    if not found:
        raise NotImplementedError(f"PTX: cannot read the address {text}")
    base, offset = source(found[1], "u64", program), int(found[2] or "0", 0)
    return lambda lanes: lanes.every(base(lanes)).view(np.int64) + offset


def members(text: str) -> tuple[str, ...]:
    """The registers of `{a, b}`, or of one alone."""
    return tuple(each.strip() for each in text.strip("{} ").split(","))


def poison(count: int, stored: type) -> np.ndarray:
    """What registers hold that nothing was written to."""
    if stored is np.bool_:
        return np.ones(count, bool)
    return np.full(count * np.dtype(stored).itemsize, POISON, np.uint8).view(stored)


def _whole(value: int, wanted: type):
    size = np.dtype(wanted).itemsize
    if wanted is np.bool_:
        return np.bool_(value)
    return np.dtype(f"u{size}").type(value & ((1 << 8 * size) - 1)).view(wanted)


def _as(values, wanted: type):
    """Reinterpreted; a wider register gives its low bits, a narrower one is filled with zeros."""
    if values.dtype == wanted or wanted is np.bool_:
        return values
    size = np.dtype(wanted).itemsize
    if values.itemsize != size:
        values = values.astype(f"u{size}")
    return values.view(wanted)


def _stored(values, stored: type):
    """As the register keeps it; signed numbers keep their sign in a wider one."""
    if values.dtype == stored:
        return values
    if (stored is np.bool_) != (values.dtype == np.bool_):
        raise NotImplementedError(f"PTX: {values.dtype} into a register of {stored.__name__}")
    size = np.dtype(stored).itemsize
    if values.dtype.kind == "i" and values.itemsize < size:
        values = values.astype(f"i{size}")
    if values.itemsize != size:
        values = values.view(f"u{values.itemsize}").astype(stored)
    return values.view(stored)
