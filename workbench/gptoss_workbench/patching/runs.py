"""The two runs a patch goes between, and many copies of one of them continued from any layer.

A patched run equals its base below the patched layer and, attention being causal, before the
patched position. So copies start at that layer from the base's residual, at that position with the
base's keys and values in front; copies for later layers join the batch when their layer comes.
Behind attention a patch changes its own tokens alone: only they are run to the end of the layer.
In the last layer only positions that the metric reads are run; of others keys and values are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gptoss_hooks.points import HookFunction, HookPoint
from gptoss_kernels import rope
from gptoss_workbench.kv_cache import KVCache
from gptoss_workbench.patching.metrics import Metric
from gptoss_workbench.patching.nodes import OF_EXPERTS, Cells
from gptoss_workbench.text import Batch, Text

if TYPE_CHECKING:
    from gptoss_workbench.model import GptOss
    from gptoss_workbench.patching.values import Patch

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
        names_filter=set(names).__contains__,
        logits_to_keep=metric.keep,
        return_cache_object=False,
    )
    return Run(batch.tokens, batch.mask, dict(kept.items()), metric(logits))


@torch.no_grad()
def run_both(
    model: GptOss, batches: Sequence[Batch], metric: Metric, names: Sequence[str]
) -> list[Run]:
    """Run two batches of one shape as one; keep the named activations of both."""
    n = len(batches[0].tokens)
    logits, kept = model.run_with_cache(
        torch.cat([batch.tokens for batch in batches]),
        attention_mask=torch.cat([batch.mask for batch in batches]),
        names_filter=set(names).__contains__,
        logits_to_keep=metric.keep,
        return_cache_object=False,
    )
    values = metric(logits.unflatten(0, (2, n)))
    halves = [{name: tensor[at : at + n] for name, tensor in kept.items()} for at in (0, n)]
    return [
        Run(*batch, half, value) for batch, half, value in zip(batches, halves, values, strict=True)
    ]


def observed(model: GptOss) -> bool:
    """Whether hooks of the caller look on, which expect whole prompts and every layer."""
    return any(point.observed for point in model.hook_dict.values())


def stream_names(n_layers: int, cells: Cells) -> list[str]:
    """Hook points that copies of a run are continued from."""
    parts = ("hook_resid_pre", "attn.hook_rot_k", "attn.hook_v")
    names = [f"blocks.{i}.{part}" for i in range(cells.layer.min(), n_layers) for part in parts]
    mixed = set(cells.layer[np.isin(cells.site, OF_EXPERTS)].tolist())
    mids = [f"blocks.{layer}.hook_resid_mid" for layer in sorted(mixed)]
    return [*names, *mids, f"blocks.{n_layers - 1}.hook_resid_post"]


class Copies(NamedTuple):
    """Copies of a base run's rows, from one position on. Rows are copy-major: [copy x batch]."""

    model: Any
    base: Run
    first: int
    """position they start at; what is before comes from the base's keys and values"""

    def fresh(self, layer: int, n: int) -> Tensor:
        """The residual entering a layer, or leaving the last one, [n x batch, pos, d_model]."""
        last = self.model.n_layers - 1
        name = f"{layer}.hook_resid_pre" if layer <= last else f"{last}.hook_resid_post"
        return self.base.kept[f"blocks.{name}"][:, self.first :].repeat(n, 1, 1)

    def enter(self, rows: Tensor, each: Patch, copies: np.ndarray) -> None:
        """Put into copies of the residual after a layer what a patch behind its attention does.

        There no position sees another, so an entry of the patch changes one token.
        """
        start = self.base.width - rows.shape[1]
        here = (each.places.pos >= start).nonzero()[:, 0]
        if not len(here):
            return
        cell, row, pos, *part = (x[here] for x in (*each.places[:3], *each.at[2:]))
        copy = torch.as_tensor(copies, device=rows.device)[cell]
        at = copy * len(self.base.mask) + row, pos - start
        rows[at] = self._left(each.hook, row * self.base.width + pos, part, each.values[here])

    def _left(self, hook: str, at: Tensor, part: Sequence[Tensor], values: Tensor) -> Tensor:
        """The residual that a patch behind attention leaves after its layer, [entry, d_model].

        `at` counts the base's tokens, row after row; `part` is the head or slot or neuron.
        """
        layer = self.model.hook_dict[hook].layer()
        block, site = self.model.blocks[layer], hook.removeprefix(f"blocks.{layer}.")

        def base(name: str) -> Tensor:
            return self.base.kept[f"blocks.{layer}.{name}"].flatten(0, 1).index_select(0, at)[None]

        def put(out: Tensor) -> Tensor:
            out[(0, torch.arange(len(values), device=out.device), *part)] = values
            return out

        def write(tensor: Tensor, hook: HookPoint) -> Tensor:
            return put(tensor.clone())

        if site == "hook_resid_post":
            return values
        if site == "hook_mlp_out":
            return base("hook_resid_mid")[0] + values
        if site == "attn.hook_z":
            z, o_proj = put(base(site)).flatten(2), block.attn.o_proj
            x = base("hook_resid_pre") + block.attn.ops.linear(z, o_proj.weight, o_proj.bias)
        elif site == "hook_attn_out":
            x = base("hook_resid_pre") + values
        else:
            x = values[None] if site == "hook_resid_mid" else base("hook_resid_mid")
        with self.model.hooks([(hook, write)] if site.startswith("mlp.") else []):
            return (x + block.mlp(block.ln2(x)))[0]

    def through(
        self,
        layer: int,
        x: Tensor,
        hooks: Sequence[tuple[str, HookFunction]] = (),
        *,
        keep: int = 0,
    ) -> Tensor:
        """Take rows through one layer, under hooks.

        With `keep`, only the last so many positions come out; the others leave keys and values.
        """
        start = max(self.first, self.base.width - keep) if keep else self.first
        mask = self.base.mask[:, start:]
        n = len(x) // len(mask)
        return self.model.run_with_hooks(
            x[:, start - self.first :],
            fwd_hooks=hooks,
            attention_mask=mask.repeat(n, 1),
            start_at_layer=layer,
            stop_at_layer=layer + 1,
            past_key_values=self._before(start, layer, x, hooks) if start else None,
        )

    def _before(
        self, start: int, layer: int, x: Tensor, hooks: Sequence[tuple[str, HookFunction]]
    ) -> KVCache:
        """A cache in which one layer holds keys and values: the base's, from `first` the rows'."""
        cache, seen = self.model.new_cache(self.base.width), self.base.mask[:, :start]
        n = len(x) // len(seen)
        where = cache.positions(seen).repeat(n, 1)
        k, v = (
            _spread(self.base.kept[f"blocks.{layer}.attn.{name}"][:, : self.first], n)
            for name in ("hook_rot_k", "hook_v")
        )
        if start > self.first:
            own = (each[:, : start - self.first] for each in self._keys(layer, x, hooks))
            k, v = (torch.cat(pair, 1) for pair in zip((k, v), own, strict=True))
        cache.layers[layer].extend(k, v, where)
        cache.advance(seen.repeat(n, 1))
        for each in cache.layers:
            each.seen = cache.seen
        return cache

    def _keys(
        self, layer: int, x: Tensor, hooks: Sequence[tuple[str, HookFunction]]
    ) -> tuple[Tensor, Tensor]:
        """Keys, turned, and values of rows in one layer, under hooks, and nothing else of it."""
        block = self.model.blocks[layer]
        attn, n = block.attn, len(x) // len(self.base.mask)
        positions = self.model.new_cache().positions(self.base.mask)[:, self.first :].repeat(n, 1)
        with self.model.hooks(hooks):
            normed = block.ln1(block.hook_resid_pre(x))
            k, v = (
                attn.ops.linear(normed, each.weight, each.bias).unflatten(-1, (attn.kv_heads, -1))
                for each in (attn.k_proj, attn.v_proj)
            )
            turn = rope.tables(positions, self.model.frequencies)
            return attn.hook_rot_k(attn.ops.rotate(attn.hook_k(k), *turn)), attn.hook_v(v)

    def judge(self, x: Tensor, metric: Metric) -> Tensor:
        """The metric of final residuals, [copy, batch] (one column if it judges whole batches)."""
        last, batch = self.model.n_layers, len(self.base.mask)
        wide = metric.keep or x.shape[1]
        step = max(1, LOGITS_AT_ONCE // (batch * wide * self.model.config.vocab_size)) * batch
        mask = self.base.mask[:, self.base.width - x.shape[1] :]
        parts = []
        for rows in x.split(step):
            seen = mask.repeat(len(rows) // batch, 1)
            logits = self.model(
                rows, attention_mask=seen, start_at_layer=last, logits_to_keep=metric.keep
            )
            parts.append(metric(logits.unflatten(0, (-1, batch))))
        return torch.cat(parts)


def _spread(x: Tensor, n: int) -> Tensor:
    """Each example n times, copy-major, without copying where there is one example."""
    return x.expand(n, *x.shape).flatten(0, 1)


def first_needed(metric: Metric, width: int) -> int:
    """The first position whose logits a metric reads."""
    return width - metric.keep if metric.keep else 0


def parting(one: Run, other: Run) -> int:
    """The first position at which two runs may differ, attention being causal."""
    if one.width != other.width:
        return 0
    differ = ((one.tokens != other.tokens) | (one.mask != other.mask)).any(0)
    return int(differ.long().argmax()) if bool(differ.any()) else one.width
