"""A RoutingTrace: the expert choices of a corpus, read in chunks, filtered without copying.

    routing = trace_routing(model, texts, folder="runs/de")
    routing.where(channel="analysis", layer=12).to_pandas()

It holds no tensor of its own: `chunks()` reads one shard after another, applies the filters, and
hands on a `Record` of numpy columns. A corpus larger than memory is read like a small one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptoss_workbench.routing import routing_tables
from gptoss_workbench.routing.record import Record, join
from gptoss_workbench.routing.select import Keep, groups, many, rules

if TYPE_CHECKING:
    from gptoss_workbench.trace import Trace


@dataclass(frozen=True, repr=False, eq=False)
class RoutingTrace:
    """Every token's expert choice in every traced layer, with its harmony labels."""

    shards: Sequence[Callable[[], Record]]
    """Each reads one shard, in corpus order; a prompt never spans two."""
    layers: tuple[int, ...]
    """The blocks that the layer axis covers, in order."""
    n_experts: int
    """Experts in a layer."""
    labels: tuple[str, ...] = ()
    """Domain of each prompt, by its number; () if none were given."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The model's sizes, in config.json's names."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What made it."""
    strings: Sequence[str] | None = None
    """Text of every token of the vocabulary."""
    keep: tuple[Keep, ...] = ()
    """Filters, applied to every chunk."""
    places: tuple[int, ...] | None = None
    """Which places of the stored layer axis are shown; None is all."""

    def chunks(self) -> Iterator[Record]:
        """The selected tokens, shard by shard; empty ones are left out."""
        for read in self.shards:
            record = read()
            chosen = [keep(record) for keep in self.keep]
            if self.places is not None:
                record = record.layers(self.places)
            if chosen and not (every := np.logical_and.reduce(chosen)).all():
                record = record.at(every)
            if len(record.token):
                yield record

    def record(self) -> Record:
        """All selected tokens in memory."""
        found = list(self.chunks())
        if not found:
            raise ValueError("RoutingTrace: the selection holds no token; loosen where(...)")
        return join(found)

    @property
    def k(self) -> int:
        """Experts a token is given."""
        return int(self.config["num_experts_per_tok"])

    @property
    def n_tokens(self) -> int:
        """Tokens selected (reads every shard)."""
        return sum(len(record.token) for record in self.chunks())

    @property
    def n_prompts(self) -> int:
        """Prompts that have a selected token (reads every shard)."""
        return sum(len(np.unique(record.prompt)) for record in self.chunks())

    @property
    def complete(self) -> bool:
        """Whether the whole corpus was run; False after an interrupt."""
        return bool(self.provenance.get("complete", True))

    @classmethod
    def load(cls, folder: str | Path) -> RoutingTrace:
        """Open what `trace_routing(..., folder=)` wrote, finished or not."""
        from gptoss_workbench.routing import shards

        return shards.load(folder)

    @classmethod
    def from_trace(cls, trace: Trace, *, labels: Sequence[str] = ()) -> RoutingTrace:
        """The routing of a Trace; its rows are the prompts, in order."""
        from gptoss_workbench.routing import from_trace

        return from_trace.convert(trace, labels)

    @classmethod
    def from_record(
        cls,
        record: Record,
        *,
        n_experts: int,
        labels: Sequence[str] = (),
        layers: Sequence[int] | None = None,
        config: Mapping[str, Any] | None = None,
        strings: Sequence[str] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> RoutingTrace:
        """Wrap a record in memory, say one made by hand."""
        n_layers, k = record.experts.shape[1:]
        if labels and len(record.prompt) and int(record.prompt.max()) >= len(labels):
            raise ValueError(
                f"RoutingTrace: prompt {int(record.prompt.max())} has no label; labels= holds "
                f"{len(labels)}, one is needed for every prompt"
            )
        sizes = {"num_local_experts": n_experts, "num_experts_per_tok": k}
        return cls(
            shards=[lambda: record],
            layers=tuple(range(n_layers) if layers is None else layers),
            n_experts=n_experts,
            labels=tuple(labels),
            config=sizes | dict(config or {}),
            provenance=dict(provenance or {}),
            strings=strings,
        )

    def where(
        self,
        *,
        voice: str | Sequence[str] | None = None,
        channel: str | Sequence[str] | None = None,
        role: str | Sequence[str] | None = None,
        part: str | Sequence[str] | None = None,
        label: str | Sequence[str] | None = None,
        prompt: int | Sequence[int] | None = None,
        layer: int | Sequence[int] | None = None,
        expert: tuple[int, int] | None = None,
        token: int | Sequence[int] | None = None,
        text: str | None = None,
        keep: Keep | None = None,
    ) -> RoutingTrace:
        """Select tokens and layers; what is not named stays.

        Args:
            voice: of VOICES: "analysis", "user", "header" ... (what `by="channel"` splits by).
            channel, role, part: of the token's message; header tokens carry their message's.
            label: domain of the prompt.
            layer: blocks to show, by number.
            expert: (layer, expert): only tokens that go to it.
            token: ids.
            text: a regular expression that the token's text must contain.
            keep: any other rule, Record -> bool a token.
        """
        found = rules(self, voice, channel, role, part, label, prompt, expert, token, text)
        found += [] if keep is None else [keep]
        out = replace(self, keep=(*self.keep, *found))
        return out if layer is None else out._with_layers(many(layer))

    def _with_layers(self, layers: list) -> RoutingTrace:
        if unknown := [layer for layer in layers if layer not in self.layers]:
            raise ValueError(f"RoutingTrace: layers are {list(self.layers)}; got layer={unknown}")
        stored = self.places or tuple(range(len(self.layers)))
        at = [self.layers.index(layer) for layer in layers]
        return replace(self, layers=tuple(layers), places=tuple(stored[i] for i in at))

    def groups(self, by: str | None) -> tuple[list[str], Callable[[Record], np.ndarray]]:
        """Names of the groups tokens are split into, and each token's group, -1 for none.

        `by` is None (one group, "all"), "channel" (by voice), "role", "part" or "label".
        """
        return groups(self, by)

    def to_pandas(self, what: str = "routing"):
        """A long table: "routing" (a row a token, layer and rank), "tokens" or "prompts"."""
        return routing_tables.table(self, what)

    def __repr__(self) -> str:
        return routing_tables.summary(self)

    def _repr_html_(self) -> str:
        return routing_tables.html(self)
