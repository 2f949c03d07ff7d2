"""`lens` in C++; formula and signature are those of `gptoss_kernels.lens`.

The vocabulary is walked in tiles of one width, so a row's numbers do not depend on its company, and
largest logits, target logit and rank are exactly those of the whole row.
"""

import ctypes
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_kernels.lens import Lens, checked
from gptoss_kernels.native.library import address, kernels
from gptoss_kernels.native.linear import linear

WIDTH = 4096
"""Tokens of the vocabulary in a tile."""
ROWS = 512
"""Most rows at a time: 8 MiB of logits."""


class _Call(ctypes.Structure):
    """GwLens in src/abi.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("logits", "final", "target")),
        *((name, ctypes.c_int64) for name in ("rows", "width", "start", "k")),
        *((name, ctypes.c_void_p) for name in (
            "top", "total", "mean", "final_top", "final_total", "across",
            "values", "tokens", "ahead",
        )),
    )  # fmt: skip


class _Running(NamedTuple):
    """What was read of each row so far."""

    sums: Float[Tensor, "part layer row"]
    """maximum, Σ w and Σ w logit; then maximum, Σ w and Σ w (final - logit) of final"""
    values: Float[Tensor, "layer row k"]
    tokens: Int[Tensor, "layer row k"]
    ahead: Int[Tensor, "layer row"]


def lens(
    x: Float[Tensor, "layer row d_model"],
    weight: Float[Tensor, "vocab d_model"],
    *,
    k: int = 5,
    targets: Int[Tensor, " row"] | None = None,
    final: Float[Tensor, "row d_model"] | None = None,
) -> Lens:
    """Read normed residuals out through the unembedding; of equal logits the lower token leads."""
    targets = checked(x, weight, k, targets)
    step = max(1, ROWS // max(1, len(x)))
    starts = range(0, max(1, x.shape[1]), step)
    with torch.no_grad():
        parts = [
            _read(x[:, rows], weight, k, targets[rows], None if final is None else final[rows])
            for rows in (slice(start, start + step) for start in starts)
        ]
    return Lens(*(torch.cat(column, 1) for column in zip(*parts, strict=True)))


def _read(x: Tensor, weight: Tensor, k: int, targets: Tensor, final: Tensor | None) -> Lens:
    target, shape = _target_logits(x, weight, targets), x.shape[:2]
    lowest = torch.full((1, *shape), -torch.inf)
    sums = torch.cat([lowest, torch.zeros(2, *shape)]).repeat(2, 1, 1)
    values, tokens = torch.full((*shape, k), -torch.inf), torch.full((*shape, k), -1)
    run = _Running(sums, values, tokens, torch.zeros(shape, dtype=torch.int64))
    for start in range(0, len(weight), WIDTH):
        tile = weight[start : start + WIDTH]
        logits = linear(x, tile, dtype=torch.float32)
        ends = None if final is None else linear(final, tile, dtype=torch.float32)
        for layer in range(len(x)):
            _add(run, layer, start, logits[layer], ends, target[layer])
    return _result(run, targets, target, final is not None)


def _add(
    run: _Running, layer: int, start: int, logits: Tensor, ends: Tensor | None, target: Tensor
) -> None:
    """Take in one layer's logits [row, tile] of the tokens from `start` on."""
    parts = [part.data_ptr() for part in run.sums[:, layer]]
    call = _Call(
        logits.data_ptr(), address(ends), target.data_ptr(), *logits.shape, start,
        run.values.shape[-1], *parts, run.values[layer].data_ptr(), run.tokens[layer].data_ptr(),
        run.ahead[layer].data_ptr(),
    )  # fmt: skip
    kernels().lens(ctypes.byref(call))


def _target_logits(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """[layer, row], the same sums as in a tile of the vocabulary; NaN where there is no target."""
    found = torch.full(x.shape[:2], torch.nan)
    for row, token in enumerate(targets.tolist()):
        if token >= 0:
            found[:, row] = linear(x[:, row], weight[token : token + 1], dtype=torch.float32)[:, 0]
    return found


def _result(run: _Running, targets: Tensor, target: Tensor, compared: bool) -> Lens:
    top, total, mean, final_top, final_total, across = run.sums
    log_sum_exp = top + total.log()
    kl = across / final_total - (final_top + final_total.log()) + log_sum_exp
    return Lens(
        run.tokens,
        run.values,
        log_sum_exp,
        (log_sum_exp - mean / total).clamp_min(0),
        target,
        torch.where(targets >= 0, run.ahead, -1),
        kl.clamp_min(0) if compared else torch.full_like(kl, torch.nan),
    )
