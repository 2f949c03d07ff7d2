"""Attention between sentences: a [sentence, sentence] matrix a head, reduced where it is made.

    mass[i, j]  = mean over queries of i of Σ attention to tokens of j     rows and sink sum to 1
    mean[i, j]  = mean over reachable pairs of tokens          (Thought Anchors, 2506.19143)
    even[i, j]  = the mass even attention over the reachable keys would give
    lift        = mass / even

A sliding layer reaches fewer keys, and far sentences get nothing there by construction: mean and
lift are NaN where no pair of tokens is in reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_workbench import harmony
from gptoss_workbench.heads.rows import choose_heads, of_heads
from gptoss_workbench.heads.tiles import Layer, distances, each_layer, tiles
from gptoss_workbench.lens.places import choose_layers, read_prompts
from gptoss_workbench.provenance import provenance
from gptoss_workbench.table import Table


@dataclass(frozen=True, repr=False, eq=False)
class SentenceAttention:
    """How much every sentence attends to every other, a matrix a head."""

    mass: Float[Tensor, "layer head sentence sentence"]
    """[.., from, to]: attention of a mean query to all tokens of a sentence."""
    sink: Float[Tensor, "layer head sentence"]
    """What the sink absorbs."""
    outside: Float[Tensor, "layer head sentence"]
    """Attention to tokens that belong to no sentence; mass + outside + sink = 1."""
    even: Float[Tensor, "layer sentence sentence"]
    """Mass if attention were even over the reachable keys."""
    pairs: Float[Tensor, "layer sentence sentence"]
    """Reachable pairs of tokens, (query, key)."""
    layers: tuple[int, ...]
    """Which blocks the layer axis holds."""
    heads: tuple[int, ...]
    """Which heads the head axis holds."""
    sizes: Int[Tensor, " sentence"]
    """Tokens of each sentence."""
    texts: list[str] | None = None
    """The sentences."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What made it."""

    @property
    def mean(self) -> Float[Tensor, "layer head sentence sentence"]:
        """Mean attention over reachable pairs of tokens; NaN where there is none."""
        total = self.mass * self.sizes[:, None]
        return total / self._reached(self.pairs)[:, None]

    @property
    def lift(self) -> Float[Tensor, "layer head sentence sentence"]:
        """Mass over what even attention gives; NaN where nothing is in reach."""
        return self.mass / self._reached(self.even)[:, None]

    def _reached(self, values: Tensor) -> Tensor:
        return torch.where(self.pairs > 0, values, torch.nan)

    def table(self) -> Table:
        """A row for every head and pair of sentences in reach."""
        reached = (self.pairs > 0)[:, None].expand(self.mass.shape).numpy()
        layer, head, query, key = reached.nonzero()
        at = (layer, head, query, key)
        columns = {
            "layer": np.array(self.layers)[layer],
            "head": np.array(self.heads)[head],
            "from": query,
            "to": key,
            "mass": self.mass.numpy()[at],
            "mean": self.mean.numpy()[at],
            "lift": self.lift.numpy()[at],
            "chance": self.even.numpy()[layer, query, key],
        }
        notes = ("from attends to to; chance: mass if attention were even over reachable keys",)
        source = "sentence means as in Thought Anchors 2506.19143, over reachable keys"
        return Table(columns, "Attention between sentences", source, {}, notes, self.provenance)

    def __repr__(self) -> str:
        layers, heads, n = self.mass.shape[:3]
        return f"SentenceAttention: {layers} layers, {heads} heads, {n} sentences"


def sentence_attention(
    model: Any,
    input: Any,
    *,
    sentences: Sequence[int] | Tensor | None = None,
    heads: int | Sequence[int] | None = None,
    layers: int | Sequence[int] | None = None,
    attention_mask: Tensor | None = None,
) -> SentenceAttention:
    """Reduce one prompt's attention to its sentences.

    Args:
        sentences: number of each token's sentence, from 0 on, -1 for none; by default those of
            the harmony messages' bodies.
    """
    prompts = read_prompts(model, input, attention_mask)
    if len(prompts.tokens) != 1:
        raise ValueError(f"sentence_attention: expected one prompt, got {len(prompts.tokens)}")
    labels, texts = _labels(model, prompts.tokens[0], prompts.mask[0], sentences)
    member = torch.nn.functional.one_hot(labels + 1).float()[:, 1:]  # [pos, sentence]
    chosen = choose_heads(model.config.num_attention_heads, heads)
    numbers = choose_layers(model.n_layers, layers)
    found: list[tuple[Tensor, ...]] = []

    def look(layer: Layer) -> None:
        found.append(tuple(each.cpu() for each in _reduce(of_heads(layer, chosen), member)))

    each_layer(model, prompts, numbers, look)
    mass, sink, total, even, pairs = (torch.stack(parts) for parts in zip(*found, strict=True))
    return SentenceAttention(
        mass, sink, (total - mass.sum(-1)).clamp_min(0), even, pairs,
        layers=tuple(numbers), heads=tuple(chosen), sizes=member.sum(0).long().cpu(),
        texts=texts, provenance=provenance(model, prompts.tokens.cpu(), prompts.mask.cpu()),
    )  # fmt: skip


def _reduce(layer: Layer, member: Tensor) -> tuple[Tensor, ...]:
    """Mass, sink and total a head, even mass and reachable pairs, of one layer."""
    n = member.shape[1]
    heads = layer.q.shape[2]
    mass, sink = member.new_zeros(heads, n, n), member.new_zeros(heads, n)
    total, even, pairs = sink.clone(), member.new_zeros(n, n), member.new_zeros(n, n)
    for part in tiles(layer):
        query, key = member[part.queries], member[part.keys]
        mass += torch.einsum("qi,hqk,kj->hij", query, part.pattern[0], key)
        sink += part.sink[0] @ query
        total += part.pattern[0].sum(-1) @ query
        seen = (distances(layer, part)[0] >= 0).float()
        pairs += query.T @ seen @ key
        even += query.T @ (seen / seen.sum(-1, keepdim=True).clamp_min(1)) @ key
    size = member.sum(0)
    return mass / size[:, None], sink / size, total / size, even / size[:, None], pairs


def _labels(
    model: Any, tokens: Tensor, mask: Tensor, given: Sequence[int] | Tensor | None
) -> tuple[Tensor, list[str] | None]:
    """The sentence of every token, and the sentences' texts."""
    if given is not None:
        labels = torch.as_tensor(given, device=tokens.device).long()
        counts = torch.bincount(labels[labels >= 0]) if labels.shape == tokens.shape else None
        if counts is None or len(counts) == 0 or int(counts.min()) == 0 or int(labels.min()) < -1:
            raise ValueError(
                f"sentence_attention: expected {len(tokens)} numbers, a sentence a token counted "
                "from 0 without gaps, -1 for none"
            )
        return labels.masked_fill(~mask, -1), None
    spans = harmony.spans(tokens.tolist(), model.require_tokenizer())
    if not spans.sentences:
        raise ValueError(
            "sentence_attention: this prompt has no harmony message with a body; give sentences="
        )
    labels = torch.tensor([label.sentence for label in spans.labels], device=tokens.device)
    return labels.masked_fill(~mask, -1), [spans.text(each) for each in spans.sentences]
