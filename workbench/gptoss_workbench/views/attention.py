"""Where one head looks: query x key weights, the sink as its own column, the window as a band."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .picture import blank, colour_bar, matrix, place, style, token_axis
from .snapshot import BUDGET, LIMIT, View, check_budget, check_state, quantise
from .transcript import Transcript, transcript

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from gptoss_workbench.trace import Trace


class Pattern(NamedTuple):
    """The attention of one layer in one row, pads left out."""

    layer: int
    heads: list[int]
    weights: np.ndarray
    """[head, query, key]"""
    sink: np.ndarray
    """[head, query], what the sink absorbs."""
    elsewhere: np.ndarray | None
    """[head, query], weight on keys that the trace was cut from; None if it has them all."""
    window: int | None
    """Keys a query sees, itself included; None if it sees all before it."""
    left_out: list[int]
    """Heads the trace has and the view does not."""


def attention(
    trace: Trace,
    layer: int | None = None,
    head: int = 0,
    row: int = 0,
    *,
    heads: list[int] | None = None,
    state: Mapping[str, Any] | str | None = None,
    budget: int = BUDGET,
) -> View:
    """Show where a head looks: a row is a query, a column a key, the first column the sink.

        trace = model.trace(tokens, names_filter=["blocks.2.attn.hook_pattern"])
        wb.views.attention(trace, layer=2, head=5)

    Point at a row to see its weights on the text. Colour is the square root of the weight; the
    exact weights are in `to_pandas()`. The page offers `heads`, by default as many as fit.
    """
    story = transcript(trace, row)
    given = check_state("attention", state, ["head", "query", "zoom"])
    head = given.get("head", head)
    pattern = read_pattern(trace, layer, row, story, head, heads, budget)
    opened = {"head": head, "query": None, "zoom": 1} | given
    if opened["query"] is not None and not 0 <= opened["query"] < len(story.tokens):
        raise ValueError(f"views.attention: state query={opened['query']} is not a token")
    facts = {"layer": pattern.layer, "heads": pattern.heads, "window": pattern.window}
    facts |= {"leftOut": len(pattern.left_out), "state": opened}
    facts |= {"lead": ["sink"] if pattern.elsewhere is None else ["sink", "cut away"]}
    return View(
        kind="attention",
        scripts=("shell", "strip", "grid"),
        finding=_finding(pattern, head),
        header=story.header() | facts,
        buffers={
            "weights": quantise(pattern.weights, root=True),
            "lead": quantise(_lead(pattern), root=True),
        },
        frame=partial(_frame, pattern, story),
        summary=partial(_summary, pattern),
        figure=partial(_figure, pattern, story, head),
        smaller="heads=[...]",
        budget=budget,
    )


def read_pattern(
    trace: Trace,
    layer: int | None,
    row: int,
    story: Transcript,
    head: int,
    heads: list[int] | None,
    budget: int,
) -> Pattern:
    """Take one layer's patterns out of a trace, as many heads as asked for or as fit."""
    layer = _layer(trace, layer)
    full = trace.activations[f"blocks.{layer}.attn.hook_pattern"][row]
    count = full.shape[0]
    for number in [head, *(heads or [])]:
        if not 0 <= number < count:
            raise ValueError(f"views.attention: heads are 0 to {count - 1}; got {number}")
    shown = _that_fit(count, head, len(story.tokens), budget) if heads is None else sorted(heads)
    if head not in shown:
        raise ValueError(f"views.attention: head={head} is not among heads={heads}")
    rows = full[shown][:, story.columns].float()
    weights = rows[:, :, story.positions].numpy()
    total = rows.sum(-1).numpy()
    sinks = trace.activations.get(f"blocks.{layer}.attn.hook_sink")
    known = None if sinks is None else sinks[row][shown][:, story.columns].float().numpy()
    sink = np.clip(1 - total, 0, 1) if known is None else known
    elsewhere = None if trace.context is None else np.clip(total - weights.sum(-1), 0, 1)
    sliding = trace.config["layer_types"][layer] == "sliding_attention"
    window = int(trace.config["sliding_window"]) if sliding else None
    left_out = [number for number in range(count) if number not in shown]
    return Pattern(layer, shown, weights, sink, elsewhere, window, left_out)


