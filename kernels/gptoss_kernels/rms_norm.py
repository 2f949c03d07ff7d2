"""RMSNorm as gpt-oss does it: widen, divide, weigh, then round once.

scale = sqrt(mean(x²) + eps);  y = round(x / scale · weight)

Llama rounds before the weight; gpt-oss (openai/gpt-oss, torch/model.py) after.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Look = Callable[[Tensor], Tensor]
"""A tap's function: receives an intermediate tensor, returns the one to go on with."""


class NormTap(NamedTuple):
    """Where a caller may look into `rms_norm`; None costs nothing."""

    scale: Look | None = None
    """[batch, pos, 1] float32, the denominator"""
    normalized: Look | None = None
    """[batch, pos, d_model] float32, before the weight"""


def rms_norm(
    x: Float[Tensor, "batch pos d_model"],
    weight: Float[Tensor, " d_model"],
    eps: float = 1e-5,
    *,
    tap: NormTap | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    """Normalise the last axis to unit root mean square and weigh it; same dtype as `x`."""
    wide = x.float()
    scale = torch.sqrt(wide.square().mean(-1, keepdim=True) + eps)
    if tap and tap.scale:
        scale = tap.scale(scale)
    normalized = wide / scale
    if tap and tap.normalized:
        normalized = tap.normalized(normalized)
    return (normalized * weight.float()).to(x.dtype)
