"""Which experts each token goes to: one statistic over layers x tokens, and what lies behind it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .picture import blank, colour_bar, lane_strip, matrix, place, style, token_axis
from .snapshot import BUDGET, View, check_state, quantise
from .transcript import Transcript, transcript

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from gptoss_workbench.trace import Trace

TOP_WEIGHT, ENTROPY, MARGIN, CHOSEN = "top weight", "entropy", "margin", "expert chosen"
MEANING = {
    TOP_WEIGHT: "weight of the best expert",
    ENTROPY: "entropy of the k weights, in bits",
    MARGIN: "router logit of the last chosen expert above the first one left out",
    CHOSEN: "weight of the selected expert, blank where it is not chosen",
}


class Choices(NamedTuple):
    """The routing of one row, pads left out."""

    layers: list[int]
    experts: np.ndarray
    """[layer, token, k], best first."""
    weights: np.ndarray
    """[layer, token, k], each row of k sums to 1."""
    statistics: dict[str, np.ndarray]
    """Name: [layer, token]."""
    scales: dict[str, tuple[float, float]]
    """Name: both ends of its colour scale."""
    n_experts: int
    """Experts in a layer."""


def experts(
    trace: Trace,
    row: int = 0,
    *,
    layers: list[int] | None = None,
    statistic: str = TOP_WEIGHT,
    expert: tuple[int, int] | None = None,
    state: Mapping[str, Any] | str | None = None,
    budget: int = BUDGET,
) -> View:
    """Show the expert choices of one row: layers down, tokens across, one statistic as colour.

        wb.views.experts(trace, expert=(2, 5))

    Click a token for all layers x experts; click an expert, or name one as (layer, expert), for
    the tokens it takes. The margin needs a trace with router logits.
    """
    story = transcript(trace, row)
    choices = read_choices(trace, row, story.columns, layers)
    opened = _opening(choices, statistic, expert, state, len(story.tokens))
    scales = [
        {"name": name, "low": low, "top": top, "meaning": MEANING[name]}
        for name, (low, top) in choices.scales.items()
    ]
    facts = {"layers": choices.layers, "experts": choices.n_experts, "k": choices.experts.shape[-1]}
    return View(
        kind="experts",
        scripts=("shell", "strip", "grid"),
        finding=_finding(choices, len(story.tokens)),
        header=story.header() | facts | {"statistics": scales, "state": opened},
        buffers=_buffers(choices),
        frame=partial(_frame, choices, story),
        summary=partial(_summary, choices),
        figure=partial(_figure, choices, story, opened),
        smaller="layers=[...]",
        budget=budget,
    )


def read_choices(
    trace: Trace, row: int, columns: list[int], layers: list[int] | None = None
) -> Choices:
    """Take one row's routing out of a trace, with its statistics."""
    if trace.routing is None:
        raise ValueError("views.experts: the trace has no routing; make it with routing=True")
    held = list(trace.layers)
    shown = held if layers is None else layers
    if not shown or not set(shown) <= set(held):
        raise ValueError(f"views.experts: the trace has layers {held}; got layers={layers}")
    at = [held.index(layer) for layer in shown]
    chosen = trace.routing.experts[at][:, row, columns].numpy().astype(np.int64)
    weights = trace.routing.weights[at][:, row, columns].float().numpy()
    k = chosen.shape[-1]
    safe = np.clip(weights, 1e-12, None)
    statistics = {TOP_WEIGHT: weights[..., 0], ENTROPY: -(weights * np.log2(safe)).sum(-1)}
    scales = {TOP_WEIGHT: (1 / k, 1.0), ENTROPY: (0.0, float(np.log2(k))), CHOSEN: (0.0, 1.0)}
    if trace.routing.logits is not None:
        logits = trace.routing.logits[at][:, row, columns].float().numpy()
        ordered = -np.sort(-logits, axis=-1)
        statistics[MARGIN] = ordered[..., k - 1] - ordered[..., k]
        scales[MARGIN] = (0.0, float(np.ceil(statistics[MARGIN].max() * 10) / 10))
    count = int(trace.config["num_local_experts"])
    return Choices(shown, chosen, weights, statistics, scales, count)


