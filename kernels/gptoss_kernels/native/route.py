"""`choose` and `weigh` in C++; formula and signatures are those of `gptoss_kernels.route`."""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_kernels import route_edited as plain
from gptoss_kernels.native.library import kernels
from gptoss_kernels.native.ops import define


def choose(logits: Float[Tensor, "batch pos expert"], k: int) -> Int[Tensor, "batch pos k"]:
    """The `k` best experts of each token in rank order; NaN comes first, as in torch.sort."""
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"route: k = {k}, but there are {logits.shape[-1]} experts")
    return _choose(logits.detach(), k)


def weigh(
    logits: Float[Tensor, "batch pos expert"], indices: Int[Tensor, "batch pos k"]
) -> Float[Tensor, "batch pos k"]:
    """Softmax of the logits over the chosen experts, in float32."""
    return _weigh(logits, indices)


def _choose_cpu(logits: Tensor, k: int) -> Tensor:
    logits, experts = logits.float().contiguous(), logits.shape[-1]
    best = logits.new_empty((*logits.shape[:-1], k), dtype=torch.int64)
    kernels().choose(logits.data_ptr(), logits.numel() // experts, experts, k, best.data_ptr())
    return best


def _weigh_cpu(logits: Tensor, indices: Tensor) -> Tensor:
    logits, indices = logits.float().contiguous(), indices.long().contiguous()
    experts, k = logits.shape[-1], indices.shape[-1]
    weights = logits.new_empty(indices.shape)
    kernels().weigh(
        logits.data_ptr(), logits.numel() // experts, experts, indices.data_ptr(), k,
        weights.data_ptr(),
    )  # fmt: skip
    return weights


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _grad(ctx, grad: Tensor):
    logits, indices = ctx.saved_tensors
    weights = _weigh(logits, indices)
    chosen = weights * (grad - (weights * grad).sum(-1, keepdim=True))
    return torch.zeros_like(logits).scatter_add(-1, indices, chosen.to(logits.dtype)), None


_choose = define(
    "choose(Tensor logits, int k) -> Tensor",
    _choose_cpu,
    fake=lambda logits, k: logits.new_empty((*logits.shape[:-1], k), dtype=torch.int64),
)
_weigh = define(
    "weigh(Tensor logits, Tensor indices) -> Tensor",
    _weigh_cpu,
    fake=lambda logits, indices: logits.new_empty(indices.shape, dtype=torch.float32),
    keep=_keep,
    backward=_grad,
)

route_edited = partial(plain.route_edited, weigh=weigh)
