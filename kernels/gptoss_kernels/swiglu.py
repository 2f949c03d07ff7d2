"""Clamped SwiGLU, the activation inside every gpt-oss expert.

    gate, up = u[..., 0::2], u[..., 1::2]          interleaved, as in the checkpoint
    y        = g σ(1.702 g) (v + 1)   with g = min(gate, limit), v = clamp(up, -limit, limit)

Source: openai/gpt-oss, torch/model.py. The config's "silu" is not what runs.
"""

import torch
from jaxtyping import Float
from torch import Tensor

ALPHA = 1.702
"""Slope of the sigmoid inside the gate."""


def swiglu(
    gate: Float[Tensor, "*rows d_ff"], up: Float[Tensor, "*rows d_ff"], limit: float = 7.0
) -> Float[Tensor, "*rows d_ff"]:
    """Gate the linear half; float32 in, float32 out."""
    if gate.shape != up.shape:
        raise ValueError(f"swiglu: gate {tuple(gate.shape)} and up {tuple(up.shape)} differ")
    gate, up = gate.float().clamp(max=limit), up.float().clamp(-limit, limit)
    return gate * torch.sigmoid(ALPHA * gate) * (up + 1)
