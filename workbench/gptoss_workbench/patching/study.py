"""What a study of patches begins with: both runs, the cells, and which run is patched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from gptoss_workbench.patching.metrics import Judge, Metric, as_metric
from gptoss_workbench.patching.nodes import Cells, Sides, Wanted, make_cells, on_grid, sources
from gptoss_workbench.patching.result import PatchResult, Prompts
from gptoss_workbench.patching.runs import (
    Run,
    check_scores,
    observed,
    read_pair,
    run,
    run_both,
    sides_of,
    stream_names,
)
from gptoss_workbench.text import Batch, Text

if TYPE_CHECKING:
    from gptoss_workbench.model import GptOss


@dataclass(frozen=True)
class Study:
    """Both runs, the cells, and which run is patched."""

    cells: Cells
    """with columns of the padded prompts in place of positions"""
    asked: Cells
    """as they were asked for"""
    metric: Metric
    clean: Run
    corrupted: Run
    direction: str
    plain: bool = False
    """whether nobody looks on and nothing edits, so that only what a patch changes need run"""

    @property
    def sides(self) -> Sides:
        """How long the prompts are."""
        return sides_of([Batch(each.tokens, each.mask) for each in (self.clean, self.corrupted)])

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
        notes = (*_alignment(self.sides, len(self.clean.tokens)), *more.pop("notes", ()))
        return PatchResult(
            self.asked,
            value.double().cpu().numpy(),
            clean.double().cpu().numpy(),
            corrupted.double().cpu().numpy(),
            Prompts(self.clean.tokens.cpu(), self.corrupted.tokens.cpu(), *strings),
            self.metric.name,
            method,
            self.direction,
            source,
            notes,
            **more,
        )


def _alignment(sides: Sides, prompts: int) -> tuple[str, ...]:
    """How positions of several prompts are brought together, in words."""
    if prompts == 1:
        return ()
    said = "a token is shown where all prompts have it there"
    if not sides.ragged:
        return (f"means over {prompts} prompts of one length, position by position; {said}",)
    length = f"{min(sides.shortest)} to {max(sides.longest)} tokens"
    return (f"means over {prompts} prompts of {length}; positions count from their end; {said}",)


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
    at_once: int = 0,
) -> Study:
    """Check the arguments and run both prompts once, keeping what the cells need, and `more`.

    Prompts of no more than `at_once` tokens together are run as one batch.
    """
    if direction not in ("denoise", "noise"):
        raise ValueError(f"direction is 'denoise' or 'noise'; got {direction!r}")
    batches = read_pair(model, clean, corrupted, same_length=not _paired(wanted.positions, cells))
    sides, base = sides_of(batches), 1 if direction == "denoise" else 0
    if cells is None:
        cells = make_cells(sites, wanted, model.config, sides, base)
    grid = on_grid(cells, sides, base)
    judge, needs = read_metric(metric, model, sides), [*sources(cells), *more]
    base_names = sorted({*needs, *stream_names(model.n_layers, cells)})
    names = (needs, base_names) if direction == "denoise" else (base_names, needs)
    shapes, size = {batch.tokens.shape for batch in batches}, 2 * batches[0].tokens.numel()
    plain = not (observed(model) or model.active_edits)
    if len(shapes) == 1 and size <= at_once and plain:
        runs = run_both(model, batches, judge, base_names)
    else:
        runs = [run(model, b, judge, kept) for b, kept in zip(batches, names, strict=True)]
    check_scores(runs[0], runs[1], judge)
    return Study(grid, cells, judge, runs[0], runs[1], direction, plain)


def read_metric(metric: Judge, model: GptOss, sides: Sides) -> Metric:
    """The metric, checked to read no place that a prompt lacks."""
    judge, shortest = as_metric(metric, model), min(sides.shortest)
    if judge.keep > shortest:
        raise ValueError(f"metric: reads place {-judge.keep}, but a prompt has {shortest} tokens")
    return judge


def _paired(positions: Any, cells: Cells | None) -> bool:
    """Whether places of the two prompts are matched one by one."""
    if cells is not None:
        return not np.array_equal(cells.pos, cells.source)
    listed = positions if isinstance(positions, (list, tuple)) else []
    return any(isinstance(p, (tuple, list)) for p in listed)


def _strings(model: GptOss, run: Run) -> list[list[str]] | None:
    """The text of every token of a run, "" for padding; None without a tokenizer."""
    if model.tokenizer is None:
        return None
    rows = zip(run.tokens.tolist(), run.mask.tolist(), strict=True)
    return [
        [
            text if real else ""
            for text, real in zip(model.tokenizer.strings(row), mask, strict=True)
        ]
        for row, mask in rows
    ]
