"""What residuals say about the next token, without ever storing a row of logits.

    l           = W_U x                            x is normed; float32, no bias
    log_sum_exp = log Σ exp(l)                     log p = l - log_sum_exp, in nats
    entropy     = log_sum_exp - E_p[l]
    KL(f || x)  = E_f[l_f - l] - log_sum_exp_f + log_sum_exp

All sums run over tiles of the vocabulary in one pass with a running maximum (Milakov and
Gimelshein, arXiv 1805.02867), so memory is rows x (tile + k) whatever the vocabulary. Logits stay
in float32: in bfloat16 the largest would tie. No gradients.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_kernels.linear import linear

WIDTH = 2048
"""Most tokens of the vocabulary in a tile."""
WEIGHTS = 1 << 22
"""Unembedding weights widened at a time: 16 MiB of float32."""
LOGITS = 1 << 21
"""Logits held at a time: 8 MiB of float32."""


class Lens(NamedTuple):
    """What each residual predicts."""

    tokens: Int[Tensor, "layer row k"]
    """the most likely tokens, best first"""
    logits: Float[Tensor, "layer row k"]
    """theirs"""
    log_sum_exp: Float[Tensor, "layer row"]
    """of all logits: log p = logit - log_sum_exp"""
    entropy: Float[Tensor, "layer row"]
    """nats"""
    target_logit: Float[Tensor, "layer row"]
    """NaN without a target"""
    rank: Int[Tensor, "layer row"]
    """tokens with a larger logit than the target's (0: it is the top one); -1 without a target"""
    kl: Float[Tensor, "layer row"]
    """KL(final || this) in nats; NaN where no final residual was given"""


def lens(
    x: Float[Tensor, "layer row d_model"],
    weight: Float[Tensor, "vocab d_model"],
    *,
    k: int = 5,
    targets: Int[Tensor, " row"] | None = None,
    final: Float[Tensor, "row d_model"] | None = None,
) -> Lens:
    """Read normed residuals out through the unembedding.

    Args:
        k: most likely tokens to keep.
        targets: a token a row whose logit and rank are wanted; -1 is none.
        final: normed residuals, a row each, that every layer's distribution is compared with.
    """
    targets = checked(x, weight, k, targets)
    step = max(1, LOGITS // (tile_width(weight) * max(1, len(x))))
    parts = []
    with torch.no_grad():
        for start in range(0, max(1, x.shape[1]), step):
            rows = slice(start, start + step)
            ends = None if final is None else final[rows]
            parts.append(_rows(x[:, rows], weight, k, targets[rows], ends))
    return Lens(*(torch.cat(column, 1) for column in zip(*parts, strict=True)))


def checked(x: Tensor, weight: Tensor, k: int, targets: Tensor | None) -> Tensor:
    """The targets [row], -1 where there is none; raises ValueError for what cannot be read out."""
    vocab, d_model = weight.shape
    if not 1 <= k <= vocab:
        raise ValueError(f"lens: expected k between 1 and {vocab}, the vocabulary; got {k}")
    if x.ndim != 3 or x.shape[-1] != d_model:
        raise ValueError(f"lens: expected residuals [layer, row, {d_model}]; got {tuple(x.shape)}")
    if targets is None:
        return torch.full((x.shape[1],), -1, device=x.device)
    if bool((targets >= vocab).any()):
        raise ValueError(f"lens: targets are tokens below {vocab}; got {int(targets.max())}")
    return targets


def tile_width(weight: Float[Tensor, "vocab d_model"]) -> int:
    """Tokens of the vocabulary in a tile."""
    vocab, d_model = weight.shape
    return min(vocab, WIDTH, max(1, WEIGHTS // d_model))


def tiles(weight: Float[Tensor, "vocab d_model"]) -> Iterator[tuple[int, Tensor]]:
    """The unembedding in tiles: (first token, weight [tile, d_model] as stored)."""
    start = 0
    for tile in weight.split(tile_width(weight)):
        yield start, tile
        start += len(tile)


def _rows(x: Tensor, weight: Tensor, k: int, targets: Tensor, final: Tensor | None) -> Lens:
    wanted = weight[targets.clamp_min(0)].float()  # [row, d_model]
    run = _Running(k, targets, (x.float() * wanted).sum(-1))
    for start, tile in tiles(weight):
        ends = None if final is None else linear(final[None], tile, dtype=torch.float32)
        run.add(start, linear(x, tile, dtype=torch.float32), ends)
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

    def result(self) -> Lens:
        total = self.own.log_sum_exp
        kl = self.across
        if self.final is not None:
            kl = kl / self.final.total - self.final.log_sum_exp + total
        return Lens(
            self.tokens,
            self.values,
            total,
            (total - self.first / self.own.total).clamp_min(0),
            self.found,
            torch.where(self.targets >= 0, self.ahead, -1),
            kl.clamp_min(0),
        )
