"""Activation patching: put one run's activation into another, cell by cell, and read the metric.

Denoising puts clean values into the corrupted run (what suffices to restore the answer?), noising
corrupted values into the clean run (what is needed for it?). Meng et al. 2202.05262; terms and
advice: Heimersheim & Nanda 2404.15255; metrics: Zhang & Nanda 2309.16042.

A sweep is a few forward passes: many cells are rows of one batch (see `runs`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gptoss_hooks.points import HookFunction, HookPoint
from gptoss_workbench.patching.metrics import Judge, Metric, as_metric
from gptoss_workbench.patching.nodes import Cells, Wanted, make_cells, sources
from gptoss_workbench.patching.result import PatchResult, Prompts
from gptoss_workbench.patching.runs import (
    Copies,
    Run,
    first_needed,
    read_pair,
    run,
    stream_names,
)
from gptoss_workbench.patching.values import Patch, patch
from gptoss_workbench.text import Text

if TYPE_CHECKING:
    from gptoss_workbench.model import GptOss

SOURCE = "activation patching, Meng et al. 2202.05262; Zhang & Nanda 2309.16042"
TOKENS_AT_ONCE = 4096
"""Rows x positions of one forward pass, by default."""
KEPT_KEYS = 0.25
"""What a position that is only kept as a key counts, beside one that is run."""


def activation_patching(
    model: GptOss,
    clean: Text | Tensor,
    corrupted: Text | Tensor,
    *,
    metric: Judge,
    sites: Sequence[str] | str = ("resid_pre", "attn_out", "mlp_out"),
    positions: Any = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    slots: Sequence[int] | None = None,
    experts: Sequence[int] | None = None,
    neurons: Sequence[int] | None = None,
    cells: Cells | None = None,
    direction: str = "denoise",
    batch_tokens: int = TOKENS_AT_ONCE,
) -> PatchResult:
    """Patch every cell of a grid, one at a time, and read the metric.

    metric = logit_difference(right, wrong)
    result = activation_patching(model, clean, corrupted, metric=metric, sites="resid_pre")

    Args:
        clean, corrupted: a prompt or several (text or tokens), pairwise equally long.
        metric: a Metric, or a function of logits [batch, pos, vocab].
        sites: names from `nodes.SITES`.
        positions: None (each place alone), "all" (all places together), places, or pairs
            (clean place, corrupted place); pairs allow prompts of different length.
        cells: exactly these cells instead of a grid, as in another result's `.top(20).cells`.
        direction: "denoise" or "noise".
        batch_tokens: rows x positions of one forward pass; bounds memory, changes no result.
    """
    wanted = Wanted(layers, positions, heads, slots, experts, neurons)
    study = prepare(
        model, clean, corrupted, metric, sites, wanted, cells=cells, direction=direction
    )
    value = sweep(model, study, batch_tokens)
    return study.result(model, value, method="activation patching", source=SOURCE)


@dataclass(frozen=True)
class Study:
    """Both runs, the cells, and which run is patched."""

    cells: Cells
    metric: Metric
    clean: Run
    corrupted: Run
    direction: str

    @property
    def base(self) -> Run:
        """The run that is patched."""
        return self.corrupted if self.direction == "denoise" else self.clean

    @property
    def other(self) -> Run:
        """The run that values come from."""
        return self.clean if self.direction == "denoise" else self.corrupted

    def result(
        self, model: GptOss, value: Tensor, *, method: str, source: str, **more: Any
    ) -> PatchResult:
        """A PatchResult from values [cell, batch]."""
        clean, corrupted = self.clean.value, self.corrupted.value
        strings = [_strings(model, each) for each in (self.clean, self.corrupted)]
        return PatchResult(
            self.cells,
            value.double().cpu().numpy(),
            clean.double().cpu().numpy(),
            corrupted.double().cpu().numpy(),
            Prompts(self.clean.tokens.cpu(), self.corrupted.tokens.cpu(), *strings),
            self.metric.name,
            method,
            self.direction,
            source,
            **more,
        )


def prepare(
    model: GptOss,
    clean: Text | Tensor,
    corrupted: Text | Tensor,
    metric: Judge,
    sites: Sequence[str] | str,
    wanted: Wanted,
    *,
    cells: Cells | None = None,
    direction: str = "denoise",
    more: Sequence[str] = (),
) -> Study:
    """Check the arguments and run both prompts once, keeping what the cells need, and `more`."""
    if direction not in ("denoise", "noise"):
        raise ValueError(f"direction is 'denoise' or 'noise'; got {direction!r}")
    batches = read_pair(model, clean, corrupted, same_length=not _paired(wanted.positions, cells))
    if cells is None:
        widths = batches[0].tokens.shape[1], batches[1].tokens.shape[1]
        base = 1 if direction == "denoise" else 0
        cells = make_cells(sites, wanted, model.config, widths, base)
    judge, needs = as_metric(metric), [*sources(cells), *more]
    base_names = sorted({*needs, *stream_names(model.n_layers, int(cells.layer.min()))})
    names = (needs, base_names) if direction == "denoise" else (base_names, needs)
    runs = [run(model, b, judge, kept) for b, kept in zip(batches, names, strict=True)]
    return Study(cells, judge, runs[0], runs[1], direction)


def _paired(positions: Any, cells: Cells | None) -> bool:
    """Whether places of the two prompts are matched one by one."""
    if cells is not None:
        return not np.array_equal(cells.pos, cells.source)
    listed = positions if isinstance(positions, (list, tuple)) else []
    return any(isinstance(p, (tuple, list)) for p in listed)


def _strings(model: GptOss, run: Run) -> list[list[str]] | None:
    if model.tokenizer is None:
        return None
    return [model.tokenizer.strings(row) for row in run.tokens.tolist()]


@torch.no_grad()
def sweep(model: GptOss, study: Study, batch_tokens: int = TOKENS_AT_ONCE) -> Tensor:
    """The metric under every cell's patch, [cell, batch]; NaN where a cell does not exist."""
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be 1 or more; got {batch_tokens}")
    value = torch.empty(len(study.cells), len(study.base.value))
    for first, rows in chunks(model, study, batch_tokens):
        copies = Copies(model, study.base, first)
        value[rows] = _chunk(copies, study, study.cells[rows]).cpu()
    return value


