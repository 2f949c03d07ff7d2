"""Site edits that a kernel obeys by itself, so that its layer is not taken apart for them.

A hook point says by `takes` which ones the kernel in front of it reads as tensors:

    gain     z times a number a head and query: scale and ablate to zero. The rows of a pattern
             that are ablated to zero have z zero, so nobody needs the pattern for it
    slot     what an expert writes times a number a slot: scale and ablate to zero
    neuron   an expert's neurons ablated to zero, on all tokens alike; then whole slots replaced

The bits are those of the same steps on the activation: at most one number is multiplied, and none
before the kernel rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gptoss_hooks.points import HookPoint

if TYPE_CHECKING:
    from gptoss_hooks.edits.act import Step
    from gptoss_hooks.edits.aligned import Run

PATTERN = "attn.hook_pattern"


def fusable(point: HookPoint, steps: Sequence[Step]) -> bool:
    """Whether the kernel before a hook point can do what the steps do there."""
    if point.takes == "neuron":
        return _split(steps) is not None
    zeros = all(step.op == "zero" for step in steps)
    return bool(point.takes) and (zeros or (not point.name.endswith(PATTERN) and _factors(steps)))


def _factors(steps: Sequence[Step]) -> bool:
    """Whether steps multiply, and none twice."""
    ops = [step.op for step in steps]
    return set(ops) <= {"zero", "scale"} and ops.count("scale") <= 1


def _split(steps: Sequence[Step]) -> tuple[Sequence[Step], Sequence[Step]] | None:
    """Neurons gone from all tokens, and after them replacements of whole slots, if steps are."""
    first = next((i for i, step in enumerate(steps) if _replaces(step)), len(steps))
    gone, rows = steps[:first], steps[first:]
    fits = all(step.op == "zero" and step.everywhere for step in gone) and all(map(_replaces, rows))
    return (gone, rows) if fits else None


def _replaces(step: Step) -> bool:
    """Whether a step sets all neurons of a slot to numbers that do not depend on the token."""
    whole = step.part is None and step.value is not None and step.value.ndim <= 1
    return whole and (step.op == "set" or (step.op == "zero" and not step.everywhere))


class Fused:
    """The steps of one run as the tensors that kernels read, made once for layers that share them.

    `sizes` are the lengths of the axes head, expert and d_ff.
    """

    def __init__(self, run: Run, sizes: Mapping[str, int]):
        self.run, self.sizes = run, sizes
        self.made: dict[tuple[int, ...], Tensor] = {}

    def bind(self, point: HookPoint, steps: Sequence[Step]) -> Callable[..., dict[str, Tensor]]:
        """What the layer calls for its kernel's edits, by their names."""
        if point.takes == "gain":
            return lambda: {"gain": self._once(steps, self._gain)}
        if point.takes == "slot":
            return lambda indices: {"slot_gain": self._slots(steps, indices)}
        split = _split(steps)
        assert split is not None
        return lambda indices: self._neurons(*split, indices)

    def _once(self, steps: Sequence[Step], make: Callable[[Sequence[Step]], Tensor]) -> Tensor:
        key = tuple(map(id, steps))
        if key not in self.made:
            self.made[key] = make(steps)
        return self.made[key]

    def _gain(self, steps: Sequence[Step]) -> Float[Tensor, "batch head query"]:
        out = torch.ones((), device=self.run.positions.device)
        for step in steps:
            where = self.run.masks[step.which][:, None]
            if step.part is not None:
                where = where & step.part.view(-1, 1)
            out = torch.where(where, _times(out, step), out)
        return out.expand(-1, self.sizes["head"], -1)

    def _slots(self, steps: Sequence[Step], indices: Tensor) -> Float[Tensor, "batch pos k"]:
        out = torch.ones((), device=indices.device)
        for step in steps:
            out = torch.where(self._chosen(step, indices), _times(out, step), out)
        return out.expand(indices.shape)

    def _chosen(self, step: Step, indices: Tensor) -> Bool[Tensor, "batch pos k"]:
        where = self.run.masks[step.which][..., None]
        return where if step.experts is None else where & step.experts[indices]

    def _neurons(
        self, gone: Sequence[Step], rows: Sequence[Step], indices: Tensor
    ) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        if gone:
            out["neuron_gain"] = self._once(gone, self._kept)
        if rows:
            out["post_row"] = self._rows(rows, indices)
            out["post_table"] = self._once(rows, self._table)
        return out

    def _kept(self, steps: Sequence[Step]) -> Float[Tensor, "expert d_ff"]:
        """0 for neurons that are gone, 1 for the others."""
        shape, device = (self.sizes["expert"], self.sizes["d_ff"]), self.run.positions.device
        gone = torch.zeros(shape, dtype=torch.bool, device=device)
        for step in steps:
            where = torch.ones_like(gone) if step.part is None else step.part
            gone = gone | (where if step.experts is None else where & step.experts[:, None])
        return (~gone).float()

    def _rows(self, steps: Sequence[Step], indices: Tensor) -> Int[Tensor, "batch pos k"]:
        out = torch.full_like(indices, -1)
        for row, step in enumerate(steps):
            out = torch.where(self._chosen(step, indices), row, out)
        return out

    def _table(self, steps: Sequence[Step]) -> Float[Tensor, "row d_ff"]:
        values = [step.value for step in steps if step.value is not None]
        return torch.stack([value.float().expand(self.sizes["d_ff"]) for value in values])


def _times(gain: Tensor, step: Step) -> Tensor:
    """A gain after one more step."""
    assert step.value is not None
    return gain * step.value if step.op == "scale" else torch.zeros_like(gain)
