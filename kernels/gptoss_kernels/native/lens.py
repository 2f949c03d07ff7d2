"""What residuals say about the next token, without ever storing a row of logits.

    l           = W_U x                            float32, the sums of `linear`
    log_sum_exp = log Σ exp(l)
    entropy     = log_sum_exp - E_p[l]             p = softmax(l); nats
    KL(f || p)  = E_f[l_f - l] - log_sum_exp_f + log_sum_exp

The vocabulary is walked in tiles of one width, so a row's numbers do not depend on its company, and
largest logits, target logit and rank are exactly those of the whole row. No gradients.
"""

import ctypes
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_kernels.native.library import address, kernels
from gptoss_kernels.native.linear import linear

WIDTH = 4096
"""Tokens of the vocabulary in a tile."""
ROWS = 512
"""Most rows at a time: 8 MiB of logits."""


class Lens(NamedTuple):
    """What each row predicts."""

    tokens: Int[Tensor, "row k"]
    """the most likely tokens, best first; of equal ones the lower"""
    logits: Float[Tensor, "row k"]
    """theirs"""
    log_sum_exp: Float[Tensor, " row"]
    """of all logits: log p = logit - log_sum_exp"""
    entropy: Float[Tensor, " row"]
    """nats"""
    target_logit: Float[Tensor, " row"]
    """NaN without a target"""
    rank: Int[Tensor, " row"]
    """tokens with a larger logit than the target's; -1 without a target"""
    kl: Float[Tensor, " row"]
    """KL(final || row) in nats; NaN where no final residual was given"""


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

    sums: Float[Tensor, "part row"]
    """maximum, Σ w and Σ w logit; then maximum, Σ w and Σ w (final - logit) of final"""
    values: Float[Tensor, "row k"]
    tokens: Int[Tensor, "row k"]
    ahead: Int[Tensor, " row"]


def lens(
    x: Float[Tensor, "row d_model"],
    weight: Float[Tensor, "vocab d_model"],
    *,
    k: int = 5,
    targets: Int[Tensor, " row"] | None = None,
    final: Float[Tensor, "row d_model"] | None = None,
) -> Lens:
    """Read normed residuals out through the unembedding.

    Args:
        targets: a token a row whose logit and rank are wanted; -1 is none.
        final: normed residuals, a row each, with whose distribution each row is compared.
    """
    vocab = weight.shape[0]
    if not 1 <= k <= vocab:
        raise ValueError(f"lens: expected k between 1 and {vocab}, the vocabulary; got {k}")
    if targets is None:
        targets = torch.full((len(x),), -1)
    if bool((targets >= vocab).any()):
        raise ValueError(f"lens: targets are tokens below {vocab}; got {int(targets.max())}")
    with torch.no_grad():
        parts = [
            _read(x[rows], weight, k, targets[rows], None if final is None else final[rows])
            for rows in (slice(i, i + ROWS) for i in range(0, max(1, len(x)), ROWS))
        ]
    return Lens(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _read(x: Tensor, weight: Tensor, k: int, targets: Tensor, final: Tensor | None) -> Lens:
    target = _target_logits(x, weight, targets)
    lowest = torch.full((1, len(x)), -torch.inf)
    sums = torch.cat([lowest, torch.zeros(2, len(x))]).repeat(2, 1)
    tokens = torch.full((len(x), k), -1)
    run = _Running(sums, torch.full((len(x), k), -torch.inf), tokens, torch.zeros_like(targets))
    for start in range(0, len(weight), WIDTH):
        tile = weight[start : start + WIDTH]
        logits = linear(x, tile, dtype=torch.float32)
        ends = None if final is None else linear(final, tile, dtype=torch.float32)
        _add(run, start, logits, ends, target)
    return _result(run, targets, target, final is not None)


def _add(run: _Running, start: int, logits: Tensor, ends: Tensor | None, target: Tensor) -> None:
    """Take in the logits [row, tile] of the tokens from `start` on."""
    parts = [part.data_ptr() for part in run.sums]
    call = _Call(
        logits.data_ptr(), address(ends), target.data_ptr(), *logits.shape, start,
        run.values.shape[1], *parts, run.values.data_ptr(), run.tokens.data_ptr(),
        run.ahead.data_ptr(),
    )  # fmt: skip
    kernels().lens(ctypes.byref(call))


def _target_logits(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same sums as in a tile of the vocabulary; NaN where there is no target."""
    found = torch.full((len(x),), torch.nan)
    for row, token in enumerate(targets.tolist()):
        if token >= 0:
            one = linear(x[row : row + 1], weight[token : token + 1], dtype=torch.float32)
            found[row] = one[0, 0]
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
