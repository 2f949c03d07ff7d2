"""Triton's CPU interpreter made honest about bfloat16, and able to run inline PTX.

As shipped (Triton 3.9) it holds bfloat16 as uint16 and adds, multiplies, compares and dots those
bit patterns as integers without an error; float32 to bfloat16 truncates instead of rounding to
nearest even; `dot_scaled` squeezes bfloat16 through float16; inline assembly raises. Upstream does
not support bfloat16 there (triton issue 11584), so this is mended here: arithmetic widens to
float32 and rounds once an operation, sums and scans widen and round at their end. Dots add in
float64 and round once: a BLAS would sum a row differently from place to place in a tile.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter as stock

from gptoss_kernels.triton import inline_ptx
from gptoss_kernels.triton.bits import narrow, widen

Handle = stock.TensorHandle
Builder: Any = stock.InterpreterBuilder
ON_BITS = {np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift}
CASTS = (
    "create_fp_ext", "create_fp_trunc", "create_si_to_fp", "create_ui_to_fp", "create_fp_to_si",
    "create_fp_to_ui", "create_int_cast",
)  # fmt: skip


@cache
def install() -> None:
    """Mend the interpreter of this process; twice is once."""
    _casts()
    _arithmetic()
    _products()
    for kind, names in (
        (stock.ReduceOps, ("sum", "min_max", "generic_reduce")),
        (stock.ScanOps, ("cumsum", "cumprod", "generic_scan")),
    ):
        for name in names:
            setattr(kind, name, _widened(getattr(kind, name)))
    Builder.create_inline_asm = _inline_asm
    _once_a_launch()
    stock._get_np_dtype = _numpy_type


def _once_a_launch() -> None:
    """The language is patched for a launch, not again for each device function it calls.

    As shipped that search through two modules is most of the time of a small kernel.
    """
    plain: Any = stock._patch_lang
    nested = stock._LangPatchScope()
    running: list[Any] = []

    def patch(fn):
        if running:
            return nested
        scopes = [plain(fn), plain(SimpleNamespace(__globals__={"core": tl.core}))]
        running.append(fn)

        def restore() -> None:
            running.clear()
            for scope in reversed(scopes):
                scope.restore()

        return SimpleNamespace(restore=restore)

    stock._patch_lang = patch


@cache
def _numpy_types() -> dict[Any, np.dtype]:
    """Every scalar type of Triton's that numpy has; bfloat16 and 8-bit floats as their bits."""
    kinds = [kind for kind in vars(tl.core).values() if isinstance(kind, tl.dtype)]
    found = {}
    for kind in kinds:
        with suppress(KeyError):
            found[kind.name] = _plain_numpy_type(kind)
    return found


def _numpy_type(kind) -> np.dtype:
    scalar = kind.scalar
    if isinstance(scalar, tl.pointer_type):
        return np.dtype(np.uint64)
    return _numpy_types()[scalar.name]


_plain_numpy_type = stock._get_np_dtype


