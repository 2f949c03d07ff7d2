"""Sparse codes in Triton; formulas and signatures are those of `gptoss_kernels.sae`.

Pre-activations are never stored, a row's codes do not depend on its company, and every sum runs in
one order. Gradients go to the values of a decoder and, through the latents that are on, to the
input of an encoder; the gradient of a decoder's weight is `decoder_gradient`.
"""

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_kernels.sae import Codes, Touched, checked
from gptoss_kernels.triton import sae_kernels as kernels
from gptoss_kernels.triton.launch import launch
from gptoss_kernels.triton.linear import check, kind, options, terms
from gptoss_kernels.triton.tiles import tile

TILES = 12
"""Tiles of latents in a stretch."""
ROWS = 1024
"""Most rows at a time: 86 MiB of candidates for 128 of 131,072 latents."""
MOST = 128
"""Most latents a kernel keeps."""
BLOCK = 1024
"""Places of a row of a decoder at a time."""


def encode_topk(
    x: Float[Tensor, "row d_model"],
    weight: Float[Tensor, "latent d_model"],
    bias: Float[Tensor, " latent"] | None,
    k: int,
) -> Codes:
    """The `k` largest pre-activations of each row, largest first; of equals the lower latent."""
    checked("encode_topk", x, weight, bias)
    check("encode_topk", x=x, weight=weight, bias=bias)
    if not 1 <= k <= min(MOST, len(weight)):
        most = min(MOST, len(weight))
        raise ValueError(f"encode_topk: expected k between 1 and {most}; got {k}")
    parts = [_largest(rows, weight, bias, k) for rows in x.detach().split(ROWS)]
    indices, values = (torch.cat(column) for column in zip(*parts, strict=True))
    return Codes(indices, _Values.apply(x, weight, indices, values), (values > 0).sum(-1))


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
        slots: latents kept a row, the first ones; None makes room for the fullest row, for which
            the host waits.
    """
    checked("encode_above", x, weight, bias)
    check("encode_above", x=x, weight=weight, bias=bias)
    limit = torch.as_tensor(threshold, device=x.device).float().clamp_min(0)
    limit = limit.expand(len(weight)).contiguous()
    stretches = triton.cdiv(len(weight), TILES * tile("sae", len(x), x.device).cols)
    counts = torch.empty(stretches, len(x), dtype=torch.int32, device=x.device)
    read = x.detach()
    _encode(kernels.above_kernel, read, weight, bias, (limit, counts, None, None), (0,))
    on = counts.sum(0)
    if slots is None:
        slots = int(on.max()) if len(x) else 0
    indices = torch.full((len(x), slots), -1, device=x.device)
    values = torch.zeros(len(x), slots, device=x.device)
    first = counts.cumsum(0, dtype=torch.int32) - counts
    if slots:
        _encode(kernels.above_kernel, read, weight, bias, (limit, first, indices, values), (slots,))
    return Codes(indices, _Values.apply(x, weight, indices, values), on)


def decode(
    indices: Int[Tensor, "row slot"],
    values: Float[Tensor, "row slot"],
    weight: Float[Tensor, "latent d_model"],
    bias: Float[Tensor, " d_model"] | None = None,
) -> Float[Tensor, "row d_model"]:
    """Σ_j value_j W_dec[latent_j] + bias in float32, the slots in their order."""
    check("decode", values=values, weight=weight, bias=bias)
    if indices.shape != values.shape:
        raise ValueError(
            f"decode: indices {tuple(indices.shape)} and values {tuple(values.shape)} differ"
        )
    return _Decode.apply(indices, values, weight, bias)  # pyright: ignore[reportReturnType]


def decoder_gradient(
    indices: Int[Tensor, "row slot"],
    values: Float[Tensor, "row slot"],
    grad: Float[Tensor, "row d_model"],
) -> Touched:
    """Gradient of `decode` to its weight; each row a sum over its slots in ascending order.

    The host waits once: there is a row for each latent that was read.
    """
    check("decoder_gradient", values=values, grad=grad)
    latents, order = torch.sort(indices.flatten(), stable=True)
    starts = latents >= 0
    starts[1:] &= latents[1:] != latents[:-1]
    places = torch.arange(len(latents), device=latents.device).where(starts, len(latents))
    places = torch.nn.functional.pad(places, (0, 1), value=len(latents)).sort().values
    first = places[: int(starts.sum()) + 1]
    touched = latents[first[:-1]]
    rows = torch.empty(len(touched), grad.shape[-1], dtype=torch.float32, device=grad.device)
    launch(kernels.decoder_gradient_kernel, (len(touched), triton.cdiv(grad.shape[-1], BLOCK)),
           order, first, values.contiguous(), grad.contiguous(), rows, indices.shape[1],
           grad.shape[-1], BLOCK=BLOCK, num_warps=4)  # fmt: skip
    return Touched(touched, rows)


def _largest(x: Tensor, weight: Tensor, bias: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of what each stretch kept; their integers hold value and latent."""
    stretches = triton.cdiv(len(weight), TILES * tile("sae", len(x), x.device).cols)
    keys = torch.empty(len(x), stretches * k, dtype=torch.int64, device=x.device)
    _encode(kernels.topk_kernel, x, weight, bias, (keys,), (k,), KEPT=triton.next_power_of_2(k))
    best = keys.topk(k).values
    latents = -best & 0xFFFFFFFF
    bits = (best + latents >> 32).int()
    values = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)
    return latents, values.relu()


def _encode(kernel, x: Tensor, weight: Tensor, bias: Tensor | None, tensors, sizes, **meta) -> None:
    chosen, split = tile(kind("sae", x, weight), len(x), x.device), terms(x)
    if meta.get("KEPT", 1) > 64:  # what is kept takes as many registers as 64 do
        chosen = chosen._replace(rows=16)
    stretch = TILES * chosen.cols
    grid = (triton.cdiv(len(x), chosen.rows), triton.cdiv(len(weight), stretch))
    inner = weight.shape[1]
    launch(kernel, grid, split, weight.contiguous(), None if bias is None else bias.contiguous(),
           *tensors, len(x), len(weight), inner, *sizes, stretch, TERMS=len(split),
           EVEN=inner % chosen.inner == 0, BM=chosen.rows, BN=chosen.cols, BK=chosen.inner,
           **options(chosen, x.device), **meta)  # fmt: skip


class _Values(torch.autograd.Function):
    """Values as a function of the encoder's input: those that are on follow their latent."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, indices: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(weight, indices, values > 0)
        ctx.dtype = x.dtype
        return values.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, indices, on = ctx.saved_tensors
        return _sum(indices, grad * on, weight, None).to(ctx.dtype), None, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, indices: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(indices, weight)
        ctx.dtype = values.dtype
        return _sum(indices, values, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        indices, weight = ctx.saved_tensors
        to_values = torch.empty(indices.shape, dtype=torch.float32, device=grad.device)
        launch(kernels.values_gradient_kernel, (indices.numel(),), indices.contiguous(),
               grad.contiguous(), weight.contiguous(), to_values, indices.shape[1],
               weight.shape[1], BLOCK=BLOCK, num_warps=4)  # fmt: skip
        return None, to_values.to(ctx.dtype), None, None


def _sum(indices: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    d_model = weight.shape[1]
    y = torch.empty(len(indices), d_model, dtype=torch.float32, device=values.device)
    launch(kernels.decode_kernel, (len(indices), triton.cdiv(d_model, BLOCK)),
           indices.contiguous(), values.contiguous(), weight.contiguous(), bias, y,
           indices.shape[1], d_model, BLOCK=BLOCK, num_warps=4)  # fmt: skip
    return y
