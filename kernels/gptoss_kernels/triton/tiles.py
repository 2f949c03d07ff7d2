"""How large the tiles of each kernel are: chosen offline per architecture, never at run time.

`gptoss tune` times neighbours of the checked-in table on a GPU and keeps what was faster in a file
of the user's, one table a device; it changes no bit of a result.

`inner`, the length of a partial sum, and `cols` are the same for every number of rows, so that a
row's bits do not depend on its company; only `rows`, `warps` and `stages` follow the work.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from gptoss_kernels.triton.launch import interpreting

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
"""What the table has columns for."""


class Tile(NamedTuple):
    """What one program computes at a time."""

    rows: int
    """tokens, queries or (token, slot) pairs"""
    cols: int
    """outputs, or keys"""
    inner: int
    """inputs summed at a time"""
    warps: int = 4
    stages: int = 2


def tile(kernel: str, rows: int, device: torch.device) -> Tile:
    """The tile of `kernel` for a call with so many rows of tensors on `device`."""
    return choose(kernel, rows, column(kernel, device))


@cache
def choose(kernel: str, rows: int, column: str) -> Tile:
    """The first entry whose bucket holds `rows`; the last one holds any number."""
    for most, *sizes in entries(kernel, column):
        if most is None or rows <= most:
            return Tile(*sizes)
    raise AssertionError(f"tiles.json: {kernel} on {column} has no entry for {rows} rows")


def column(kernel: str, device: torch.device | None = None) -> str:
    """The user's own table of a device, if it has this kernel; else that of its architecture."""
    if not interpreting() and _own():
        name = device_name(device)
        if name in _table()[kernel]:
            return name
    return architecture(device)


def architecture(device: torch.device | None = None) -> str:
    """The column of the table that fits a device, or the current one; "interpreter" on a CPU.

    Raises ValueError for a GPU older than compute capability 8.0; warns of one for which nothing
    was ever compiled.
    """
    if interpreting():
        return "interpreter"
    if device is None or device.type != "cuda":
        return _nearest(triton.runtime.driver.active.get_current_target())
    return _of_gpu(_number(device))


def _number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@cache
def _of_gpu(number: int) -> str:
    with torch.cuda.device(number):
        return _nearest(triton.runtime.driver.active.get_current_target())


@cache
def _nearest(target: Any) -> str:
    """Columns are for the first device of a generation; the compile gate tries others on them."""
    if target.backend != "cuda":
        if target.arch != "gfx942":
            warnings.warn(
                "of AMD's GPUs Triton kernels were judged for gfx942 only; this one is "
                f"{target.arch} and takes its tiles, which may be slow or not fit",
                RuntimeWarning,
                stacklevel=2,
            )
        return "gfx942"
    known = [int(name[3:]) for name in ARCHITECTURES if name.startswith("sm_")]
    below = [arch for arch in known if arch <= int(target.arch)]
    if not below:
        raise ValueError(f"Triton kernels need compute capability 8.0; this GPU has {target.arch}")
    return f"sm_{max(below)}"


def device_name(device: torch.device | None = None) -> str:
    """What a device, or the current one, is called in a user's tables."""
    if interpreting():
        return "interpreter"
    if device is None or device.type != "cuda":
        return _name(torch.cuda.current_device())
    return _name(_number(device))


@cache
def _name(number: int) -> str:
    return torch.cuda.get_device_name(number)


def own_file() -> Path:
    """Where `gptoss tune` keeps its tables; GPTOSS_TILES names another file."""
    return Path(os.environ.get("GPTOSS_TILES") or Path.home() / ".cache" / "gptoss" / "tiles.json")


def entries(kernel: str, column: str) -> list[list]:
    """[[most rows or null, rows, cols, inner, warps, stages], ...] of a kernel."""
    return _table()[kernel][column]


def digest() -> str:
    """Which tables are in use, for what says how a result came about."""
    text = json.dumps(_table(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextmanager
def trying(kernel: str, column: str, table: list[list]) -> Iterator[None]:
    """Other entries for one kernel while the block runs."""
    own, before = _table()[kernel], entries(kernel, column)
    try:
        own[column] = table
        choose.cache_clear()
        yield
    finally:
        own[column] = before
        choose.cache_clear()


@cache
def _table() -> dict[str, dict[str, list]]:
    """kernel -> architecture, or device with tables of its own -> entries."""
    found = {}
    for path in sorted(files("gptoss_kernels.triton").joinpath("tiles").iterdir(), key=str):
        found |= json.loads(path.read_text())
    for name, tables in _own().items():
        for kernel, table in tables.items():
            if kernel in found:
                found[kernel][name] = table
    return found


@cache
def _own() -> dict[str, dict[str, list]]:
    """device -> kernel -> entries, as `gptoss tune` kept them."""
    if interpreting() or not own_file().exists():
        return {}
    return json.loads(own_file().read_text())
