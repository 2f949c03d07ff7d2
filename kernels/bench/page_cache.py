"""Files out of the page cache, without being root, and how much of them is in it."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path


def drop(files: Iterable[Path]) -> None:
    """Ask the system to forget these files; pages that some process has mapped stay."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)  # unwritten pages stay, too
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def fill(files: Iterable[Path]) -> None:
    """Read these files once."""
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.read(1 << 24):
                pass


def resident(files: Iterable[Path]) -> float:
    """Share of these files' pages that are in the page cache."""
    library, inside, pages = ctypes.CDLL(None, use_errno=True), 0, 0
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as stream:
            area = mmap.mmap(stream.fileno(), size, flags=mmap.MAP_PRIVATE)  # writable, for ctypes
        count = -(-size // mmap.PAGESIZE)
        seen = (ctypes.c_ubyte * count)()
        start = ctypes.c_char.from_buffer(area)
        failed = library.mincore(ctypes.byref(start), ctypes.c_size_t(size), seen)
        del start
        area.close()
        if failed:
            raise OSError(ctypes.get_errno(), f"mincore of {file}")
        inside += sum(byte & 1 for byte in seen)
        pages += count
    return inside / pages
