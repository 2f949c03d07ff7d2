"""How large the tiles of each kernel are: chosen offline per architecture, never at run time.

`inner`, the length of a partial sum, and `cols` are the same for every number of rows, so that a
row's bits do not depend on its company; only `rows`, `warps` and `stages` follow the work.
"""

import json
from functools import cache
from importlib.resources import files
from typing import NamedTuple

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
    entries = _table()[kernel][arch]
    for most, *sizes in entries:
        if most is None or rows <= most:
            return Tile(*sizes)
    raise AssertionError(f"tiles.json: {kernel} on {arch} has no entry for {rows} rows")


def architecture() -> str:
    """The column of the table that fits the current device; "interpreter" on a CPU."""
    if interpreting():
        return "interpreter"
    target = triton.runtime.driver.active.get_current_target()  # pyright: ignore
    if target.backend != "cuda":
        return "gfx942"
    known = [int(name[3:]) for name in ARCHITECTURES if name.startswith("sm_")]
    below = [arch for arch in known if arch <= int(target.arch)]
    if not below:
        raise ValueError(f"Triton kernels need compute capability 8.0; this GPU has {target.arch}")
    return f"sm_{max(below)}"


@cache
def _table() -> dict[str, dict[str, list]]:
    """kernel -> architecture -> [[most rows or null, rows, cols, inner, warps, stages], ...]"""
    found = {}
    for path in sorted(files("gptoss_kernels.triton").joinpath("tiles").iterdir(), key=str):
        found |= json.loads(path.read_text())
    return found