def _is_bf16(handle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _casts() -> None:
    plain_cast, plain_fp = Builder.cast_impl, Builder.create_fp_to_fp

    def cast(self, source, kind):
        given, wanted = source.dtype.scalar, kind.scalar
        if given == tl.bfloat16 and wanted != tl.bfloat16:
            wide = Handle(widen(source.data), tl.float32)
            return wide if wanted == tl.float32 else plain_cast(self, wide, kind)
        if wanted == tl.bfloat16 and given != tl.bfloat16:
            return Handle(narrow(source.data.astype(np.float32)), tl.bfloat16)
        return plain_cast(self, source, kind)

    def fp_to_fp(self, source, kind, mode):
        if kind.scalar == tl.bfloat16 or _is_bf16(source):
            return cast(self, source, kind)
        return plain_fp(self, source, kind, mode)

    Builder.cast_impl, Builder.create_fp_to_fp = cast, fp_to_fp
    for name in CASTS:
        setattr(Builder, name, lambda self, source, kind, *_: cast(self, source, kind))


def _arithmetic() -> None:
    plain_binary, plain_unary, plain_fma = (
        Builder.binary_op, Builder.unary_op, Builder.create_fma,
    )  # fmt: skip

    def binary(self, a, b, op):
        if not (_is_bf16(a) and _is_bf16(b)) or op in ON_BITS:
            return plain_binary(self, a, b, op)
        out = op(widen(a.data), widen(b.data))
        if out.dtype == np.bool_:
            return Handle(out, a.dtype.scalar)
        return Handle(narrow(out), tl.bfloat16)

    def unary(self, a, op):
        if not _is_bf16(a):
            return plain_unary(self, a, op)
        return Handle(narrow(op(widen(a.data))), tl.bfloat16)

    def fma(self, x, y, z):
        if not _is_bf16(z):
            return plain_fma(self, x, y, z)
        exact = widen(x.data).astype(np.float64) * widen(y.data) + widen(z.data)
        return Handle(narrow(exact), tl.bfloat16)

    Builder.binary_op, Builder.unary_op, Builder.create_fma = binary, unary, fma
    Builder.create_fneg = lambda self, a: unary(self, a, np.negative)


def _products() -> None:
    plain_dot, plain_value = Builder.create_dot, stock._mxfp_value_handle_to_float32

    def dot(self, a, b, d, precision, imprecise):
        if not all(h.dtype.scalar in (tl.bfloat16, tl.float32) for h in (a, b, d)):
            return plain_dot(self, a, b, d, precision, imprecise)
        a, b = (widen(h.data) if _is_bf16(h) else h.data for h in (a, b))
        return Handle((a.astype(np.float64) @ b + d.data).astype(d.data.dtype), d.dtype.scalar)

    def value(handle):
        return widen(handle.data) if _is_bf16(handle) else plain_value(handle)

    Builder.create_dot, stock._mxfp_value_handle_to_float32 = dot, value


def _widened(reduce: Callable) -> Callable:
    """A reduction or scan of bfloat16 runs in float32 and rounds once; on GPUs so do ours."""

    def run(self, x, *args, **options):
        parts = x if isinstance(x, tuple) else (x,)
        narrow_ones = [isinstance(t, tl.core.tensor) and _is_bf16(t.handle) for t in parts]
        if not any(narrow_ones):
            return reduce(self, x, *args, **options)
        wide = tuple(
            self.to_tensor(widen(t.handle.data), tl.float32) if was else t
            for t, was in zip(parts, narrow_ones, strict=True)
        )
        result = reduce(self, wide if isinstance(x, tuple) else wide[0], *args, **options)

        def back(t):
            if t.dtype.scalar != tl.float32:
                return t
            kind = tl.block_type(tl.bfloat16, t.shape) if t.type.is_block() else tl.bfloat16
            return tl.core.tensor(Handle(narrow(t.handle.data), tl.bfloat16), kind)

        if isinstance(result, tuple | list):
            pairs = zip(result, narrow_ones, strict=True)
            return type(result)(back(t) if was else t for t, was in pairs)
        return back(result)

    return run


def _inline_asm(self, asm, constraints, values, kinds, is_pure, pack):
    """Elementwise assembly: `pack` neighbours of the last axis share 32-bit registers."""
    kinds = [kind.scalar for kind in (kinds if isinstance(kinds, list | tuple) else [kinds])]
    shape = np.broadcast_shapes(*[value.data.shape for value in values])
    outputs = inline_ptx.run(
        asm,
        [np.broadcast_to(value.data, shape) for value in values],
        [np.dtype(stock._get_np_dtype(kind)) for kind in kinds],
        pack,
    )
    handles = [Handle(out, kind) for out, kind in zip(outputs, kinds, strict=True)]

    class Result:
        get_result = staticmethod(handles.__getitem__)

    return Result
