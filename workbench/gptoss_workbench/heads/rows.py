"""Patterns on request: chosen heads, chosen query rows, with the sink's column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_workbench.heads.tiles import Layer, each_layer, tile
from gptoss_workbench.lens.places import Positions, choose_layers, find_places, read_prompts
from gptoss_workbench.provenance import provenance
from gptoss_workbench.table import Table


@dataclass(frozen=True, repr=False, eq=False)
class AttentionRows:
    """Rows of one prompt's patterns; a row and its sink sum to 1."""

    pattern: Float[Tensor, "head query key"]
    """Attention to every token of the prompt."""
    sink: Float[Tensor, "head query"]
    """What the sink absorbs."""
    layer: int
    """The block."""
    heads: tuple[int, ...]
    """Which heads the head axis holds."""
    queries: Int[Tensor, " query"]
    """Which tokens attend, counted from the prompt's start."""
    tokens: Int[Tensor, " key"]
    """The prompt."""
    strings: list[str] | None = None
    """Its texts."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What made it."""

    def table(self, keys: int = 5) -> Table:
        """The strongest keys of every row, and the sink as key -1."""
        top = self.pattern.topk(min(keys, self.pattern.shape[-1]))
        key = torch.cat([torch.full_like(top.indices[..., :1], -1), top.indices], -1)
        value = torch.cat([self.sink[..., None], top.values], -1)
        head, query, _ = np.indices(key.shape)
        columns = {
            "head": np.array(self.heads)[head.ravel()],
            "query": self.queries.numpy()[query.ravel()],
            "key": key.numpy().ravel(),
            "attention": value.numpy().ravel(),
        }
        if self.strings is not None:
            names = np.array([*self.strings, "sink"], dtype=object)
            columns["string"] = names[columns["key"]]
        columns = {name: column[columns["attention"] > 0] for name, column in columns.items()}
        title = f"Attention of layer {self.layer}: strongest keys"
        return Table(columns, title, "softmax with a sink: pattern row + sink = 1", {}, (),
                     self.provenance)  # fmt: skip

    def __repr__(self) -> str:
        return repr(self.table())


def attention_rows(
    model: Any,
    input: Any,
    layer: int,
    *,
    heads: int | Sequence[int] | None = None,
    queries: Positions = -1,
    attention_mask: Tensor | None = None,
) -> AttentionRows:
    """Patterns of chosen heads and query rows of one prompt; nothing else is computed.

    attention_rows(model, prompt, 3, heads=[5], queries=[-1, -2])
    """
    prompts = read_prompts(model, input, attention_mask)
    if len(prompts.tokens) != 1:
        raise ValueError(f"attention_rows: expected one prompt, got {len(prompts.tokens)}")
    (number,) = choose_layers(model.n_layers, [layer])
    chosen = choose_heads(model.config.num_attention_heads, heads)
    real = prompts.mask[0].nonzero()[:, 0]
    at = find_places(prompts.mask, queries)[0]
    at = at[at >= 0]
    found: list[tuple[Tensor, Tensor]] = []

    def look(every: Layer) -> None:
        few = of_heads(every, chosen)
        rows = [tile(few, slice(int(q), int(q) + 1), slice(0, len(prompts.mask[0]))) for q in at]
        pattern = torch.cat([row.pattern[0] for row in rows], 1)[..., real]
        found.append((pattern.cpu(), torch.cat([row.sink[0] for row in rows], 1).cpu()))

    each_layer(model, prompts, [number], look)
    tokens = prompts.tokens[0, real].cpu()
    tokenizer = model.tokenizer
    return AttentionRows(
        *found[0],
        layer=number,
        heads=tuple(chosen),
        queries=torch.searchsorted(real, at).cpu(),
        tokens=tokens,
        strings=None if tokenizer is None else tokenizer.strings(tokens.tolist()),
        provenance=provenance(model, prompts.tokens.cpu(), prompts.mask.cpu()),
    )


def choose_heads(n_heads: int, heads: int | Sequence[int] | None) -> list[int]:
    """Heads in the order given, negative ones counted from the end; None is all."""
    if heads is None:
        return list(range(n_heads))
    wanted = [heads] if isinstance(heads, int) else [int(head) for head in heads]
    if not wanted or any(not -n_heads <= head < n_heads for head in wanted):
        raise ValueError(
            f"heads: expected numbers between {-n_heads} and {n_heads - 1}, got {heads}"
        )
    return [head % n_heads for head in wanted]


def of_heads(layer: Layer, heads: Sequence[int]) -> Layer:
    """A layer reduced to some query heads, each with a copy of the keys it reads."""
    group = layer.q.shape[2] // layer.k.shape[2]
    return layer._replace(
        q=layer.q[:, :, list(heads)],
        k=layer.k[:, :, [head // group for head in heads]],
        sinks=layer.sinks[list(heads)],
    )
