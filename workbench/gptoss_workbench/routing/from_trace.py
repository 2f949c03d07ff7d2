"""A Trace's routing as a RoutingTrace."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gptoss_workbench.harmony import Spans
from gptoss_workbench.routing.capture import margins
from gptoss_workbench.routing.record import PARTS, Record
from gptoss_workbench.routing.span_codes import SpanCodes, channel_code, role_code, unlabelled
from gptoss_workbench.routing.trace import RoutingTrace
from gptoss_workbench.trace import Trace


def convert(trace: Trace, labels: Sequence[str]) -> RoutingTrace:
    """Keep the real tokens of a trace; margins where it has router logits."""
    if trace.routing is None:
        raise ValueError(
            "RoutingTrace.from_trace: this trace has no routing; trace with routing=True"
        )
    if labels and len(labels) != len(trace):
        raise ValueError(f"from_trace: {len(trace)} rows, {len(labels)} labels; give one a row")
    row, at = trace.mask.numpy().nonzero()
    logits = trace.routing.logits
    chosen = _rows(trace.routing.experts, trace.mask)
    size = trace.config.get("num_local_experts")
    n_experts = int(size or (chosen.max() + 1 if logits is None else logits.shape[-1]))
    if logits is not None:
        logits = _rows(logits, trace.mask)
    record = Record(
        prompt=row.astype(np.int32),
        pos=np.array(trace.places, np.int32)[at],
        token=trace.tokens[trace.mask].numpy().astype(np.int32),
        **_labels(trace)._asdict(),
        experts=chosen.numpy().astype(np.int8 if n_experts <= 127 else np.int16),
        weights=_rows(trace.routing.weights, trace.mask).numpy(),
        logits=None if logits is None else logits.numpy(),
        margins=None if logits is None else _margins(logits, chosen),
    )
    return RoutingTrace.from_record(
        record,
        n_experts=n_experts,
        labels=labels,
        layers=trace.layers,
        config=trace.config,
        provenance=trace.provenance,
    )


def _rows(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[layer, batch, pos, ...] to [token, layer, ...], pads left out."""
    return values[:, mask].transpose(0, 1).contiguous()


def _margins(logits: torch.Tensor, chosen: torch.Tensor) -> np.ndarray:
    flat = margins(logits.flatten(0, 1), chosen.flatten(0, 1))
    return flat.unflatten(0, logits.shape[:2]).numpy()


def _labels(trace: Trace) -> SpanCodes:
    if trace.spans is None:
        return unlabelled(trace.n_tokens)
    each = [_codes(spans) for spans in trace.spans]
    masks = trace.mask.numpy()
    rows = [[column[m] for column in codes] for codes, m in zip(each, masks, strict=True)]
    return SpanCodes(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def _codes(spans: Spans) -> SpanCodes:
    """One row's labels; a pad inside a text counts as a marker."""
    part = [PARTS.index(label.part) if label.part in PARTS else 0 for label in spans]
    return SpanCodes(
        np.array([role_code(label.role) for label in spans], np.uint8),
        np.array([channel_code(label.channel) for label in spans], np.uint8),
        np.array(part, np.uint8),
        np.array([label.message for label in spans], np.int32),
        np.array([label.sentence for label in spans], np.int32),
    )
