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
        x = _spread(self.base.kept[f"blocks.{name}"][:, start:], n)
        return x.clone(memory_format=torch.contiguous_format)

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
        *turn, positions = (_spread(each, n) for each in self._turn)
        with self.model.hooks(hooks):
            seen = self._before(layer, n)
            if late:
                k, v = _keys(attn, normed, turn)
                seen = Seen(*seen.extend(k[:, :late], v[:, :late], positions[:, :late]))
            cache = SimpleNamespace(layers={layer: seen}) if seen.k.shape[1] else None
            x, normed, positions, *turn = (each[:, late:] for each in (x, normed, positions, *turn))
            return x + attn(normed, x, block.ln1, turn, positions, cache)

    @cached_property
    def _positions(self) -> Tensor:
        return self.model.new_cache().positions(self.base.mask)

    @cached_property
    def _turn(self) -> tuple[Tensor, Tensor, Tensor]:
        """Cosine, sine and number of the positions that are run, [batch, pos, ...]."""
        positions = self._positions[:, self.first :]
        return *rope.tables(positions, self.model.frequencies), positions

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
        wide, own, batch = x.shape[1], x.shape[0] * x.shape[1], len(self.base.mask)
        patches = [each.since(self.base.width - wide) for each in patches]
        before = [each for each in patches if each.site in BEFORE_EXPERTS]
        behind = [each for each in patches if each.site not in BEFORE_EXPERTS]
        mixed = self._mix(layer, torch.cat([x.flatten(0, 1), *map(self._mid, before)]))
        if not n:
            return mixed.view_as(x)
        rows = [each.places.cell * batch + each.places.batch for each in before + behind]
        pos = [each.places.pos - self.base.width for each in before + behind]
        at = (torch.cat(rows) + 1) * wide + torch.cat(pos)
        if torch.equal(at, torch.arange(own, own + n * batch * wide, device=at.device)):
            x = torch.cat([mixed, *map(self._post, behind)]) if behind else mixed
        else:
            x = torch.cat([mixed[:own], self.fresh(layer + 1, n, wide).flatten(0, 1)])
            x.index_copy_(0, at, torch.cat([mixed[own:], *map(self._post, behind)]))
        return x.view(-1, wide, x.shape[1])

    def _mix(self, layer: int, x: Tensor) -> Tensor:
        """What experts leave of tokens behind attention, [token, d_model]."""
        block = self.model.blocks[layer]
        return x + block.mlp(block.ln2(x[None]))[0] if len(x) else x

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
            return self._mix(each.layer, mid)

    def _base(self, name: str, each: Patch) -> Tensor:
        """The base's activation of a layer at the tokens that a patch changes, [entry, ...]."""
        at = each.places.batch * self.base.width + each.places.pos
        return self.base.kept[f"blocks.{each.layer}.{name}"].flatten(0, 1).index_select(0, at)

    def judge(self, x: Tensor, metric: Metric) -> Tensor:
        """The metric of final residuals, [copy, batch] (one column if it judges whole batches)."""
        batch, wide = len(self.base.mask), metric.keep or x.shape[1]
        step = max(1, LOGITS_AT_ONCE // (batch * wide * self.model.config.vocab_size)) * batch
        logits = (self._read(rows, metric.keep) for rows in x.split(step))
        return torch.cat([metric(each.unflatten(0, (-1, batch))) for each in logits])

    def _read(self, x: Tensor, keep: int) -> Tensor:
        """Logits of final residuals, under the model's edits if there are any."""
        if not self.model.active_edits:
            return self.model.unembed(self.model.ln_final(x)[:, -keep:])
        mask = self.base.mask[:, self.base.width - x.shape[1] :]
        return self.model(
            x,
            attention_mask=mask.repeat(len(x) // len(mask), 1),
            start_at_layer=self.model.n_layers,
            logits_to_keep=keep,
        )


def _keys(attn: Any, normed: Tensor, turn: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Keys, turned, and values of a layer's normed input, and nothing else of its attention."""
    k, v = (
        attn.ops.linear(normed, each.weight, each.bias).unflatten(-1, (attn.kv_heads, -1))
        for each in (attn.k_proj, attn.v_proj)
    )
    return attn.hook_rot_k(attn.ops.rotate(attn.hook_k(k), *turn)), attn.hook_v(v)


def _spread(x: Tensor, n: int) -> Tensor:
    """Each example n times, copy-major, without copying where there is one example."""
    return x.expand(n, *x.shape).flatten(0, 1)
