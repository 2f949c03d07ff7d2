"""The safetensors file format: read a header, map the data, write a file.

    8 bytes  header length n, little endian
    n bytes  JSON: name -> {dtype, shape, data_offsets}, padded with spaces
    rest     the tensors' bytes, without holes

Reading costs the header only. Mapping is copy-on-write (MAP_PRIVATE): pages are the file's own in
the page cache, shared between processes, and a write to a tensor never reaches the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gptoss_workbench.checkpoint.errors import CheckpointError

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

MAX_HEADER = 100_000_000
ALIGNMENT = 64
"""The data of a file written here begins at a multiple of this."""


@dataclass(frozen=True)
class Spec:
    """What a tensor is, without its bytes."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class Entry(Spec):
    """One tensor in one file."""

    file: Path
    start: int
    """Where its bytes begin, counted from the start of the file."""


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of one file; a file that is cut short or is no safetensors file raises."""
    size = file.stat().st_size
    raw, data_start = _read_json(file, size)
    try:
        described = {name: raw[name] for name in raw if name != "__metadata__"}
        entries = {n: _entry(file, n, d, data_start) for n, d in described.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} has a damaged header: {error!r}") from error
    end = data_start
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start != end:
            raise CheckpointError(f"{file} has a damaged header: {name} overlaps or leaves a hole")
        end += entry.nbytes
    if size < end:
        raise CheckpointError(
            f"{file} is truncated: its header promises {end:,} bytes, the file has {size:,}; "
            "download or copy it again"
        )
    if size > end:
        raise CheckpointError(
            f"{file} is {size - end:,} bytes longer than its header says; download or copy it again"
        )
    return entries


def map_tensors(entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    """The tensors, mapped from their files: nothing is read until it is used.

    A tensor whose place in the file is not a multiple of its item size cannot be mapped and is
    copied; files written by safetensors itself, and here, have none.
    """
    files = {entry.file for entry in entries.values()}
    mapped = {file: _map(file) for file in files}
    return {name: _view(mapped[entry.file], entry) for name, entry in entries.items()}


def write_file(file: Path, items: Iterable[tuple[str, Spec, Iterable[bytes | memoryview]]]) -> None:
    """Write tensors as they come from their chunks; memory stays at one chunk."""
    items = list(items)
    with file.open("wb") as out:
        out.write(_header_bytes([(name, spec) for name, spec, _ in items]))
        for name, spec, chunks in items:
            written = sum(out.write(chunk) for chunk in chunks)
            if written != spec.nbytes:
                raise CheckpointError(f"{name}: expected {spec.nbytes:,} bytes, got {written:,}")


def spec_of(tensor: Tensor) -> Spec:
    return Spec(NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes in file order, without a copy where it is contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _read_json(file: Path, size: int) -> tuple[dict, int]:
    with file.open("rb") as f:
        first = f.read(8)
        if first == b"version ":
            raise CheckpointError(f"{file} is a git-lfs pointer, not weights; run `git lfs pull`")
        length = int.from_bytes(first, "little")
        if size < 8 or length > MAX_HEADER:
            raise CheckpointError(f"{file} is not a safetensors file ({size:,} bytes)")
        if size < 8 + length:
            raise CheckpointError(
                f"{file} is truncated inside its header: expected {8 + length:,} bytes, "
                f"the file has {size:,}; download or copy it again"
            )
        blob = f.read(length)
    try:
        return json.loads(blob), 8 + length
    except ValueError as error:
        raise CheckpointError(f"{file} is not a safetensors file: {error}") from error


def _entry(file: Path, name: str, described: dict, data_start: int) -> Entry:
    dtype, (begin, end) = described["dtype"], described["data_offsets"]
    if dtype not in DTYPES:
        raise CheckpointError(f"{file}: {name} has dtype {dtype}, which is not read here")
    entry = Entry(dtype, tuple(described["shape"]), file, data_start + begin)
    if end - begin != entry.nbytes:
        raise CheckpointError(f"{file}: {name} is {entry}, but spans {end - begin:,} bytes")
    return entry


def _map(file: Path) -> Tensor:
    size = file.stat().st_size
    storage = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=size)
    return torch.empty(0, dtype=torch.uint8).set_(storage)  # pyright: ignore[reportArgumentType]


def _view(data: Tensor, entry: Entry) -> Tensor:
    dtype = DTYPES[entry.dtype]
    raw = data[entry.start : entry.start + entry.nbytes]
    if entry.start % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype).reshape(entry.shape)


def _header_bytes(specs: list[tuple[str, Spec]]) -> bytes:
    head: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, spec in specs:
        end = position + spec.nbytes
        described = {"dtype": spec.dtype, "shape": list(spec.shape)}
        head[name] = described | {"data_offsets": [position, end]}
        position = end
    blob = json.dumps(head, separators=(",", ":")).encode()
    blob += b" " * (-(8 + len(blob)) % ALIGNMENT)
    return len(blob).to_bytes(8, "little") + blob
