"""The result of a sweep: what each cell did, beside both baselines and both prompts.

    effect = (value - corrupted) / (clean - corrupted)        0: as corrupted, 1: as clean

whichever run was patched (Meng et al. 2202.05262 patch clean into corrupted; Zhang & Nanda
2309.16042 compare both directions and metrics).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gptoss_workbench.patching.nodes import ALL, NONE, PARTS, Cells
from gptoss_workbench.table import Table

if TYPE_CHECKING:
    import pandas
    from torch import Tensor


PLACES = ("pos", "source")


class Grid(NamedTuple):
    """Mean effects of one site, as an array with named axes."""

    values: np.ndarray
    """[*axes]; NaN where there is no cell"""
    axes: tuple[str, ...]
    """among layer, pos, head, slot, expert, neuron; axes of one entry are left out"""
    labels: dict[str, np.ndarray]
    """numbers along each axis, as in Cells"""


class Prompts(NamedTuple):
    """Both prompts of every example."""

    clean: Tensor
    """[batch, pos]"""
    corrupted: Tensor
    """[batch, pos]"""
    clean_strings: list[list[str]] | None
    corrupted_strings: list[list[str]] | None


@dataclass(frozen=True, repr=False, eq=False)
class PatchResult:
    """What every cell of a sweep did to the metric.

    result = activation_patching(model, clean, corrupted, metric=metric)
    result.grid("resid_pre").values     # [layer, pos]
    result.top(5), result.table(), result.to_pandas()
    """

    cells: Cells
    value: np.ndarray
    """[cell, batch] the metric under each patch (an estimate, where the method is one)."""
    clean: np.ndarray
    """[batch] the metric of the clean run."""
    corrupted: np.ndarray
    """[batch] the metric of the corrupted run."""
    prompts: Prompts
    metric: str
    method: str
    direction: str
    """"denoise": clean values go into the corrupted run; "noise": the other way round."""
    source: str
    notes: Sequence[str] = ()
    completeness: Table | None = None
    """Integrated gradients: how far the attributions of a whole cut sum to its true effect."""

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def effects(self) -> np.ndarray:
        """[cell, batch] normalised: 0 as corrupted, 1 as clean; NaN where both are the same."""
        span = self.clean - self.corrupted
        span = np.where(span == 0, np.nan, span)
        return (self.value - self.corrupted) / span

    @property
    def effect(self) -> np.ndarray:
        """[cell] mean over the examples a cell exists in."""
        return _mean(self.effects)

    @property
    def sites(self) -> list[str]:
        """Sites that were swept, in order."""
        return list(dict.fromkeys(self.cells.site.tolist()))

    def grid(self, site: str | None = None) -> Grid:
        """Mean effects of one site as an array; without a name, of the only one."""
        if site is None and len(self.sites) > 1:
            raise ValueError(f"grid: name one of the sites {', '.join(self.sites)}")
        site = site or self.sites[0]
        here = self.cells.site == site
        if not here.any():
            raise ValueError(f"grid: site {site!r} was not swept; there are {self.sites}")
        cells = self.cells[here]
        names = ("layer", "pos", *PARTS)
        labels, at = {}, []
        for name in names:
            numbers, index = np.unique(getattr(cells, name), return_inverse=True)
            if name not in PARTS or len(numbers) > 1 or numbers[0] != NONE:
                labels[name] = numbers
                at.append(index)
        values = np.full([len(numbers) for numbers in labels.values()], np.nan)
        values[tuple(at)] = self.effect[here]
        return _without_all(Grid(values, tuple(labels), labels))

    def top(self, n: int = 10) -> PatchResult:
        """The n cells with the largest mean effect, up or down; `.cells` can be swept again."""
        order = np.argsort(-np.abs(np.nan_to_num(self.effect)), kind="stable")[:n]
        return self.rows(order)

    def where(self, **equal: Any) -> PatchResult:
        """Cells in which each named column has the value given, or one of a list.

        result.where(site="z", layer=[2, 3]), result.where(pos="all")
        """
        keep = np.ones(len(self), bool)
        for name, value in equal.items():
            listed = list(value) if isinstance(value, (list, tuple, set, range)) else [value]
            wanted = [ALL if name in PLACES and each == "all" else each for each in listed]
            keep &= np.isin(getattr(self.cells, name), wanted)
        return self.rows(keep)

    def rows(self, index: Any) -> PatchResult:
        """Cells by mask, slice or positions."""
        return replace(self, cells=self.cells[index], value=self.value[index])

    def table(self, *, per_example: bool = False) -> Table:
        """One row a cell (or a cell and example): where it is, its effect, the raw metric."""
        batch = self.value.shape[1]
        columns = dict(self.cells.columns())
        if per_example:
            columns = {name: column.repeat(batch) for name, column in columns.items()}
            columns["batch"] = np.tile(np.arange(batch), len(self))
            columns["effect"], columns["value"] = self.effects.ravel(), self.value.ravel()
        else:
            columns["effect"], columns["value"] = self.effect, _mean(self.value)
            columns["n"] = np.isfinite(self.value).sum(1)
        columns |= self._tokens(columns)
        columns |= {name: _places(columns[name]) for name in PLACES if name in columns}
        return Table(columns, self._title(), self.source, notes=self._notes())

    def to_pandas(self, *, per_example: bool = False) -> pandas.DataFrame:
        """`table()` as a data frame."""
        return self.table(per_example=per_example).to_pandas()

    def _tokens(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The token at each cell's position, in both prompts; "" where examples differ there."""
        clean, corrupted = self.prompts.clean_strings, self.prompts.corrupted_strings
        if clean is None or corrupted is None or (columns["pos"] == ALL).all():
            return {}
        rows = columns["batch"].tolist() if "batch" in columns else [None] * len(columns["pos"])
        into, out = columns["pos"], columns.get("source", columns["pos"])
        at = (out, into) if self.direction == "denoise" else (into, out)
        pairs = (("clean token", clean, at[0]), ("corrupted token", corrupted, at[1]))
        return {name: _strings(strings, rows, where) for name, strings, where in pairs}

    def _title(self) -> str:
        way = "clean into corrupted" if self.direction == "denoise" else "corrupted into clean"
        return f"{self.method}, {way}: effect on {self.metric} (0 corrupted, 1 clean)"

    def _notes(self) -> list[str]:
        clean, corrupted = self.clean.mean(), self.corrupted.mean()
        base = f"{self.metric}: clean {clean:.4g}, corrupted {corrupted:.4g} (means)"
        same = int((self.clean == self.corrupted).sum())
        none = [f"{same} examples have no effect: both runs read the same"] if same else []
        return [base, *none, *self.notes]

    def __repr__(self) -> str:
        best = self.top(1)
        said = f"; strongest {best.cells.describe(0)}: {best.effect[0]:.3g}" if len(best) else ""
        return f"PatchResult({self._title()}; {len(self)} cells of {', '.join(self.sites)}{said})"

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over examples, NaN ones left out; NaN where none is left."""
    there = np.isfinite(values)
    total = np.where(there, values, 0).sum(1)
    return np.where(there.any(1), total / np.maximum(there.sum(1), 1), np.nan)


def _places(column: np.ndarray) -> np.ndarray:
    """A column of positions as it is read: "all" in place of ALL."""
    every = column == ALL
    return np.where(every, "all", column.astype(object)) if every.any() else column


def _strings(strings: list[list[str]], rows: Sequence[int | None], where: np.ndarray) -> np.ndarray:
    """The text at a place of one example, or of all if they agree."""

    def text(row: int | None, place: int) -> str:
        if place == ALL:
            return ""
        found = {each[place] for each in (strings if row is None else [strings[row]])}
        return found.pop() if len(found) == 1 else ""

    both = zip(rows, where.tolist(), strict=True)
    return np.array([text(*each) for each in both], dtype=object)


def _without_all(grid: Grid) -> Grid:
    """Leave the position axis out where everything was patched at all positions together."""
    if grid.labels["pos"].tolist() != [ALL]:
        return grid
    axis = grid.axes.index("pos")
    labels = {name: numbers for name, numbers in grid.labels.items() if name != "pos"}
    return Grid(grid.values.squeeze(axis), tuple(labels), labels)
