"""`rotate` in Triton; formula and signature are those of `gptoss_kernels.rope`."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from gptoss_kernels.triton.launch import launch, readable


def rotate(
    x: Float[Tensor, "batch pos head d_head"],
    cos: Float[Tensor, "batch pos half"],
    sin: Float[Tensor, "batch pos half"],
) -> Float[Tensor, "batch pos head d_head"]:
    """Turn every (i, i + d_head/2) pair by its angle; computed in float32, rounded once."""
    return _Rotate.apply(x, cos, sin)  # pyright: ignore[reportReturnType]


class _Rotate(torch.autograd.Function):
    """Its gradient is the turn back."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x = readable("rotate", x)
    batch, pos, heads, d_head = x.shape
    cos, sin = (each.float().expand(batch, pos, d_head // 2).contiguous() for each in (cos, sin))
    y = torch.empty_like(x)
    launch(_kernel, (batch * pos,), x, cos, sin, y, heads, HALF=d_head // 2,
           HEADS=triton.next_power_of_2(heads), WIDTH=triton.next_power_of_2(d_head // 2),
           num_warps=4)  # fmt: skip
    return y


@triton.jit
def _kernel(
    x_ptr, cos_ptr, sin_ptr, y_ptr, heads,
    HALF: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """All heads of one token."""
    token = tl.program_id(0).to(tl.int64)
    head, i = tl.arange(0, HEADS), tl.arange(0, WIDTH)
    at = (token * heads + head[:, None]) * (2 * HALF) + i[None, :]  # [head, half]
    real = (head < heads)[:, None] & (i < HALF)[None, :]
    cos = tl.load(cos_ptr + token * HALF + i, mask=i < HALF, other=0.0)[None, :]
    sin = tl.load(sin_ptr + token * HALF + i, mask=i < HALF, other=0.0)[None, :]
    first = tl.load(x_ptr + at, mask=real, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + at + HALF, mask=real, other=0.0).to(tl.float32)
    kind = y_ptr.dtype.element_ty
    tl.store(y_ptr + at, (first * cos - second * sin).to(kind), mask=real)
    tl.store(y_ptr + at + HALF, (second * cos + first * sin).to(kind), mask=real)
