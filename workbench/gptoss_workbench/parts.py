"""What is in and around every block: weights, norms, both ends, and looks at hook points."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptoss_hooks.points import HookPoint, traced
from gptoss_kernels.backend import Backend
from gptoss_kernels.rms_norm import NormTap


def frozen(tensor: Tensor) -> nn.Parameter:
    """A weight: part of the module, never trained."""
    return nn.Parameter(tensor, requires_grad=False)


def looks(*points: HookPoint) -> list[HookPoint | None]:
    """Each point that is observed, else None. A running trace in the group turns all of them on:
    what it will ask for next is known only once it has been served."""
    found = [point if point.observed else None for point in points]
    return list(points) if any(point and traced(point) for point in found) else found


def moved(fused: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """A fused result, moved by what an edit of its parts changed (float32).

    Parts that were only looked at leave it as it is, bit for bit; gradients reach them still.
    """
    return (fused.float() + (after - before)).to(fused.dtype)


class Projection(nn.Module):
    """A stored weight [outer, inner] and bias [outer]."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str):
        super().__init__()
        self.weight = frozen(tensors[f"{name}.weight"])
        self.bias = frozen(tensors[f"{name}.bias"])


class Norm(nn.Module):
    """RMSNorm with its denominator and its result before the weight in view."""

    def __init__(self, weight: Tensor, eps: float, ops: Backend):
        super().__init__()
        self.weight, self.eps, self.ops = frozen(weight), eps, ops
        self.hook_scale = HookPoint("batch", "pos", "one", dtype=torch.float32)
        self.hook_normalized = HookPoint("batch", "pos", "d_model", dtype=torch.float32)
        self.hook_out = HookPoint("batch", "pos", "d_model")

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        tap = NormTap(*looks(self.hook_scale, self.hook_normalized))
        return self.hook_out(self.ops.rms_norm(x, self.weight, self.eps, tap=tap))


class Embed(nn.Module):
    """Token embedding table."""

    def __init__(self, weight: Tensor, dtype: torch.dtype):
        super().__init__()
        self.weight, self.dtype = frozen(weight), dtype

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return F.embedding(tokens, self.weight).to(self.dtype)


class Unembed(nn.Module):
    """Residual to logits; not tied to the embedding."""

    def __init__(self, weight: Tensor, ops: Backend):
        super().__init__()
        self.weight, self.ops = frozen(weight), ops
        self.hook_out = HookPoint("batch", "pos", "vocab")

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos vocab"]:
        return self.hook_out(self.ops.unembed(x, self.weight))
