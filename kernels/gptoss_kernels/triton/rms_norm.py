"""`rms_norm` in Triton; formula, signature and taps are those of `gptoss_kernels.rms_norm`.

A program takes one row and sums it in one order, so company changes nothing. Who looks at the
denominator, or at what comes after it, gets it from a kernel of its own; the rest goes on in torch,
where the same roundings follow.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from gptoss_kernels.rms_norm import NormTap
from gptoss_kernels.triton.launch import launch, readable


def rms_norm(
    x: Float[Tensor, "batch pos d_model"],
    weight: Float[Tensor, " d_model"],
    eps: float = 1e-5,
    *,
    tap: NormTap | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    """Normalise the last axis to unit root mean square and weigh it; same dtype as `x`."""
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"rms_norm: x ends in {x.shape[-1]}, the weight is {tuple(weight.shape)}")
    if tap is None or (tap.scale is None and tap.normalized is None):
        return _Norm.apply(x, weight, eps)  # pyright: ignore[reportReturnType]
    scale = _Scale.apply(x, eps)
    if tap.scale is not None:
        scale = tap.scale(scale)  # pyright: ignore[reportArgumentType]
    normalized = x.float() / scale  # pyright: ignore[reportOperatorIssue]
    if tap.normalized is not None:
        normalized = tap.normalized(normalized)
    return (normalized * weight.float()).to(x.dtype)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        x, weight = readable("rms_norm", x), readable("rms_norm", weight)
        y = torch.empty_like(x)
        _run(_norm_kernel, x, (weight, y), eps)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = (readable("rms_norm", each) for each in ctx.saved_tensors)
        to_x = torch.empty_like(x)
        _run(_gradient_kernel, x, (weight, grad.contiguous(), to_x), ctx.eps)
        return to_x, None, None


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> Tensor:
        scale = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
        _run(_scale_kernel, readable("rms_norm", x), (scale,), eps)
        ctx.save_for_backward(x, scale)
        return scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, scale = ctx.saved_tensors
        return (grad * x.float() / (x.shape[-1] * scale)).to(x.dtype), None


def _run(kernel, x: Tensor, others: tuple[Tensor, ...], eps: float) -> None:
    d = x.shape[-1]
    launch(kernel, (x.numel() // max(1, d),), x, *others, d, eps,
           BLOCK=triton.next_power_of_2(d), num_warps=4)  # fmt: skip


@triton.jit
def _row(x_ptr, d, eps, BLOCK: tl.constexpr):
    """One row in float32, its places, and its denominator."""
    i = tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * d + i
    x = tl.load(x_ptr + at, mask=i < d, other=0.0).to(tl.float32)
    scale = tl.sqrt_rn(tl.div_rn(tl.sum(x * x, 0), tl.cast(d, tl.float32)) + eps)
    return x, at, i, scale


@triton.jit
def _norm_kernel(x_ptr, weight_ptr, y_ptr, d, eps, BLOCK: tl.constexpr):
    x, at, i, scale = _row(x_ptr, d, eps, BLOCK)
    weight = tl.load(weight_ptr + i, mask=i < d, other=0.0).to(tl.float32)
    y = tl.div_rn(x, scale) * weight
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=i < d)


@triton.jit
def _scale_kernel(x_ptr, scale_ptr, d, eps, BLOCK: tl.constexpr):
    _, _, _, scale = _row(x_ptr, d, eps, BLOCK)
    tl.store(scale_ptr + tl.program_id(0), scale)


@triton.jit
def _gradient_kernel(x_ptr, weight_ptr, grad_ptr, to_x_ptr, d, eps, BLOCK: tl.constexpr):
    """to_x = g/s - x · mean(g/s · x) / s²  with g = grad · weight"""
    x, at, i, scale = _row(x_ptr, d, eps, BLOCK)
    weight = tl.load(weight_ptr + i, mask=i < d, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + at, mask=i < d, other=0.0).to(tl.float32)
    straight = grad * weight / scale
    along = tl.sum(straight * x, 0) / d / (scale * scale)
    tl.store(to_x_ptr + at, (straight - x * along).to(to_x_ptr.dtype.element_ty), mask=i < d)
