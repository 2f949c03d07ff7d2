"""Routing edits compiled to plain tensors: one RouteProgram a layer, None where none acts.

A plan holds what does not depend on the tokens, a program adds where its steps act. Layers with the
same edits share both, so an edit on all 36 layers is compiled once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_hooks.edits.aligned import Run, aligned, in_order, reaches
from gptoss_hooks.edits.routing import (
    Ban,
    Bias,
    ExpertsEdit,
    Force,
    Replay,
    RouteAround,
    RoutingEdit,
    SetK,
    SteerExperts,
    Swap,
    Zero,
    warn_of_ties,
)
from gptoss_hooks.points import EditError
from gptoss_kernels import route_edited as kernel
from gptoss_kernels.route_edited import RouteProgram

OP = {
    Ban: kernel.BAN, Bias: kernel.BIAS, Swap: kernel.SWAP, SteerExperts: kernel.STEER,
    SetK: kernel.SET_K, Replay: kernel.REPLAY, Force: kernel.FORCE, Zero: kernel.ZERO,
    RouteAround: kernel.AROUND,
}  # fmt: skip
"""The code of each verb."""


class Sizes(NamedTuple):
    """What the edits are compiled for."""

    layers: int
    experts: int
    k: int
    """experts a token takes where no edit says otherwise"""


class Recording(NamedTuple):
    """What a replay gives the tokens of one layer, each row's real places first."""

    experts: Int[Tensor, "batch pos k"]
    """-1 behind the last"""
    weights: Float[Tensor, "batch pos k"] | None
    tokens: Int[Tensor, "batch pos"] | None
    ends: Int[Tensor, "batch 1"] | None
    """real places of a row; None for all"""
    whole: bool
    """whether it is for the whole of a run whose tokens it does not know"""


class LayerPlan(NamedTuple):
    """The steps of one layer as tensors; which tokens they touch is not known yet."""

    layer: int
    """the first with these steps"""
    which: tuple[int, ...]
    """the edit of each step, by its place in `Run.masks`"""
    op: Int[Tensor, " step"]
    table: Float[Tensor, "step expert"]
    k: Int[Tensor, " step"]
    width: int
    recordings: tuple[Recording | None, ...]
    """one a step"""


Numbered = Sequence[tuple[int, RoutingEdit]]
"""Edits with their places in `Run.masks`."""


def plans(edits: Numbered, sizes: Sizes) -> tuple[LayerPlan | None, ...]:
    """What the edits say in every layer, on the CPU."""
    built: dict[tuple, LayerPlan | None] = {}
    replays = {i: _ordered(edit) for i, edit in edits if isinstance(edit, Replay)}
    out = []
    for layer in range(sizes.layers):
        here = [(i, edit) for i, edit in edits if acts(edit, layer, sizes.layers)]
        key = tuple((i, layer if _differs(edit) else -1) for i, edit in here)
        if key not in built:
            built[key] = _plan(here, sizes, layer, replays) if here else None
        out.append(built[key])
    return tuple(out)


def programs(
    plans: Sequence[LayerPlan | None], run: Run, sizes: Sizes
) -> tuple[RouteProgram | None, ...]:
    """The programs of all layers for these tokens; raises EditError where edits cannot act."""
    built: dict[int, RouteProgram | None] = {id(None): None}
    for plan in plans:
        if plan is not None and id(plan) not in built:
            built[id(plan)] = program = _program(plan, run)
            if not run.checked:
                _refuse_impossible(program, sizes, plan.layer)
    return tuple(built[id(plan)] for plan in plans)


def anywhere(plans: Sequence[LayerPlan | None], run: Run) -> Run:
    """A run of every place that a recording has, with the edits that act on a run of one token."""
    lengths = [r.experts.shape[1] for plan in plans if plan for r in plan.recordings if r]
    length = max(lengths, default=1)
    positions = torch.arange(length).expand(len(run.positions), -1)
    return Run(positions, None, True, [mask.expand(-1, length) for mask in run.masks])


