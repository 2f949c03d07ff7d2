"""A RoutingTrace as data frames, as a few lines of text, and as a small page in a notebook."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from gptoss_workbench.harmony.voices import VOICES
from gptoss_workbench.routing.record import CHANNELS, PARTS, ROLES, Record
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


def facts(trace: RoutingTrace) -> dict[str, str]:
    """What one wants to know first: size, voices, labels, what is kept, what made it."""
    voices, labels = np.zeros(len(VOICES), np.int64), np.zeros(len(trace.labels), np.int64)
    tokens, prompts, kept = 0, 0, ()
    for record in trace.chunks():
        voices += np.bincount(record.voice, minlength=len(VOICES))
        tokens, numbers = tokens + len(record.token), np.unique(record.prompt)
        prompts += len(numbers)
        if trace.labels:
            labels[numbers] += 1
        kept = tuple(
            n for n in ("logits", "margins", "norms", "peaks") if getattr(record, n) is not None
        )
    spoken = {name: int(n) for name, n in zip(VOICES, voices, strict=True) if n}
    out = {
        "size": f"{tokens:,} tokens of {prompts:,} prompts, {len(trace.layers)} layers, "
        f"{trace.n_experts} experts top-{trace.k}",
        "voices": ", ".join(f"{name} {n:,}" for name, n in spoken.items()),
        "labels": ", ".join(f"{n} {c:,}" for n, c in _label_counts(trace, labels)),
        "kept": ", ".join(("experts", "weights", *kept)),
        "made by": _made_by(trace),
    }
    return {name: text for name, text in out.items() if text}


def _label_counts(trace: RoutingTrace, selected: np.ndarray) -> list[tuple[str, int]]:
    """Prompts of each label that have a selected token."""
    names, codes = np.unique(np.array(trace.labels, dtype=str), return_inverse=True)
    counts = np.bincount(codes, weights=selected, minlength=len(names))
    return [(str(n), int(c)) for n, c in zip(names, counts, strict=True) if c]


def _made_by(trace: RoutingTrace) -> str:
    made = trace.provenance
    parts = [str(made[key]) for key in ("model", "dtype", "backend") if made.get(key)]
    if made.get("edits"):
        parts.append(f"edits {', '.join(made['edits'])}")
    if made.get("cut"):
        parts.append(f"{made['cut']:,} prompts cut to {made['max_tokens']} tokens")
    if not trace.complete:
        parts.append("INCOMPLETE: the run was interrupted")
    return ", ".join(parts)


def summary(trace: RoutingTrace) -> str:
    """Write the facts on a few lines."""
    lines = [f"  {name}: {text}" for name, text in facts(trace).items()]
    return "\n".join(["RoutingTrace", *lines])


def html(trace: RoutingTrace) -> str:
    """Draw the facts; colours come from the page, light or dark."""
    cells = "".join(
        f'<tr><th style="text-align:left;opacity:.7">{escape(name)}</th>'
        f'<td style="text-align:left">{escape(text)}</td></tr>'
        for name, text in facts(trace).items()
    )
    table = f'<table style="color:inherit">{cells}</table>'
    return f'<div style="color:inherit"><b>RoutingTrace</b>{table}</div>'
