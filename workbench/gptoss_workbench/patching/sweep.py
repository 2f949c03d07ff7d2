"""Activation patching: put one run's activation into another, cell by cell, and read the metric.

Denoising puts clean values into the corrupted run (what suffices to restore the answer?), noising
corrupted values into the clean run (what is needed for it?). Meng et al. 2202.05262; terms and
advice: Heimersheim & Nanda 2404.15255; metrics: Zhang & Nanda 2309.16042.

A sweep is a few forward passes: many cells are rows of one batch (see `runs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gptoss_hooks.points import HookFunction, HookPoint
from gptoss_workbench.patching.copies import Copies
from gptoss_workbench.patching.metrics import Judge
from gptoss_workbench.patching.nodes import AFTER_ATTENTION, ALL, INTO_KEYS, Cells, Wanted
from gptoss_workbench.patching.progress import Progress
from gptoss_workbench.patching.result import PatchResult
from gptoss_workbench.patching.runs import Run, first_needed, parting
from gptoss_workbench.patching.study import Study, prepare
from gptoss_workbench.patching.values import Patch, patch, places_of
from gptoss_workbench.text import Text

if TYPE_CHECKING:
    from gptoss_workbench.model import GptOss

SOURCE = "activation patching, Meng et al. 2202.05262; Zhang & Nanda 2309.16042"
TOKENS_AT_ONCE = 4096
"""Rows x positions of one forward pass, by default."""
KEPT_KEYS = 0.25
"""What a position that is only kept as a key counts, beside one that is run."""
PASS_TOKENS, IDLE = 64, 0.125
"""Positions run for nothing that cost less than one more pass: so many, and a share of the rest."""


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
    progress: bool = True,
) -> PatchResult:
    """Patch every cell of a grid, one at a time, and read the metric.

    metric = logit_difference(right, wrong)
    result = activation_patching(model, clean, corrupted, metric=metric, sites="resid_pre")

    Args:
        clean, corrupted: a prompt or several (text or tokens), pairwise equally long.
        metric: a Metric, or a function of logits [batch, pos, vocab].
        sites: names from `nodes.SITES`.
        positions: None (each place alone), "all" (all places together), places, or pairs
            (clean place, corrupted place); pairs allow a clean prompt and its corrupted one to
            differ in length. Where several prompts do, places count from their end: -1 is the last.
        cells: exactly these cells instead of a grid, as in another result's `.top(20).cells`.
        direction: "denoise" or "noise".
        batch_tokens: rows x positions of one forward pass; bounds memory, changes no result.
        progress: show a bar when it takes longer than a second.

    Interrupted, it leaves the cells that are done at `model.last_patching`.
    """
    wanted = Wanted(layers, positions, heads, slots, experts, neurons)
    study = prepare(
        model, clean, corrupted, metric, sites, wanted, cells=cells, direction=direction,
        at_once=batch_tokens,
    )  # fmt: skip
    finish = partial(study.result, model, method="activation patching", source=SOURCE)
    done = Progress(len(study.cells), progress)
    try:
        with done:
            value = sweep(model, study, batch_tokens, done)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(done.keep(model, finish))
        raise
    return finish(value)


@torch.no_grad()
def sweep(
    model: GptOss,
    study: Study,
    batch_tokens: int = TOKENS_AT_ONCE,
    ran: Callable[[np.ndarray, Tensor], Any] | None = None,
) -> Tensor:
    """The metric under every cell's patch, [cell, batch]; NaN where a cell does not exist.

    `ran` is called behind every forward pass with row numbers that are done and all values.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be 1 or more; got {batch_tokens}")
    value, cells = torch.empty(len(study.cells), len(study.base.value)), study.cells
    alike = parting(study.base, study.other)
    first = starts(study, model.n_layers, alike) if study.plain else np.zeros_like(cells.pos)
    if len(silent := np.flatnonzero(first == study.base.width)):
        value[silent] = _unchanged(study, cells[silent])
        if ran is not None:
            ran(silent, value)
    for rows in chunks(study, first, batch_tokens):
        copies = Copies(model, study.base, int(first[rows].min()))
        value[rows] = _chunk(copies, study, cells[rows])
        if ran is not None:
            ran(rows, value)
    return value


def starts(study: Study, n_layers: int, alike: int) -> np.ndarray:
    """The first position that a cell changes and the metric hears of; width if there is none.

    Both runs are the same at the first `alike` positions.
    """
    cells, width = study.cells, study.base.width
    needed, pos = first_needed(study.metric, width), np.maximum(cells.pos, 0)
    same = np.where(cells.pos == cells.source, alike, 0)
    last = (cells.layer == n_layers - 1) & ~np.isin(cells.site, INTO_KEYS)
    first = np.minimum(np.where(last, needed, np.maximum(pos, same)), needed)
    silent = (cells.pos != ALL) & ((pos < same) | (last & (pos < needed)))
    first[silent & (cells.site != "expert_post")] = width  # whose cells may not exist
    first[cells.site == "pattern"] = 0  # its keys must be the whole prompt's
    return first


