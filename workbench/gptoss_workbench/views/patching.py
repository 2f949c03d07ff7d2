"""What patching each cell of a sweep does: layers x positions (heads, slots, experts), zero white.

Reads a patching result by its fields alone: `cells`, `effect` [cell], `effects` and `value` [cell,
batch], `clean` and `corrupted` [batch], `prompts`, `metric`, `method`, `direction`, `table()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gptoss_workbench.patching.nodes import ALL, Cells

from .packing import quantise_signed
from .picture import blank, clip, colour_bar, place, style
from .snapshot import BUDGET, View, check_place, check_state
from .transcript import require, visible

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from gptoss_workbench.patching.result import PatchResult

PARTS = ("head", "slot", "expert", "neuron")
STATE = ("site", "layer", "column", "example", "zoom")
MOST_EXAMPLES = 16
"""Prompts whose tokens a view carries; the means are over all."""


class Sweep(NamedTuple):
    """The cells of one site, laid out as a map."""

    site: str
    axis: str
    """What the columns count: pos, head, slot, expert or neuron."""
    other: str | None
    """What lies behind a cell of the map: of several, the strongest is shown."""
    cells: np.ndarray
    """[cell] places in the result."""
    layers: np.ndarray
    """[row] numbers of the layers."""
    columns: np.ndarray
    """[column] numbers along the axis; -1 is all positions together."""
    row: np.ndarray
    """[cell] its row."""
    column: np.ndarray
    """[cell] its column."""
    behind: np.ndarray
    """[cell] its number along `other`, -1 without."""


def patching(
    result: PatchResult,
    site: str | None = None,
    *,
    columns: str | None = None,
    state: Mapping[str, Any] | str | None = None,
    budget: int = BUDGET,
) -> View:
    """Show the effect of every patch: layers down, positions (or heads, slots, experts) across.

        result = activation_patching(model, clean, corrupted, metric=metric)
        wb.views.patching(result)

    Red moves the metric towards the clean run, blue away from it, white is no effect. Click a cell
    for its prompts and values. `columns` names the axis across ("pos", "head", ...); where a cell
    of the map stands for several patches it shows the strongest, and a click lists them.
    """
    require(result, ("sites", "to_pandas"), "a PatchResult, as activation_patching(...) gives")
    sweeps = [_lay_out(result, name, columns) for name in result.sites]
    check = partial(_checked, sweeps, _examples(result), site)
    opened = check(check_state("patching", state, STATE))
    shown = next(each for each in sweeps if each.site == opened["site"])
    return View(
        kind="patching",
        scripts=("strip", "grid"),
        finding=_finding(result, shown),
        header=_header(result, sweeps) | {"state": opened},
        buffers=_buffers(result, sweeps),
        frame=result.to_pandas,
        summary=partial(_summary, result),
        figure=partial(_figure, result, shown),
        check=check,
        reopen=lambda state: patching(result, columns=columns, state=state, budget=budget),
        smaller="result.where(layer=[...]) or result.top(n) in place of result",
        budget=budget,
    )


def _lay_out(result: PatchResult, site: str, columns: str | None) -> Sweep:
    """Find rows and columns of one site's cells."""
    here = np.flatnonzero(result.cells.site == site)
    cells = _columns(result)[here]
    varied = [name for name in PARTS if (getattr(cells, name) >= 0).any()]
    if not varied or len(np.unique(cells.pos)) > 1:
        varied.insert(0, "pos")
    if columns is not None and columns not in varied:
        raise ValueError(
            f"views.patching: the cells of {site} differ in {', '.join(varied)}; "
            f"got columns={columns!r}"
        )
    axis = columns or varied[0]
    others = [name for name in varied if name != axis]
    other = max(others, key=lambda name: len(np.unique(getattr(cells, name))), default=None)
    layers, row = np.unique(cells.layer, return_inverse=True)
    numbers, column = np.unique(getattr(cells, axis), return_inverse=True)
    behind = np.full(len(here), -1) if other is None else getattr(cells, other)
    return Sweep(site, axis, other, here, layers, numbers, row, column, behind)