def _opening(
    choices: Choices,
    statistic: str,
    expert: tuple[int, int] | None,
    state: Mapping[str, Any] | str | None,
    count: int,
) -> dict[str, Any]:
    given = check_state("experts", state, ["statistic", "token", "layer", "expert", "zoom"])
    layer, number = expert if expert is not None else (None, None)
    out = {"statistic": statistic, "token": None, "layer": layer, "expert": number, "zoom": 1}
    if expert is not None and statistic == TOP_WEIGHT:
        out["statistic"] = CHOSEN
    out |= given
    names = (*choices.statistics, CHOSEN)
    if out["statistic"] not in names:
        missing = " (the trace has no router logits)" if out["statistic"] == MARGIN else ""
        raise ValueError(
            f"views.experts: statistic is one of {', '.join(names)}; "
            f"got {out['statistic']}{missing}"
        )
    if out["expert"] is not None and not 0 <= out["expert"] < choices.n_experts:
        raise ValueError(
            f"views.experts: a layer has experts 0 to {choices.n_experts - 1}; got {out['expert']}"
        )
    if out["layer"] is not None and out["layer"] not in choices.layers:
        raise ValueError(f"views.experts: the view has layers {choices.layers}; got {out['layer']}")
    if out["token"] is not None and not 0 <= out["token"] < count:
        raise ValueError(f"views.experts: token={out['token']}, but there are {count} tokens")
    return out


def _buffers(choices: Choices) -> dict[str, np.ndarray]:
    small = np.uint8 if choices.n_experts <= 256 else np.uint16
    out = {
        "experts": choices.experts.astype(small),
        "weights": quantise(choices.weights),
    }
    for name, values in choices.statistics.items():
        out[name] = quantise(values, *choices.scales[name])
    return out


def _finding(choices: Choices, tokens: int) -> str:
    k = choices.experts.shape[-1]
    mean = float(choices.statistics[TOP_WEIGHT].mean())
    return (
        f"Expert routing of {tokens} tokens over {len(choices.layers)} layers, "
        f"{k} of {choices.n_experts} experts each; mean top weight {mean:.2f}"
    )


def _frame(choices: Choices, story: Transcript) -> pandas.DataFrame:
    """One row for each layer, token and rank."""
    import pandas

    layers, tokens, k = choices.experts.shape
    index = np.indices((layers, tokens, k)).reshape(3, -1)
    places = np.array(story.positions)
    texts = np.array([token.text for token in story.tokens], dtype=object)
    lanes = np.array([token.lane for token in story.tokens], dtype=object)
    columns = {
        "layer": np.array(choices.layers)[index[0]],
        "position": places[index[1]],
        "token": texts[index[1]],
        "lane": lanes[index[1]],
        "rank": index[2],
        "expert": choices.experts.reshape(-1),
        "weight": choices.weights.reshape(-1),
    }
    return pandas.DataFrame(columns)


def _summary(choices: Choices) -> pandas.DataFrame:
    """One row a layer: its busiest experts and their share of the tokens."""
    import pandas

    rows = []
    for i, layer in enumerate(choices.layers):
        share = np.bincount(choices.experts[i].ravel(), minlength=choices.n_experts)
        share = share / choices.experts.shape[1]
        best = np.argsort(-share, kind="stable")[:4]
        busiest = ", ".join(f"{e} ({share[e]:.0%})" for e in best)
        means = [float(values[i].mean()) for values in choices.statistics.values()]
        rows.append([layer, busiest, *means])
    names = [f"mean {name}" for name in choices.statistics]
    return pandas.DataFrame(rows, columns=["layer", "busiest experts (share of tokens)", *names])


def _figure(choices: Choices, story: Transcript, state: dict[str, Any]) -> Figure:
    name = state["statistic"] if state["statistic"] in choices.statistics else TOP_WEIGHT
    tall = min(0.24, 5.0 / len(choices.layers)) * len(choices.layers)
    figure = blank(8.2, 1.3 + tall)
    axes = place(figure, 0.45, 0.95, 6.95, tall)
    image = matrix(axes, choices.statistics[name], *choices.scales[name])
    style(axes)
    token_axis(axes, story.tokens)
    lane_strip(axes, story.tokens, -0.5 - 0.22, 0.18)
    axes.set_yticks(range(len(choices.layers)), [str(layer) for layer in choices.layers])
    axes.set_ylabel("layer")
    axes.set_title(MEANING[name], loc="left", fontsize=8.5, pad=8)
    colour_bar(figure, place(figure, 7.5, 0.95, 0.1, tall), image, name)
    return figure
