"""Site edits at work: one function a hook point, which applies its steps in list order.

Steps hold what does not depend on the tokens as tensors, so a function made of them reads nothing
from the host: it may be captured in a CUDA graph, and obeys new numbers in the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from gptoss_hooks.axes import layer_of
from gptoss_hooks.edits.aligned import Run, aligned, reaches
from gptoss_hooks.edits.fused import PATTERN, Fused, fusable
from gptoss_hooks.edits.sites import Ablate, Patch, Scale, SiteEdit, Steer, names_of
from gptoss_hooks.points import EditError, HookPoint

INDICES = "mlp.hook_expert_indices"


class Step(NamedTuple):
    """One edit as a hook point obeys it; points with the same axes share it."""

    verb: str
    op: str
    """scale, add, set, or zero: set to zero because no value was given"""
    which: int
    """its place in `Run.masks`"""
    part: Tensor | None
    """bool, heads, neurons or router logits that are meant; broadcasts from the right"""
    experts: Bool[Tensor, " expert"] | None
    """experts whose slots are meant"""
    value: Tensor | None
    """the factor, what is added, or what is set (None: not known for this point)"""
    placed: bool
    """whether `value` has numbers of its own for every place"""
    everywhere: bool
    """whether it acts on all tokens"""


Steps = Mapping[str, tuple[Step, ...]]
"""Steps by the name of their hook point."""


@dataclass
class Slots:
    """Which expert each slot of a layer holds, once its indices have fired."""

    by_layer: dict[int, Tensor] = field(default_factory=dict)

    def keep(self, indices: Tensor, hook: HookPoint) -> None:
        """Remember a layer's choice."""
        self.by_layer[hook.layer()] = indices


def steps(edits: Sequence[tuple[int, SiteEdit]], root: Any) -> dict[str, tuple[Step, ...]]:
    """What (place, edit) pairs do at each hook point, on the CPU."""
    out: dict[str, list[Step]] = {}
    sizes = root.axis_sizes(1, 1)
    for which, edit in edits:
        made: dict[Any, Step] = {}
        held = _held(edit)
        for name in names_of(edit, root):
            point = root.hook_dict[name]
            value = held if isinstance(held, Tensor) else held.get(name)
            key = point.axes, id(value)
            if key not in made:
                made[key] = _step(which, edit, point, value, sizes)
            out.setdefault(name, []).append(made[key])
    return {name: tuple(each) for name, each in out.items()}


def attach(root: Any, steps: Steps, run: Run, stack: ExitStack) -> None:
    """Put steps on their hook points, or into the kernels before them, until the stack is left."""
    slots, wanted, fused = Slots(), set(), Fused(run, root.axis_sizes(1, 1))
    for name, each in steps.items():
        point = root.hook_dict[name]
        if in_kernel(point, each):
            point.in_kernel = fused.bind(point, each)
            stack.callback(setattr, point, "in_kernel", None)
            continue
        stack.callback(point.add_hook(_function(each, run, slots), prepend=True))
        if any(step.experts is not None for step in each):
            wanted.add(layer_of(name))
    for layer in wanted:
        point = root.hook_dict[f"blocks.{layer}.{INDICES}"]
        stack.callback(point.add_hook(slots.keep, reads_only=True))


def in_kernel(point: HookPoint, steps: Sequence[Step]) -> bool:
    """Whether the kernel before a hook point obeys the steps there.

    Who looks at a pattern is shown what its edits made, which only functions do.
    """
    return fusable(point, steps) and not (point.name.endswith(PATTERN) and point.observed)


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


def _step(
    which: int, edit: SiteEdit, point: HookPoint, value: Tensor | None, sizes: Mapping[str, int]
) -> Step:
    axes = point.axes
    at = _place(point)
    placed = value is not None and value.ndim == len(axes) and value.shape[at] != 1
    part = experts = None
    for named, axis in ((edit.heads, "head"), (edit.heads, "kv_head"), (edit.neurons, "d_ff")):
        if named is not None and axis in axes:
            hit = _among(named, sizes[axis], len(axes) - axes.index(axis) - 1)
            part = hit if part is None else part & hit
    if edit.experts is not None:
        hit = _among(edit.experts, sizes["expert"], 0)
        part, experts = (part, hit) if "k" in axes else (hit, None)
    if isinstance(edit, Steer) and value is not None:
        value = edit.strength * value.float()
    everywhere = edit.tokens is None and edit.channels is None
    return Step(edit.verb, _op(edit), which, part, experts, value, placed, everywhere)


