"""Vocabulary specialisation: how surely a token id goes to the same expert.

    N_{x,e} / N_x      share of token id x's occurrences that go to expert e   (OLMoE, 2409.02060)

over all k chosen experts. x is the token read (input), the one that follows (target), or the one
the model predicts (predicted). OLMoE's released script counts the top-1 expert only:
`script_compat=True`; its chance is 1 / E instead of k / E.

Two layer means, over occurrences and their chosen experts:

    share   Σ N_{x,e}² / N_x / Σ N_{x,e}                        1 for a layer that hashes ids
    again   Σ N_{x,e} (N_{x,e} - 1) / (N_x - 1) / Σ N_{x,e}     the same without its small-sample
            bias: how often another occurrence of x goes there too; chance for a random router
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gptoss_workbench.intervals import wilson
from gptoss_workbench.routing.ratios import notes, selected
from gptoss_workbench.routing.record import Record
from gptoss_workbench.routing.trace import RoutingTrace
from gptoss_workbench.table import Table

OF = ("input", "target", "predicted")
HELD = 1 << 26
"""Counts held at a time; more layers than fit are counted in further passes."""
SOURCE = "N_{x,e} / N_x over all k chosen experts (OLMoE, 2409.02060)"
SCRIPT = "N_{x,e} / N_x over the top-1 expert only, as OLMoE's released script counts"


class Vocabulary(NamedTuple):
    """Vocabulary specialisation, by layer and by expert."""

    layers: Table
    """A row a layer."""
    experts: Table
    """A row a layer, expert and one of its top tokens."""


def vocabulary_specialisation(
    routing: RoutingTrace,
    *,
    of: str = "input",
    predicted: Sequence[np.ndarray] | Mapping[int, np.ndarray] | None = None,
    at_least: int = 8,
    top: int = 8,
    headers: bool = False,
    script_compat: bool = False,
) -> Vocabulary:
    """How surely a token id goes to the same experts: layer means, and each expert's top tokens.

    Args:
        of: "input", "target" (the next token of the prompt) or "predicted".
        predicted: prompt number -> the ids predicted at its places (see `predicted_tokens`).
        at_least: ids that occur less often are left out.
        top: tokens listed for each expert, by share.
    """
    if of not in OF or (of == "predicted") != (predicted is not None):
        raise ValueError(f"of= is one of {', '.join(OF)}, 'predicted' with predicted=; got {of!r}")
    routing = selected(routing, headers)
    ids = _Ids(of, predicted)
    found, counts = _counted(routing, ids, at_least)
    chosen = 1 if script_compat else routing.k
    step = max(1, HELD // max(1, len(found) * routing.n_experts))
    places = list(range(len(routing.layers)))
    parts = [
        _layers(routing, ids, found, counts, places[i : i + step], chosen, top)
        for i in range(0, len(places), step)
    ]
    about = {
        "source": SCRIPT if script_compat else SOURCE,
        "notes": (
            f"{of} tokens; {len(found)} ids that occur {at_least} times or more",
            "the interval takes occurrences as independent",
            *notes(headers),
        ),
        "provenance": dict(routing.provenance) | {"of": of, "script_compat": script_compat},
    }
    means, tops = (_stack([part[i] for part in parts]) for i in range(2))
    means["chance"] = np.full(len(places), chosen / routing.n_experts)
    if routing.strings is not None:
        tops["string"] = np.array(routing.strings, dtype=object)[tops["token"]]
    tops["chance"] = np.full(len(tops["token"]), chosen / routing.n_experts)
    units = {"n": "occurrences"}
    return Vocabulary(
        Table(means, f"Vocabulary specialisation, {of} tokens", units=units, **about),
        Table(tops, f"Top {of} tokens of each expert", units=units, **about),
    )


class _Ids:
    """Which token id counts at each place, -1 for none."""

    def __init__(self, of: str, predicted: Sequence[np.ndarray] | Mapping[int, np.ndarray] | None):
        self.of, self.predicted = of, predicted

    def __call__(self, record: Record, whole: Record) -> np.ndarray:
        """Ids of `record`, whose prompts stand unfiltered in `whole`."""
        if self.of == "input":
            return record.token.astype(np.int64)
        if self.predicted is not None:
            pairs = zip(record.prompt.tolist(), record.pos.tolist(), strict=True)
            return np.array([self.predicted[i][j] for i, j in pairs], np.int64)
        key = whole.prompt.astype(np.int64) << 32 | whole.pos
        at = np.searchsorted(key, (record.prompt.astype(np.int64) << 32 | record.pos) + 1)
        inside = np.minimum(at, len(key) - 1)
        follows = (at < len(key)) & (
            key[inside] == (record.prompt.astype(np.int64) << 32 | record.pos) + 1
        )
        return np.where(follows, whole.token[inside], -1)


def _pairs(routing: RoutingTrace, ids: _Ids):
    """Each chunk with its tokens' ids; the next token is looked up before filters."""
    for read in routing.shards:
        whole = read()
        one = _one_shard(routing, whole)
        for record in one.chunks():
            yield record, ids(record, whole)


