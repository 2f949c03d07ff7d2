"""Choosing tokens of a RoutingTrace by what they are, and splitting them into groups."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gptoss_workbench.harmony.voices import VOICES
from gptoss_workbench.routing.record import CHANNELS, PARTS, ROLES, Record

if TYPE_CHECKING:
    from gptoss_workbench.routing.trace import RoutingTrace

Keep = Callable[[Record], np.ndarray]
"""Record -> bool, one entry a token"""
BY = ("channel", "role", "part", "label")


def many(value: Any) -> list:
    """One value or several, as a list."""
    return list(value) if isinstance(value, (list, tuple, set, range, np.ndarray)) else [value]


def rules(
    trace: RoutingTrace,
    voice: Any,
    channel: Any,
    role: Any,
    part: Any,
    label: Any,
    prompt: Any,
    expert: tuple[int, int] | None,
    token: Any,
    text: str | None,
) -> list[Keep]:
    """One filter for each argument that is given."""
    coded = (
        ("voice", VOICES, voice),
        ("channel", CHANNELS, channel),
        ("role", ROLES, role),
        ("part", PARTS, part),
    )
    out = [_among(n, _codes(n, names, wanted)) for n, names, wanted in coded if wanted is not None]
    if label is not None:
        known = _codes("label", sorted(set(trace.labels)), label, give_names=True)
        out.append(_among("prompt", [i for i, each in enumerate(trace.labels) if each in known]))
    if prompt is not None:
        out.append(_among("prompt", many(prompt)))
    if token is not None:
        out.append(_among("token", many(token)))
    if text is not None:
        out.append(_among("token", _tokens_with(trace, text)))
    if expert is not None:
        if not isinstance(expert, Sequence) or len(expert) != 2:
            raise ValueError(f"RoutingTrace: expected expert=(layer, expert); got {expert!r}")
        out.append(_goes_to(trace, *expert))
    return out


def content(trace: RoutingTrace) -> RoutingTrace:
    """Leave out markers and header tokens, which dominate many averages."""
    header = VOICES.index("header")
    return trace.where(keep=lambda record: record.voice != header)


def groups(trace: RoutingTrace, by: str | None) -> tuple[list[str], Callable[[Record], np.ndarray]]:
    """Names of the groups, and the number of each token's group."""
    if by is None:
        return ["all"], lambda record: np.zeros(len(record.token), np.int64)
    if by == "label":
        if not trace.labels:
            raise ValueError("by='label': this trace has no labels; give them to trace_routing")
        names, codes = np.unique(np.array(trace.labels), return_inverse=True)
        return names.tolist(), lambda record: codes[record.prompt]
    tables = {"channel": ("voice", VOICES), "role": ("role", ROLES), "part": ("part", PARTS)}
    if by not in tables:
        raise ValueError(f"by is None or one of {', '.join(BY)}; got {by!r}")
    column, names = tables[by]
    return list(names), lambda record: getattr(record, column).astype(np.int64)


def _among(column: str, codes: Sequence[int]) -> Keep:
    return lambda record: np.isin(getattr(record, column), codes)


def _codes(what: str, names: Sequence[str], wanted: Any, *, give_names: bool = False) -> list:
    listed = many(wanted)
    if unknown := [each for each in listed if each not in names]:
        raise ValueError(f"where: {what} is one of {', '.join(map(repr, names))}; got {unknown}")
    return listed if give_names else [list(names).index(each) for each in listed]


def _tokens_with(trace: RoutingTrace, text: str) -> list[int]:
    if trace.strings is None:
        raise ValueError("where: text= needs the tokens' texts; this trace has none, use token=")
    pattern = re.compile(text)
    return [i for i, string in enumerate(trace.strings) if pattern.search(string)]


def _goes_to(trace: RoutingTrace, layer: int, expert: int) -> Keep:
    if layer not in trace.layers or not 0 <= expert < trace.n_experts:
        raise ValueError(
            f"where: expert=(layer, expert) with layers {list(trace.layers)} and experts 0 to "
            f"{trace.n_experts - 1}; got {(layer, expert)}"
        )
    stored = trace.places or tuple(range(len(trace.layers)))
    at = stored[trace.layers.index(layer)]
    return lambda record: (record.experts[:, at] == expert).any(-1)