def refuse_other_tokens(plans: Sequence[LayerPlan | None], run: Run) -> None:
    """Raise EditError where other tokens run than a replay has recorded."""
    looked: set[int] = set()
    for plan in plans:
        for i, recording in zip(plan.which, plan.recordings, strict=True) if plan else ():
            if recording is None or recording.tokens is None or i in looked:
                continue
            looked.add(i)
            mask = _reached(recording, run, run.masks[i])
            aligned(recording.tokens, run, mask, "replay", recording.tokens, recording.ends)


def acts(edit: RoutingEdit, layer: int, n_layers: int) -> bool:
    """Whether an edit has something to say in a layer."""
    if isinstance(edit, SteerExperts) and edit.layers is None:
        named = [*edit.promote, *edit.suppress]
        return any(isinstance(e, int) or e[0] % n_layers == layer for e in named)
    return edit.layers is None or layer in {each % n_layers for each in edit.layers}


def _differs(edit: RoutingEdit) -> bool:
    """Whether an edit says different things in different layers."""
    return isinstance(edit, (Replay, SteerExperts))


def _plan(
    here: Numbered, sizes: Sizes, layer: int, replays: Mapping[int, Mapping[str, Tensor]]
) -> LayerPlan:
    steps = [edit for _, edit in here]
    recordings = tuple(
        _of_layer(edit, replays[i], sizes, layer) if isinstance(edit, Replay) else None
        for i, edit in here
    )
    ks = [step.k if isinstance(step, SetK) else 0 for step in steps]
    return LayerPlan(
        layer,
        tuple(i for i, _ in here),
        torch.tensor([OP[type(step)] for step in steps], dtype=torch.int32),
        torch.stack([_table(step, sizes, layer) for step in steps]),
        torch.tensor(ks, dtype=torch.int32),
        max([sizes.k, *ks, *(r.experts.shape[-1] for r in recordings if r is not None)]),
        recordings,
    )


def _ordered(edit: Replay) -> dict[str, Tensor]:
    """A recording [layer, batch, pos, k] with each row's real places first, and their number."""
    mask = edit.source.get("mask")
    out = {}
    for name in ("experts", "weights"):
        if name in edit.source:
            out[name] = torch.stack([in_order(each, mask) for each in edit.source[name]])
    if mask is not None:
        out["ends"] = mask.sum(1, keepdim=True)
    if "tokens" in edit.source:
        out["tokens"] = in_order(edit.source["tokens"], mask)
    return out


def _of_layer(edit: Replay, held: Mapping[str, Tensor], sizes: Sizes, layer: int) -> Recording:
    named = range(sizes.layers) if edit.layers is None else edit.layers
    at = [each % sizes.layers for each in named].index(layer)
    weights = held["weights"][at] if "weights" in held else None
    tokens = held.get("tokens")
    whole = tokens is None and edit.tokens is None and edit.channels is None
    return Recording(held["experts"][at], weights, tokens, held.get("ends"), whole)


def _program(plan: LayerPlan, run: Run) -> RouteProgram:
    pairs = list(zip(plan.which, plan.recordings, strict=True))
    masks = [_reached(recording, run, run.masks[i]) for i, recording in pairs]
    recorded = _recorded(plan, masks, run)
    return RouteProgram(plan.op, torch.stack(masks), plan.table, plan.k, plan.width, *recorded)


def _reached(recording: Recording | None, run: Run, mask: Tensor) -> Tensor:
    """A replay ends where its recording does, once the run goes on from there."""
    if recording is None or not run.continued:
        return mask
    return mask & reaches(run, recording.experts.shape[1], recording.ends)