def _one_shard(routing: RoutingTrace, record: Record) -> RoutingTrace:
    from dataclasses import replace

    return replace(routing, shards=[lambda: record])


def _counted(routing: RoutingTrace, ids: _Ids, at_least: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids that occur often enough, sorted, and how often."""
    totals = np.zeros(0, np.int64)
    for _, each in _pairs(routing, ids):
        counts = np.bincount(each[each >= 0])
        size = max(len(totals), len(counts))
        totals = np.pad(totals, (0, size - len(totals))) + np.pad(counts, (0, size - len(counts)))
    found = np.flatnonzero(totals >= max(at_least, 2))
    if not len(found):
        raise ValueError(
            f"vocabulary_specialisation: no id occurs {at_least} times; lower at_least="
        )
    return found, totals[found]


def _layers(
    routing: RoutingTrace,
    ids: _Ids,
    found: np.ndarray,
    counts: np.ndarray,
    places: list[int],
    chosen: int,
    top: int,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Means and top tokens of some layers."""
    experts = routing.n_experts
    hits = np.zeros((len(places), len(found) * experts), np.int32)
    for record, each in _pairs(routing, ids):
        row = np.searchsorted(found, each)
        known = found[np.minimum(row, len(found) - 1)] == each
        for i, place in enumerate(places):
            to = record.experts[known, place, :chosen].astype(np.int64)
            at = (row[known, None] * experts + to).ravel()
            hits[i] += np.bincount(at, minlength=hits.shape[1]).astype(np.int32)
    hits = hits.reshape(len(places), len(found), experts)
    layers = [routing.layers[place] for place in places]
    means = [_means(layer, each, counts) for layer, each in zip(layers, hits, strict=True)]
    tops = [
        _tops(layer, each, found, counts, top) for layer, each in zip(layers, hits, strict=True)
    ]
    return _stack(means), _stack(tops)


def _means(layer: int, hits: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    n = counts[:, None].astype(float)
    total = hits.sum()
    return {
        "layer": np.array([layer]),
        "share": np.array([(hits * (hits / n)).sum() / total]),
        "again": np.array([(hits * ((hits - 1) / (n - 1))).sum() / total]),
        "max": np.array([(hits / n).max(1).mean()]),
        "n": np.array([counts.sum()]),
    }


def _tops(
    layer: int, hits: np.ndarray, found: np.ndarray, counts: np.ndarray, top: int
) -> dict[str, np.ndarray]:
    """The tokens whose occurrences go to an expert most surely, common ones first among equals."""
    columns: list[tuple] = []
    for expert in range(hits.shape[1]):
        share = hits[:, expert] / counts
        order = np.lexsort((-counts, -share))[:top]
        columns += [(expert, i) for i in order if hits[i, expert]]
    expert, row = (np.array(each, np.int64) for each in zip(*columns, strict=True))
    went = hits[row, expert]
    low, high = wilson(went, counts[row])
    return {
        "layer": np.full(len(row), layer),
        "expert": expert,
        "token": found[row],
        "share": went / counts[row],
        "low": low,
        "high": high,
        "n": counts[row],
    }


def _stack(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
