"""The two runs a patch goes between, and many copies of one of them continued from any layer.

A patched run equals its base below the patched layer and, attention being causal, before the
patched position. So copies start at that layer from the base's residual, at that position with the
base's keys and values in front; copies for later layers join the batch when their layer comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from gptoss_hooks.points import HookFunction
from gptoss_workbench.kv_cache import KVCache
from gptoss_workbench.patching.metrics import Metric
from gptoss_workbench.text import Batch, Text

if TYPE_CHECKING:
    from gptoss_workbench.model import GptOss

LOGITS_AT_ONCE = 1 << 24
"""Logits that are held at a time (64 MiB of float32)."""


class Run(NamedTuple):
    """One plain run of a batch of prompts."""

    tokens: Tensor
    """[batch, pos]"""
    mask: Tensor
    """[batch, pos]"""
    kept: dict[str, Tensor]
    """hook name: activation"""
    value: Tensor
    """[batch] what the metric says of it"""

    @property
    def width(self) -> int:
        """Length of the longest prompt."""
        return self.tokens.shape[1]


def read_pair(
    model: GptOss, clean: Text | Tensor, corrupted: Text | Tensor, *, same_length: bool = True
) -> tuple[Batch, Batch]:
    """Both prompts (or batches of them, padded on the left), checked to fit each other."""
    one, other = (model.read(each, padding_side="left") for each in (clean, corrupted))
    if len(one.tokens) != len(other.tokens):
        raise ValueError(
            f"clean has {len(one.tokens)} prompts and corrupted {len(other.tokens)}: give as many"
        )
    lengths = [batch.mask.sum(1).tolist() for batch in (one, other)]
    differ = [i for i, (a, b) in enumerate(zip(*lengths, strict=True)) if a != b]
    if same_length and differ:
        raise ValueError(_mismatch(model, one, other, differ[0]))
    return one, other


def _mismatch(model: GptOss, one: Batch, other: Batch, row: int) -> str:
    """Say which spans make two prompts differ in length."""
    a, b = (batch.tokens[row][batch.mask[row]].tolist() for batch in (one, other))
    front = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    front = min(len(a), len(b)) if front is None else front
    back = 0
    while back < min(len(a), len(b)) - front and a[-1 - back] == b[-1 - back]:
        back += 1
    spans = [_span(model, tokens, front, len(tokens) - back) for tokens in (a, b)]
    return (
        f"clean and corrupted must have the same number of tokens, or positions= as pairs "
        f"(clean place, corrupted place); pair {row} has {len(a)} and {len(b)}. They differ in "
        f"clean {spans[0]} and corrupted {spans[1]}."
    )


def _span(model: GptOss, tokens: list[int], start: int, stop: int) -> str:
    span = tokens[start:stop]
    shown = span if model.tokenizer is None else "".join(model.tokenizer.strings(span))
    return f"positions {start} to {stop} ({shown!r})"


@torch.no_grad()
def run(model: GptOss, batch: Batch, metric: Metric, names: Sequence[str] = ()) -> Run:
    """Run a batch once; keep the named activations and what the metric says."""
    logits, kept = model.run_with_cache(
        batch.tokens,
        attention_mask=batch.mask,
        names_filter=list(names),
        logits_to_keep=metric.keep,
        return_cache_object=False,
    )
    return Run(batch.tokens, batch.mask, dict(kept.items()), metric(logits))


def stream_names(n_layers: int, first_layer: int = 0) -> list[str]:
    """Hook points that copies of a run are continued from."""
    parts = ("hook_resid_pre", "attn.hook_rot_k", "attn.hook_v")
    return [f"blocks.{i}.{part}" for i in range(first_layer, n_layers) for part in parts]


class Copies(NamedTuple):
    """Copies of a base run's rows, from one position on. Rows are copy-major: [copy x batch]."""

    model: Any
    base: Run
    first: int
    """position they start at; what is before comes from the base's keys and values"""

    def fresh(self, layer: int, n: int) -> Tensor:
        """The residual entering a layer, [n x batch, pos, d_model]."""
        residual = self.base.kept[f"blocks.{layer}.hook_resid_pre"][:, self.first :]
        return residual.repeat(n, 1, 1)

    def through(
        self, layer: int, x: Tensor, hooks: Sequence[tuple[str, HookFunction]] = ()
    ) -> Tensor:
        """Take rows through one layer, under hooks."""
        mask, cache = self.base.mask[:, self.first :], None
        n = len(x) // len(mask)
        if self.first:
            cache = self._prefix(layer, n)
        return self.model.run_with_hooks(
            x,
            fwd_hooks=hooks,
            attention_mask=mask.repeat(n, 1),
            start_at_layer=layer,
            stop_at_layer=layer + 1,
            past_key_values=cache,
        )

    def _prefix(self, layer: int, n: int) -> KVCache:
        """A cache in which one layer holds the base's keys and values before `first`."""
        cache, seen = self.model.new_cache(), self.base.mask[:, : self.first]
        before = cache.positions(seen)
        k, v = (
            self.base.kept[f"blocks.{layer}.attn.{name}"][:, : self.first].repeat(n, 1, 1, 1)
            for name in ("hook_rot_k", "hook_v")
        )
        cache.layers[layer].extend(k, v, before.repeat(n, 1))
        cache.advance(seen.repeat(n, 1))
        for each in cache.layers:
            each.seen = cache.seen
        return cache

    def judge(self, x: Tensor, metric: Metric) -> Tensor:
        """The metric of final residuals, [copy, batch] (one column if it judges whole batches)."""
        last, batch = self.model.n_layers, len(self.base.mask)
        wide = metric.keep or x.shape[1]
        step = max(1, LOGITS_AT_ONCE // (batch * wide * self.model.config.vocab_size)) * batch
        mask = self.base.mask[:, self.first :]
        parts = []
        for rows in x.split(step):
            seen = mask.repeat(len(rows) // batch, 1)
            logits = self.model(
                rows, attention_mask=seen, start_at_layer=last, logits_to_keep=metric.keep
            )
            parts.append(metric(logits.unflatten(0, (-1, batch))))
        return torch.cat(parts)


def first_needed(metric: Metric, width: int) -> int:
    """The first position whose logits a metric reads."""
    return width - metric.keep if metric.keep else 0
