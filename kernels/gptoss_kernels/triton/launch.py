"""How every kernel is started: one place for what the compiler may do, and for counting.

Products and sums are contracted only where a kernel says `tl.fma`, so a stage taken out of a fused
kernel rounds as it does inside.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.jit import JITFunction

from gptoss_kernels.triton import interpreter

launched: list[str] = []
"""Names of the kernels started while `counting` is on."""
counting = False


def launch(kernel, grid: tuple[int, ...], *args, **meta) -> None:
    """Start `kernel` on `grid`; an empty grid starts nothing."""
    if interpreting():
        interpreter.install()
    if 0 in grid:
        return
    if counting:
        launched.append(kernel.fn.__name__)
    with _where(args):
        kernel[grid](*args, enable_fp_fusion=False, **meta)


def _where(args: tuple) -> AbstractContextManager:
    """Triton starts kernels on the current GPU, which need not be the one that holds `args`."""
    device = next(each.device for each in args if isinstance(each, Tensor))
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def interpreting() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU.

    TRITON_INTERPRET=1 must be set before triton is first imported; afterwards it is too late.
    """
    return not isinstance(tl.sum, JITFunction)


def readable(op: str, x: Tensor) -> Tensor:
    """`x` contiguous, bfloat16 or float32."""
    if x.dtype.itemsize not in (2, 4) or not x.dtype.is_floating_point:
        raise ValueError(f"{op}: expected bfloat16 or float32; got {x.dtype}")
    return x.contiguous()
