"""A Trace as tables, as one line of text, and as a small page in a notebook."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gptoss_workbench.harmony.voices import voice_of

if TYPE_CHECKING:
    import pandas

    from gptoss_workbench.harmony.spans import TokenLabel
    from gptoss_workbench.trace import Trace

LABELS = ("role", "channel", "recipient", "part", "message", "sentence")
SHOWN_TOKENS = 60
SHOWN_ROWS = 4


def table(trace: Trace, what: str) -> pandas.DataFrame:
    """Give a long table of the tokens, the routing or one activation, pad rows left out."""
    if what == "tokens":
        return _tokens(trace)
    if what == "routing":
        return _routing(trace)
    if what in trace.activations:
        return _activation(trace, what)
    names = ", ".join(["tokens", "routing", *trace.activations])
    raise ValueError(f"Trace.to_pandas: expected one of {names}; got {what!r}")


def frame(columns: dict[str, Any]) -> pandas.DataFrame:
    """Make a data frame; pandas comes with the lab extra and is imported only here."""
    try:
        import pandas
    except ImportError as missing:
        raise ImportError(
            "tables need pandas: pip install 'gptoss-workbench[lab]', or read the tensors"
        ) from missing
    return pandas.DataFrame(columns)


def _tokens(trace: Trace) -> pandas.DataFrame:
    rows, cols = _at(trace)
    columns: dict[str, Any] = {
        "row": rows,
        "pos": [trace.places[c] for c in cols],
        "token": [int(trace.tokens[r, c]) for r, c in zip(rows, cols, strict=True)],
    }
    if trace.strings is not None:
        columns["string"] = [trace.strings[r][c] for r, c in zip(rows, cols, strict=True)]
    if trace.spans is not None:
        labels = [trace.spans[r].labels[c] for r, c in zip(rows, cols, strict=True)]
        columns |= {name: [getattr(label, name) for label in labels] for name in LABELS}
    return frame(columns)


def _at(trace: Trace) -> tuple[list[int], list[int]]:
    """Give row and column of every real token."""
    rows, cols = trace.mask.nonzero(as_tuple=True)
    return rows.tolist(), cols.tolist()


def _routing(trace: Trace) -> pandas.DataFrame:
    if trace.routing is None:
        raise ValueError("Trace.to_pandas: this trace kept no routing; trace with routing=True")
    experts, weights, _ = trace.routing
    axes = ("layer", "batch", "pos", "k")
    columns = _long(trace, experts, axes, "expert")
    columns["layer"] = torch.tensor(trace.layers)[columns["layer"]]
    columns["weight"] = weights[_kept(trace, axes, experts)]
    columns["rank"] = columns.pop("k")
    taken = columns["expert"] >= 0
    plain = {name: column[taken].numpy() for name, column in columns.items()}
    said = _said(trace, plain["row"], np.searchsorted(trace.places, plain["pos"]))
    order = ("row", "pos", *said, "layer", "rank", "expert", "weight")
    return frame({name: (plain | said)[name] for name in order}).sort_values(
        ["row", "pos", "layer", "rank"], ignore_index=True
    )


def _said(trace: Trace, rows: np.ndarray, columns: np.ndarray) -> dict[str, np.ndarray]:
    """Text, voice, role, channel and part of the tokens at some rows and columns, where known."""
    grids: dict[str, list[list[str | None]]] = {}
    if trace.strings is not None:
        grids["string"] = [list(row) for row in trace.strings]
    if trace.spans is not None:
        grids["voice"] = [[_voice(label) for label in row] for row in trace.spans]
        for name in ("role", "channel", "part"):
            grids[name] = [[getattr(label, name) for label in row] for row in trace.spans]
    return {name: np.array(grid, dtype=object)[rows, columns] for name, grid in grids.items()}


def _voice(label: TokenLabel) -> str:
    """What `by="channel"` splits by: a body's channel or role, "header" for all else."""
    return voice_of(label.role, label.channel) if label.part == "body" else "header"


def _activation(trace: Trace, name: str) -> pandas.DataFrame:
    columns = _long(trace, trace.activations[name], trace.axes[name], "value")
    return frame({axis: column.numpy() for axis, column in columns.items()})


