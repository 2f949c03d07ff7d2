"""Many copies of a run, continued from any layer and position, half a layer at a time.

A patched run equals its base below the patched layer and, attention being causal, before the
patched position. So copies start at that layer from the base's residual, at that position with the
base's keys and values in front; copies for later layers join the batch when their layer comes.
Behind attention no position sees another: a patch there changes its own tokens alone, and only
they go through the experts, in one call with the tokens of the copies that run already. In the
last layer only positions that the metric reads are run; of others keys and values are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptoss_hooks.points import HookFunction, HookPoint
from gptoss_kernels import rope
from gptoss_workbench.patching.metrics import Metric
from gptoss_workbench.patching.nodes import BEFORE_EXPERTS
from gptoss_workbench.patching.runs import Run
from gptoss_workbench.patching.values import Patch

LOGITS_AT_ONCE = 1 << 24
"""Logits that are held at a time (64 MiB of float32)."""


class Seen(NamedTuple):
    """What attention sees in front of the positions it is called with; all [row, pos, ...]."""

    k: Tensor
    v: Tensor
    positions: Tensor

    def extend(self, k: Tensor, v: Tensor, positions: Tensor) -> list[Tensor]:
        """All that there is to see, as a layer of a KV cache gives it."""
        return [torch.cat(pair, 1) for pair in zip(self, (k, v, positions), strict=True)]


@dataclass(frozen=True)
class Copies:
    """Copies of a base run's rows, from one position on. Rows are copy-major: [copy x batch]."""

    model: Any
    base: Run
    first: int = 0
    """position they start at; what is before comes from the base's keys and values"""

    def fresh(self, layer: int, n: int, wide: int = 0) -> Tensor:
        """The residual entering a layer, or leaving the last one, [n x batch, pos, d_model].

        With `wide`, only its last so many positions.
        """
        last, start = self.model.n_layers - 1, self.base.width - wide if wide else self.first
        name = f"{layer}.hook_resid_pre" if layer <= last else f"{last}.hook_resid_post"
        return self.base.kept[f"blocks.{name}"][:, start:].repeat(n, 1, 1)

    def through(
        self, layer: int, x: Tensor, hooks: Sequence[tuple[str, HookFunction]] = ()
    ) -> Tensor:
        """Take copies of whole prompts through a layer, under hooks and the model's edits."""
        return self.model.run_with_hooks(
            x,
            fwd_hooks=hooks,
            attention_mask=self.base.mask.repeat(len(x) // len(self.base.mask), 1),
            start_at_layer=layer,
            stop_at_layer=layer + 1,
        )

    def attend(
        self,
        layer: int,
        x: Tensor,
        hooks: Sequence[tuple[str, HookFunction]] = (),
        keep: int = 0,
    ) -> Tensor:
        """The residual behind a layer's attention, under hooks on its heads, [row, pos, d_model].

        With `keep`, only the last so many positions come out; the others leave keys and values.
        """
        block, n = self.model.blocks[layer], len(x) // len(self.base.mask)
        late = max(0, x.shape[1] - keep) if keep else 0
        if not n:
            return x[:, late:]
        normed, attn = block.ln1(x), block.attn
        turn = tuple(each.repeat(n, 1, 1) for each in self._turn)
        positions = self._positions[:, self.first :].repeat(n, 1)
        with self.model.hooks(hooks):
            seen = self._before(layer, n)
            if late:
                k, v = _keys(attn, normed, turn)
                seen = Seen(*seen.extend(k[:, :late], v[:, :late], positions[:, :late]))
            cache = SimpleNamespace(layers={layer: seen}) if seen.k.shape[1] else None
            turn = tuple(each[:, late:] for each in turn)
            x = x[:, late:]
            return x + attn(normed[:, late:], x, block.ln1, turn, positions[:, late:], cache)

    @cached_property
    def _positions(self) -> Tensor:
        return self.model.new_cache().positions(self.base.mask)

    @cached_property
    def _turn(self) -> tuple[Tensor, Tensor]:
        return rope.tables(self._positions[:, self.first :], self.model.frequencies)

    def _before(self, layer: int, n: int) -> Seen:
        """The base's keys and values before the first position, as far back as the layer sees."""
        window = self.model.blocks[layer].attn.window
        reach = slice(0 if window is None else max(0, self.first - window + 1), self.first)
        k, v = (self.base.kept[f"blocks.{layer}.attn.{name}"] for name in ("hook_rot_k", "hook_v"))
        return Seen(*(_spread(each[:, reach], n) for each in (k, v, self._positions)))

    def leave(self, layer: int, x: Tensor, patches: Sequence[Patch], n: int) -> Tensor:
        """Take the residual behind attention to the end of a layer, [row, pos, d_model].

        Behind the rows of `x` come those of n more copies, with what patches behind this layer's
        attention make of them.
        """
        wide = x.shape[1]
        patches = [each.since(self.base.width - wide) for each in patches]
        mids = [self._mid(each) for each in patches if each.site in BEFORE_EXPERTS]
        own, *posts = self._mix(layer, [x.flatten(0, 1), *mids])
        if not n:
            return own.view_as(x)
        out = torch.cat([own.view_as(x), self.fresh(layer + 1, n, wide)])
        for each in patches:
            post = posts.pop(0) if each.site in BEFORE_EXPERTS else self._post(each)
            row = each.places.cell * len(self.base.mask) + each.places.batch
            at = (row + 1) * wide + each.places.pos - self.base.width
            out.view(-1, out.shape[2]).index_copy_(0, at, post)
        return out

    def _mix(self, layer: int, mids: Sequence[Tensor]) -> Sequence[Tensor]:
        """What experts leave of tokens behind attention, all in one call; each [token, d_model]."""
        sizes, block = [len(each) for each in mids], self.model.blocks[layer]
        x = torch.cat([each for each in mids if len(each)] or list(mids[:1]))[None]
        x = x + block.mlp(block.ln2(x)) if x.shape[1] else x
        return x[0].split(sizes)

    def _mid(self, each: Patch) -> Tensor:
        """The residual that a patch leaves behind attention, [entry, d_model]."""
        if each.site == "resid_mid":
            return each.values
        out = each.values
        if each.site == "z":
            attn, z = self.model.blocks[each.layer].attn, self._base("attn.hook_z", each)
            z[torch.arange(len(z), device=z.device), each.at[2]] = each.values
            out = attn.ops.linear(z.flatten(1), attn.o_proj.weight, attn.o_proj.bias)
        return self._base("hook_resid_pre", each) + out

    def _post(self, each: Patch) -> Tensor:
        """The residual that a patch behind the router leaves behind its layer, [entry, d_model]."""
        if each.site == "resid_post":
            return each.values
        mid = self._base("hook_resid_mid", each)
        if each.hook.endswith("hook_mlp_out"):
            return mid + each.values

        def write(tensor: Tensor, hook: HookPoint) -> Tensor:
            out = tensor.clone()
            entry = torch.arange(len(mid), device=out.device)
            out[(0, entry, *each.at[2:])] = each.values
            return out

        with self.model.hooks([(each.hook, write)]):
            return self._mix(each.layer, [mid])[0]

    def _base(self, name: str, each: Patch) -> Tensor:
        """The base's activation of a layer at the tokens that a patch changes, [entry, ...]."""
        at = each.places.batch * self.base.width + each.places.pos
        return self.base.kept[f"blocks.{each.layer}.{name}"].flatten(0, 1).index_select(0, at)

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


def _keys(attn: Any, normed: Tensor, turn: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Keys, turned, and values of a layer's normed input, and nothing else of its attention."""
    k, v = (
        attn.ops.linear(normed, each.weight, each.bias).unflatten(-1, (attn.kv_heads, -1))
        for each in (attn.k_proj, attn.v_proj)
    )
    return attn.hook_rot_k(attn.ops.rotate(attn.hook_k(k), *turn)), attn.hook_v(v)


def _spread(x: Tensor, n: int) -> Tensor:
    """Each example n times, copy-major, without copying where there is one example."""
    return x.expand(n, *x.shape).flatten(0, 1)
