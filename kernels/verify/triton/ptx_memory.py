"""What a kernel may touch: its tensors and its block's shared memory; every access is checked."""

import ctypes
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from torch import Tensor

POISON = 0xFF
"""What memory and registers hold before anything is written: NaN as float32 and as bfloat16"""
LINE = 16
"""The widest access, in bytes"""


class MemoryFault(Exception):
    """An access outside of what the kernel was given, or at an address it may not use."""


class _Region(NamedTuple):
    start: int
    end: int
    base: int
    """address of `bytes`, a multiple of 16"""
    bytes: np.ndarray

    def holds(self, low: int, high: int) -> bool:
        return self.start <= low and high <= self.end


class Tensors:
    """Global memory: what lies between the first and the last element of each tensor."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.regions = [_region(tensor) for tensor in tensors if tensor.numel()]

    def load(self, places: np.ndarray, size: int) -> np.ndarray:
        """[lane, size] bytes at each address."""
        out = np.empty((len(places), size), np.uint8)
        for lanes, region in self._found(places, size, "read"):
            out[lanes] = _rows(region.bytes, size)[(places[lanes] - region.base) // size]
        return out

    def store(self, places: np.ndarray, data: np.ndarray) -> None:
        """Write [lane, size] bytes; of two lanes at one address the last one wins."""
        size = data.shape[1]
        for lanes, region in self._found(places, size, "write"):
            _rows(region.bytes, size)[(places[lanes] - region.base) // size] = data[lanes]

    def _found(self, places: np.ndarray, size: int, verb: str):
        """(lanes, region) pairs that hold all addresses."""
        if not len(places):
            return
        _aligned(places, size, verb)
        low, high = int(places.min()), int(places.max()) + size
        for region in self.regions:
            if region.holds(low, high):
                yield slice(None), region
                return
        left = np.ones(len(places), bool)
        for region in self.regions:
            hit = left & (places >= region.start) & (places + size <= region.end)
            if hit.any():
                yield hit, region
                left &= ~hit
        if left.any():
            raise MemoryFault(
                f"{left.sum()} of {len(places)} lanes {verb} {size} bytes outside of every tensor, "
                f"the first at {places[left][0]:#x}; {self._nearest(int(places[left][0]))}"
            )

    def _nearest(self, place: int) -> str:
        below = [place - region.end for region in self.regions if region.end <= place]
        above = [region.start - place for region in self.regions if region.start > place]
        after = f"{min(below)} bytes after the end of one" if below else "after none"
        return f"{after}, {min(above)} before the start of one" if above else after


class Shared:
    """Shared memory of several blocks that run side by side."""

    def __init__(self, blocks: int, size: int) -> None:
        self.size, self.stride = size, -(-size // LINE) * LINE + LINE
        self.bytes = np.full(blocks * self.stride, POISON, np.uint8)

    def load(self, blocks: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
        return _rows(self.bytes, size)[self._at(blocks, places, size, "read")]

    def store(self, blocks: np.ndarray, places: np.ndarray, data: np.ndarray) -> None:
        size = data.shape[1]
        _rows(self.bytes, size)[self._at(blocks, places, size, "write")] = data

    def _at(self, blocks: np.ndarray, places: np.ndarray, size: int, verb: str) -> np.ndarray:
        _aligned(places, size, f"{verb} shared memory")
        outside = (places < 0) | (places + size > self.size)
        if outside.any():
            raise MemoryFault(
                f"{outside.sum()} of {len(places)} lanes {verb} {size} bytes outside of "
                f"{self.size} bytes of shared memory, the first at {places[outside][0]}"
            )
        return (blocks * self.stride + places) // size


def _rows(memory: np.ndarray, size: int) -> np.ndarray:
    return memory[: len(memory) // size * size].reshape(-1, size)


def _aligned(places: np.ndarray, size: int, verb: str) -> None:
    off = places % size != 0
    if off.any():
        raise MemoryFault(
            f"{off.sum()} lanes {verb} {size} bytes at {places[off][0]:#x}, unaligned"
        )


def _region(tensor: Tensor) -> _Region:
    """All that lies between the first and the last element, seen from a multiple of 16."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    reach = sum((size - 1) * step for size, step in steps) + 1
    start = tensor.data_ptr()
    end = start + reach * tensor.itemsize
    base, limit = start // LINE * LINE, -(-end // LINE) * LINE
    memory = (ctypes.c_uint8 * (limit - base)).from_address(base)
    return _Region(start, end, base, np.frombuffer(memoryview(memory), np.uint8))
