"""Where one head looks: query x key weights, the sink as its own column, the window as a band.

A snapshot carries the heads that fit; live, all heads are offered and each is sent when shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from . import pattern as reading
from .pattern import Face, Pattern
from .picture import blank, colour_bar, matrix, place, style, token_axis
from .snapshot import BUDGET, LIMIT, Demand, Part, View, check_budget, check_place, check_state
from .transcript import Transcript, transcript

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from gptoss_workbench.trace import Trace

SORTS = ("number", "entropy", "sink")
Faces = Callable[[int], Face]
"""Gives what is shown of a head before its weights; each is read once."""


def attention(
    trace: Trace,
    layer: int | None = None,
    head: int = 0,
    row: int = 0,
    *,
    heads: Sequence[int] | None = None,
    sort: str = "number",
    state: Mapping[str, Any] | str | None = None,
    budget: int = BUDGET,
) -> View:
    """Show where a head looks: a row is a query, a column a key, the first column the sink.

        trace = model.trace(tokens, names_filter=["blocks.2.attn.hook_pattern"])
        wb.views.attention(trace, layer=2, head=5)           # .live() offers all heads

    Point at a row to see its weights on the text. Colour is the square root of the weight; the
    exact weights are in `to_pandas()`. A snapshot offers `heads`, by default as many as fit; they
    stand by number, or with `sort` "entropy" or "sink" the lowest entropy or largest share first.
    """
    story = transcript(trace, row)
    pattern = reading.read_pattern(trace, layer, row, story)
    offered = list(range(pattern.n_heads)) if heads is None else sorted(set(heads))
    check = partial(_checked, pattern.n_heads, offered, len(story.tokens), {"head": head})
    opened = check({"sort": sort} | check_state("attention", state, STATE))
    shown = offered if heads else _that_fit(offered, opened["head"], len(story.tokens), budget)
    faces = cache(partial(reading.read_face, pattern))
    header = partial(_header, pattern, story, offered)
    carried = _carry(pattern, faces, shown, shown)
    return View(
        kind="attention",
        scripts=("strip", "grid", "heads", "shelf"),
        finding=_finding(pattern, opened["head"], faces),
        header={**header(shown, opened), **carried.header},
        buffers=carried.buffers,
        frame=partial(_frame, pattern, shown),
        summary=partial(_summary, shown, faces),
        figure=partial(_figure, pattern, story, opened["head"]),
        check=check,
        reopen=lambda state: attention(
            trace, layer, row=row, heads=heads, state=state, budget=budget
        ),
        smaller="heads=[...]",
        budget=budget,
        demand=partial(_demand, pattern, faces, offered, header),
    )


STATE = ("head", "query", "sort", "zoom")


def _checked(
    count: int, offered: list[int], tokens: int, start: dict[str, Any], state: Mapping[str, Any]
) -> dict[str, Any]:
    """Complete a state and raise where it names what is not there."""
    out = {"head": 0, "query": None, "sort": "number", "zoom": 1} | start
    out |= check_state("attention", state, STATE)
    for head in [out["head"], *offered]:
        if not 0 <= head < count:
            raise ValueError(f"views.attention: heads are 0 to {count - 1}; got {head}")
    if out["head"] not in offered:
        raise ValueError(f"views.attention: head={out['head']} is not among heads={offered}")
    if out["sort"] not in SORTS:
        raise ValueError(f"views.attention: sort is one of {', '.join(SORTS)}; got {out['sort']!r}")
    check_place("attention", "query", out["query"], tokens, "tokens")
    return out


def _that_fit(offered: list[int], head: int, tokens: int, budget: int) -> list[int]:
    """As many heads as the budget holds, the chosen one among them."""
    each = tokens * (tokens + 1) // 2 * 4 // 3 + 1  # a byte a cell below the diagonal, as base64
    most = int(0.8 * min(budget, LIMIT)) // each
    if most == 0:
        check_budget("attention", each, budget=budget, smaller="row= of a shorter text")
        most = 1
    first = min(max(0, offered.index(head) - most // 2), max(0, len(offered) - most))
    return offered[first : first + most]


def _header(
    pattern: Pattern,
    story: Transcript,
    offered: list[int],
    heads: list[int],
    state: Mapping[str, Any],
) -> dict[str, Any]:
    """What is the same for all `heads` that can be chosen."""
    facts = {
        "layer": pattern.layer,
        "heads": heads,
        "leftOut": len(offered) - len(heads),
        "window": pattern.window,
        "lead": ["sink", "cut away"] if pattern.cut else ["sink"],
        "state": dict(state),
    }
    return story.header() | facts


def _carry(pattern: Pattern, faces: Faces, known: list[int], sent: list[int]) -> Part:
    """The faces of the heads `known`, the weights of those `sent`."""
    seen = [faces(head) for head in known]
    facts = {
        "known": known,
        "sent": sent,
        "sinkShare": [round(face.summary.sink, 4) for face in seen],
        "entropy": [round(face.summary.entropy, 3) for face in seen],
    }
    halves = [reading.triangle(pattern, head) for head in sent]
    buffers = {
        "weights": np.concatenate([np.empty(0, np.uint8), *halves]),
        "lead": np.stack([face.lead for face in seen], axis=1),
        "thumbs": np.stack([face.thumb for face in seen]),
    }
    return Part(facts, buffers)


def _demand(
    pattern: Pattern, faces: Faces, offered: list[int], header, state: Mapping[str, Any]
) -> Demand:
    """All heads on offer, only the one shown carried; the page asks for the others."""

    def answer(ask: Mapping[str, Any]) -> Part:
        heads = [int(head) for head in ask["heads"]]
        return _carry(pattern, faces, heads, heads if ask["weights"] else [])

    shown = answer({"heads": [state["head"]], "weights": True})
    return Demand(Part({**header(offered, state), **shown.header}, shown.buffers), answer)


def _finding(pattern: Pattern, head: int, faces: Faces) -> str:
    reach = f"a window of {pattern.window} tokens" if pattern.window else "all earlier tokens"
    return (
        f"Attention of layer {pattern.layer} head {head} over {reach}: "
        f"the sink takes {faces(head).summary.sink:.0%} on average"
    )


def _frame(pattern: Pattern, heads: list[int]) -> pandas.DataFrame:
    """One row for each head, query and key; key -1 is the sink."""
    import pandas

    places, n = np.array(pattern.keys), len(pattern.keys)
    query, key = np.tril_indices(n)
    frames = []
    for head in heads:
        weights, sink = pattern.weights(head).numpy(), pattern.outside(head)[0]
        seen = {"query": places[query], "key": places[key], "weight": weights[query, key]}
        lost = {"query": places, "key": -1, "weight": sink}
        frames += [pandas.DataFrame({"head": head} | part) for part in (seen, lost)]
    out = pandas.concat(frames).sort_values(["head", "query", "key"], ignore_index=True)
    out.insert(0, "layer", pattern.layer)
    return out


def _summary(heads: list[int], faces: Faces) -> pandas.DataFrame:
    """One row a head: what the sink takes, how spread out the rest is, how far back it looks."""
    import pandas

    known = [faces(head).summary for head in heads]
    columns = {
        "head": heads,
        "mean sink": [each.sink for each in known],
        "mean entropy, bits": [each.entropy for each in known],
        "mean distance, tokens": [each.distance for each in known],
    }
    return pandas.DataFrame(columns).astype({"head": object})


def _figure(pattern: Pattern, story: Transcript, head: int) -> Figure:
    weights, n = pattern.weights(head).numpy(), len(story.tokens)
    figure = blank(7.4, 6.6)
    left, axes = place(figure, 1.25, 1.1, 0.13, 5.2), place(figure, 1.45, 1.1, 5.2, 5.2)
    seen = np.where(np.tri(n, dtype=bool), weights, np.nan)
    if pattern.window:
        seen = np.where(np.tri(n, k=-pattern.window, dtype=bool), np.nan, seen)
        steps = np.arange(pattern.window, n)
        axes.step(steps - pattern.window + 0.5, steps, where="mid", color="#D55E00", lw=1)
    matrix(left, pattern.outside(head)[0][:, None], root=True)
    image = matrix(axes, seen, root=True)
    for part in (left, axes):
        style(part)
    left.set_xticks([0], ["sink"], rotation=90)
    left.set_ylabel("query")
    axes.set_xlabel("key")
    token_axis(left, story.tokens, vertical=True)
    token_axis(axes, story.tokens)
    axes.set_yticks([])
    window = f", window {pattern.window} (line)" if pattern.window else ", full attention"
    axes.set_title(f"layer {pattern.layer}, head {head}{window}", loc="left", fontsize=8.5)
    colour_bar(figure, place(figure, 6.75, 1.1, 0.1, 2.6), image, "weight (square-root scale)")
    return figure
