"""The mixture of experts in C++, whole or a stage an operator; formulas in `gptoss_kernels.moe`.

Unobserved, what lies between the stages stays in memory that the next layer uses again. A tap, or a
gradient, takes the stages apart: the same arithmetic, the same bits. Every stage keeps the order of
slots, so what a tap sees is what was written, without a copy.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_kernels.moe import Experts, ExpertTap
from gptoss_kernels.mxfp4 import BLOCK
from gptoss_kernels.native.library import DTYPES, code, kernels
from gptoss_kernels.native.linear import readable
from gptoss_kernels.native.ops import define


def moe(
    x: Float[Tensor, "batch pos d_model"],
    indices: Int[Tensor, "batch pos k"],
    weights: Float[Tensor, "batch pos k"],
    experts: Experts,
    *,
    limit: float = 7.0,
    tap: ExpertTap | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    """Send each token through its experts and sum by weight; same dtype as `x`."""
    tap = tap or ExpertTap()
    graph = torch.is_grad_enabled() and (x.requires_grad or weights.requires_grad)
    if not graph and not any(tap):
        return _whole(x, indices, weights, *experts, limit)
    up_weights, down_weights = experts[:3], experts[3:]
    if tap.gate or tap.up or graph:
        gate, up = _gate_up(x, indices, *up_weights)
        gate = tap.gate(gate) if tap.gate else gate
        up = tap.up(up) if tap.up else up
        post = _swiglu(gate, up, limit, x.dtype)
        del gate, up  # what nobody kept is not in the way of what follows
    else:
        post = _up(x, indices, *up_weights, limit)
    post = tap.post(post) if tap.post else post
    if not graph and not tap.out and post.dtype == x.dtype:
        return _down_combine(post, indices, weights, *down_weights)
    out = _down(post, indices, *down_weights)
    out = tap.out(out) if tap.out else out
    return _combine(out, weights, x.dtype)


def _sizes(indices: Tensor, blocks: Tensor) -> tuple[int, int, int, int]:
    """k, experts, outputs and inputs of each expert."""
    return indices.shape[-1], blocks.shape[0], blocks.shape[1], blocks.shape[2] * BLOCK


def _packed(
    name: str, indices: Tensor, blocks: Tensor, scales: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All contiguous, as kernels read them."""
    return indices.contiguous(), blocks.contiguous(), scales.contiguous(), readable(name, bias)


def _whole_cpu(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    up_blocks: Tensor,
    up_scales: Tensor,
    up_bias: Tensor,
    down_blocks: Tensor,
    down_scales: Tensor,
    down_bias: Tensor,
    limit: float,
) -> Tensor:
    x, weights = readable("moe", x), weights.float().contiguous()
    indices, *up = _packed("moe", indices, up_blocks, up_scales, up_bias)
    indices, *down = _packed("moe", indices, down_blocks, down_scales, down_bias)
    k, experts, outer, inner = _sizes(indices, up_blocks)
    y = torch.empty_like(x)
    kernels().moe(
        x.data_ptr(), code(x), indices.numel() // k, k, indices.data_ptr(), weights.data_ptr(),
        experts, *(each.data_ptr() for each in up), code(up[2]),
        *(each.data_ptr() for each in down), code(down[2]), outer // 2, inner, limit, y.data_ptr(),
    )  # fmt: skip
    return y