def chunks(model: GptOss, study: Study, batch_tokens: int) -> Iterator[tuple[int, np.ndarray]]:
    """Cells that share a forward pass, sorted by layer, with the position it starts at."""
    cells, width, batch = study.cells, study.base.width, len(study.base.tokens)
    first = np.minimum(np.maximum(cells.pos, 0), first_needed(study.metric, width))
    first[cells.site == "pattern"] = 0  # its keys must be the whole prompt's
    if any(point.observed for point in model.hook_dict.values()):
        first[:] = 0  # hooks of the caller see whole prompts
    order = np.lexsort((cells.layer, first))
    cost = batch * (width - first + KEPT_KEYS * first)
    while len(order):
        n = max(1, int(batch_tokens // cost[order[0]]))
        rows, order = order[:n], order[n:]
        yield int(first[rows[0]]), rows[np.argsort(cells.layer[rows], kind="stable")]


def _chunk(copies: Copies, study: Study, cells: Cells) -> Tensor:
    """Run one batch of cells (sorted by layer), each joining when its layer comes."""
    batch = len(study.base.tokens)
    exists = torch.zeros(len(cells), batch, dtype=torch.bool)
    x = copies.fresh(int(cells.layer[0]), 0)
    for layer in range(int(cells.layer[0]), copies.model.n_layers):
        joining = np.flatnonzero(cells.layer == layer)
        x = torch.cat([x, copies.fresh(layer, len(joining))])
        hooks: list[tuple[str, HookFunction]] = []
        for group in groups(cells[joining]):
            here = joining[group]
            each = patch(cells[here], study.base, study.other)
            exists[here] = each.exists(len(here), batch)
            hooks.append((each.hook, _writer(each, here, batch, copies.first)))
        x = copies.through(layer, x, hooks)
    value = copies.judge(x, study.metric)
    alive = exists if value.shape[1] == batch else exists.any(1, keepdim=True)
    return value.float().masked_fill(~alive.to(value.device), torch.nan)


def groups(cells: Cells) -> list[np.ndarray]:
    """Row numbers of the cells of each site and layer, layer by layer."""
    pairs = list(zip(cells.layer.tolist(), cells.site.tolist(), strict=True))
    rows: dict[tuple[int, str], list[int]] = {}
    for row, pair in enumerate(pairs):
        rows.setdefault(pair, []).append(row)
    return [np.array(rows[pair]) for pair in sorted(rows)]


def _writer(each: Patch, cells: np.ndarray, batch: int, first: int) -> HookFunction:
    """A hook that writes a patch's values into the rows of its cells."""
    rows = torch.as_tensor(cells, device=each.values.device)[each.places.cell] * batch
    pos = 2 if each.hook.endswith("hook_pattern") else 1
    index = [rows + each.places.batch, *each.at[1:]]
    index[pos] = index[pos] - first

    def write(tensor: Tensor, hook: HookPoint) -> Tensor:
        out = tensor.clone()
        out[tuple(index)] = each.values
        return out

    return write
