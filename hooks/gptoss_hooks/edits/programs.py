"""Routing edits compiled to plain tensors: one RouteProgram a layer, None where none acts.

Layers with the same edits share one program, so an edit on all 36 layers is compiled once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gptoss_hooks.edits.aligned import aligned, reaches
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


class Run(NamedTuple):
    """The tokens that are about to run, and where each edit acts on them."""

    positions: Int[Tensor, "batch pos"]
    """counted over a row's real tokens; -1 on padding"""
    tokens: Int[Tensor, "batch pos"] | None
    continued: bool
    """whether earlier tokens are in a KV cache, or later ones are still to be written"""
    masks: Sequence[Bool[Tensor, "batch pos"]]
    """one an edit: its tokens= and channels="""


def programs(edits: Sequence[RoutingEdit], run: Run, sizes: Sizes) -> list[RouteProgram | None]:
    """Compile the edits for every layer; raises EditError where they cannot act."""
    built: dict[tuple, RouteProgram | None] = {}
    out = []
    for layer in range(sizes.layers):
        here = [i for i, edit in enumerate(edits) if acts(edit, layer, sizes.layers)]
        key = tuple((i, layer if _differs(edits[i]) else -1) for i in here)
        if key not in built:
            built[key] = _program(edits, run, sizes, here, layer) if here else None
        out.append(built[key])
    return out


def acts(edit: RoutingEdit, layer: int, n_layers: int) -> bool:
    """Whether an edit has something to say in a layer."""
    if isinstance(edit, SteerExperts) and edit.layers is None:
        named = [*edit.promote, *edit.suppress]
        return any(isinstance(e, int) or e[0] % n_layers == layer for e in named)
    return edit.layers is None or layer in {each % n_layers for each in edit.layers}


def _differs(edit: RoutingEdit) -> bool:
    """Whether an edit says different things in different layers."""
    return isinstance(edit, (Replay, SteerExperts))


def _program(
    edits: Sequence[RoutingEdit], run: Run, sizes: Sizes, here: list[int], layer: int
) -> RouteProgram:
    device = run.positions.device
    steps = [edits[i] for i in here]
    masks = [_reached(edits[i], run, run.masks[i]) for i in here]
    recorded = _recorded(steps, masks, run, sizes, layer)
    ks = [step.k if isinstance(step, SetK) else 0 for step in steps]
    lengths = [r.shape[-1] for r in recorded[:1] if r is not None]
    program = RouteProgram(
        torch.tensor([OP[type(step)] for step in steps], dtype=torch.int32, device=device),
        torch.stack(masks),
        torch.stack([_table(step, sizes, layer) for step in steps]).to(device),
        torch.tensor(ks, dtype=torch.int32, device=device),
        max([sizes.k, *ks, *lengths]),
        *recorded,
    )
    program = _widened(program)
    _refuse_impossible(program, sizes, layer)
    return program


def _reached(step: RoutingEdit, run: Run, mask: Tensor) -> Tensor:
    """A replay ends where its recording does, once the run goes on from there."""
    if not isinstance(step, Replay) or not run.continued:
        return mask
    length = step.source["experts"].shape[2]
    return mask & reaches(run, length, step.source.get("mask"))


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
    steps: Sequence[RoutingEdit], masks: Sequence[Tensor], run: Run, sizes: Sizes, layer: int
) -> tuple[Tensor | None, Tensor | None]:
    """Experts and weights that replays give each token; a later one wins."""
    experts = weights = None
    widest = max((s.source["experts"].shape[-1] for s in steps if isinstance(s, Replay)), default=0)
    for step, mask in zip(steps, masks, strict=True):
        if not isinstance(step, Replay):
            continue
        held = range(sizes.layers) if step.layers is None else step.layers
        at = [each % sizes.layers for each in held].index(layer)
        own = _fitted(step.source["experts"][at], step, run, mask, widest)
        value = step.source["weights"][at] if "weights" in step.source else None
        lacking = torch.full_like(own, -1, dtype=torch.float32)
        given = lacking if value is None else _fitted(value, step, run, mask, widest)
        if experts is None or weights is None:
            experts, weights = own.long(), given
        else:
            experts = torch.where(mask[..., None], own.long(), experts)
            weights = torch.where(mask[..., None], given, weights)
    return experts, weights


def _fitted(values: Tensor, step: Replay, run: Run, mask: Tensor, width: int) -> Tensor:
    """Recorded values in the layout of this run, -1 behind the last slot."""
    out = aligned(values, run, mask, "replay", step.source.get("tokens"), step.source.get("mask"))
    return torch.nn.functional.pad(out, (0, width - out.shape[-1]), value=-1)


def _widened(program: RouteProgram) -> RouteProgram:
    """Recorded tensors with as many slots as the program is wide."""
    if program.recorded is None or program.recorded_weights is None:
        return program
    more = (0, program.width - program.recorded.shape[-1])
    pad = torch.nn.functional.pad
    return program._replace(
        recorded=pad(program.recorded, more, value=-1),
        recorded_weights=pad(program.recorded_weights, more, value=-1),
    )


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