def _op(edit: SiteEdit) -> str:
    if isinstance(edit, Scale):
        return "scale"
    if isinstance(edit, Steer):
        return "add"
    return "zero" if isinstance(edit, Ablate) and edit.to is None else "set"


def _held(edit: SiteEdit) -> Mapping[str, Tensor] | Tensor:
    """The number, tensor or tensors by hook point that an edit works with."""
    if isinstance(edit, Scale):
        return torch.tensor(edit.factor)
    if isinstance(edit, Steer):
        return edit.vector
    if isinstance(edit, Patch):
        return edit.value
    assert isinstance(edit, Ablate)
    return torch.tensor(0.0) if edit.to is None else edit.to


def _place(point: HookPoint) -> int:
    """The axis of places."""
    return next(i for i, name in enumerate(point.axes) if name in ("pos", "query"))


def _among(chosen: Sequence[int], size: int, behind: int) -> Tensor:
    """True at some of an axis that has so many axes behind it."""
    hit = torch.zeros(size, dtype=torch.bool)
    hit[list(chosen)] = True
    return hit.view(-1, *[1] * behind)


def _function(steps: Sequence[Step], run: Run, slots: Slots) -> Callable[..., Tensor]:
    def act(x: Tensor, hook: HookPoint) -> Tensor:
        for step in steps:
            value, reached = _value(step, x, hook, run)
            where = _selected(step, reached, x, hook, slots)
            x = torch.where(where, _changed(step, x, value).to(x.dtype), x)
        return x

    return act


def _changed(step: Step, x: Tensor, value: Tensor) -> Tensor:
    if step.op == "scale":
        return x.float() * value
    return x.float() + value if step.op == "add" else value


def _selected(step: Step, mask: Tensor, x: Tensor, hook: HookPoint, slots: Slots) -> Tensor:
    """True where the step acts; broadcasts to `x`."""
    where = _on(mask, hook)
    if step.part is not None:
        where = where & step.part
    if step.experts is not None:
        named = step.experts[slots.by_layer[hook.layer()]]
        where = where & named.view(*named.shape, *[1] * (x.ndim - named.ndim))
    return where


def _on(mask: Tensor, hook: HookPoint) -> Tensor:
    """A [batch, pos] mask along the axes of a hook point that has pos or query."""
    shape = [1] * len(hook.axes)
    shape[0], shape[_place(hook)] = mask.shape
    return mask.view(shape)


def _value(step: Step, x: Tensor, hook: HookPoint, run: Run) -> tuple[Tensor, Tensor]:
    """The tensor meant for these tokens, in the layout of `x`, and which of them it reaches."""
    value, mask = step.value, run.masks[step.which]
    kept = x.shape[_place(hook)]  # logits may be of the last tokens only
    if value is None:
        raise EditError(f"{step.verb}: no value was given for {hook.name}")
    if step.placed and _place(hook) == 1:
        value = value.expand(len(x), *value.shape[1:]) if len(value) == 1 else value
        if run.continued:
            mask = mask & reaches(run, value.shape[1])
        said, whole = f"{step.verb} {hook.name}", step.everywhere
        value = aligned(value, run, mask, said, whole=whole)[:, -kept:]
    fits = value.ndim <= x.ndim and all(
        a in (1, b) for a, b in zip(reversed(value.shape), reversed(x.shape), strict=False)
    )
    if not fits:
        raise EditError(
            f"{step.verb}: {hook.name} [{' '.join(hook.axes)}] is {tuple(x.shape)}; a value of "
            f"{tuple(value.shape)} does not broadcast to it"
        )
    return value, mask[:, -kept:]
