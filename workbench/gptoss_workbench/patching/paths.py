"""Path patching: what a sender does to the metric through its direct path into chosen receivers.

    1. run both prompts; the base is corrupted when denoising, clean when noising
    2. sender = the other run's value; everything else between it and the receivers stays as in the
       base, so only the residual carries the change; keep what the receivers compute from it
    3. run the base with the receivers set to those values; all else is computed anew

Wang et al. 2211.00593 (section 3.1, appendix), Goldowsky-Dill et al. 2304.05969. Senders: a head
(its write to the residual) or an expert slot (its weighted output). Receivers: a head's query, key
or value, the input of an expert layer (router and experts), or the final residual. Wang et al. let
MLPs between sender and receiver recompute; here that is `experts="recomputed"`, and "frozen" keeps
the one path through the residual. Receiving norms use their real scale, unless the final one is
held (`final_norm="frozen"`), which makes the path to the logits the linear direct effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gptoss_hooks.points import HookFunction, HookPoint
from gptoss_workbench.patching.copies import Copies
from gptoss_workbench.patching.metrics import Judge
from gptoss_workbench.patching.nodes import (
    PER_KV_HEAD,
    Cells,
    Wanted,
    listed,
    make_cells,
    on_grid,
    sources,
)
from gptoss_workbench.patching.result import PatchResult
from gptoss_workbench.patching.runs import Run, check_scores, read_pair, run, sides_of
from gptoss_workbench.patching.study import Study, read_metric
from gptoss_workbench.patching.sweep import TOKENS_AT_ONCE, groups
from gptoss_workbench.patching.values import Places, contribution, places_of
from gptoss_workbench.text import Text

if TYPE_CHECKING:
    from gptoss_workbench.model import GptOss

SOURCE = "path patching, Wang et al. 2211.00593; Goldowsky-Dill et al. 2304.05969"
KINDS = ("q", "k", "v", "mlp", "final")
SENDERS = ("z", "expert_out", "expert")


class Receiver(NamedTuple):
    """Where a path ends. `head` counts key/value heads for k and v; None is all of them."""

    kind: str
    """q, k, v, mlp (router and experts of a layer) or final (the residual before the last norm)"""
    layer: int | None = None
    head: int | None = None


def path_patching(
    model: GptOss,
    clean: Text | Tensor,
    corrupted: Text | Tensor,
    *,
    metric: Judge,
    receivers: Receiver | tuple | Sequence[Receiver | tuple],
    senders: Cells | str = "z",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    experts: Sequence[int] | None = None,
    slots: Sequence[int] | None = None,
    positions: Any = "all",
    between: str = "frozen",
    final_norm: str = "real",
    direction: str = "denoise",
    batch_tokens: int = TOKENS_AT_ONCE,
) -> PatchResult:
    """Patch the direct path from each sender into all receivers at once, and read the metric.

    path_patching(model, clean, corrupted, metric=metric, receivers="final")
    path_patching(model, clean, corrupted, metric=metric, receivers=[("q", 3, 5), ("k", 3, 1)])

    Args:
        receivers: (kind, layer, head), one or several; kind is q, k, v, mlp or final.
        senders: "z" (heads), "expert_out" (slots by rank) or "expert" (by number), or cells of
            these; a grid without `layers` is every layer upstream of the last receiver.
        positions: of the sender, as in `activation_patching`; a receiver receives everywhere.
        between: "frozen", or "recomputed" to let expert layers on the way answer.
        final_norm: "real", or "frozen" at the base's scale.

    Raises ValueError for a sender that is not upstream of any receiver.
    """
    _among("between", between, ("frozen", "recomputed"))
    _among("final_norm", final_norm, ("real", "frozen"))
    _among("direction", direction, ("denoise", "noise"))
    ends = _receivers(model, receivers)
    batches = read_pair(model, clean, corrupted)
    sides, base = sides_of(batches), 1 if direction == "denoise" else 0
    if isinstance(senders, str):
        _among("senders", senders, SENDERS)
        layers = _upstream_layers(senders, ends, model.n_layers) if layers is None else layers
        wanted = Wanted(layers, positions, heads, slots, experts)
        senders = make_cells(senders, wanted, model.config, sides, base)
    _check(senders, ends)
    asked, senders = senders, on_grid(senders, sides, base)
    judge = read_metric(metric, model, sides)
    runs = [run(model, batch, judge, _names(model, senders)) for batch in batches]
    check_scores(runs[0], runs[1], judge)
    study = Study(senders, asked, judge, runs[0], runs[1], direction)
    paths = _Paths(model, study, ends, between == "recomputed", final_norm == "frozen")
    step = max(1, batch_tokens // study.base.tokens.numel())
    rows = [np.arange(i, min(i + step, len(senders))) for i in range(0, len(senders), step)]
    value = torch.cat([paths.values(senders[each]) for each in rows])
    said = f"receivers {', '.join(map(_said, ends))}; expert layers between {between}"
    notes = (f"{said}; final norm {final_norm}",)
    return study.result(model, value, method="path patching", source=SOURCE, notes=notes)


class _Paths(NamedTuple):
    """One set of receivers, for any senders."""

    model: Any
    study: Study
    ends: list[Receiver]
    recompute: bool
    hold_norm: bool

    @torch.no_grad()
    def values(self, senders: Cells) -> Tensor:
        """The metric with each sender's paths patched, [cell, batch]."""
        base, n = self.study.base, len(senders)
        writes, exists = self._writes(senders)
        moved = torch.zeros(n, *base.kept["blocks.0.hook_resid_pre"].shape, device=writes[1].device)
        hooks: dict[int, list[tuple[str, HookFunction]]] = {}
        for layer in range(self.model.n_layers):
            hooks[layer] = [self._into_head(e, moved) for e in self._at(layer, "qkv")]
            self._send(senders, layer, ("z",), moved, writes)
            hooks[layer] += [self._into_experts(layer, moved) for _ in self._at(layer, ("mlp",))]
            if self.recompute:
                mixed = self._mix(layer, moved).float().unflatten(0, (n, -1))
                moved += mixed - base.kept[f"blocks.{layer}.hook_mlp_out"].float()
            self._send(senders, layer, ("expert_out", "expert"), moved, writes)
        value = self._read(moved, hooks)
        alive = exists if value.shape[1] == exists.shape[1] else exists.any(1, keepdim=True)
        return value.float().cpu().masked_fill(~alive, torch.nan)

    def _at(self, layer: int, kinds: Sequence[str]) -> list[Receiver]:
        return [end for end in self.ends if end.layer == layer and end.kind in kinds]

    def _writes(self, senders: Cells) -> tuple[tuple[Tensor, ...], Tensor]:
        """Where in [cell, batch, pos] senders write, what they write, and whether they do."""
        base, other = self.study.base, self.study.other
        at, deltas = [], []
        for group in groups(senders):
            places = places_of(senders[group], base, other)
            deltas.append(_write(self.model, senders[group], places, base, other))
            cell = torch.as_tensor(group, device=places.cell.device)[places.cell]
            at.append(torch.stack([cell, places.batch, places.pos]))
        cell, batch, pos = torch.cat(at, 1)
        exists = torch.zeros(len(senders), len(base.tokens), dtype=torch.bool)
        exists[cell.cpu(), batch.cpu()] = True
        return (cell, torch.cat(deltas), batch, pos), exists

    def _send(
        self, senders: Cells, layer: int, sites: Sequence[str], moved: Tensor, writes: tuple
    ) -> None:
        """Add what the senders of a layer write to their own copies of the stream."""
        cell, delta, batch, pos = writes
        now = (senders.layer == layer) & np.isin(senders.site, sites)
        keep = torch.as_tensor(now, device=cell.device)[cell]
        index = (cell[keep], batch[keep], pos[keep])
        moved.index_put_(index, delta[keep], accumulate=True)

    def _stream(self, name: str, moved: Tensor) -> Tensor:
        """The base's residual at a hook, moved, [cell x batch, pos, d_model]."""
        base = self.study.base.kept[name]
        return (base.float() + moved).to(base.dtype).flatten(0, 1)

    def _mix(self, layer: int, moved: Tensor) -> Tensor:
        """What an expert layer makes of its moved input."""
        block = self.model.blocks[layer]
        return block.mlp(block.ln2(self._stream(f"blocks.{layer}.hook_resid_mid", moved)))

    def _into_head(self, end: Receiver, moved: Tensor) -> tuple[str, HookFunction]:
        """Set one head's query, key or value to what it computes from the moved stream."""
        block = self.model.blocks[end.layer]
        normed = block.ln1(self._stream(f"blocks.{end.layer}.hook_resid_pre", moved))
        kind = end.kind.upper()
        weight, bias = (getattr(block.attn, f"{each}_{kind}")[end.head] for each in "Wb")
        value = (normed.float() @ weight.float() + bias.float()).to(normed.dtype)

        def receive(tensor: Tensor, hook: HookPoint) -> Tensor:
            out = tensor.clone()
            out[:, :, end.head] = value
            return out

        return f"blocks.{end.layer}.attn.hook_{end.kind}", receive

    def _into_experts(self, layer: int, moved: Tensor) -> tuple[str, HookFunction]:
        mixed = self._mix(layer, moved)
        return f"blocks.{layer}.hook_mlp_out", lambda tensor, hook: mixed

    def _read(self, moved: Tensor, hooks: dict[int, list]) -> Tensor:
        """Run the base with its receivers set, and judge it."""
        copies = Copies(self.model, self.study.base)
        last, n = self.model.n_layers, len(moved)
        if self.ends[0].kind == "final":
            x = self._stream(f"blocks.{last - 1}.hook_resid_post", moved)
        else:
            first = min(layer for layer, here in hooks.items() if here)
            x = copies.fresh(first, n)
            for layer in range(first, last):
                x = copies.through(layer, x, hooks[layer])
        with self.model.hooks(self._held() if self.hold_norm else []):
            return copies.judge(x, self.study.metric)

    def _held(self) -> list[tuple[str, HookFunction]]:
        scale = self.study.base.kept["ln_final.hook_scale"]

        def hold(found: Tensor, hook: HookPoint) -> Tensor:
            return scale.repeat(len(found) // len(scale), 1, 1)

        return [("ln_final.hook_scale", hold)]


def _write(model: GptOss, cells: Cells, at: Places, base: Run, other: Run) -> Tensor:
    """Other minus base: what senders of one site and layer write, [entry, d_model] float32."""
    site, layer = str(cells.site[0]), int(cells.layer[0])
    sides = ((other, at.source), (base, at.pos))
    if site == "z":
        name = f"blocks.{layer}.attn.hook_z"
        head = at.part("head")
        z, gone = (run.kept[name][at.batch, pos, head].float() for run, pos in sides)
        weight = model.blocks[layer].attn.W_O.float()[head]  # [entry, d_head, d_model]
        return torch.einsum("eh,ehd->ed", z - gone, weight)
    if site == "expert":
        new, old = (contribution(at, run, layer, pos) for run, pos in sides)
        return new - old
    new, old = (_slot(run, layer, at, pos) for run, pos in sides)
    return new - old


def _slot(run: Run, layer: int, at: Places, pos: Tensor) -> Tensor:
    weights, outs = (run.kept[f"blocks.{layer}.mlp.hook_expert_{n}"] for n in ("weights", "out"))
    slot = at.part("slot")
    return weights[at.batch, pos, slot][:, None] * outs[at.batch, pos, slot]


def _names(model: GptOss, senders: Cells) -> list[str]:
    """Hook points a study of paths needs, in both runs."""
    layers = range(model.n_layers)
    parts = ("hook_resid_pre", "hook_resid_mid", "hook_mlp_out")
    names = [f"blocks.{layer}.{part}" for layer in layers for part in parts]
    names += [f"blocks.{model.n_layers - 1}.hook_resid_post", "ln_final.hook_scale"]
    names += [
        f"blocks.{layer}.mlp.hook_expert_{part}"
        for layer in sorted(set(senders.layer[senders.site != "z"].tolist()))
        for part in ("indices", "weights", "out")
    ]
    return [*names, *sources(senders[senders.site == "z"])]


def _receivers(model: GptOss, given: Any) -> list[Receiver]:
    """Check receivers; one without a head is all of its heads."""
    given = (given,) if isinstance(given, str) else given
    one = isinstance(given, Receiver) or (given and isinstance(given[0], str))
    every: list[Any] = [given] if one else list(given)
    ends = [Receiver(*each) for each in every]
    if not ends:
        raise ValueError("receivers: give at least one, as (kind, layer, head)")
    out = []
    for end in ends:
        _among("receiver", end.kind, KINDS)
        if end.kind == "final":
            if len(ends) > 1:
                raise ValueError("receivers: 'final' takes in every path, so give it alone")
            return [Receiver("final")]
        if end.layer is None:
            raise ValueError(f"receivers: {end.kind} needs a layer, as ({end.kind!r}, layer, head)")
        (layer,) = listed("receivers: layer", end.layer, model.n_layers)
        out += [Receiver(end.kind, int(layer), head) for head in _heads(model, end)]
    return out


def _heads(model: GptOss, end: Receiver) -> list[int | None]:
    if end.kind == "mlp":
        return [None]
    config = model.config
    shared = end.kind in PER_KV_HEAD
    size = config.num_key_value_heads if shared else config.num_attention_heads
    return listed("receivers: head", end.head, size).tolist()


def _reaches(site: str, layer: int, end: Receiver) -> bool:
    """Whether a sender writes before a receiver reads."""
    if end.layer is None:
        return True
    return layer <= end.layer if (site, end.kind) == ("z", "mlp") else layer < end.layer


def _upstream_layers(site: str, ends: list[Receiver], n_layers: int) -> list[int]:
    found = [i for i in range(n_layers) if any(_reaches(site, i, end) for end in ends)]
    if not found:
        raise ValueError(f"path_patching: nothing is upstream of {', '.join(map(_said, ends))}")
    return found


def _check(senders: Cells, ends: list[Receiver]) -> None:
    for i in range(len(senders)):
        site, layer = str(senders.site[i]), int(senders.layer[i])
        _among("senders", site, SENDERS)
        if not any(_reaches(site, layer, end) for end in ends):
            raise ValueError(
                f"path_patching: sender {senders.describe(i)} is not upstream of "
                f"{', '.join(map(_said, ends))}; choose an earlier layer"
            )


def _said(end: Receiver) -> str:
    return " ".join(str(part) for part in end if part is not None)


def _among(what: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise ValueError(f"{what} is one of {', '.join(known)}; got {given!r}")