def _table(step: RoutingEdit, sizes: Sizes, layer: int) -> Tensor:
    """What a step says of each expert."""
    table = torch.zeros(sizes.experts)
    if isinstance(step, Swap):
        table = torch.arange(sizes.experts, dtype=torch.float32)
        for a, b in step.experts:
            table[a], table[b] = float(b), float(a)
    elif isinstance(step, SteerExperts):
        promoted = _named(step.promote, sizes, layer)
        table[promoted] = 1.0
        table[_named(step.suppress, sizes, layer)] = -1.0
        if len(promoted) > sizes.k:
            warn_of_ties(layer, len(promoted), sizes.k)
    elif isinstance(step, ExpertsEdit):
        at = slice(None) if step.experts is None else list(step.experts)
        table[at] = step.value if isinstance(step, Bias) else 1.0
    return table


def _named(wanted: Sequence, sizes: Sizes, layer: int) -> list[int]:
    return [
        e if isinstance(e, int) else e[1]
        for e in wanted
        if isinstance(e, int) or e[0] % sizes.layers == layer
    ]


def _recorded(
    plan: LayerPlan, masks: Sequence[Tensor], run: Run
) -> tuple[Tensor | None, Tensor | None]:
    """Experts and weights that replays give each token; a later one wins."""
    experts = weights = None
    for recording, mask in zip(plan.recordings, masks, strict=True):
        if recording is None:
            continue
        own = _fitted(recording.experts, recording, run, mask, plan.width).long()
        given = torch.full_like(own, -1, dtype=torch.float32)
        if recording.weights is not None:
            given = _fitted(recording.weights, recording, run, mask, plan.width)
        if experts is None or weights is None:
            experts, weights = own, given
        else:
            experts = torch.where(mask[..., None], own, experts)
            weights = torch.where(mask[..., None], given, weights)
    return experts, weights


def _fitted(values: Tensor, recording: Recording, run: Run, mask: Tensor, width: int) -> Tensor:
    """Recorded values in the layout of this run, -1 behind the last slot."""
    known = recording.tokens, recording.ends, recording.whole
    out = aligned(values, run, mask, "replay", *known)
    return torch.nn.functional.pad(out, (0, width - out.shape[-1]), value=-1)


def _refuse_impossible(program: RouteProgram, sizes: Sizes, layer: int) -> None:
    """Raise where some token would be left without enough experts, or asked for too many."""
    shape = (*program.tokens.shape[1:], sizes.experts)
    banned = torch.zeros(shape, dtype=torch.bool, device=program.tokens.device)
    forced = banned.clone()
    count = kernel.counts(banned.float(), sizes.k, program)
    for i, op in enumerate(program.op.tolist()):
        at, named = program.tokens[i][..., None], program.table[i] > 0
        if op == kernel.BAN:
            banned = banned | (at & named)
        elif op == kernel.SWAP:
            banned = torch.where(at, banned[..., program.table[i].long()], banned)
        elif op == kernel.FORCE:
            forced = forced | (at & named)
    _refuse_recorded(program, sizes, layer, count)
    left = sizes.experts - banned.sum(-1)
    if bool((left < count).any()):
        raise EditError(
            f"ban: in layer {layer} a token takes {int(count[left < count].max())} experts, but "
            f"only {int(left.min())} of {sizes.experts} are left; ban fewer, or zero them"
        )
    if bool((forced & banned).any()):
        expert = int((forced & banned).flatten(0, -2).any(0).nonzero()[0])
        raise EditError(f"force: expert {expert} of layer {layer} is banned by another edit")
    asked = forced.sum(-1)
    if bool((asked > count).any()):
        raise EditError(
            f"force: {int(asked.max())} experts are forced in layer {layer}, but a token takes "
            f"{int(count[asked > count].min())}; force fewer, or give it more with set_k"
        )


def _refuse_recorded(program: RouteProgram, sizes: Sizes, layer: int, count: Tensor) -> None:
    """Raise for recorded experts that are none, unknown or repeated."""
    if program.recorded is None:
        return
    ordered = program.recorded.sort(-1).values
    repeats = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
    largest = int(ordered.max())
    if largest >= sizes.experts or bool(repeats.any()) or int(count.min()) < 1:
        raise EditError(
            f"replay: layer {layer} needs one or more different experts below {sizes.experts} a "
            f"token; the recording holds {'repeats' if repeats.any() else largest}"
        )
