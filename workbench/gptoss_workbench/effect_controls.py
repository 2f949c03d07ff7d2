"""Random interventions that match a given one: same verb, same sizes, other targets.

Experts are matched by load, heads and neurons by layer, vectors by norm; see `effects`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptoss_hooks import axes
from gptoss_hooks.edits import Edit, SiteEdit
from gptoss_hooks.edits.routing import ExpertsEdit, SteerExperts, Swap
from gptoss_hooks.edits.sites import Steer, names_of
from gptoss_hooks.points import EditError
from gptoss_workbench.text import Batch

Loads = Mapping[int, np.ndarray]
"""Layer: share of slots that each expert takes"""


@torch.no_grad()
def loads(
    model: Any, batches: Sequence[tuple[list[int], Batch]], edits: Sequence[Edit]
) -> dict[int, np.ndarray]:
    """Share of slots of every expert in an unedited run; empty where no edit names experts."""
    if not any(_names_experts(edit) for edit in edits):
        return {}
    counts = torch.zeros(model.cfg.n_layers, model.cfg.num_experts, dtype=torch.double)
    for _, (tokens, mask) in batches:

        def keep(indices: Tensor, hook: Any, mask: Tensor = mask) -> None:
            chosen = indices[mask].flatten().cpu()
            counts[hook.layer()] += torch.bincount(chosen, minlength=counts.shape[1])

        with model.recording("expert_indices", keep):
            model(tokens, return_type=None, attention_mask=mask)
    share = counts / counts.sum(1, keepdim=True)
    return {layer: row.numpy() for layer, row in enumerate(share)}


def control_of(
    edits: Sequence[Edit], model: Any, load: Loads, rng: np.random.Generator
) -> list[Edit]:
    """The edits with random targets in place of theirs; those that name none stay."""
    out: list[Edit] = []
    for edit in edits:
        out += _drawn(edit, model, load, rng)
    if out == list(edits):
        raise EditError(
            f"effect_table: {', '.join(map(repr, edits))} names no experts, heads, neurons or "
            "vector that other ones could stand for; give controls=0"
        )
    return out


def _names_experts(edit: Edit) -> bool:
    if isinstance(edit, SteerExperts):
        return True
    return bool(getattr(edit, "experts", None))


def _drawn(edit: Edit, model: Any, load: Loads, rng: np.random.Generator) -> list[Edit]:
    if isinstance(edit, SteerExperts):
        return [_steered(edit, model, load, rng)]
    if isinstance(edit, SiteEdit) and edit.experts is not None and edit.layers is None:
        named = [axes.layer_of(name) for name in names_of(edit, model)]
        if len(named) == 1 and named[0] is not None:
            return [replace(edit, experts=tuple(matched(edit.experts, load[named[0]], rng)))]
    if _names_experts(edit):
        n = model.cfg.n_layers
        layers = range(n) if edit.layers is None else [each % n for each in edit.layers]
        return [_other_experts(edit, layer, load, rng) for layer in layers]
    if isinstance(edit, SiteEdit) and (edit.heads is not None or edit.neurons is not None):
        cfg, at = model.cfg, model.hook_axes(names_of(edit, model)[0])
        n_heads = cfg.n_heads if "head" in at else cfg.n_key_value_heads
        heads = None if edit.heads is None else _others(edit.heads, n_heads, rng)
        neurons = None if edit.neurons is None else _others(edit.neurons, cfg.d_mlp, rng)
        return [replace(edit, heads=heads, neurons=neurons)]
    if isinstance(edit, Steer):
        return [replace(edit, vector=_random_vectors(edit.vector, rng))]
    return [edit]


def _other_experts(edit: Edit, layer: int, load: Loads, rng: np.random.Generator) -> Edit:
    if isinstance(edit, Swap):
        flat = [expert for pair in edit.experts for expert in pair]
        drawn = matched(flat, load[layer], rng)
        pairs = tuple(zip(drawn[0::2], drawn[1::2], strict=True))
        return replace(edit, layers=(layer,), experts=pairs)
    assert isinstance(edit, (ExpertsEdit, SiteEdit)) and edit.experts is not None
    drawn = matched(edit.experts, load[layer], rng)
    return replace(edit, layers=(layer,), experts=tuple(drawn))


def _steered(edit: SteerExperts, model: Any, load: Loads, rng: np.random.Generator) -> Edit:
    n = model.cfg.n_layers
    layers = range(n) if edit.layers is None else [each % n for each in edit.layers]
    promote: list[tuple[int, int]] = []
    suppress: list[tuple[int, int]] = []
    for layer in layers:
        up = [e if isinstance(e, int) else e[1] for e in edit.promote if _in(e, layer, n)]
        down = [e if isinstance(e, int) else e[1] for e in edit.suppress if _in(e, layer, n)]
        drawn = matched([*up, *down], load[layer], rng)
        promote += [(layer, expert) for expert in drawn[: len(up)]]
        suppress += [(layer, expert) for expert in drawn[len(up) :]]
    return replace(edit, layers=None, promote=tuple(promote), suppress=tuple(suppress))


def _in(entry: Any, layer: int, n_layers: int) -> bool:
    return isinstance(entry, int) or entry[0] % n_layers == layer


def matched(named: Sequence[int], load: np.ndarray, rng: np.random.Generator) -> list[int]:
    """One unnamed expert for each named one, from the half nearest to it in load."""
    free = [expert for expert in range(len(load)) if expert not in set(named)]
    if len(free) < len(named):
        raise EditError(
            f"effect_table: {len(named)} of {len(load)} experts are named, so there are not as "
            "many others to draw controls from; give controls=0"
        )
    reach = max(1, len(free) // 2)
    out: dict[int, int] = {}
    for expert in rng.permutation(np.array(named, dtype=int)).tolist():
        near = _nearest(free, load, expert, reach)
        out[expert] = int(near[rng.integers(len(near))])
        free.remove(out[expert])
    return [out[expert] for expert in named]


def _nearest(free: list[int], load: np.ndarray, own: int, reach: int) -> list[int]:
    """The `reach` experts nearest in load, and those as near as the last of them."""
    away = np.abs(load[free] - load[own])
    last = np.sort(away)[min(reach, len(free)) - 1]
    return [expert for expert, far in zip(free, away, strict=True) if far <= last]


def _others(named: Sequence[int], size: int, rng: np.random.Generator) -> tuple[int, ...]:
    free = [each for each in range(size) if each not in set(named)]
    if len(free) < len(named):
        raise EditError(
            f"effect_table: {len(named)} of {size} are named, so there are not as many others to "
            "draw controls from; give controls=0"
        )
    return tuple(sorted(int(each) for each in rng.choice(free, len(named), replace=False)))


def _random_vectors(held: Any, rng: np.random.Generator) -> Any:
    if isinstance(held, Mapping):
        return {name: _random_vectors(each, rng) for name, each in held.items()}
    drawn = torch.from_numpy(rng.standard_normal(tuple(held.shape))).to(torch.float32)
    norm = held.float().norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True)
    return (drawn * norm).to(held.dtype)
