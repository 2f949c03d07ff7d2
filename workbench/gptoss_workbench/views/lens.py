"""What each layer would say next: most likely tokens over layers x positions, one cell opened.

Reads a lens result by its fields alone: `tokens` and `log_probs` [layer, batch, pos, k], `kl`,
`entropy`, `target_log_prob`, `rank` [layer, batch, pos], `layers`, `sites`, `prompt`, `target`,
`places` [batch, pos], `text(token)`, `table()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .packing import quantise
from .picture import blank, clip, colour_bar, matrix, place, style
from .snapshot import BUDGET, View, check_state
from .transcript import require, visible

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from gptoss_workbench.lens.lens_result import LensResult

PROBABILITY, KL, ENTROPY, TARGET = "probability", "KL to final", "entropy", "target"
MEANING = {
    PROBABILITY: "probability of the most likely token",
    KL: "KL(final prediction || this layer's), in nats",
    ENTROPY: "entropy of the prediction, in nats",
    TARGET: "probability of the target token",
}
STATE = ("colour", "layer", "site", "position", "pins", "zoom")
STEP = 3000
"""Log-probabilities travel as 16-bit numbers, this many to a nat."""
MOST_PINS = 8
NO_TOKEN = 65535


class Cells(NamedTuple):
    """One row of a lens result at the positions shown."""

    layers: list[int]
    sites: list[str]
    positions: list[int]
    """Place of each column in its text, pads not counted."""
    prompt: np.ndarray
    """[pos] token ids."""
    tokens: np.ndarray
    """[layer, pos, k] token ids, most likely first."""
    log_probs: np.ndarray
    """[layer, pos, k] nats"""
    target: np.ndarray
    """[pos] token ids, -1 is none."""
    target_log_prob: np.ndarray
    """[layer, pos] nats"""
    rank: np.ndarray
    """[layer, pos]"""
    statistics: dict[str, np.ndarray]
    """Name: [layer, pos]."""
    scales: dict[str, tuple[float, float]]


def lens(
    result: LensResult,
    row: int = 0,
    *,
    colour: str = PROBABILITY,
    positions: tuple[int, int] | None = None,
    k: int = 10,
    state: Mapping[str, Any] | str | None = None,
    budget: int = BUDGET,
) -> View:
    """Show a lens result: layers down, positions across, the most likely next token in each cell.

        result = logit_lens(model, tokens)
        wb.views.lens(result, colour="KL to final")

    Click a cell for its k most likely tokens; pin some to see them over all layers. A pinned
    token's line has gaps where it is not among the k; the target's has none. `positions` are a
    start and a stop.
    """
    cells = read_cells(result, row, positions, k)
    check = partial(_checked, cells, colour)
    opened = check(check_state("lens", state, STATE))
    vocabulary = _vocabulary(cells)
    return View(
        kind="lens",
        scripts=("strip", "grid"),
        finding=_finding(cells, result),
        header=_header(cells, result, vocabulary) | {"state": opened},
        buffers=_buffers(cells, vocabulary),
        frame=lambda: result.table().where(row=row).to_pandas(),
        summary=partial(_summary, cells, result),
        figure=partial(_figure, cells, result, opened["colour"]),
        check=check,
        reopen=lambda state: lens(
            result, row, positions=positions, k=k, state=state, budget=budget
        ),
        smaller="positions=(start, stop) or k=",
        budget=budget,
    )


def read_cells(result: LensResult, row: int, positions: tuple[int, int] | None, k: int) -> Cells:
    """Take one row out of a lens result."""
    told = "a lens result, as logit_lens(model, tokens) gives"
    require(result, ("prompt", "log_probs", "kl", "rank"), told)
    rows = result.prompt.shape[0]
    if not 0 <= row < rows:
        raise ValueError(f"views.lens: the result has rows 0 to {rows - 1}; got row={row}")
    columns = np.flatnonzero(result.mask[row].numpy())
    start, stop = positions if positions is not None else (0, len(columns))
    if not 0 <= start < stop <= len(columns):
        raise ValueError(
            f"views.lens: positions=(start, stop) lie within 0 to {len(columns)}; got {positions}"
        )
    at = columns[start:stop]
    log_probs = result.log_probs[:, row, at, :k].float().numpy()
    target_log_prob = result.target_log_prob[:, row, at].float().numpy()
    measured = {
        PROBABILITY: np.exp(log_probs[..., 0]),
        KL: result.kl[:, row, at].float().numpy(),
        ENTROPY: result.entropy[:, row, at].float().numpy(),
        TARGET: np.exp(target_log_prob),
    }
    statistics = {name: each for name, each in measured.items() if np.isfinite(each).any()}
    scales = {name: (0.0, 1.0) for name in (PROBABILITY, TARGET) if name in statistics}
    for name in (KL, ENTROPY):
        if name in statistics:
            scales[name] = (0.0, max(0.1, float(np.ceil(np.nanmax(statistics[name]) * 10) / 10)))
    return Cells(
        layers=[int(layer) for layer in result.layers],
        sites=list(result.sites),
        positions=list(range(start, stop)),
        prompt=result.prompt[row, at].numpy(),
        tokens=result.tokens[:, row, at, :k].numpy(),
        log_probs=log_probs,
        target=result.target[row, at].numpy(),
        target_log_prob=target_log_prob,
        rank=result.rank[:, row, at].numpy(),
        statistics=statistics,
        scales=scales,
    )


def _checked(cells: Cells, colour: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a state and raise where it names what is not there."""
    out = {"colour": colour, "layer": None, "site": None, "position": None, "pins": [], "zoom": 1}
    out |= check_state("lens", state, STATE)
    if out["colour"] not in cells.statistics:
        known = ", ".join(cells.statistics)
        raise ValueError(f"views.lens: colour is one of {known}; got {out['colour']!r}")
    entries = list(zip(cells.layers, cells.sites, strict=True))
    if out["layer"] is not None and not any(
        layer == out["layer"] and out["site"] in (None, site) for layer, site in entries
    ):
        raise ValueError(
            f"views.lens: the result has layers {sorted(set(cells.layers))} at "
            f"{', '.join(dict.fromkeys(cells.sites))}; got layer={out['layer']} site={out['site']}"
        )
    if out["position"] is not None and out["position"] not in cells.positions:
        first, last = cells.positions[0], cells.positions[-1]
        raise ValueError(f"views.lens: positions are {first} to {last}; got {out['position']}")
    if len(out["pins"]) > MOST_PINS:
        raise ValueError(f"views.lens: at most {MOST_PINS} tokens are pinned; got {out['pins']}")
    return out


