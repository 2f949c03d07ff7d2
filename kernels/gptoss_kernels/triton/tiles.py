"""How large the tiles of each kernel are: chosen offline per architecture, never at run time.

`gptoss tune` times neighbours of the checked-in table on a GPU and keeps what was faster in a file
of the user's, one table a device; it changes no bit of a result.

`inner`, the length of a partial sum, and `cols` are the same for every number of rows, so that a
row's bits do not depend on its company; only `rows`, `warps` and `stages` follow the work.
"""

import hashlib
import json
import os
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


def tile(kernel: str, rows: int) -> Tile:
    """The tile of `kernel` for a call with so many rows, on the current device."""
    return choose(kernel, rows, architecture())


@cache
def choose(kernel: str, rows: int, arch: str) -> Tile:
    """The first entry whose bucket holds `rows`; the last one holds any number."""
    for most, *sizes in entries(kernel, arch):
        if most is None or rows <= most:
            return Tile(*sizes)
    raise AssertionError(f"tiles.json: {kernel} on {arch} has no entry for {rows} rows")


def architecture() -> str:
    """The column of the table that fits the current device; "interpreter" on a CPU."""
    if interpreting():
        return "interpreter"
    target: Any = triton.runtime.driver.active.get_current_target()
    if target.backend != "cuda":
        return "gfx942"
    known = [int(name[3:]) for name in ARCHITECTURES if name.startswith("sm_")]
    below = [arch for arch in known if arch <= int(target.arch)]
    if not below:
        raise ValueError(f"Triton kernels need compute capability 8.0; this GPU has {target.arch}")
    return f"sm_{max(below)}"


def device_name() -> str:
    """What the current device is called in a user's tables."""
    return "interpreter" if interpreting() else torch.cuda.get_device_name()


def own_file() -> Path:
    """Where `gptoss tune` keeps its tables; GPTOSS_TILES names another file."""
    return Path(os.environ.get("GPTOSS_TILES") or Path.home() / ".cache" / "gptoss" / "tiles.json")


def entries(kernel: str, arch: str) -> list[list]:
    """[[most rows or null, rows, cols, inner, warps, stages], ...] of a kernel."""
    return _table()[kernel][arch]


def digest() -> str:
    """Which tables are in use, for what says how a result came about."""
    text = json.dumps(_table(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextmanager
def trying(kernel: str, arch: str, table: list[list]) -> Iterator[None]:
    """Other entries for one kernel while the block runs."""
    own, before = _table()[kernel], entries(kernel, arch)
    try:
        own[arch] = table
        choose.cache_clear()
        yield
    finally:
        own[arch] = before
        choose.cache_clear()


@cache
def _table() -> dict[str, dict[str, list]]:
    """kernel -> architecture -> entries; a user's own for this device come before the others."""
    found = {}
    for path in sorted(files("gptoss_kernels.triton").joinpath("tiles").iterdir(), key=str):
        found |= json.loads(path.read_text())
    if own_file().exists() and not interpreting():
        own = json.loads(own_file().read_text()).get(device_name(), {})
        for kernel, table in own.items():
            if kernel in found:
                found[kernel][architecture()] = table
    return found