def _unchanged(study: Study, cells: Cells) -> Tensor:
    """The base's value for cells of one position that change nothing, NaN on padding."""
    real = study.base.mask[:, cells.pos] & study.other.mask[:, cells.source]
    alive = real.T if len(study.base.value) == len(real) else real.any(0)[:, None]
    return study.base.value.float().expand(alive.shape).masked_fill(~alive, torch.nan).cpu()


def half_layers(cells: Cells) -> np.ndarray:
    """Where cells join: twice their layer, and one more behind its attention."""
    return 2 * cells.layer + np.isin(cells.site, AFTER_ATTENTION)


def chunks(study: Study, first: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Rows of cells that share a forward pass, sorted by the half layer they join at and by site.

    Cells that start later than the first of them run some positions for nothing: few.
    """
    width, batch, half = study.base.width, len(study.base.tokens), half_layers(study.cells)
    joins = (half + 1) // 2
    order = np.flatnonzero(first < width)
    order = order[np.lexsort((half[order], first[order]))]
    cost = batch * (width - first + KEPT_KEYS * first)
    part = batch * (joins.max() - joins + KEPT_KEYS) / (joins.max() + 1)
    while len(order):
        here = order[: max(1, int(batch_tokens // cost[order[0]]))]
        idle = np.cumsum((first[here] - first[here[0]]) * part[here])
        used = np.cumsum((width - first[here]) * part[here])
        n = int((idle <= PASS_TOKENS + IDLE * used).sum())
        rows, order = order[:n], order[n:]
        yield rows[np.lexsort((study.cells.site[rows], half[rows]))]


def _chunk(copies: Copies, study: Study, cells: Cells) -> Tensor:
    """The metric of one batch of cells, sorted as `chunks` does."""
    base, batch = study.base, len(study.base.tokens)
    firsts = sorted(rows[0] for rows in groups(cells))
    places = places_of(cells, base, study.other, copies.first).split(firsts)
    patches = [patch(*each, base, study.other) for each in zip(places, firsts, strict=True)]
    exists = torch.stack([each.exists(len(cells), batch) for each in patches]).any(0)
    run = _by_halves if study.plain else _by_layers
    value = copies.judge(run(copies, cells, patches, study.metric.keep), study.metric)
    alive = exists if value.shape[1] == batch else exists.any(1, keepdim=True)
    return value.float().cpu().masked_fill(~alive, torch.nan)


def _by_halves(copies: Copies, cells: Cells, patches: Sequence[Patch], keep: int) -> Tensor:
    """Final residuals of the last `keep` positions (0: all); each cell joins as late as it can."""
    half, last = half_layers(cells), copies.model.n_layers - 1
    x = copies.fresh(int(cells.layer[0]), 0)
    for layer in range(int(cells.layer[0]), last + 1):
        here = [each for each in patches if each.layer == layer]
        behind = [each for each in here if each.site in AFTER_ATTENTION]
        if n := int((half == 2 * layer).sum()):
            x = torch.cat([x, copies.fresh(layer, n)])
        hooks = []
        for each in here:
            if each.site == "resid_pre":
                _write(x, each, copies.base)
            elif each.site not in AFTER_ATTENTION:
                hooks.append((each.hook, _writer(each, copies.base)))
        x = copies.attend(layer, x, hooks, keep if layer == last else 0)
        x = copies.leave(layer, x, behind, int((half == 2 * layer + 1).sum()))
    return x


def _by_layers(copies: Copies, cells: Cells, patches: Sequence[Patch], keep: int) -> Tensor:
    """Final residuals of whole prompts, run by the model itself: hooks and edits of others act."""
    x = copies.fresh(int(cells.layer[0]), 0)
    for layer in range(int(cells.layer[0]), copies.model.n_layers):
        x = torch.cat([x, copies.fresh(layer, int((cells.layer == layer).sum()))])
        here = [each for each in patches if each.layer == layer]
        x = copies.through(layer, x, [(each.hook, _writer(each, copies.base)) for each in here])
    return x


def groups(cells: Cells) -> list[np.ndarray]:
    """Row numbers of the cells of each site and layer, layer by layer."""
    pairs = list(zip(cells.layer.tolist(), cells.site.tolist(), strict=True))
    rows: dict[tuple[int, str], list[int]] = {}
    for row, pair in enumerate(pairs):
        rows.setdefault(pair, []).append(row)
    return [np.array(rows[pair]) for pair in sorted(rows)]


def _writer(each: Patch, base: Run) -> HookFunction:
    """A hook that writes a patch's values into the rows of its cells, where they run."""

    def write(tensor: Tensor, hook: HookPoint) -> Tensor:
        out = tensor.clone()
        _write(out, each, base)
        return out

    return write


def _write(tensor: Tensor, each: Patch, base: Run) -> None:
    """Put a patch's values into the rows of its cells, at positions that are there."""
    pos = 2 if each.site == "pattern" else 1
    index = [each.places.cell * len(base.tokens) + each.places.batch, *each.at[1:]]
    index[pos] = index[pos] - base.width  # from the end, which all runs share
    runs = index[pos] >= -tensor.shape[pos]
    tensor[tuple(at[runs] for at in index)] = each.values[runs]