def _layer(trace: Trace, layer: int | None) -> int:
    """The layer asked for, else the first whose pattern the trace has."""
    names = [f"blocks.{i}.attn.hook_pattern" for i in range(trace.config["num_hidden_layers"])]
    held = [i for i, name in enumerate(names) if name in trace.activations]
    if layer is None and held:
        return held[0]
    if layer not in held:
        wanted = f"blocks.{0 if layer is None else layer}.attn.hook_pattern"
        raise ValueError(
            f"views.attention: the trace has the patterns of layers {held}, not of layer {layer}; "
            f"make it with names_filter=['{wanted}']"
        )
    return layer


def _that_fit(count: int, head: int, tokens: int, budget: int) -> list[int]:
    """As many heads as the budget holds, the chosen one among them."""
    each = max(1, tokens * (tokens + 1) // 2 * 4 // 3)  # a byte a cell below the diagonal, base64
    most = int(0.8 * min(budget, LIMIT)) // each
    if most == 0:
        check_budget("attention", each, budget=budget, smaller="row= of a shorter text")
        most = 1
    first = min(max(0, head - most // 2), max(0, count - most))
    return list(range(first, min(count, first + most)))


def _lead(pattern: Pattern) -> np.ndarray:
    """[lead, head, query]: what does not go to the keys shown."""
    return np.stack([pattern.sink] + ([] if pattern.elsewhere is None else [pattern.elsewhere]))


def _finding(pattern: Pattern, head: int) -> str:
    i = pattern.heads.index(head)
    reach = f"a window of {pattern.window} tokens" if pattern.window else "all earlier tokens"
    return (
        f"Attention of layer {pattern.layer} head {head} over {reach}: "
        f"the sink takes {pattern.sink[i].mean():.0%} on average"
    )


def _frame(pattern: Pattern, story: Transcript) -> pandas.DataFrame:
    """One row for each head, query and key; key -1 is the sink."""
    import pandas

    places, n = np.array(story.positions), len(story.positions)
    query, key = np.tril_indices(n)
    frames = []
    for head, weights, sink in zip(pattern.heads, pattern.weights, pattern.sink, strict=True):
        seen = {"query": places[query], "key": places[key], "weight": weights[query, key]}
        lost = {"query": places, "key": -1, "weight": sink}
        frames += [pandas.DataFrame({"head": head} | part) for part in (seen, lost)]
    out = pandas.concat(frames).sort_values(["head", "query", "key"], ignore_index=True)
    out.insert(0, "layer", pattern.layer)
    return out


def _summary(pattern: Pattern) -> pandas.DataFrame:
    """One row a head: what the sink takes, how spread out the rest is, how far back it looks."""
    import pandas

    n = pattern.weights.shape[-1]
    back = np.arange(n)[:, None] - np.arange(n)[None]
    weights = pattern.weights
    spread = -(weights * np.log2(np.clip(weights, 1e-12, None))).sum(-1).mean(-1)
    mass = np.clip(weights.sum(-1), 1e-12, None)
    distance = ((weights * back).sum(-1) / mass).mean(-1)
    columns = {
        "head": pattern.heads,
        "mean sink": pattern.sink.mean(-1).astype(float),
        "mean entropy, bits": spread.astype(float),
        "mean distance, tokens": distance.astype(float),
    }
    return pandas.DataFrame(columns).astype({"head": object})


def _figure(pattern: Pattern, story: Transcript, head: int) -> Figure:
    i, n = pattern.heads.index(head), len(story.tokens)
    figure = blank(7.4, 6.6)
    left, axes = place(figure, 1.25, 1.1, 0.13, 5.2), place(figure, 1.45, 1.1, 5.2, 5.2)
    seen = np.where(np.tri(n, dtype=bool), pattern.weights[i], np.nan)
    if pattern.window:
        seen = np.where(np.tri(n, k=-pattern.window, dtype=bool), np.nan, seen)
        steps = np.arange(pattern.window, n)
        axes.step(steps - pattern.window + 0.5, steps, where="mid", color="#D55E00", lw=1)
    matrix(left, pattern.sink[i][:, None], root=True)
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