def _vocabulary(cells: Cells) -> np.ndarray:
    """Ids of all tokens that occur, in order; cells carry places in it."""
    found = [cells.tokens.ravel(), cells.prompt, cells.target[cells.target >= 0]]
    out = np.unique(np.concatenate(found))
    if len(out) >= NO_TOKEN:
        raise ValueError(
            f"views.lens: {len(out):,} different tokens, more than a view can name; "
            "show less with positions=(start, stop) or k="
        )
    return out


def _header(cells: Cells, result: LensResult, vocabulary: np.ndarray) -> dict[str, Any]:
    scales = [
        {"name": name, "low": low, "top": top, "meaning": MEANING[name]}
        for name, (low, top) in cells.scales.items()
    ]
    return {
        "layers": cells.layers,
        "sites": cells.sites,
        "positions": cells.positions,
        "k": cells.tokens.shape[-1],
        "step": STEP,
        "statistics": scales,
        "ids": vocabulary.tolist(),
        "texts": [result.text(token) for token in vocabulary.tolist()],
    }


def _buffers(cells: Cells, vocabulary: np.ndarray) -> dict[str, np.ndarray]:
    """Rank by rank, so that alike numbers lie together."""
    place_of = partial(np.searchsorted, vocabulary)
    target = np.where(cells.target >= 0, place_of(cells.target), NO_TOKEN)
    out = {
        "prompt": place_of(cells.prompt).astype(np.uint16),
        "target": target.astype(np.uint16),
        "tokens": np.moveaxis(place_of(cells.tokens), -1, 0).astype(np.uint16),
        "log_probs": np.moveaxis(_steps(cells.log_probs), -1, 0),
        "target_log_prob": _steps(cells.target_log_prob),
        "rank": cells.rank.astype(np.int32),
    }
    return out | {
        name: quantise(np.nan_to_num(values), *cells.scales[name])
        for name, values in cells.statistics.items()
        if name in (KL, ENTROPY)
    }


