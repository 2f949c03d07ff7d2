"""The compiled kernels: which library, which instruction set, how many threads.

`kernels()` gives the functions of the chosen instruction set: the best that this CPU has, or the
one that GPTOSS_NATIVE_ISA names. They share the machine as torch does: `torch.get_num_threads()`.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_float, c_int32, c_int64, c_void_p
from types import SimpleNamespace

import torch
from torch import Tensor

from gptoss_kernels.native import build

ABI = 1
VARIABLE = "GPTOSS_NATIVE_ISA"
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""Codes of the dtypes that kernels read and write."""

_P, _I, _D, _F = c_void_p, c_int64, c_int32, c_float  # address, size, dtype code, number
KERNELS = {
    "linear": (_P, _D, _I, _P, _D, _I, _I, _P, _D, _P, _D),
    "packed_linear": (_P, _D, _I, _P, _P, _I, _I, _P),
    "linear_backward": (_P, _I, _P, _D, _I, _I, _P, _D),
    "packed_linear_backward": (_P, _I, _P, _P, _I, _I, _P, _D),
    "attention": (_P,),
    "rms_norm": (_P, _D, _I, _I, _P, _D, _F, _P, _P),
    "rotate": (_P, _D, _I, _I, _I, _P, _P, _P),
    "choose": (_P, _I, _I, _I, _P),
    "weigh": (_P, _I, _I, _P, _I, _P),
    "lens": (_P,),
    "swiglu": (_P, _P, _I, _F, _P, _D),
    "swiglu_backward": (_P, _P, _P, _I, _F, _P, _P),
    "moe_gate_up": (_P, _D, _I, _I, _P, _I, _P, _P, _P, _D, _I, _I, _P, _P),
    "moe_up": (_P, _D, _I, _I, _P, _I, _P, _P, _P, _D, _I, _I, _F, _P),
    "moe_down": (_P, _D, _I, _P, _I, _P, _P, _P, _D, _I, _I, _P),
    "moe_combine": (_P, _P, _I, _I, _I, _P, _D),
    "moe_down_combine": (_P, _D, _I, _I, _P, _P, _I, _P, _P, _P, _D, _I, _I, _P),
    "moe": (_P, _D, _I, _I, _P, _P, _I, *2 * (_P, _P, _P, _D), _I, _I, _F, _P),
    "moe_backward": (_P, _I, _P, _I, _P, _P, _I, _I, _P, _D),
    "moe_combine_backward": (_P, _P, _P, _I, _I, _I, _P, _P),
}
"""Argument types of every kernel, in the order of `Kernels` in src/abi.h."""


class _Table(ctypes.Structure):
    _fields_ = (
        ("isa", ctypes.c_char_p),
        *((name, ctypes.CFUNCTYPE(c_int32, *types)) for name, types in KERNELS.items()),
    )


class _Open:
    """The loaded library, the kernels in use and the threads it was told of."""

    library: ctypes.CDLL | None = None
    kernels: SimpleNamespace | None = None
    threads = 0


def reason() -> str | None:
    """Why the native backend cannot be used here, or None if it can."""
    if not build.LIBRARY.exists():
        return "it is not built; run python -m gptoss_kernels.native.build (needs a C++ compiler)"
    try:
        library = ctypes.CDLL(str(build.LIBRARY))
    except OSError as error:
        return f"{build.LIBRARY.name} does not load ({error}); build it again"
    library.gw_digest.restype = ctypes.c_char_p
    if library.gw_abi() != ABI or library.gw_digest().decode() != build.digest():
        return "it was built from other sources; run python -m gptoss_kernels.native.build"
    return None


def isas() -> tuple[str, ...]:
    """Instruction sets of this build that run on this CPU, best first."""
    return tuple(_library().gw_isas().decode().split())


def isa() -> str:
    """The instruction set in use."""
    return kernels().isa


def kernels() -> SimpleNamespace:
    """The kernels in use, told how many threads torch has."""
    if _Open.kernels is None:
        _Open.kernels = _table(os.environ.get(VARIABLE) or isas()[0])
    threads = torch.get_num_threads()
    if threads != _Open.threads:
        _library().gw_set_threads(threads)
        _Open.threads = threads
    return _Open.kernels


@contextmanager
def using(isa: str) -> Iterator[None]:
    """Run one instruction set while the block runs."""
    before = _Open.kernels
    _Open.kernels = _table(isa)
    try:
        yield
    finally:
        _Open.kernels = before


def address(tensor: Tensor | None) -> int | None:
    """Where a contiguous tensor begins; null for None."""
    return None if tensor is None else tensor.data_ptr()


def code(tensor: Tensor | None) -> int:
    """The dtype code of a tensor; float32's for None."""
    return 0 if tensor is None else DTYPES[tensor.dtype]


def _library() -> ctypes.CDLL:
    if _Open.library is None:
        if why := reason():
            raise RuntimeError(f"backend 'native' cannot be used: {why}")
        library = ctypes.CDLL(str(build.LIBRARY))
        library.gw_isas.restype = ctypes.c_char_p
        library.gw_kernels.restype = ctypes.POINTER(_Table)
        library.gw_set_threads.argtypes = (c_int32,)
        _Open.library = library
    return _Open.library


def _table(isa: str) -> SimpleNamespace:
    found = _library().gw_kernels(isa.encode())
    if not found:
        raise ValueError(
            f"{VARIABLE}={isa} cannot run here; this build and CPU have {', '.join(isas())}"
        )
    table = SimpleNamespace(isa=isa)
    for name in KERNELS:
        kernel = getattr(found.contents, name)
        kernel.errcheck = _check
        setattr(table, name, kernel)
    return table


def _check(status: int, *_) -> None:
    if status == 2:
        raise IndexError("native kernel: an index names nothing in its table")
    if status:
        raise MemoryError("native kernel: no scratch memory left; use fewer rows or free memory")
