"""From residuals to what they say about the next token, one tile of the vocabulary at a time.

    l = W_U norm(x)                  the lens: final norm and unembedding of any residual x
    log p = l - logsumexp(l)         in nats
    entropy = logsumexp(l) - E_p[l]
    KL(f || x) = E_f[l_f - l_x] - logsumexp(l_f) + logsumexp(l_x)

All sums run over tiles in one pass with a running maximum (Milakov and Gimelshein, 1805.02867), so
memory is rows x (tile + k) whatever the vocabulary. Logits stay in float32: in bfloat16 the
largest would tie.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

WIDTH = 2048
"""Most tokens of the vocabulary in a tile."""
WEIGHTS = 1 << 22
"""Unembedding weights widened at a time: 16 MiB of float32."""
LOGITS = 1 << 21
"""Logits held at a time: 8 MiB of float32."""


class Readout(NamedTuple):
    """What each residual predicts; the leading axes are the residuals'."""

    tokens: Int[Tensor, "layer row k"]
    """the most likely tokens, best first"""
    log_probs: Float[Tensor, "layer row k"]
    """theirs, in nats"""
    log_sum_exp: Float[Tensor, "layer row"]
    """of the logits: log p = logit - log_sum_exp"""
    entropy: Float[Tensor, "layer row"]
    """nats"""
    target_log_prob: Float[Tensor, "layer row"]
    """nats; NaN without a target"""
    rank: Int[Tensor, "layer row"]
    """tokens with a larger logit than the target's (0: it is the top one); -1 without a target"""
    kl: Float[Tensor, "layer row"]
    """KL(final || this) in nats; NaN where no final residual was given"""