def _steps(log_probs: np.ndarray) -> np.ndarray:
    """Log-probabilities as steps below 0; the last step is everything further down."""
    steps = np.rint(-STEP * np.nan_to_num(log_probs, nan=-np.inf, neginf=-NO_TOKEN))
    return np.clip(steps, 0, NO_TOKEN).astype(np.uint16)


def _finding(cells: Cells, result: LensResult) -> str:
    top = cells.tokens[..., 0]
    committed = (top == top[-1]).mean(1)
    half = next((i for i, share in enumerate(committed) if share >= 0.5), len(committed) - 1)
    return (
        f"Lens over {len(cells.layers)} sites and {len(cells.positions)} positions: at layer "
        f"{cells.layers[half]} {committed[half]:.0%} of the most likely tokens are the final ones, "
        f"at the first site {committed[0]:.0%}"
    )


def _summary(cells: Cells, result: LensResult) -> pandas.DataFrame:
    """The most likely token at the last positions, last layer first."""
    import pandas

    last = range(max(0, len(cells.positions) - 6), len(cells.positions))
    out: dict[str, list[Any]] = {"layer": [str(layer) for layer in cells.layers[::-1]]}
    if len(set(cells.sites)) > 1:
        out["site"] = cells.sites[::-1]
    for i in last:
        name = f"{cells.positions[i]} {visible(result.text(int(cells.prompt[i])))}"
        out[name] = [
            f"{visible(result.text(int(token)))} {np.exp(log_prob):.2f}"
            for token, log_prob in zip(
                cells.tokens[::-1, i, 0], cells.log_probs[::-1, i, 0], strict=True
            )
        ]
    return pandas.DataFrame(out)


def _figure(cells: Cells, result: LensResult, colour: str) -> Figure:
    rows, columns = cells.statistics[colour].shape
    tall = min(0.24, 5.0 / rows) * rows
    figure = blank(8.2, 1.3 + tall)
    axes = place(figure, 0.55, 0.95, 6.85, tall)
    low, top = cells.scales[colour]
    image = matrix(axes, cells.statistics[colour], low, top)
    style(axes)
    labels = [clip(visible(result.text(int(token)))) for token in cells.prompt]
    if columns <= 120:
        axes.set_xticks(
            range(columns), labels, rotation=90, fontsize=max(3.5, min(7, 520 / columns))
        )
    axes.set_yticks(range(rows), [str(layer) for layer in cells.layers])
    axes.set_ylabel("layer")
    axes.set_title(MEANING[colour], loc="left", fontsize=8.5, pad=8)
    if columns <= 24 and rows <= 40:
        _write_tops(axes, cells, result, (cells.statistics[colour] - low) / (top - low))
    colour_bar(figure, place(figure, 7.5, 0.95, 0.1, tall), image, colour)
    return figure


def _write_tops(axes, cells: Cells, result: LensResult, shade: np.ndarray) -> None:
    """Write the most likely token into every cell."""
    small = dict(fontsize=5.5, ha="center", va="center", fontfamily="DejaVu Sans Mono")
    for (row, column), token in np.ndenumerate(cells.tokens[..., 0]):
        ink = "#14171a" if shade[row, column] > 0.55 else "#ffffff"
        axes.text(column, row, clip(visible(result.text(int(token))), 7), color=ink, **small)
