"""Recorded kernel calls: what went in and what came out, in two files.

    calls     per call: name, buffers (dtype, bytes an element, bytes before the call), arguments
    results   per call: status, and the bytes of each buffer that the call changed

Little endian; names, buffers and structs follow their length, a uint32. An argument is a letter and

    i  int64        f  float64        b  uint32 number of a buffer        0  nothing: null
    s  a struct: its bytes, a uint32 count, and that many (offset, buffer) pairs of uint32

`record.py` writes both, `replay.cpp` reads the first and writes the second, `compare.py` judges.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

LETTERS = {
    torch.float32: b"f",
    torch.bfloat16: b"h",
    torch.uint8: b"B",
    torch.int32: b"i",
    torch.int64: b"q",
    torch.bool: b"?",
}
DTYPES = {letter: dtype for dtype, letter in LETTERS.items()}
NULL = b"0"
"""The argument that is no address."""


class Buffer(NamedTuple):
    """A tensor's memory before a call."""

    dtype: torch.dtype
    data: bytes


class Call(NamedTuple):
    """One call."""

    name: str
    buffers: list[Buffer]
    arguments: list[bytes]
    """as they are written"""


class Result(NamedTuple):
    """What a call left behind."""

    status: int
    changed: dict[int, bytes]
    """buffer number -> its bytes after the call"""


def whole(value: int) -> bytes:
    """An integer argument."""
    return b"i" + struct.pack("<q", value)


def real(value: float) -> bytes:
    """A floating-point argument."""
    return b"f" + struct.pack("<d", value)


def address(number: int) -> bytes:
    """The address of a buffer."""
    return b"b" + _u32(number)


def fields(data: bytes, buffers: dict[int, int]) -> bytes:
    """The address of a struct; `buffers` says which one lies at which offset."""
    pairs = b"".join(_u32(at) + _u32(number) for at, number in buffers.items())
    return b"s" + _sized(data) + _u32(len(buffers)) + pairs


def write_call(call: Call) -> bytes:
    """One call in the form of the file."""
    parts = [_sized(call.name.encode()), _u32(len(call.buffers))]
    for dtype, data in call.buffers:
        parts += [LETTERS[dtype], bytes([dtype.itemsize]), _sized(data)]
    return b"".join([*parts, _u32(len(call.arguments)), *call.arguments])


def write_result(result: Result) -> bytes:
    """One result in the form of the file."""
    parts = [struct.pack("<i", result.status), _u32(len(result.changed))]
    for number, data in sorted(result.changed.items()):
        parts += [_u32(number), data]
    return b"".join(parts)


def read_calls(file: BinaryIO) -> Iterator[Call]:
    """The calls of a file, in order."""
    while length := file.read(4):
        name = file.read(int.from_bytes(length, "little")).decode()
        buffers = []
        for _ in range(_read_u32(file)):
            dtype = DTYPES[file.read(2)[:1]]
            buffers.append(Buffer(dtype, file.read(_read_u32(file))))
        yield Call(name, buffers, [_read_argument(file) for _ in range(_read_u32(file))])


def read_results(file: BinaryIO, calls: Iterator[Call]) -> Iterator[tuple[Call, Result]]:
    """Each call with its result."""
    for call in calls:
        status = int.from_bytes(file.read(4), "little", signed=True)
        changed = {}
        for _ in range(_read_u32(file)):
            number = _read_u32(file)
            changed[number] = file.read(len(call.buffers[number].data))
        yield call, Result(status, changed)


def first(most: int, pairs: Iterable[tuple[Call, Result]]) -> Iterator[tuple[Call, Result]]:
    """The first `most` calls of each kernel."""
    seen: Counter[str] = Counter()
    for call, result in pairs:
        seen[call.name] += 1
        if seen[call.name] <= most:
            yield call, result


def after(call: Call, result: Result, number: int) -> Tensor:
    """The elements of a buffer after the call."""
    dtype, before = call.buffers[number]
    data = bytearray(result.changed.get(number, before))
    return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _read_argument(file: BinaryIO) -> bytes:
    kind = file.read(1)
    if kind != b"s":
        return kind + file.read({b"i": 8, b"f": 8, b"b": 4, NULL: 0}[kind])
    data = file.read(_read_u32(file))
    n = _read_u32(file)
    return kind + _sized(data) + _u32(n) + file.read(8 * n)


def _sized(data: bytes) -> bytes:
    return _u32(len(data)) + data


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


def _read_u32(file: BinaryIO) -> int:
    return int.from_bytes(file.read(4), "little")