def _columns(result: PatchResult) -> Cells:
    """The cells with columns of the prompts in place of positions, -1 for all of them."""
    widths = [each.shape[1] for each in (result.prompts.clean, result.prompts.corrupted)]
    widths = widths[::-1] if result.direction == "denoise" else widths
    both = zip(("pos", "source"), widths, strict=True)
    return replace(
        result.cells, **{name: _column(getattr(result.cells, name), width) for name, width in both}
    )


def _column(places: np.ndarray, width: int) -> np.ndarray:
    return np.where(places == ALL, -1, np.where(places < 0, places + width, places))


def effect_map(result: PatchResult, sweep: Sweep) -> np.ndarray:
    """[row, column]: the strongest effect behind each cell; NaN where there is none."""
    effect = result.effect[sweep.cells]
    out = np.full((len(sweep.layers), len(sweep.columns)), np.nan)
    for i in np.argsort(np.abs(np.nan_to_num(effect)), kind="stable"):
        if np.isfinite(effect[i]):
            out[sweep.row[i], sweep.column[i]] = effect[i]
    return out


def _examples(result: PatchResult) -> int:
    return min(len(result.clean), MOST_EXAMPLES)


def _checked(
    sweeps: list[Sweep], examples: int, site: str | None, state: Mapping[str, Any]
) -> dict[str, Any]:
    """Complete a state and raise where it names what is not there."""
    names = [sweep.site for sweep in sweeps]
    out = {"site": site or names[0], "layer": None, "column": None, "example": 0, "zoom": 1}
    out |= check_state("patching", state, STATE)
    if out["site"] not in names:
        raise ValueError(f"views.patching: sites are {', '.join(names)}; got {out['site']!r}")
    sweep = sweeps[names.index(out["site"])]
    for name, numbers in (("layer", sweep.layers), ("column", sweep.columns)):
        if out[name] is not None and out[name] not in numbers:
            what = "layers" if name == "layer" else sweep.axis
            raise ValueError(
                f"views.patching: {what} are {numbers.tolist()}; got {name}={out[name]}"
            )
    check_place("patching", "example", out["example"], examples, "examples in the view")
    return out


def _top(result: PatchResult) -> float:
    """The end of the colour scale, the same for all sites; at least 1, which is the clean run."""
    effect = np.abs(result.effect[np.isfinite(result.effect)])
    return max(1.0, float(np.ceil(effect.max() * 10) / 10)) if effect.size else 1.0


def _header(result: PatchResult, sweeps: list[Sweep]) -> dict[str, Any]:
    strings = (result.prompts.clean_strings, result.prompts.corrupted_strings)
    tokens = (result.prompts.clean, result.prompts.corrupted)
    n = _examples(result)
    texts = [_texts(told, ids, n) for told, ids in zip(strings, tokens, strict=True)]
    return {
        "sites": [
            {
                "name": sweep.site,
                "axis": sweep.axis,
                "other": sweep.other,
                "layers": sweep.layers.tolist(),
                "columns": sweep.columns.tolist(),
                "cells": len(sweep.cells),
            }
            for sweep in sweeps
        ],
        "top": _top(result),
        "metric": result.metric,
        "method": result.method,
        "direction": result.direction,
        "examples": len(result.clean),
        "clean": texts[0],
        "corrupted": texts[1],
        "notes": list(result.notes),
    }


def _texts(strings: list[list[str]] | None, tokens: Any, n: int) -> list[list[str]]:
    """The tokens of the first n prompts; in brackets their numbers where there is no text."""
    if strings is not None:
        return [list(row) for row in strings[:n]]
    return [[f"[{token}]" for token in row] for row in tokens[:n].tolist()]


