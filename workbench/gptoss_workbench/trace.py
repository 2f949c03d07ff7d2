"""A Trace: what one run showed, as plain tensors that outlive the model.

Tokens with their harmony spans, every router's choice, and the activations that were asked for.
Rows and places can be sliced, tables made, files saved, and two traces compared, without a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from gptoss_hooks import axes as glossary
from gptoss_workbench import trace_diff, trace_store, trace_tables
from gptoss_workbench.harmony import Spans

if TYPE_CHECKING:
    import pandas

PLACES = ("pos", "query")
"""Axes that follow the trace's places. A key axis always covers the whole prompt, see `context`."""


class Routing(NamedTuple):
    """Every router's choice; the layer axis follows `Trace.layers`."""

    experts: Int[Tensor, "layer batch pos k"]
    """int16, best expert first; -1 where an edit gave another layer more slots."""
    weights: Float[Tensor, "layer batch pos k"]
    """float32, the weights given to the chosen experts' outputs."""
    logits: Float[Tensor, "layer batch pos expert"] | None = None
    """float32, where asked for."""

    def at(self, *index: Any) -> Routing:
        """Index the leading axes (layer, batch, pos) of all three."""
        logits = None if self.logits is None else self.logits[index]
        return Routing(self.experts[index], self.weights[index], logits)


class Context(NamedTuple):
    """The whole prompt of a trace that was cut to some places: what a key axis counts."""

    tokens: Int[Tensor, "batch key"]
    mask: Bool[Tensor, "batch key"]
    strings: list[list[str]] | None
    """The tokens' texts, a list a row."""


