"""A RoutingTrace as data frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gptoss_workbench.routing.record import CHANNELS, PARTS, ROLES, VOICES, Record
from gptoss_workbench.trace_tables import frame

if TYPE_CHECKING:
    import pandas

    from gptoss_workbench.routing.trace import RoutingTrace

KINDS = ("routing", "tokens", "prompts")


def table(trace: RoutingTrace, what: str) -> pandas.DataFrame:
    """One row a token, layer and rank; a token; or a prompt."""
    if what not in KINDS:
        raise ValueError(
            f"RoutingTrace.to_pandas: expected one of {', '.join(KINDS)}; got {what!r}"
        )
    if what == "prompts":
        return _prompts(trace)
    record = trace.record()
    return frame(_tokens(trace, record) if what == "tokens" else _routing(trace, record))


def _tokens(trace: RoutingTrace, record: Record) -> dict[str, Any]:
    columns: dict[str, Any] = {"prompt": record.prompt, "pos": record.pos, "token": record.token}
    if trace.strings is not None:
        columns["string"] = np.array(trace.strings, dtype=object)[record.token]
    if trace.labels:
        columns["label"] = np.array(trace.labels, dtype=object)[record.prompt]
    coded = (("voice", VOICES), ("role", ROLES), ("channel", CHANNELS), ("part", PARTS))
    columns |= {n: np.array(names, dtype=object)[getattr(record, n)] for n, names in coded}
    return columns | {"message": record.message, "sentence": record.sentence}


def _routing(trace: RoutingTrace, record: Record) -> dict[str, Any]:
    tokens, layers, k = record.experts.shape
    columns = {n: np.repeat(c, layers * k) for n, c in _tokens(trace, record).items()}
    columns["layer"] = np.tile(np.repeat(trace.layers, k), tokens)
    columns["rank"] = np.tile(np.arange(k), tokens * layers)
    columns["expert"] = record.experts.reshape(-1).astype(np.int64)
    columns["weight"] = record.weights.reshape(-1).astype(np.float32)
    for name in ("norms", "peaks"):
        if (values := getattr(record, name)) is not None:
            columns[name[:-1]] = values.reshape(-1).astype(np.float32)
    return columns


def _prompts(trace: RoutingTrace) -> pandas.DataFrame:
    counts: dict[int, int] = {}
    for record in trace.chunks():
        numbers, found = np.unique(record.prompt, return_counts=True)
        for number, count in zip(numbers.tolist(), found.tolist(), strict=True):
            counts[number] = counts.get(number, 0) + count
    columns: dict[str, Any] = {"prompt": list(counts), "tokens": list(counts.values())}
    if trace.labels:
        columns["label"] = [trace.labels[i] for i in counts]
    return frame(columns)
