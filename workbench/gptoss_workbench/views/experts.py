"""Which experts each token goes to: one statistic over layers x tokens, and what lies behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from . import choices as reading
from . import compare as comparing
from .choices import CHOSEN, MARGIN, TOP_WEIGHT, Choices
from .compare import CHANGED, MOVED, Compared
from .picture import blank, colour_bar, lane_strip, matrix, place, style, token_axis
from .snapshot import BUDGET, View, check_place, check_state
from .transcript import Transcript, transcript

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from gptoss_workbench.table import Table
    from gptoss_workbench.trace import Trace

MEANING = reading.MEANING | comparing.MEANING
STATE = ("statistic", "token", "layer", "expert", "zoom")
PROMOTED = 12
"""Tokens an expert is told to promote, at most."""


def experts(
    trace: Trace,
    row: int = 0,
    *,
    other: Trace | None = None,
    layers: Sequence[int] | None = None,
    statistic: str | None = None,
    expert: tuple[int, int] | None = None,
    lens: Mapping[tuple[int, int], Sequence[str]] | Table | None = None,
    state: Mapping[str, Any] | str | None = None,
    budget: int = BUDGET,
) -> View:
    """Show the expert choices of one row: layers down, tokens across, one statistic as colour.

        wb.views.experts(trace, expert=(2, 5))
        wb.views.experts(trace, other=edited_trace)          # what changed

    Click a token for all layers x experts; click an expert, or name one as (layer, expert), for
    the tokens it takes. The margin needs a trace with router logits. `lens` tells what an expert
    writes: the tokens it promotes by (layer, expert), or the table of `routing.expert_lens`.
    """
    story = transcript(trace, row)
    choices = reading.read_choices(trace, row, story.columns, layers)
    compared = None
    if other is not None:
        compared = comparing.compare(trace, other, row, story, choices)
        choices = _with_changes(choices, compared)
    first = _first_statistic(statistic, expert, compared)
    check = partial(_checked, choices, len(story.tokens), first)
    layer, number = expert if expert is not None else (None, None)
    opened = check({"layer": layer, "expert": number} | check_state("experts", state, STATE))
    return View(
        kind="experts",
        scripts=("strip", "grid"),
        finding=_finding(choices, compared, len(story.tokens)),
        header=story.header() | _header(choices, compared, promoted(lens)) | {"state": opened},
        buffers=reading.choice_buffers(choices)
        | ({} if compared is None else comparing.compared_buffers(choices, compared)),
        frame=partial(_frame, choices, compared, story),
        summary=partial(_summary, choices),
        figure=partial(_figure, choices, story, opened),
        check=check,
        reopen=lambda state: experts(
            trace, row, other=other, layers=layers, lens=lens, state=state, budget=budget
        ),
        smaller="layers=[...]",
        budget=budget,
    )


def promoted(
    lens: Mapping[tuple[int, int], Sequence[str]] | Table | None,
) -> dict[str, list[str]]:
    """Read what experts promote, as "layer:expert": tokens, in order or the most frequent first."""
    if lens is None:
        return {}
    if isinstance(lens, Mapping):
        return {f"{at[0]}:{at[1]}": list(map(str, lens[at]))[:PROMOTED] for at in lens}
    name = "string" if "string" in lens.columns else "token"
    missing = [each for each in ("layer", "expert", name) if each not in lens.columns]
    if missing:
        raise ValueError(
            "views.experts: lens= is {(layer, expert): tokens} or a table with columns layer, "
            f"expert, token (or string); it lacks {', '.join(missing)}"
        )
    counts: dict[str, Counter[str]] = {}
    for layer, number, token in zip(lens["layer"], lens["expert"], lens[name], strict=True):
        counts.setdefault(f"{int(layer)}:{int(number)}", Counter())[str(token)] += 1
    return {at: [token for token, _ in seen.most_common(PROMOTED)] for at, seen in counts.items()}


def _with_changes(choices: Choices, compared: Compared) -> Choices:
    """Add what changed to the statistics, before all others."""
    statistics = {CHANGED: compared.changed, MOVED: compared.moved} | choices.statistics
    scales = {CHANGED: (0.0, float(choices.k)), MOVED: (0.0, 2.0)} | choices.scales
    return choices._replace(statistics=statistics, scales=scales)


def _first_statistic(
    statistic: str | None, expert: tuple[int, int] | None, compared: Compared | None
) -> str:
    if statistic is not None:
        return statistic
    if expert is not None:
        return CHOSEN
    return TOP_WEIGHT if compared is None else CHANGED


def _checked(
    choices: Choices, count: int, statistic: str, state: Mapping[str, Any]
) -> dict[str, Any]:
    """Complete a state and raise where it names what is not there."""
    out = {"statistic": statistic, "token": None, "layer": None, "expert": None, "zoom": 1}
    out |= check_state("experts", state, STATE)
    names = (*choices.statistics, CHOSEN)
    if out["statistic"] not in names:
        missing = " (the trace has no router logits)" if out["statistic"] == MARGIN else ""
        missing = " (needs other=)" if out["statistic"] in (CHANGED, MOVED) else missing
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
    if (out["layer"] is None) != (out["expert"] is None):
        raise ValueError("views.experts: state names an expert by layer= and expert=, or neither")
    check_place("experts", "token", out["token"], count, "tokens")
    return out


def _header(
    choices: Choices, compared: Compared | None, lens: dict[str, list[str]]
) -> dict[str, Any]:
    scales = [
        {"name": name, "low": low, "top": top, "meaning": MEANING[name]}
        for name, (low, top) in choices.scales.items()
    ]
    facts = {"layers": choices.layers, "experts": choices.n_experts, "k": choices.k}
    facts |= {"statistics": scales, "implied": reading.implied(choices), "lens": lens}
    return facts | comparing.comparison(compared)


def _finding(choices: Choices, compared: Compared | None, tokens: int) -> str:
    what = (
        f"Expert routing of {tokens} tokens over {len(choices.layers)} layers, "
        f"{choices.k} of {choices.n_experts} experts each"
    )
    if compared is None:
        return f"{what}; mean top weight {float(choices.statistics[TOP_WEIGHT].mean()):.2f}"
    means = np.nanmean(compared.changed, axis=1)
    return (
        f"{what}, against another run: {means.mean():.2f} of {choices.k} experts changed per token "
        f"and layer, most in layer {choices.layers[int(means.argmax())]} ({means.max():.2f}); "
        f"{compared.both} tokens in both, {compared.only_here} only here, "
        f"{compared.only_there} only in the other"
    )


def _frame(choices: Choices, compared: Compared | None, story: Transcript) -> pandas.DataFrame:
    """One row for each layer, token and rank."""
    import pandas

    index = np.indices(choices.experts.shape).reshape(3, -1)
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
    out = pandas.DataFrame(columns)
    if compared is not None:
        there = pandas.Series(compared.experts.reshape(-1), dtype="Int64")
        out["other expert"] = there.where(there >= 0)
        changed = pandas.Series(compared.changed[index[0], index[1]])
        out[CHANGED] = changed.astype("Int64")
    return out


def _summary(choices: Choices) -> pandas.DataFrame:
    """One row a layer: its busiest experts and their share of the tokens."""
    import pandas

    rows = []
    for i, layer in enumerate(choices.layers):
        share = np.bincount(choices.experts[i].ravel(), minlength=choices.n_experts)
        share = share / choices.experts.shape[1]
        best = np.argsort(-share, kind="stable")[:4]
        busiest = ", ".join(f"{e} ({share[e]:.0%})" for e in best)
        means = [float(np.nanmean(values[i])) for values in choices.statistics.values()]
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
