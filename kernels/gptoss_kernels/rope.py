"""Rotary positions with YaRN frequencies.

    f_i      = theta^(-2i / d_head)
    turn(r)  = d_head · ln(context / (2π r)) / (2 ln theta)    index turning r times in context
    keep_i   = 1 - clamp((i - turn(fast)) / (turn(slow) - turn(fast)), 0, 1)
    freq_i   = f_i · (keep_i + (1 - keep_i) / factor)
    cos, sin are scaled by 0.1 ln(factor) + 1

The range turn(fast) .. turn(slow) is *not* rounded in gpt-oss (`truncate` false); rounding it moves
frequencies 9 to 17 by up to 76 %. Paper: YaRN, Peng et al. 2023 (arXiv 2309.00071), section 3.
Pairs are half a head apart: (i, i + d_head / 2).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Frequencies(NamedTuple):
    """What the positions are multiplied with."""

    inverse: Float[Tensor, " half"]
    """[d_head / 2] float32, radians per position"""
    concentration: float
    """factor on cos and sin; 1 without YaRN"""


def yarn(
    d_head: int,
    theta: float,
    *,
    factor: float,
    original_context: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = False,
) -> Frequencies:
    """YaRN frequencies of a head; computed in float64 and rounded once."""
    index = torch.arange(d_head // 2, dtype=torch.float64)
    plain = theta ** (-2 * index / d_head)

    def turn(rotations: float) -> float:
        ratio = original_context / (rotations * 2 * math.pi)
        return d_head * math.log(ratio) / (2 * math.log(theta))

    low, high = turn(beta_fast), turn(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d_head - 1)
    if low == high:
        high += 0.001
    keep = 1 - ((index - low) / (high - low)).clamp(0, 1)
    inverse = plain * (keep + (1 - keep) / factor)
    return Frequencies(inverse.float(), 0.1 * math.log(factor) + 1 if factor > 1 else 1.0)


def plain(d_head: int, theta: float) -> Frequencies:
    """Frequencies of rotary positions without any extension of the context."""
    index = torch.arange(d_head // 2, dtype=torch.float64)
    return Frequencies((theta ** (-2 * index / d_head)).float(), 1.0)


def tables(
    positions: Int[Tensor, "batch pos"], frequencies: Frequencies
) -> tuple[Float[Tensor, "batch pos half"], Float[Tensor, "batch pos half"]]:
    """(cos, sin) in float32. The angle is a float32 product, as in every published reference."""
    inverse = frequencies.inverse.to(positions.device)
    angle = positions.clamp_min(0).float()[..., None] * inverse
    return angle.cos() * frequencies.concentration, angle.sin() * frequencies.concentration


def rotate(
    x: Float[Tensor, "batch pos head d_head"],
    cos: Float[Tensor, "batch pos half"],
    sin: Float[Tensor, "batch pos half"],
) -> Float[Tensor, "batch pos head d_head"]:
    """Turn every (i, i + d_head/2) pair by its angle; computed in float32, rounded once."""
    first, second = x.float().chunk(2, -1)
    cos, sin = cos[:, :, None], sin[:, :, None]  # [batch, pos, 1, half]
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.to(x.dtype)
