"""`rotate` in C++; formula, signature and bits are those of `gptoss_kernels.rope`."""

import torch
from jaxtyping import Float
from torch import Tensor

from gptoss_kernels.native.library import code, kernels
from gptoss_kernels.native.linear import readable
from gptoss_kernels.native.ops import define


def rotate(
    x: Float[Tensor, "batch pos head d_head"],
    cos: Float[Tensor, "batch pos half"],
    sin: Float[Tensor, "batch pos half"],
) -> Float[Tensor, "batch pos head d_head"]:
    """Turn every (i, i + d_head/2) pair by its angle; computed in float32, rounded once."""
    if x.shape[3] != 2 * cos.shape[2]:
        raise ValueError(f"rotate: heads of {x.shape[3]} and angles of {cos.shape[2]} pairs")
    return _rotate(x, cos, sin)


def _rotate_cpu(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x, y = readable("rotate", x), torch.empty(x.shape, dtype=x.dtype)
    batch, pos, heads, d_head = x.shape
    if cos.shape[:2] != (batch, pos):
        cos, sin = (turn.expand(batch, pos, -1) for turn in (cos, sin))
    cos, sin = cos.float().contiguous(), sin.float().contiguous()
    kernels().rotate(
        x.data_ptr(), code(x), batch * pos, heads, d_head, cos.data_ptr(), sin.data_ptr(),
        y.data_ptr(),
    )  # fmt: skip
    return y


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[1:])


def _grad(ctx, grad: Tensor):
    cos, sin = ctx.saved_tensors
    return _rotate(grad, cos, -sin), None, None


_rotate = define(
    "rotate(Tensor x, Tensor cos, Tensor sin) -> Tensor",
    _rotate_cpu, fake=lambda x, cos, sin: x.new_empty(x.shape), keep=_keep, backward=_grad,
)  # fmt: skip