def _whole_fake(x: Tensor, *_) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _gate_up_cpu(
    x: Tensor, indices: Tensor, blocks: Tensor, scales: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    x = readable("moe", x)
    indices, blocks, scales, bias = _packed("moe", indices, blocks, scales, bias)
    k, experts, outer, inner = _sizes(indices, blocks)
    gate = x.new_empty((*indices.shape, outer // 2), dtype=torch.float32)
    up = torch.empty_like(gate)
    kernels().moe_gate_up(
        x.data_ptr(), code(x), indices.numel() // k, k, indices.data_ptr(), experts,
        blocks.data_ptr(), scales.data_ptr(), bias.data_ptr(), code(bias), outer // 2, inner,
        gate.data_ptr(), up.data_ptr(),
    )  # fmt: skip
    return gate, up


def _gate_up_fake(
    x: Tensor, indices: Tensor, blocks: Tensor, scales: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    gate = x.new_empty((*indices.shape, blocks.shape[1] // 2), dtype=torch.float32)
    return gate, torch.empty_like(gate)


def _keep_gate_up(ctx, inputs, output) -> None:
    x, indices, blocks, scales, _ = inputs
    ctx.save_for_backward(indices, blocks, scales)
    ctx.dtype = x.dtype


def _gate_up_grad(ctx, grad_gate: Tensor, grad_up: Tensor):
    indices, blocks, scales = ctx.saved_tensors
    grad = torch.stack((grad_gate, grad_up), -1).flatten(-2)  # [batch, pos, k, gate_up]
    rows = _rows_backward(grad, indices, blocks, scales, torch.float32)
    ones = rows.new_ones(indices.shape)
    return _combine(rows, ones, ctx.dtype), None, None, None, None


def _up_cpu(
    x: Tensor, indices: Tensor, blocks: Tensor, scales: Tensor, bias: Tensor, limit: float
) -> Tensor:
    x = readable("moe", x)
    indices, blocks, scales, bias = _packed("moe", indices, blocks, scales, bias)
    k, experts, outer, inner = _sizes(indices, blocks)
    post = x.new_empty((*indices.shape, outer // 2))
    kernels().moe_up(
        x.data_ptr(), code(x), indices.numel() // k, k, indices.data_ptr(), experts,
        blocks.data_ptr(), scales.data_ptr(), bias.data_ptr(), code(bias), outer // 2, inner,
        limit, post.data_ptr(),
    )  # fmt: skip
    return post


def _up_fake(
    x: Tensor, indices: Tensor, blocks: Tensor, scales: Tensor, bias: Tensor, limit: float
) -> Tensor:
    return x.new_empty((*indices.shape, blocks.shape[1] // 2))


def _swiglu_cpu(gate: Tensor, up: Tensor, limit: float, dtype: torch.dtype) -> Tensor:
    gate, up = gate.float().contiguous(), up.float().contiguous()
    post = torch.empty_like(gate, dtype=dtype)
    kernels().swiglu(
        gate.data_ptr(), up.data_ptr(), gate.numel(), limit, post.data_ptr(), code(post)
    )
    return post


def _swiglu_fake(gate: Tensor, up: Tensor, limit: float, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(gate, dtype=dtype)


def _keep_swiglu(ctx, inputs, output) -> None:
    gate, up, ctx.limit, _ = inputs
    ctx.save_for_backward(gate, up)


def _swiglu_grad(ctx, grad: Tensor):
    return *_swiglu_backward(grad, *ctx.saved_tensors, ctx.limit), None, None


def _swiglu_backward_cpu(
    grad: Tensor, gate: Tensor, up: Tensor, limit: float
) -> tuple[Tensor, Tensor]:
    grad, gate, up = (each.float().contiguous() for each in (grad, gate, up))
    grads = torch.empty_like(gate), torch.empty_like(up)
    kernels().swiglu_backward(
        grad.data_ptr(), gate.data_ptr(), up.data_ptr(), gate.numel(), limit,
        grads[0].data_ptr(), grads[1].data_ptr(),
    )  # fmt: skip
    return grads


def _swiglu_backward_fake(
    grad: Tensor, gate: Tensor, up: Tensor, limit: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(gate), torch.empty_like(up)


def _down_cpu(
    post: Tensor, indices: Tensor, blocks: Tensor, scales: Tensor, bias: Tensor
) -> Tensor:
    post = readable("moe", post if post.dtype in DTYPES else post.float())
    indices, blocks, scales, bias = _packed("moe", indices, blocks, scales, bias)
    _, experts, outer, inner = _sizes(indices, blocks)
    out = post.new_empty((*indices.shape, outer), dtype=torch.float32)
    kernels().moe_down(
        post.data_ptr(), code(post), indices.numel(), indices.data_ptr(), experts,
        blocks.data_ptr(), scales.data_ptr(), bias.data_ptr(), code(bias), outer, inner,
        out.data_ptr(),
    )  # fmt: skip
    return out


def _down_fake(
    post: Tensor, indices: Tensor, blocks: Tensor, scales: Tensor, bias: Tensor
) -> Tensor:
    return post.new_empty((*indices.shape, blocks.shape[1]), dtype=torch.float32)


def _keep_down(ctx, inputs, output) -> None:
    post, indices, blocks, scales, _ = inputs
    ctx.save_for_backward(indices, blocks, scales)
    ctx.dtype = post.dtype


def _down_grad(ctx, grad: Tensor):
    return _rows_backward(grad, *ctx.saved_tensors, ctx.dtype), None, None, None, None


def _rows_backward_cpu(
    grad: Tensor, indices: Tensor, blocks: Tensor, scales: Tensor, dtype: torch.dtype
) -> Tensor:
    grad, indices = grad.float().contiguous(), indices.contiguous()
    blocks, scales = blocks.contiguous(), scales.contiguous()
    _, experts, outer, inner = _sizes(indices, blocks)
    grad_x = grad.new_empty((*indices.shape, inner), dtype=dtype)
    kernels().moe_backward(
        grad.data_ptr(), indices.numel(), indices.data_ptr(), experts, blocks.data_ptr(),
        scales.data_ptr(), outer, inner, grad_x.data_ptr(), DTYPES[dtype],
    )  # fmt: skip
    return grad_x


def _rows_backward_fake(
    grad: Tensor, indices: Tensor, blocks: Tensor, scales: Tensor, dtype: torch.dtype
) -> Tensor:
    return grad.new_empty((*indices.shape, blocks.shape[2] * BLOCK), dtype=dtype)


def _down_combine_cpu(
    post: Tensor, indices: Tensor, weights: Tensor, blocks: Tensor, scales: Tensor, bias: Tensor
) -> Tensor:
    post, weights = readable("moe", post), weights.float().contiguous()
    indices, blocks, scales, bias = _packed("moe", indices, blocks, scales, bias)
    k, experts, outer, inner = _sizes(indices, blocks)
    y = post.new_empty((*indices.shape[:-1], outer))
    kernels().moe_down_combine(
        post.data_ptr(), code(post), indices.numel() // k, k, indices.data_ptr(),
        weights.data_ptr(), experts, blocks.data_ptr(), scales.data_ptr(), bias.data_ptr(),
        code(bias), outer, inner, y.data_ptr(),
    )  # fmt: skip
    return y


def _down_combine_fake(
    post: Tensor, indices: Tensor, weights: Tensor, blocks: Tensor, *_
) -> Tensor:
    return post.new_empty((*indices.shape[:-1], blocks.shape[1]))


def _combine_cpu(out: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    out, weights = out.float().contiguous(), weights.float().contiguous()
    k, d_model = out.shape[-2:]
    y = out.new_empty((*out.shape[:-2], d_model), dtype=dtype)
    kernels().moe_combine(
        out.data_ptr(), weights.data_ptr(), weights.numel() // k, k, d_model, y.data_ptr(), code(y)
    )
    return y


def _combine_fake(out: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    return out.new_empty((*out.shape[:-2], out.shape[-1]), dtype=dtype)


def _keep_combine(ctx, inputs, output) -> None:
    out, weights, _ = inputs
    ctx.save_for_backward(out, weights)


def _combine_grad(ctx, grad: Tensor):
    out, weights = ctx.saved_tensors
    grad_out, grad_weights = _combine_backward(grad, out, weights)
    return grad_out.to(out.dtype), grad_weights.to(weights.dtype), None


def _combine_backward_cpu(grad: Tensor, out: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    grad, out, weights = (each.float().contiguous() for each in (grad, out, weights))
    k, d_model = out.shape[-2:]
    grads = torch.empty_like(out), torch.empty_like(weights)
    kernels().moe_combine_backward(
        grad.data_ptr(), out.data_ptr(), weights.data_ptr(), weights.numel() // k, k, d_model,
        grads[0].data_ptr(), grads[1].data_ptr(),
    )  # fmt: skip
    return grads


def _combine_backward_fake(grad: Tensor, out: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return out.new_empty(out.shape, dtype=torch.float32), torch.empty_like(weights)


_WEIGHTS = "Tensor indices, Tensor blocks, Tensor scales"
_whole = define(
    "moe(Tensor x, Tensor indices, Tensor weights, Tensor up_blocks, Tensor up_scales, "
    "Tensor up_bias, Tensor down_blocks, Tensor down_scales, Tensor down_bias, float limit) "
    "-> Tensor",
    _whole_cpu, fake=_whole_fake,
)  # fmt: skip
_gate_up = define(
    f"moe_gate_up(Tensor x, {_WEIGHTS}, Tensor bias) -> (Tensor, Tensor)",
    _gate_up_cpu, fake=_gate_up_fake, keep=_keep_gate_up, backward=_gate_up_grad,
)  # fmt: skip
_up = define(
    f"moe_up(Tensor x, {_WEIGHTS}, Tensor bias, float limit) -> Tensor",
    _up_cpu, fake=_up_fake,
)  # fmt: skip
_swiglu = define(
    "swiglu(Tensor gate, Tensor up, float limit, ScalarType dtype) -> Tensor",
    _swiglu_cpu, fake=_swiglu_fake, keep=_keep_swiglu, backward=_swiglu_grad,
)  # fmt: skip
_swiglu_backward = define(
    "swiglu_backward(Tensor grad, Tensor gate, Tensor up, float limit) -> (Tensor, Tensor)",
    _swiglu_backward_cpu, fake=_swiglu_backward_fake,
)  # fmt: skip
_down = define(
    f"moe_down(Tensor post, {_WEIGHTS}, Tensor bias) -> Tensor",
    _down_cpu, fake=_down_fake, keep=_keep_down, backward=_down_grad,
)  # fmt: skip
_down_combine = define(
    "moe_down_combine(Tensor post, Tensor indices, Tensor weights, Tensor blocks, Tensor scales, "
    "Tensor bias) -> Tensor",
    _down_combine_cpu, fake=_down_combine_fake,
)  # fmt: skip
_rows_backward = define(
    f"moe_backward(Tensor grad, {_WEIGHTS}, ScalarType dtype) -> Tensor",
    _rows_backward_cpu, fake=_rows_backward_fake,
)  # fmt: skip
_combine = define(
    "moe_combine(Tensor out, Tensor weights, ScalarType dtype) -> Tensor",
    _combine_cpu, fake=_combine_fake, keep=_keep_combine, backward=_combine_grad,
)  # fmt: skip
_combine_backward = define(
    "moe_combine_backward(Tensor grad, Tensor out, Tensor weights) -> (Tensor, Tensor)",
    _combine_backward_cpu, fake=_combine_backward_fake,
)  # fmt: skip