def readout(
    model: Any,
    states: Float[Tensor, "layer row d_model"],
    *,
    k: int = 5,
    targets: Int[Tensor, " row"] | None = None,
    final: Float[Tensor, "row d_model"] | None = None,
) -> Readout:
    """Read residuals out through the model's final norm and unembedding.

    Args:
        k: most likely tokens to keep.
        targets: a token a row whose rank and probability are wanted; -1 is none.
        final: residuals, a row each, that every layer's distribution is compared with.
    """
    vocab, d_model = model.unembed.weight.shape
    if not 1 <= k <= vocab:
        raise ValueError(f"readout: expected k between 1 and {vocab}, the vocabulary; got {k}")
    if states.ndim != 3 or states.shape[-1] != d_model:
        raise ValueError(
            f"readout: expected residuals [layer, row, {d_model}]; got {tuple(states.shape)}"
        )
    if targets is None:
        targets = torch.full((states.shape[1],), -1, device=states.device)
    step = max(1, LOGITS // (tile_width(model) * max(1, len(states))))
    parts = []
    for start in range(0, max(1, states.shape[1]), step):
        rows = slice(start, start + step)
        ends = None if final is None else final[rows]
        parts.append(_rows(model, states[:, rows], k, targets[rows], ends))
    return Readout(*(torch.cat(column, 1) for column in zip(*parts, strict=True)))


def tile_width(model: Any) -> int:
    """Tokens of the vocabulary in a tile of this model."""
    vocab, d_model = model.unembed.weight.shape
    return min(vocab, WIDTH, max(1, WEIGHTS // d_model))


def vocabulary_tiles(model: Any) -> Iterator[tuple[int, Tensor]]:
    """The unembedding in tiles: (first token, weight [tile, d_model] as stored)."""
    start = 0
    for tile in model.unembed.weight.split(tile_width(model)):
        yield start, tile
        start += len(tile)


def final_norm(model: Any, x: Float[Tensor, "layer row d_model"]) -> Tensor:
    """The model's last norm of any residuals, without its hook points."""
    norm = model.ln_final
    return norm.ops.rms_norm(x, norm.weight, norm.eps)


def _rows(model: Any, states: Tensor, k: int, targets: Tensor, final: Tensor | None) -> Readout:
    project = model.unembed.ops.linear
    x = final_norm(model, states)
    f = None if final is None else final_norm(model, final[None])
    wanted = model.unembed.weight[targets.clamp_min(0)].float()  # [row, d_model]
    run = _Running(k, targets, (x.float() * wanted).sum(-1))
    for start, tile in vocabulary_tiles(model):
        ends = None if f is None else project(f, tile, dtype=torch.float32)
        run.add(start, project(x, tile, dtype=torch.float32), ends)
    return run.result()


class RunningSum:
    """Sums of exp(logit - maximum) times something, over tiles, the maximum running along."""

    def __init__(self, like: Tensor):
        self.top = torch.full_like(like, -torch.inf)
        self.total, self.mean = torch.zeros_like(like), torch.zeros_like(like)

    def add(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Take a tile in; give the factor on earlier sums and the tile's weights."""
        top = torch.maximum(self.top, logits.amax(-1))
        keep, weight = (self.top - top).exp(), (logits - top[..., None]).exp()
        self.top, self.total = top, self.total * keep + weight.sum(-1)
        return keep, weight

    @property
    def log_sum_exp(self) -> Tensor:
        return self.top + self.total.log()


class _Running:
    """What has been read of a row of logits so far."""

    def __init__(self, k: int, targets: Tensor, expected: Tensor):
        """`expected` [layer, row] is the target's logit, needed to count those ahead of it."""
        self.k, self.targets, self.expected = k, targets.expand_as(expected), expected
        self.wanted = bool((targets >= 0).any())
        self.own, self.final = RunningSum(expected), None
        self.first = torch.zeros_like(expected)
        self.across = torch.full_like(expected, torch.nan)
        self.ahead = torch.zeros_like(self.targets)
        self.found = torch.full_like(expected, torch.nan)
        self.values = expected.new_empty(*expected.shape, 0)
        self.tokens = self.targets.new_empty(*expected.shape, 0)

    def add(self, start: int, logits: Tensor, ends: Tensor | None) -> None:
        """Take in the logits [layer, row, tile] of the tokens from `start` on."""
        keep, weight = self.own.add(logits)
        self.first = self.first * keep + torch.linalg.vecdot(weight, logits)
        if ends is not None:
            self._compare(logits, ends)
        if self.wanted:
            self._rank(start, logits)
        values, tokens = logits.topk(min(self.k, logits.shape[-1]))
        self.values = torch.cat([self.values, values], -1)
        self.tokens = torch.cat([self.tokens, tokens + start], -1)
        self.values, best = self.values.topk(min(self.k, self.values.shape[-1]))
        self.tokens = self.tokens.gather(-1, best)

    def _compare(self, logits: Tensor, ends: Tensor) -> None:
        if self.final is None:
            self.final = RunningSum(ends[..., 0])
            self.across = torch.zeros_like(self.across)
        keep, weight = self.final.add(ends)
        self.across = self.across * keep + torch.linalg.vecdot(weight, ends - logits)

    def _rank(self, start: int, logits: Tensor) -> None:
        """The target's own column is left out: its logit is summed in another order here."""
        column = self.targets - start
        here = (column >= 0) & (column < logits.shape[-1]) & (self.targets >= 0)
        own = logits.gather(-1, column.clamp(0, logits.shape[-1] - 1)[..., None])[..., 0]
        ahead = (logits > self.expected[..., None]).sum(-1)
        self.ahead = self.ahead + ahead - (here & (own > self.expected)).long()
        self.found = torch.where(here, own, self.found)

    def result(self) -> Readout:
        total = self.own.log_sum_exp
        kl = self.across
        if self.final is not None:
            kl = kl / self.final.total - self.final.log_sum_exp + total
        return Readout(
            self.tokens,
            self.values - total[..., None],
            total,
            (total - self.first / self.own.total).clamp_min(0),
            self.found - total,
            torch.where(self.targets >= 0, self.ahead, -1),
            kl.clamp_min(0),
        )