@dataclass(frozen=True, repr=False, eq=False)
class Trace:
    """What one run showed. Pad places are kept in the tensors and left out of every table.

    trace = model.trace(prompt, names_filter=[("resid_post", 3)])
    trace[0, 10:20].to_pandas("routing")
    """

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    """False on padding."""
    strings: list[list[str]] | None = None
    """The tokens' texts, a list a row."""
    spans: list[Spans] | None = None
    """Role, channel, message and sentence of every token, a Spans a row."""
    routing: Routing | None = None
    """Every router's choice."""
    activations: dict[str, Tensor] = field(default_factory=dict)
    """By hook name, batch first."""
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The axes of each activation, in the glossary's names."""
    layers: tuple[int, ...] = ()
    """The blocks that `routing` covers, in order."""
    places: tuple[int, ...] = ()
    """Where each place of the pos axis stood in the prompt."""
    context: Context | None = None
    """The whole prompt, once places were cut away."""
    config: dict[str, Any] = field(default_factory=dict)
    """The model's sizes, in config.json's names."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What made it: model, tokens' hash, precision, edits, versions; "complete" is False after an
    interrupt."""

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.mask.shape != self.tokens.shape:
            raise ValueError(
                "Trace: expected tokens and mask [batch, pos], got "
                f"{list(self.tokens.shape)} and {list(self.mask.shape)}"
            )
        if not self.places:
            object.__setattr__(self, "places", tuple(range(self.tokens.shape[1])))
        if self.activations.keys() - self.axes.keys():
            missing = sorted(self.activations.keys() - self.axes.keys())
            raise ValueError(f"Trace: expected axes for every activation, none given for {missing}")

    @property
    def n_tokens(self) -> int:
        """Tokens in all rows, padding left out."""
        return int(self.mask.sum())

    @property
    def whole(self) -> Context:
        """The whole prompt, whether or not places were cut away."""
        return self.context or Context(self.tokens, self.mask, self.strings)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, key: Any) -> Trace:
        """Slice rows and places; an int keeps its axis: `trace[0]`, `trace[:, 10:20]`."""
        key = key if isinstance(key, tuple) else (key,)
        if len(key) > 2:
            raise IndexError(
                f"Trace: expected trace[row] or trace[row, pos], got {len(key)} indices"
            )
        return self.select(row=key[0], pos=key[1] if len(key) == 2 else None)

    def select(
        self,
        *,
        row: int | slice | Sequence[int] | None = None,
        pos: int | slice | None = None,
        layers: int | Sequence[int] | None = None,
    ) -> Trace:
        """Keep some rows, places (a run of neighbours) and layers; every axis stays.

        Activations outside the blocks (embedding, final norm) stay whatever `layers` says. Key
        axes stay whole, so attention to cut-away places can still be read; see `whole`.
        """
        out = self if row is None else self._rows(_indices(row, len(self), "row"))
        if pos is not None:
            out = out._cut(_indices(pos, self.tokens.shape[1], "pos"))
        if layers is not None:
            out = out._layers([layers] if isinstance(layers, int) else list(layers))
        return out

    def _rows(self, rows: list[int]) -> Trace:
        context = self.context and Context(
            self.context.tokens[rows], self.context.mask[rows], _pick(self.context.strings, rows)
        )
        return replace(
            self,
            tokens=self.tokens[rows],
            mask=self.mask[rows],
            strings=_pick(self.strings, rows),
            spans=_pick(self.spans, rows),
            routing=self.routing and self.routing.at(slice(None), rows),
            activations={name: value[rows] for name, value in self.activations.items()},
            context=context,
        )

    def _cut(self, at: list[int]) -> Trace:
        if not at or at != list(range(at[0], at[-1] + 1)):
            raise ValueError(f"Trace.select: expected a run of neighbouring places, got pos {at}")
        run = slice(at[0], at[-1] + 1)
        return replace(
            self,
            tokens=self.tokens[:, run],
            mask=self.mask[:, run],
            strings=self.strings and [row[run] for row in self.strings],
            spans=self.spans and [row[run] for row in self.spans],
            routing=self.routing and self.routing.at(slice(None), slice(None), run),
            activations={
                name: value[(slice(None),) * _place_axis(self.axes[name]) + (run,)]
                for name, value in self.activations.items()
            },
            places=self.places[run],
            context=self.whole,
        )

    def _layers(self, layers: list[int]) -> Trace:
        known = set(self.layers) | {glossary.layer_of(name) for name in self.activations}
        if unknown := [layer for layer in layers if layer not in known]:
            here = sorted(layer for layer in known if layer is not None)
            raise ValueError(f"Trace.select: expected layers among {here}, got {unknown}")
        rows = [i for i, layer in enumerate(self.layers) if layer in layers]
        kept = {None, *layers}
        names = [name for name in self.activations if glossary.layer_of(name) in kept]
        return replace(
            self,
            routing=self.routing and self.routing.at(rows),
            layers=tuple(self.layers[i] for i in rows),
            activations={name: self.activations[name] for name in names},
            axes={name: self.axes[name] for name in names},
        )

    def to_pandas(self, what: str = "tokens") -> pandas.DataFrame:
        """Give a long table without pad rows: "tokens", "routing", or an activation by name.

        "routing" has a row a token, layer and rank, with the token's text, voice and channel.
        """
        return trace_tables.table(self, what)

    def save(self, path: str | Path) -> Path:
        """Write <path>.safetensors and <path>.json; into a folder, they are named trace.*."""
        return trace_store.save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a saved trace, given the path it was saved to, its folder, or either file."""
        fields = trace_store.load(path)
        routing, context = fields.pop("routing"), fields.pop("context")
        return cls(
            **fields,
            routing=routing and Routing(**routing),
            context=context and Context(**context),
        )

    def diff(self, other: Trace) -> trace_diff.TraceDiff:
        """Compare with another trace, token by token where the two say the same; see trace_diff."""
        return trace_diff.diff(self, other)

    def __repr__(self) -> str:
        return trace_tables.summary(self)

    def _repr_html_(self) -> str:
        return trace_tables.html(self)


def _pick(rows: list[Any] | None, at: list[int]) -> list[Any] | None:
    return rows and [rows[i] for i in at]


def _place_axis(names: tuple[str, ...]) -> int:
    """Find the axis that follows the places; every hook point has one."""
    return next(i for i, name in enumerate(names) if name in PLACES)


def _indices(key: int | slice | Sequence[int], size: int, axis: str) -> list[int]:
    """Turn an index into a list of places, bounds checked."""
    if isinstance(key, slice):
        return list(range(size))[key]
    wanted = [key] if isinstance(key, int) else [int(i) for i in key]
    if any(not -size <= i < size for i in wanted):
        raise IndexError(f"Trace: expected {axis} between {-size} and {size - 1}, got {key}")
    return [i % size for i in wanted]