def _long(trace: Trace, tensor: Tensor, axes: tuple[str, ...], value: str) -> dict[str, Tensor]:
    """Write a tensor out as one column an axis and one of values, without pad places."""
    kept = _kept(trace, axes, tensor)
    columns = dict(zip(axes, kept.nonzero(as_tuple=True), strict=True))
    for axis in ("pos", "query"):
        if axis in columns:
            columns[axis] = torch.tensor(trace.places)[columns[axis]]
    named = {"row" if axis == "batch" else axis: column for axis, column in columns.items()}
    named.pop("one", None)
    read = tensor[kept]
    return named | {value: read.float() if read.is_floating_point() else read}


def _kept(trace: Trace, axes: tuple[str, ...], tensor: Tensor) -> Tensor:
    """Mark the entries that belong to real tokens only, on the tensor's shape."""
    kept = torch.ones(tensor.shape, dtype=torch.bool)
    for axis, mask in (("pos", trace.mask), ("query", trace.mask), ("key", trace.whole.mask)):
        if axis in axes:
            shape = [1] * tensor.ndim
            shape[axes.index("batch")], shape[axes.index(axis)] = mask.shape
            kept &= mask.view(shape)
    return kept


def facts(trace: Trace) -> list[tuple[str, str]]:
    """Say in a few words what the trace holds."""
    rows, places = trace.tokens.shape
    made = trace.provenance
    size = sum(value.nbytes for value in trace.activations.values()) / 2**20
    routing = "not kept"
    if trace.routing is not None:
        extra = ", with logits" if trace.routing.logits is not None else ""
        routing = f"{len(trace.layers)} layers, top {trace.routing.experts.shape[-1]}{extra}"
    out = [
        (
            "model",
            " ".join(str(made[key]) for key in ("model", "dtype", "backend") if made.get(key)),
        ),
        ("tokens", f"{rows} x {places}" + _padding(trace)),
        ("routing", routing),
        ("activations", f"{len(trace.activations)} ({size:.1f} MiB)"),
    ]
    if made.get("edits"):
        out.append(("edits", ", ".join(made["edits"])))
    if made.get("complete") is False:
        out.append(("incomplete", f"interrupted after {len(trace.layers)} layers"))
    return [(name, text) for name, text in out if text]


def _padding(trace: Trace) -> str:
    pads = trace.mask.numel() - trace.n_tokens
    return f", {pads} of them padding" if pads else ""


def summary(trace: Trace) -> str:
    """Write the facts and the first texts on a few lines."""
    head = "Trace: " + "; ".join(f"{name} {text}" for name, text in facts(trace))
    lines = [f"  {name} {_shape(trace, name)}" for name in list(trace.activations)[:8]]
    if len(trace.activations) > 8:
        lines.append(f"  ... and {len(trace.activations) - 8} more")
    texts = [f"  [{i}] {text!r}" for i, text in enumerate(_texts(trace))]
    return "\n".join([head, *lines, *texts])


def _shape(trace: Trace, name: str) -> str:
    sizes = zip(trace.axes[name], trace.activations[name].shape, strict=True)
    return "[" + ", ".join(f"{axis} {size}" for axis, size in sizes) + "]"


def _texts(trace: Trace) -> list[str]:
    if trace.strings is None:
        return []
    out = []
    for strings, mask in list(zip(trace.strings, trace.mask.tolist(), strict=True))[:SHOWN_ROWS]:
        real = [string for string, keep in zip(strings, mask, strict=True) if keep]
        more = "…" if len(real) > SHOWN_TOKENS else ""
        out.append("".join(real[:SHOWN_TOKENS]) + more)
    return out


def html(trace: Trace) -> str:
    """Draw the facts and the first texts; colours come from the page, light or dark."""
    cells = "".join(
        f'<tr><th style="text-align:left;opacity:.7">{escape(name)}</th>'
        f'<td style="text-align:left">{escape(text)}</td></tr>'
        for name, text in facts(trace)
    )
    names = "".join(
        f"<li><code>{escape(name)}</code> {escape(_shape(trace, name))}</li>"
        for name in trace.activations
    )
    listing = f"<details><summary>activations</summary><ul>{names}</ul></details>" if names else ""
    texts = "".join(
        '<pre style="white-space:pre-wrap;margin:.3em 0;padding-left:.6em;color:inherit;'
        f'background:none;border-left:2px solid currentColor">{escape(text)}</pre>'
        for text in _texts(trace)
    )
    return (
        '<div style="color:inherit"><b>Trace</b>'
        f'<table style="color:inherit">{cells}</table>{listing}{texts}</div>'
    )
