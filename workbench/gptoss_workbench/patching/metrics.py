"""What a patched run is judged by: one number for each row, read off the last logits.

    logit_difference   logit(right) - logit(wrong)
    log_prob           log softmax(logits)[token], nats
    kl_divergence      Σ p log(p / q) with p the reference run, q the patched run, nats
    loss               mean next-token cross entropy over the real tokens, nats per token

Positions count from the end, so that only the logits that are read are computed. A token is an
id, or text that is one token (" 7", with its space), which `as_metric` looks up in a vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from gptoss_workbench.model import GptOss

Token = int | str | Sequence[int] | Sequence[str] | Tensor
"""A token, or one for each row."""


class Metric(NamedTuple):
    """A number for every row of a batch."""

    name: str
    keep: int
    """how many of the last positions it reads; 0 means all"""
    of: Callable[..., Tensor]
    """logits [..., batch, pos, vocab] (float32, the last `keep` positions), and an id (or one a
    row) for each of `tokens`, to [..., batch]"""
    tokens: tuple[Token, ...] = ()
    rows: int | None = None
    """rows it holds values for, in their order; None: it takes any"""

    def __call__(
        self, logits: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The number of each row.

        Args:
            logits: [..., batch, pos, vocab], padded on the left.
            tokens: not read; they stand here so that this is a metric of an effect table too.
            mask: [batch, pos] real tokens, where logits [batch, pos, vocab] have padding elsewhere.
        """
        logits = logits.float() if mask is None else _to_the_end(logits, mask, self.keep).float()
        return self.of(logits, *(_known(each, logits) for each in self.tokens))


Judge = Metric | Callable[..., Any]
"""A Metric, or a function of logits [batch, pos, vocab] that gives a number or one a row."""


def logit_difference(right: Token, wrong: Token, *, position: int = -1) -> Metric:
    """How far the right token's logit is above the wrong one's.

    metric = logit_difference(" 7", " 3")

    Args:
        right, wrong: a token (id or text), or one for each row of the batch.
        position: where to read, from the end.
    """
    keep = _from_end(position)

    def of(logits: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
        last = logits[..., -keep, :]
        return _pick(last, right) - _pick(last, wrong)

    return Metric("logit difference", keep, of, (right, wrong), _rows_of(right, wrong))


def log_prob(token: Token, *, position: int = -1) -> Metric:
    """Log probability, in nats, of a token (or of one for each row)."""
    keep = _from_end(position)

    def of(logits: Tensor, token: Tensor) -> Tensor:
        return _pick(logits[..., -keep, :].log_softmax(-1), token)

    return Metric("log prob", keep, of, (token,), _rows_of(token))


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

    rows = len(reference) if len(reference) > 1 else None
    return Metric("KL to reference", keep, of, rows=rows)


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

    return Metric("loss", 0, of, rows=len(tokens))


def as_metric(metric: Judge, model: GptOss) -> Metric:
    """The metric with ids for its tokens, or a function of logits [batch, pos, vocab] as one.

    Raises ValueError for text that is not one token, and for ids that the vocabulary lacks.
    A function that gives one number for the whole batch (TransformerLens's habit) stands as one
    row: there are then no values for each example.
    """
    if isinstance(metric, Metric):
        ids = [_ids(each, model.to_single_token) for each in metric.tokens]
        for each in ids:
            _check_range(each, model.config.vocab_size)
        ids = [each.to(model.cfg.device) for each in ids]
        return metric._replace(of=lambda logits: metric.of(logits, *ids), tokens=())
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


def _rows_of(*tokens: Token) -> int | None:
    """How many rows have tokens of their own."""
    many = [len(t) for t in tokens if not isinstance(t, (str, int)) and _several(t)]
    return max(many, default=None)


def _several(token: Any) -> bool:
    return bool(token.ndim) if hasattr(token, "ndim") else isinstance(token, Sequence)


def _ids(token: Any, look_up: Callable[[str], int]) -> Tensor:
    """Ids of a token or of one for each row, on the CPU where they come from Python."""
    if isinstance(token, str):
        token = look_up(token)
    elif isinstance(token, Sequence):
        token = [look_up(each) if isinstance(each, str) else each for each in token]
    try:
        ids = torch.as_tensor(token)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"metric: a token is an id or text; got {token!r}") from error
    if ids.dtype.is_floating_point or ids.dtype == torch.bool:
        raise ValueError(f"metric: a token is an id or text; got {token!r}")
    return ids.long()


def _check_range(ids: Tensor, vocab: int) -> None:
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab:
        wrong = low if low < 0 else high
        raise ValueError(f"metric: tokens are 0 to {vocab - 1} in this vocabulary; got {wrong}")


def _known(token: Token, logits: Tensor) -> Tensor:
    """Ids on the device of the logits, whose vocabulary has them."""

    def unknown(text: str) -> int:
        raise ValueError(
            f"metric: {text!r} needs a vocabulary; write model.to_single_token({text!r})"
        )

    ids = _ids(token, unknown)
    _check_range(ids, logits.shape[-1])
    return ids.to(logits.device)


def _to_the_end(logits: Tensor, mask: Tensor, keep: int) -> Tensor:
    """The last `keep` real tokens of each row (0: all of the longest), [batch, pos, vocab]."""
    lengths = mask.sum(1)
    if int(lengths.min()) < keep:
        raise ValueError(f"metric: reads place {-keep}, but a row has {int(lengths.min())} tokens")
    wide = keep or int(lengths.max())
    order = mask.long().argsort(dim=1, stable=True)[:, -wide:]
    return logits.gather(1, order[..., None].expand(-1, -1, logits.shape[-1]))


def _pick(values: Tensor, token: Tensor) -> Tensor:
    """values [..., batch, vocab] at a token, or at each row's own."""
    if token.ndim > 1 or (token.ndim == 1 and len(token) != values.shape[-2]):
        raise ValueError(
            f"metric: expected one token, or one for each of {values.shape[-2]} rows; "
            f"got shape {tuple(token.shape)}"
        )
    index = token.expand(values.shape[:-1])[..., None]
    return values.gather(-1, index)[..., 0]
