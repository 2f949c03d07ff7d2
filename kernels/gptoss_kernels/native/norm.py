"""`rms_norm` in C++; formula, signature and taps are those of `gptoss_kernels.rms_norm`.

A row is summed in one order, its own; what comes after is one rounding an element, in which torch
and C++ agree, so a tapped call goes on in torch with the same bits.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from gptoss_kernels.native.library import address, code, kernels
from gptoss_kernels.native.linear import readable
from gptoss_kernels.native.ops import define
from gptoss_kernels.rms_norm import NormTap


def rms_norm(
    x: Float[Tensor, "batch pos d_model"],
    weight: Float[Tensor, " d_model"],
    eps: float = 1e-5,
    *,
    tap: NormTap | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    """Normalise the last axis to unit root mean square and weigh it; same dtype as `x`."""
    if tap is None or (tap.scale is None and tap.normalized is None):
        return _norm(x, weight, eps)
    scale = _scale(x, eps)
    if tap.scale is not None:
        scale = tap.scale(scale)
    normalized = x.float() / scale
    if tap.normalized is not None:
        normalized = tap.normalized(normalized)
    return (normalized * weight.float()).to(x.dtype)


def _run(x: Tensor, weight: Tensor | None, eps: float, scale: Tensor | None, y: Tensor | None):
    d = x.shape[-1]
    kernels().rms_norm(
        x.data_ptr(), code(x), x.numel() // max(1, d), d, address(weight), code(weight), eps,
        address(scale), address(y),
    )  # fmt: skip


def _norm_cpu(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x, weight = readable("rms_norm", x), readable("rms_norm", weight)
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"rms_norm: x ends in {x.shape[-1]}, the weight is {tuple(weight.shape)}")
    y = torch.empty_like(x)
    _run(x, weight, eps, None, y)
    return y


def _scale_cpu(x: Tensor, eps: float) -> Tensor:
    x = readable("rms_norm", x)
    scale = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    _run(x, None, eps, scale, None)
    return scale


def _keep_norm(ctx, inputs, output) -> None:
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _norm_grad(ctx, grad: Tensor):
    x, weight = ctx.saved_tensors
    wide, scale = x.float(), _scale(x, ctx.eps)
    straight = grad.float() * weight.float() / scale
    along = (straight * wide).mean(-1, keepdim=True) / scale.square()
    return (straight - wide * along).to(x.dtype), None, None


def _keep_scale(ctx, inputs, output) -> None:
    x, ctx.eps = inputs
    ctx.save_for_backward(x)


def _scale_grad(ctx, grad: Tensor):
    (x,) = ctx.saved_tensors
    return (grad * x.float() / (x.shape[-1] * _scale(x, ctx.eps))).to(x.dtype), None


_norm = define(
    "rms_norm(Tensor x, Tensor weight, float eps) -> Tensor",
    _norm_cpu, fake=lambda x, weight, eps: x.new_empty(x.shape),
    keep=_keep_norm, backward=_norm_grad,
)  # fmt: skip
_scale = define(
    "rms(Tensor x, float eps) -> Tensor",
    _scale_cpu, fake=lambda x, eps: x.new_empty((*x.shape[:-1], 1), dtype=torch.float32),
    keep=_keep_scale, backward=_scale_grad,
)  # fmt: skip
