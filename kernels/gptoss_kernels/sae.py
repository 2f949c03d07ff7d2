"""Sparse codes of activations: encoders that keep few latents, a decoder that reads few.

    pre    = W_enc x + b_enc                     summed in float32; x as the dictionary wants it
    top-k  : the k largest pre-activations, negative ones as 0  (Gao et al., arXiv 2406.04093)
    above  : relu(pre) where pre > threshold, else 0            (JumpReLU, arXiv 2407.14435, with a
             threshold a latent; BatchTopK, arXiv 2412.06410, with one for all)
    x̂      = b_dec + Σ_j value_j W_dec[latent_j]

Whether x is centred (x - b_dec) or scaled first is the dictionary's affair and the caller's.
Dictionaries store W_enc and W_dec as [latent, d_model], a row a latent.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_kernels.linear import linear

ROWS = 1 << 22
"""Pre-activations held at a time: 16 MiB of float32."""


class Codes(NamedTuple):
    """The latents of each row that are on."""

    indices: Int[Tensor, "row slot"]
    """int64; -1 in slots without a latent, which have value 0"""
    values: Float[Tensor, "row slot"]
    """float32"""
    on: Int[Tensor, " row"]
    """latents that are on, also where there were more than slots"""


class Touched(NamedTuple):
    """Gradient of the rows of a decoder that were read; it is 0 for all others."""

    latents: Int[Tensor, " touched"]
    """ascending"""
    rows: Float[Tensor, "touched d_model"]
    """float32"""


def encode_topk(
    x: Float[Tensor, "row d_model"],
    weight: Float[Tensor, "latent d_model"],
    bias: Float[Tensor, " latent"] | None,
    k: int,
) -> Codes:
    """The `k` largest pre-activations of each row, largest first; of equals the lower latent."""
    checked("encode_topk", x, weight, bias)
    if not 1 <= k <= len(weight):
        raise ValueError(f"encode_topk: expected k between 1 and {len(weight)}; got {k}")
    parts = []
    for rows in x.split(max(1, ROWS // len(weight))):
        pre = linear(rows, weight, bias, dtype=torch.float32)
        best, indices = torch.sort(pre, dim=-1, descending=True, stable=True)
        parts.append((indices[:, :k], best[:, :k].relu()))
    indices, values = (torch.cat(column) for column in zip(*parts, strict=True))
    return Codes(indices, values, (values > 0).sum(-1))


def encode_above(
    x: Float[Tensor, "row d_model"],
    weight: Float[Tensor, "latent d_model"],
    bias: Float[Tensor, " latent"] | None,
    threshold: Float[Tensor, " latent"] | float,
    *,
    slots: int | None = None,
) -> Codes:
    """Latents above their threshold (and 0), in ascending order.

    Args:
        slots: latents kept a row, the first ones; None makes room for the fullest row.
    """
    checked("encode_above", x, weight, bias)
    limit = torch.as_tensor(threshold, device=x.device).float().clamp_min(0)
    parts = [linear(rows, weight, bias, dtype=torch.float32)
             for rows in x.split(max(1, ROWS // len(weight)))]  # fmt: skip
    pre = torch.cat(parts)
    on = pre > limit
    count = on.sum(-1)
    slots = int(count.max()) if slots is None and len(x) else slots or 0
    places = torch.sort((~on).int(), dim=-1, stable=True).indices[:, :slots]
    empty = torch.arange(places.shape[1], device=x.device) >= count[:, None]
    values = pre.gather(-1, places).masked_fill(empty, 0)
    return Codes(places.masked_fill(empty, -1), values, count)


def decode(
    indices: Int[Tensor, "row slot"],
    values: Float[Tensor, "row slot"],
    weight: Float[Tensor, "latent d_model"],
    bias: Float[Tensor, " d_model"] | None = None,
) -> Float[Tensor, "row d_model"]:
    """Σ_j value_j W_dec[latent_j] + bias in float32, the slots in their order."""
    out = values.new_zeros(len(indices), weight.shape[1])
    for slot in range(indices.shape[1]):
        read = weight[indices[:, slot].clamp_min(0)].float() * values[:, slot, None]
        out = out + read.masked_fill(indices[:, slot, None] < 0, 0)
    return out if bias is None else out + bias.float()


def decoder_gradient(
    indices: Int[Tensor, "row slot"],
    values: Float[Tensor, "row slot"],
    grad: Float[Tensor, "row d_model"],
) -> Touched:
    """Gradient of `decode` to its weight: Σ value · grad over the slots that read a latent."""
    flat = indices.flatten()
    latents = flat[flat >= 0].unique()
    each = (values[..., None] * grad[:, None].float()).flatten(0, 1)
    place = torch.searchsorted(latents, flat.clamp_min(0)).clamp_max(max(0, len(latents) - 1))
    rows = each.new_zeros(len(latents), grad.shape[-1])
    return Touched(latents, rows.index_add(0, place[flat >= 0], each[flat >= 0]))


def checked(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError for an encoder that does not fit `x`."""
    if x.ndim != 2 or x.shape[-1] != weight.shape[-1]:
        raise ValueError(f"{op}: expected x [row, {weight.shape[-1]}]; got {tuple(x.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{op}: {len(weight)} latents, the bias is {tuple(bias.shape)}")
