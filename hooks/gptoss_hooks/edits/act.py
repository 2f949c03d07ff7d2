"""Site edits at work: one function a hook point, which applies its edits in list order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gptoss_hooks.axes import layer_of
from gptoss_hooks.edits.aligned import aligned, reaches
from gptoss_hooks.edits.programs import Run
from gptoss_hooks.edits.sites import Ablate, Patch, Scale, SiteEdit, Steer, names_of
from gptoss_hooks.points import EditError, HookPoint

INDICES = "mlp.hook_expert_indices"


@dataclass
class Slots:
    """Which expert each slot of a layer holds, once its indices have fired."""

    by_layer: dict[int, Tensor] = field(default_factory=dict)

    def keep(self, indices: Tensor, hook: HookPoint) -> None:
        """Remember a layer's choice."""
        self.by_layer[hook.layer()] = indices


def attach(root: Any, edits: Sequence[tuple[SiteEdit, Tensor]], run: Run, stack: ExitStack) -> None:
    """Put (edit, mask [batch pos]) pairs on their hook points until the stack is left."""
    at: dict[str, list[tuple[SiteEdit, Tensor]]] = {}
    for edit, mask in edits:
        for name in names_of(edit, root):
            at.setdefault(name, []).append((edit, mask))
    slots, wanted = Slots(), set()
    for name, pairs in at.items():
        point = root.hook_dict[name]
        stack.callback(point.add_hook(_function(pairs, run, slots), prepend=True))
        if "k" in point.axes and any(edit.experts is not None for edit, _ in pairs):
            wanted.add(layer_of(name))
    for layer in wanted:
        point = root.hook_dict[f"blocks.{layer}.{INDICES}"]
        stack.callback(point.add_hook(slots.keep, reads_only=True))


def refuse(edit: SiteEdit, point: HookPoint, sizes: Mapping[str, int]) -> None:
    """Raise where an edit cannot act at a hook point: read-only, integers, or an axis it lacks."""
    if not point.live:
        raise EditError(f"{point.name} is read-only: edit {point.instead} instead")
    if point.dtype == torch.int64:
        raise EditError(
            f"{edit.verb}: {point.name} holds expert numbers; choose others with ban, force, swap, "
            "or replay"
        )
    asked = (
        ("heads", edit.heads, ("head", "kv_head")),
        ("neurons", edit.neurons, ("d_ff",)),
        ("experts", edit.experts, ("expert", "k")),
    )
    for name, wanted, axes in asked:
        if wanted is None:
            continue
        axis = next((axis for axis in axes if axis in point.axes), None)
        if axis is None:
            raise EditError(
                f"{edit.verb}: {point.name} [{' '.join(point.axes)}] has no axis for {name}="
            )
        size = sizes["expert" if axis == "k" else axis]
        if wrong := [each for each in wanted if not 0 <= each < size]:
            raise EditError(f"{edit.verb}: {name} are 0 to {size - 1}; got {wrong[0]}")


def _function(
    pairs: Sequence[tuple[SiteEdit, Tensor]], run: Run, slots: Slots
) -> Callable[..., Tensor]:
    def act(x: Tensor, hook: HookPoint) -> Tensor:
        for edit, mask in pairs:
            where = _selected(edit, mask, x, hook, slots)
            new, reached = _changed(edit, x, hook, run, mask)
            x = torch.where(where & reached, new.to(x.dtype), x)
        return x

    return act


def _selected(edit: SiteEdit, mask: Tensor, x: Tensor, hook: HookPoint, slots: Slots) -> Tensor:
    """True where the edit acts; broadcasts to `x`."""
    where = _on(mask, hook)
    if edit.heads is not None:
        axis = "head" if "head" in hook.axes else "kv_head"
        where = where & _among(edit.heads, hook.axes.index(axis), x)
    if edit.neurons is not None:
        where = where & _among(edit.neurons, hook.axes.index("d_ff"), x)
    if edit.experts is not None and "k" in hook.axes:
        here = slots.by_layer[hook.layer()]
        named = torch.isin(here, torch.tensor(edit.experts, device=here.device))
        where = where & named.view(*named.shape, *[1] * (x.ndim - named.ndim))
    elif edit.experts is not None:
        where = where & _among(edit.experts, hook.axes.index("expert"), x)
    return where


def _on(mask: Tensor, hook: HookPoint) -> Tensor:
    """A [batch, pos] mask along the axes of a hook point that has pos or query."""
    at = next(i for i, name in enumerate(hook.axes) if name in ("pos", "query"))
    shape = [1] * len(hook.axes)
    shape[0], shape[at] = mask.shape
    return mask.view(shape)


def _among(chosen: Sequence[int], axis: int, x: Tensor) -> Tensor:
    hit = torch.zeros(x.shape[axis], dtype=torch.bool, device=x.device)
    hit[list(chosen)] = True
    return hit.view(-1, *[1] * (x.ndim - axis - 1))


def _changed(
    edit: SiteEdit, x: Tensor, hook: HookPoint, run: Run, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """What the activation becomes, and where there is a value for it."""
    everywhere = torch.ones((), dtype=torch.bool, device=x.device)
    if isinstance(edit, Scale):
        return x * edit.factor, everywhere
    if isinstance(edit, Steer):
        value, reached = _value(edit.vector, edit, x, hook, run, mask)
        return (x.float() + edit.strength * value.float()), reached
    if isinstance(edit, Patch):
        return _value(edit.value, edit, x, hook, run, mask)
    assert isinstance(edit, Ablate)
    if edit.to is None:
        return torch.zeros_like(x), everywhere
    return _value(edit.to, edit, x, hook, run, mask)


def _value(
    held: Any, edit: SiteEdit, x: Tensor, hook: HookPoint, run: Run, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The tensor meant for a hook point, in the layout of `x`, and where it reaches."""
    everywhere = torch.ones((), dtype=torch.bool, device=x.device)
    value = held if isinstance(held, Tensor) else held.get(hook.name)
    if value is None:
        raise EditError(f"{edit.verb}: no value was given for {hook.name}")
    value = value.to(x.device)
    at = next(i for i, name in enumerate(hook.axes) if name in ("pos", "query"))
    if value.ndim == x.ndim and value.shape[at] != 1:
        if at != 1:
            return _fitting(value, x, edit, hook), everywhere
        rows = value.expand(len(x), *value.shape[1:]) if len(value) == 1 else value
        reached = reaches(run, value.shape[1]) if run.continued else mask
        placed = aligned(rows, run, mask & reached, f"{edit.verb} {hook.name}")
        return _fitting(placed, x, edit, hook), _on(reached, hook)
    return _fitting(value, x, edit, hook), everywhere


def _fitting(value: Tensor, x: Tensor, edit: SiteEdit, hook: HookPoint) -> Tensor:
    fits = value.ndim <= x.ndim and all(
        a in (1, b) for a, b in zip(reversed(value.shape), reversed(x.shape), strict=False)
    )
    if not fits:
        raise EditError(
            f"{edit.verb}: {hook.name} [{' '.join(hook.axes)}] is {tuple(x.shape)}; a value of "
            f"{tuple(value.shape)} does not broadcast to it"
        )
    return value
