"""What a cell writes: the other run's value, and the entries of the tensor it goes to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gptoss_workbench.patching.nodes import ALL, SITES, Cells
from gptoss_workbench.patching.runs import Run


class Places(NamedTuple):
    """Entries that cells write to, each an index [entry]; padding is left out."""

    cell: Tensor
    batch: Tensor
    pos: Tensor
    source: Tensor
    head: Tensor
    slot: Tensor
    expert: Tensor
    neuron: Tensor

    def take(self, keep: Tensor) -> Places:
        """Some of the entries."""
        return Places(*(each[keep] for each in self))


class Patch(NamedTuple):
    """What the cells of one site and layer write."""

    hook: str
    places: Places
    at: tuple[Tensor, ...]
    """of the written entries in the base's activation; the batch comes first"""
    values: Tensor
    """[entry, ...]"""

    def base(self, run: Run) -> Tensor:
        """What stands at the entries in a run."""
        return run.kept[self.hook][self.at]

    def exists(self, n_cells: int, batch: int) -> Tensor:
        """[cell, batch] whether a cell writes anything in an example."""
        out = torch.zeros(n_cells, batch, dtype=torch.bool)
        out[self.places.cell.cpu(), self.places.batch.cpu()] = True
        return out


def patch(cells: Cells, base: Run, source: Run) -> Patch:
    """Find what cells of one site and one layer write into `base`."""
    site, layer = str(cells.site[0]), int(cells.layer[0])
    hook = SITES[site].hook.format(layer=layer)
    at = places_of(cells, base, source)
    if site == "expert_post":
        at, slot = _same_expert(at, base, source, layer)
        values = source.kept[hook][at.batch, at.source, slot, at.neuron]
    elif site == "expert":
        delta = contribution(at, source, layer, at.source) - contribution(at, base, layer, at.pos)
        here = base.kept[hook][at.batch, at.pos]
        values = (here.float() + delta).to(here.dtype)
    else:
        values = source.kept[hook][_index(site, at, at.source)]
    return Patch(hook, at, _index(site, at, at.pos), values)


def places_of(cells: Cells, base: Run, source: Run) -> Places:
    """The entries of every cell, in every example."""
    together = cells.pos == ALL
    if together.any() and base.width != source.width:
        raise ValueError("positions='all' needs prompts of the same length; give pairs of places")
    width, batch = base.width, len(base.tokens)
    counts = np.where(together, width, 1)
    cell = np.repeat(np.arange(len(cells)), counts)
    within = np.arange(len(cell)) - np.repeat(counts.cumsum() - counts, counts)
    columns = [cells.pos, cells.source, cells.head, cells.slot, cells.expert, cells.neuron]
    pos, src, *parts = (column[cell] for column in columns)
    pos, src = (np.where(each == ALL, within, each) for each in (pos, src))
    rows = np.tile(np.arange(batch), len(cell))
    cell, *others = (each.repeat(batch) for each in (cell, pos, src, *parts))
    at = Places(*torch.as_tensor(np.stack([cell, rows, *others])).to(base.tokens.device))
    real = base.mask[at.batch, at.pos] & source.mask[at.batch, at.source]
    return at if bool(real.all()) else at.take(real)


def _index(site: str, at: Places, pos: Tensor) -> tuple[Tensor, ...]:
    if site == "pattern":
        return at.batch, at.head, pos
    if site == "expert":
        return at.batch, pos
    return at.batch, pos, *(getattr(at, part) for part in SITES[site].parts)


def contribution(at: Places, run: Run, layer: int, pos: Tensor) -> Tensor:
    """weight · output of an expert at each entry, [entry, d_model]; 0 where it was not chosen."""
    indices, weights, outs = (
        run.kept[f"blocks.{layer}.mlp.hook_expert_{name}"] for name in ("indices", "weights", "out")
    )
    chosen = indices[at.batch, pos] == at.expert[:, None]  # [entry, k]
    weight = weights[at.batch, pos] * chosen
    return (weight[..., None] * outs[at.batch, pos]).sum(1)


def _same_expert(at: Places, base: Run, source: Run, layer: int) -> tuple[Places, Tensor]:
    """Entries whose expert the other run chose too, and its slot there."""
    name = f"blocks.{layer}.mlp.hook_expert_indices"
    expert = base.kept[name][at.batch, at.pos, at.slot]
    same = source.kept[name][at.batch, at.source] == expert[:, None]  # [entry, k]
    both = same.any(-1)
    return at.take(both), same[both].long().argmax(-1)
