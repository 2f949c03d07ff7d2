"""`choose` and `weigh` in Triton; formula and signatures are those of `gptoss_kernels.route`.

A program takes one token. Experts are ordered by one integer of logit and number, so that ties go
to the lower number and NaN comes first, as in torch.sort. Weights are summed in rank order, however
many slots there are.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_kernels.route import Route
from gptoss_kernels.triton.launch import launch
from gptoss_kernels.triton.linear import check, in_parts

GONE = tl.constexpr(-0x7FFFFFFFFFFFFFFF)
"""Below the order of every expert."""


def choose(logits: Float[Tensor, "batch pos expert"], k: int) -> Int[Tensor, "batch pos k"]:
    """The `k` best experts of each token in rank order; NaN comes first, as in torch.sort."""
    experts = logits.shape[-1]
    _check(logits, k)
    logits = logits.detach().contiguous()
    indices = torch.empty(*logits.shape[:-1], k, dtype=torch.int64, device=logits.device)
    launch(_choose_kernel, (logits.shape[:-1].numel(),), logits, indices, experts, k,
           EXPERTS=triton.next_power_of_2(experts), num_warps=1)  # fmt: skip
    return indices


def weigh(
    logits: Float[Tensor, "batch pos expert"], indices: Int[Tensor, "batch pos k"]
) -> Float[Tensor, "batch pos k"]:
    """Softmax of the logits over the chosen experts, in float32."""
    check("weigh", logits=logits)
    if logits.shape[:-1] != indices.shape[:-1]:
        raise ValueError(
            f"weigh: logits {tuple(logits.shape)} and indices {tuple(indices.shape)} are not of "
            "the same tokens"
        )
    return _Weigh.apply(logits, indices)  # pyright: ignore[reportReturnType]


def router(
    x: Float[Tensor, "batch pos d_model"],
    weight: Float[Tensor, "expert d_model"],
    bias: Float[Tensor, " expert"],
    k: int,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "batch pos expert"], Route]:
    """`linear` to `dtype` (default: that of `x`), `choose` and `weigh`, bit for bit; no gradient.

    Two launches: the second puts the sums of `linear` together, chooses and weighs.
    """
    check("router", x=x, weight=weight, bias=bias)
    if x.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"router: x ends in {x.shape[-1]} but the weight maps {weight.shape[-1]} inputs"
        )
    parts = in_parts(x.detach(), weight.contiguous(), bias, dtype or x.dtype)
    many, experts = len(parts) > 1, len(weight)
    logits = torch.empty_like(parts[0], dtype=dtype or x.dtype) if many else parts[0]
    _check(logits, k)
    indices = torch.empty(*x.shape[:-1], k, dtype=torch.int64, device=x.device)
    weights = torch.empty(indices.shape, dtype=torch.float32, device=x.device)
    launch(_route_kernel, (x.shape[:-1].numel(),), parts if many else None, bias.contiguous(),
           logits, indices, weights, logits.numel(), len(parts), experts, k,
           EXPERTS=triton.next_power_of_2(experts), num_warps=1)  # fmt: skip
    return logits, Route(indices, weights)


def _check(logits: Tensor, k: int) -> None:
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"route: k = {k}, but there are {logits.shape[-1]} experts")
    check("route", logits=logits)


class _Weigh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, indices: Tensor) -> Tensor:
        weights = torch.empty(indices.shape, dtype=torch.float32, device=logits.device)
        _run(_weigh_kernel, logits.contiguous(), indices.long().contiguous(), weights)
        ctx.save_for_backward(logits, indices, weights)
        return weights

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        logits, indices, weights = ctx.saved_tensors
        to_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
        _run(_gradient_kernel, to_logits, indices.long().contiguous(), weights, grad.contiguous())
        return to_logits, None


def _run(kernel, logits: Tensor, indices: Tensor, *others: Tensor) -> None:
    experts, k = logits.shape[-1], indices.shape[-1]
    launch(kernel, (logits.shape[:-1].numel(),), logits, indices, *others, experts, k,
           EXPERTS=triton.next_power_of_2(experts), SLOTS=triton.next_power_of_2(k),
           num_warps=1)  # fmt: skip


@triton.jit
def order(logits, e, experts):
    """int64 that is larger for the better expert; experts past the last are below all."""
    number = tl.where(logits == 0, 0.0, logits.to(tl.float32))  # -0 is 0
    bits = number.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    bits = tl.where(number == number, bits, 0x7FFFFFFF)
    key = (bits.to(tl.int64) << 32) - e.to(tl.int64)
    return tl.where(e < experts, key, tl.full(key.shape, GONE, tl.int64))


@triton.jit
def softmax(values, rank, count, axis: tl.constexpr):
    """Softmax over the places with rank < count along `axis`, summed by rank; 0 at the others."""
    live = rank < count
    top = tl.max(tl.where(live, values, float("-inf")), axis, keep_dims=True)
    shares = tl.where(live, tl.exp(values - top), 0.0)
    total = tl.zeros_like(top)
    for nth in range(count):
        total += tl.sum(tl.where(rank == nth, shares, 0.0), axis, keep_dims=True)
    return tl.div_rn(shares, tl.broadcast_to(total, shares.shape))


@triton.jit
def _choose_kernel(logits_ptr, indices_ptr, experts, k, EXPERTS: tl.constexpr):
    token, e = tl.program_id(0).to(tl.int64), tl.arange(0, EXPERTS)
    logits = tl.load(logits_ptr + token * experts + e, mask=e < experts, other=0.0)
    key = order(logits.to(tl.float32), e, experts)
    for nth in range(k):
        best = tl.max(key, 0)
        place = tl.sum(tl.where(key == best, e, 0), 0)
        tl.store(indices_ptr + token * k + nth, place.to(tl.int64))
        key = tl.where(key == best, tl.full(key.shape, GONE, tl.int64), key)


@triton.jit
def _weigh_kernel(
    logits_ptr, indices_ptr, weights_ptr, experts, k, EXPERTS: tl.constexpr, SLOTS: tl.constexpr
):
    token, slot = tl.program_id(0).to(tl.int64), tl.arange(0, SLOTS)
    expert = tl.load(indices_ptr + token * k + slot, mask=slot < k, other=0)
    chosen = tl.load(logits_ptr + token * experts + expert, mask=slot < k, other=0.0)
    weights = softmax(chosen.to(tl.float32), slot, k, 0)  # pyright: ignore
    tl.store(weights_ptr + token * k + slot, weights, mask=slot < k)


@triton.jit
def _gradient_kernel(
    to_logits_ptr, indices_ptr, weights_ptr, grad_ptr, experts, k,
    EXPERTS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """w (g - Σ w g) to the logits of the chosen, 0 to the others."""
    token, e = tl.program_id(0).to(tl.int64), tl.arange(0, EXPERTS)
    slot = tl.arange(0, SLOTS)
    expert = tl.load(indices_ptr + token * k + slot, mask=slot < k, other=-1)
    weights = tl.load(weights_ptr + token * k + slot, mask=slot < k, other=0.0)
    grad = tl.load(grad_ptr + token * k + slot, mask=slot < k, other=0.0)
    chosen = weights * (grad - tl.sum(weights * grad, 0))
    spread = tl.sum(tl.where(expert[None, :] == e[:, None], chosen[None, :], 0.0), 1)
    kind = to_logits_ptr.dtype.element_ty
    tl.store(to_logits_ptr + token * experts + e, spread.to(kind), mask=e < experts)


@triton.jit(do_not_specialize=("size",))
def _route_kernel(
    parts_ptr, bias_ptr, logits_ptr, indices_ptr, weights_ptr, size, parts, experts, k,
    EXPERTS: tl.constexpr,
):  # fmt: skip
    """One token: its logits, which are first summed if there are parts, then choice and weights."""
    token, e = tl.program_id(0).to(tl.int64), tl.arange(0, EXPERTS)
    real, at = e < experts, token * experts + e
    if parts_ptr is not None:
        total, part_at = tl.zeros([EXPERTS], tl.float32), parts_ptr + at
        for _ in range(parts):
            total += tl.load(part_at, mask=real, other=0.0)
            part_at += size
        total += tl.load(bias_ptr + e, mask=real, other=0.0).to(tl.float32)
        stored = total.to(logits_ptr.dtype.element_ty)
        tl.store(logits_ptr + at, stored, mask=real)
    else:
        stored = tl.load(logits_ptr + at, mask=real, other=0.0)
    logits = stored.to(tl.float32)
    key = order(logits, e, experts)
    rank = tl.full([EXPERTS], EXPERTS, tl.int32)
    for nth in range(k):
        best = tl.max(key, 0)
        rank = tl.where(key == best, nth, rank)
        key = tl.where(key == best, tl.full(key.shape, GONE, tl.int64), key)
    weights = softmax(logits, rank, k, 0)  # pyright: ignore
    tl.store(indices_ptr + token * k + rank, e.to(tl.int64), mask=rank < k)
    tl.store(weights_ptr + token * k + rank, weights, mask=rank < k)
