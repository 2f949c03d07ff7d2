"""What a patched run is judged by: one number for each row, read off the last logits.

    logit_difference   logit(right) - logit(wrong)
    log_prob           log softmax(logits)[token], nats
    kl_divergence      Σ p log(p / q) with p the reference run, q the patched run, nats
    loss               mean next-token cross entropy over the real tokens, nats per token

Positions count from the end, so that only the logits that are read are computed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Metric(NamedTuple):
    """A number for every row of a batch."""

    name: str
    keep: int
    """how many of the last positions it reads; 0 means all"""
    of: Callable[[Tensor], Tensor]
    """logits [..., batch, pos, vocab] (float32, the last `keep` positions) to [..., batch]"""

    def __call__(self, logits: Tensor) -> Tensor:
        """The number of each row."""
        return self.of(logits.float())


Judge = Metric | Callable[[Tensor], Any]
"""A Metric, or a function of logits [batch, pos, vocab] that gives a number or one a row."""


def logit_difference(right: Any, wrong: Any, *, position: int = -1) -> Metric:
    """How far the right token's logit is above the wrong one's.

    metric = logit_difference(model.to_single_token("7"), model.to_single_token("3"))

    Args:
        right, wrong: a token, or one for each row of the batch.
        position: where to read, from the end.
    """
    keep = _from_end(position)

    def of(logits: Tensor) -> Tensor:
        last = logits[..., -keep, :]
        return _pick(last, right) - _pick(last, wrong)

    return Metric("logit difference", keep, of)


def log_prob(token: Any, *, position: int = -1) -> Metric:
    """Log probability, in nats, of a token (or of one for each row)."""
    keep = _from_end(position)
    return Metric("log prob", keep, lambda x: _pick(x[..., -keep, :].log_softmax(-1), token))


def kl_divergence(reference: Tensor, *, position: int = -1) -> Metric:
    """KL(reference || patched) in nats; 0 when the run predicts what the reference predicts.

    Args:
        reference: logits [batch, vocab] at that position of the run to compare with.
    """
    keep = _from_end(position)
    if reference.ndim != 2:
        raise ValueError(
            f"kl_divergence: expected reference logits [batch, vocab] at one position; "
            f"got {tuple(reference.shape)}"
        )
    wanted = reference.detach().float().log_softmax(-1)

    def of(logits: Tensor) -> Tensor:
        found = logits[..., -keep, :].log_softmax(-1)
        return (wanted.exp() * (wanted - found)).sum(-1)

    return Metric("KL to reference", keep, of)


def loss(tokens: Tensor, *, mask: Tensor | None = None) -> Metric:
    """Mean cross entropy of predicting each next token, over all real tokens of a row."""
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
    known = real[:, 1:] & real[:, :-1]

    def of(logits: Tensor) -> Tensor:
        flat = logits[..., :-1, :].flatten(0, -4) if logits.ndim > 3 else logits[None, :, :-1]
        wide = flat.permute(0, 3, 1, 2)  # [cell, vocab, batch, pos]
        aims = tokens[:, 1:].expand(len(wide), -1, -1)
        spent = F.cross_entropy(wide, aims, reduction="none") * known
        mean = spent.sum(-1) / known.sum(-1)
        return mean.view(logits.shape[:-2])

    return Metric("loss", 0, of)


def as_metric(metric: Judge) -> Metric:
    """The metric itself, or a plain function of logits [batch, pos, vocab] made into one.

    A function that gives one number for the whole batch (TransformerLens's habit) stands as one
    row: there are then no values for each example.
    """
    if isinstance(metric, Metric):
        return metric
    if not callable(metric):
        raise ValueError(f"metric: expected a Metric or a function of logits; got {metric!r}")

    def of(logits: Tensor) -> Tensor:
        cells = logits.flatten(0, -4) if logits.ndim > 3 else logits[None]
        each = torch.stack([_rows(metric(cell), cell) for cell in cells])
        return each.view(*logits.shape[:-3], -1)

    return Metric(getattr(metric, "__name__", "metric"), 0, of)


def _rows(value: Any, logits: Tensor) -> Tensor:
    value = torch.as_tensor(value, dtype=torch.float32, device=logits.device)
    if value.ndim > 1 or (value.ndim == 1 and len(value) not in (1, len(logits))):
        raise ValueError(
            f"metric: expected a number, or one for each of {len(logits)} rows; "
            f"got shape {tuple(value.shape)}"
        )
    return value.reshape(-1)


def _from_end(position: int) -> int:
    if position >= 0:
        raise ValueError(
            f"position counts from the end of the prompt, so it is -1 or less; got {position}. "
            "Write place - length."
        )
    return -position


def _pick(values: Tensor, token: Any) -> Tensor:
    """values [..., batch, vocab] at a token, or at each row's own."""
    token = torch.as_tensor(token, device=values.device)
    if token.ndim > 1 or (token.ndim == 1 and len(token) != values.shape[-2]):
        raise ValueError(
            f"metric: expected one token, or one for each of {values.shape[-2]} rows; "
            f"got shape {tuple(token.shape)}"
        )
    index = token.expand(values.shape[:-1])[..., None]
    return values.gather(-1, index)[..., 0]