def _buffers(result: PatchResult, sweeps: list[Sweep]) -> dict[str, np.ndarray]:
    """Cells of all sites, one site after the other; values of the first examples."""
    order = np.concatenate([sweep.cells for sweep in sweeps])
    n = _examples(result)
    cells = _columns(result)[order]
    return {
        "row": np.concatenate([sweep.row for sweep in sweeps]).astype(np.uint16),
        "column": np.concatenate([sweep.column for sweep in sweeps]).astype(np.uint16),
        "behind": np.concatenate([sweep.behind for sweep in sweeps]).astype(np.int32),
        "pos": cells.pos.astype(np.int32),
        "source": cells.source.astype(np.int32),
        "effect": result.effect[order].astype(np.float32),
        "shade": quantise_signed(result.effect[order], _top(result)),
        "mean": _means(result.value[order]).astype(np.float32),
        "value": result.value[order, :n].astype(np.float32),
        "clean": np.asarray(result.clean, np.float32),
        "corrupted": np.asarray(result.corrupted, np.float32),
    }


def _means(values: np.ndarray) -> np.ndarray:
    """Mean over the examples in which a cell exists; NaN where there is none."""
    there = np.isfinite(values)
    total = np.where(there, values, 0).sum(1)
    return np.where(there.any(1), total / np.maximum(there.sum(1), 1), np.nan)


def _finding(result: PatchResult, sweep: Sweep) -> str:
    values = effect_map(result, sweep)
    base = f"clean {np.mean(result.clean):.3g}, corrupted {np.mean(result.corrupted):.3g}"
    said = f"{result.method} of {sweep.site} on {result.metric} ({base})"
    if not np.isfinite(values).any():
        return f"{said}: no cell has an effect"
    row, column = np.unravel_index(np.nanargmax(np.abs(values)), values.shape)
    number = sweep.columns[column]
    where = "all positions" if number < 0 else f"{sweep.axis} {number}"
    return (
        f"{said}: strongest effect {values[row, column]:.2f} at layer {sweep.layers[row]}, {where}"
    )


def _summary(result: PatchResult) -> pandas.DataFrame:
    """The cells with the largest effects."""
    out = result.top(12).to_pandas()
    return out.astype({name: object for name in ("layer", "pos", *PARTS) if name in out})


def _figure(result: PatchResult, sweep: Sweep) -> Figure:
    from matplotlib.colors import TwoSlopeNorm

    values, top = effect_map(result, sweep), _top(result)
    rows, columns = values.shape
    tall = min(0.26, 5.0 / rows) * rows
    figure = blank(8.2, 1.4 + tall)
    axes = place(figure, 0.55, 1.0, 6.85, tall)
    norm = TwoSlopeNorm(0.0, -top, top)
    image = axes.imshow(values, cmap="RdBu_r", norm=norm, aspect="auto", interpolation="nearest")
    style(axes)
    if columns <= 120:
        size = max(3.5, min(7, 520 / columns))
        axes.set_xticks(range(columns), _labels(result, sweep), rotation=90, fontsize=size)
    axes.set_yticks(range(rows), [str(layer) for layer in sweep.layers])
    axes.set_ylabel("layer")
    axes.set_xlabel({"pos": "position"}.get(sweep.axis, sweep.axis))
    title = f"{sweep.site}: effect on {result.metric} (0 as corrupted, 1 as clean)"
    axes.set_title(title, loc="left", fontsize=8.5, pad=8)
    colour_bar(figure, place(figure, 7.5, 1.0, 0.1, tall), image, "effect, 0 is white")
    return figure


def _labels(result: PatchResult, sweep: Sweep) -> list[str]:
    if sweep.axis != "pos":
        return [str(number) for number in sweep.columns]
    patched = result.prompts.corrupted if result.direction == "denoise" else result.prompts.clean
    told = (
        result.prompts.corrupted_strings
        if result.direction == "denoise"
        else result.prompts.clean_strings
    )
    first = _texts(told, patched, 1)[0]
    return ["all" if p < 0 else clip(visible(first[p])) for p in sweep.columns]
