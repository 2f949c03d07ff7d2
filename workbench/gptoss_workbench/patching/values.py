"""What a cell writes: the other run's value, and the entries of the tensor it goes to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gptoss_workbench.patching.nodes import ALL, SITES, Cells
from gptoss_workbench.patching.runs import Run


class Places(NamedTuple):
    """Entries that cells write to, each an index [entry]; padding is left out."""

    cells: Cells
    cell: Tensor
    """which of the cells"""
    batch: Tensor
    pos: Tensor
    source: Tensor

    def part(self, name: str) -> Tensor:
        """The head, slot, expert or neuron of each entry."""
        return torch.as_tensor(getattr(self.cells, name), device=self.cell.device)[self.cell]

    def take(self, keep: Tensor | slice) -> Places:
        """Some of the entries."""
        return Places(self.cells, *(each[keep] for each in self[1:]))

    def split(self, cells: Sequence[int]) -> list[Places]:
        """The entries of the cells from each of these numbers on, up to the next."""
        starts = torch.tensor([*cells, len(self.cells)], device=self.cell.device)
        ends = torch.searchsorted(self.cell, starts).tolist()
        return [self.take(slice(*pair)) for pair in pairwise(ends)]


class Patch(NamedTuple):
    """What the cells of one site and layer write."""

    site: str
    layer: int
    places: Places
    at: tuple[Tensor, ...]
    """of the written entries in the base's activation; the batch comes first"""
    values: Tensor
    """[entry, ...]"""

    @property
    def hook(self) -> str:
        """Name of the hook point it goes to."""
        return SITES[self.site].hook.format(layer=self.layer)

    def base(self, run: Run) -> Tensor:
        """What stands at the entries in a run."""
        return run.kept[self.hook][self.at]

    def exists(self, n_cells: int, batch: int) -> Tensor:
        """[cell, batch] whether a cell writes anything in an example."""
        out = torch.zeros(n_cells, batch, dtype=torch.bool)
        out[self.places.cell.cpu(), self.places.batch.cpu()] = True
        return out

    def since(self, start: int) -> Patch:
        """What is written from position `start` on."""
        keep = self.places.pos >= start
        if bool(keep.all()):
            return self
        at = tuple(each[keep] for each in self.at)
        return self._replace(places=self.places.take(keep), at=at, values=self.values[keep])


def patch(at: Places, like: int, base: Run, source: Run) -> Patch:
    """Find what cells of one site and one layer, as number `like` is, write into `base`."""
    site, layer = str(at.cells.site[like]), int(at.cells.layer[like])
    hook = SITES[site].hook.format(layer=layer)
    if site == "expert_post":
        at, slot = _same_expert(at, base, source, layer)
        values = source.kept[hook][at.batch, at.source, slot, at.part("neuron")]
    elif site == "expert":
        delta = contribution(at, source, layer, at.source) - contribution(at, base, layer, at.pos)
        here = base.kept[hook][at.batch, at.pos]
        values = (here.float() + delta).to(here.dtype)
    else:
        values = source.kept[hook][_index(site, at, at.source)]
    return Patch(site, layer, at, _index(site, at, at.pos), values)


def places_of(cells: Cells, base: Run, source: Run, start: int = 0) -> Places:
    """The entries of every cell, in every example; of cells of all positions, from `start` on."""
    together = cells.pos == ALL
    if together.any() and base.width != source.width:
        raise ValueError("positions='all' needs prompts of the same length; give pairs of places")
    counts, examples = np.where(together, base.width - start, 1), np.arange(len(base.tokens))
    cell = np.repeat(np.arange(len(cells)), counts)
    within = start + np.arange(len(cell)) - np.repeat(counts.cumsum() - counts, counts)
    pos, src = (np.where(together[cell], within, each[cell]) for each in (cells.pos, cells.source))
    columns = np.stack(np.broadcast_arrays(*(x[:, None] for x in (cell, pos, src)), examples))
    cell, pos, src, example = torch.as_tensor(columns).to(base.tokens.device).flatten(1)
    at = Places(cells, cell, example, pos, src)
    if bool(base.mask.all() & source.mask.all()):
        return at
    return at.take(base.mask[at.batch, at.pos] & source.mask[at.batch, at.source])


def _index(site: str, at: Places, pos: Tensor) -> tuple[Tensor, ...]:
    if site == "expert":
        return at.batch, pos
    parts = [at.part(name) for name in SITES[site].parts]
    return (at.batch, *parts, pos) if site == "pattern" else (at.batch, pos, *parts)


def contribution(at: Places, run: Run, layer: int, pos: Tensor) -> Tensor:
    """weight · output of an expert at each entry, [entry, d_model]; 0 where it was not chosen."""
    indices, weights, outs = (
        run.kept[f"blocks.{layer}.mlp.hook_expert_{name}"] for name in ("indices", "weights", "out")
    )
    chosen = indices[at.batch, pos] == at.part("expert")[:, None]  # [entry, k]
    weight = weights[at.batch, pos] * chosen
    return (weight[..., None] * outs[at.batch, pos]).sum(1)


def _same_expert(at: Places, base: Run, source: Run, layer: int) -> tuple[Places, Tensor]:
    """Entries whose expert the other run chose too, and its slot there."""
    name = f"blocks.{layer}.mlp.hook_expert_indices"
    expert = base.kept[name][at.batch, at.pos, at.part("slot")]
    same = source.kept[name][at.batch, at.source] == expert[:, None]  # [entry, k]
    both = same.any(-1)
    return at.take(both), same[both].long().argmax(-1)
