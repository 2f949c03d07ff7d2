"""`linear` and `packed_linear` in C++; formulas in `gptoss_kernels.linear` and `.mxfp4`.

Each result is the same sum in the same order however many rows there are. The backward pass goes to
the activations only and reads the stored weights again.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gptoss_kernels.mxfp4 import BLOCK
from gptoss_kernels.native.library import DTYPES, address, code, kernels
from gptoss_kernels.native.ops import define


def linear(
    x: Float[Tensor, "*rows inner"],
    weight: Float[Tensor, "outer inner"],
    bias: Float[Tensor, " outer"] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "*rows outer"]:
    """Project `x`; the result has `dtype` (default: that of `x`), rounded once."""
    if x.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"linear: x ends in {x.shape[-1]} but the weight maps {weight.shape[-1]} inputs"
        )
    return _linear(x, weight, bias, dtype or x.dtype)


def packed_linear(
    x: Float[Tensor, "row inner"],
    blocks: UInt8[Tensor, "outer block 16"],
    scales: UInt8[Tensor, "outer block"],
) -> Float[Tensor, "row outer"]:
    """x Wᵀ in float32 with W packed; it is decoded in registers and the innermost cache."""
    if x.shape[-1] != scales.shape[-1] * BLOCK:
        raise ValueError(
            f"packed_linear: x ends in {x.shape[-1]}, the weight maps {scales.shape[-1] * BLOCK}"
        )
    return _packed_linear(x, blocks, scales)


def readable(name: str, tensor: Tensor) -> Tensor:
    """The tensor, contiguous; refuses dtypes that kernels do not read."""
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{name}: expected float32 or bfloat16, got {tensor.dtype}")
    return tensor.contiguous()


def _linear_cpu(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    x, weight = readable("linear", x), readable("linear", weight)
    bias = None if bias is None else readable("linear", bias)
    outer, inner = weight.shape
    rows = x.numel() // max(1, inner)
    y = x.new_empty((*x.shape[:-1], outer), dtype=dtype)
    kernels().linear(
        x.data_ptr(), code(x), rows, weight.data_ptr(), code(weight), outer, inner,
        address(bias), code(bias), y.data_ptr(), DTYPES[dtype],
    )  # fmt: skip
    return y


def _linear_fake(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)


def _keep_linear(ctx, inputs, output) -> None:
    x, weight, _, _ = inputs
    ctx.save_for_backward(weight)
    ctx.dtype = x.dtype


def _linear_grad(ctx, grad: Tensor):
    (weight,) = ctx.saved_tensors
    return _linear_backward(grad, weight, ctx.dtype), None, None, None


def _linear_backward_cpu(grad: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    grad, weight = grad.float().contiguous(), readable("linear", weight)
    outer, inner = weight.shape
    rows = grad.numel() // max(1, outer)
    grad_x = grad.new_empty((*grad.shape[:-1], inner), dtype=dtype)
    kernels().linear_backward(
        grad.data_ptr(), rows, weight.data_ptr(), code(weight), outer, inner,
        grad_x.data_ptr(), DTYPES[dtype],
    )  # fmt: skip
    return grad_x


def _linear_backward_fake(grad: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], weight.shape[1]), dtype=dtype)


def _packed_linear_cpu(x: Tensor, blocks: Tensor, scales: Tensor) -> Tensor:
    x, blocks, scales = readable("packed_linear", x), blocks.contiguous(), scales.contiguous()
    outer, inner = scales.shape[0], scales.shape[1] * BLOCK
    y = x.new_empty((x.shape[0], outer), dtype=torch.float32)
    kernels().packed_linear(
        x.data_ptr(), code(x), x.shape[0], blocks.data_ptr(), scales.data_ptr(), outer, inner,
        y.data_ptr(),
    )  # fmt: skip
    return y


def _packed_linear_fake(x: Tensor, blocks: Tensor, scales: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], scales.shape[0]), dtype=torch.float32)


def _keep_packed(ctx, inputs, output) -> None:
    x, blocks, scales = inputs
    ctx.save_for_backward(blocks, scales)
    ctx.dtype = x.dtype


def _packed_grad(ctx, grad: Tensor):
    return _packed_linear_backward(grad, *ctx.saved_tensors, ctx.dtype), None, None


def _packed_backward_cpu(
    grad: Tensor, blocks: Tensor, scales: Tensor, dtype: torch.dtype
) -> Tensor:
    grad, blocks, scales = grad.float().contiguous(), blocks.contiguous(), scales.contiguous()
    outer, inner = scales.shape[0], scales.shape[1] * BLOCK
    grad_x = grad.new_empty((grad.shape[0], inner), dtype=dtype)
    kernels().packed_linear_backward(
        grad.data_ptr(), grad.shape[0], blocks.data_ptr(), scales.data_ptr(), outer, inner,
        grad_x.data_ptr(), DTYPES[dtype],
    )  # fmt: skip
    return grad_x


def _packed_backward_fake(
    grad: Tensor, blocks: Tensor, scales: Tensor, dtype: torch.dtype
) -> Tensor:
    return grad.new_empty((grad.shape[0], scales.shape[1] * BLOCK), dtype=dtype)


_linear = define(
    "linear(Tensor x, Tensor weight, Tensor? bias, ScalarType dtype) -> Tensor",
    _linear_cpu, fake=_linear_fake, keep=_keep_linear, backward=_linear_grad,
)  # fmt: skip
_linear_backward = define(
    "linear_backward(Tensor grad, Tensor weight, ScalarType dtype) -> Tensor",
    _linear_backward_cpu, fake=_linear_backward_fake,
)  # fmt: skip
_packed_linear = define(
    "packed_linear(Tensor x, Tensor blocks, Tensor scales) -> Tensor",
    _packed_linear_cpu, fake=_packed_linear_fake, keep=_keep_packed, backward=_packed_grad,
)  # fmt: skip
_packed_linear_backward = define(
    "packed_linear_backward(Tensor grad, Tensor blocks, Tensor scales, ScalarType dtype) -> Tensor",
    _packed_backward_cpu, fake=_packed_backward_fake,
)  # fmt: skip
