"""Where the C library puts large tensors: a pass that keeps activations must not leave holes.

glibc serves blocks of up to 32 MiB from one heap. Activations that are kept there, between the
temporary tensors of a pass, leave holes that the next pass does not fit into: at 4096 tokens of
gpt-oss-20b half a GiB. While something is recorded, large blocks get memory of their own.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

LARGE = 1 << 20
"""Bytes from which a block gets memory of its own, given back when it is freed."""
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Parameters of mallopt(3)."""
USUAL = {MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 64 << 20}
"""Where glibc's own adjustment ends once large blocks have been freed."""


@contextmanager
def large_apart() -> Iterator[None]:
    """Keep large blocks out of the heap while the block runs; nothing where there is no glibc."""
    set_parameter = _mallopt()
    if set_parameter is None:
        yield
        return
    set_parameter(MMAP_THRESHOLD, LARGE)
    try:
        yield
    finally:
        for parameter, value in USUAL.items():
            set_parameter(parameter, value)


@cache
def _mallopt():
    """glibc's mallopt, if this process runs on it."""
    try:
        library = ctypes.CDLL(None)
        return library.mallopt if hasattr(library, "gnu_get_libc_version") else None
    except (OSError, TypeError):  # Windows
        return None
