"""What every head attends to, in a few numbers, without its pattern.

    entropy     -Σ p log2 p of the row without its sink, p = pattern / Σ pattern   (Clark et al.,
                1906.04341); its share is of log2(reachable keys), 1 meaning even attention
    sink        what the sink absorbs: pattern row + sink = 1          (Xiao et al., 2309.17453)
    previous    attention to the token before
    induction   attention to the tokens that followed earlier occurrences of this one
                (Olsson et al., 2209.11895)
    duplicate   attention to earlier occurrences of this token         (Wang et al., 2211.00593)
    distance    tokens back, Σ p distance

Previous, induction and duplicate are raw attention, so 1 - sink is the most they can be; each is a
mean over the queries that could give it something, and its chance is what even attention over the
reachable keys would give. In a sliding layer only keys inside the window are reachable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gptoss_workbench.heads.tiles import Layer, Tile, distances, each_layer, tiles
from gptoss_workbench.lens.places import batches, choose_layers, read_prompts
from gptoss_workbench.provenance import provenance
from gptoss_workbench.table import Table
from gptoss_workbench.text import Batch

SCORES = ("previous", "induction", "duplicate")
MEANS = ("entropy", "entropy_share", "sink", "distance")
SOURCE = (
    "entropy Clark 1906.04341; sink Xiao 2309.17453; induction Olsson 2209.11895; duplicate "
    "Wang 2211.00593; sinks and windows of gpt-oss taken into account"
)


class HeadSummary(NamedTuple):
    """Two tables of every head."""

    heads: Table
    """a row a head: entropy, sink mass, previous-token, induction and duplicate-token scores"""
    distance: Table
    """a row a head and range of distances: how much attention goes there"""

    def __repr__(self) -> str:
        return repr(self.heads)

    def _repr_html_(self) -> str:
        return self.heads._repr_html_()


Sums = dict[str, tuple[Tensor, Tensor]]
"""Statistic: (its sum a head, and over how many queries)"""


def head_summary(
    model: Any,
    input: Any,
    *,
    attention_mask: Tensor | None = None,
    layers: int | Sequence[int] | None = None,
    queries: Bool[Tensor, "batch pos"] | None = None,
    batch: int = 4,
) -> HeadSummary:
    """Summarise every head's attention over prompts of any length.

        found = head_summary(model, texts)
        found.heads.sort("induction", descending=True)

    Args:
        input: text, texts, tokens [batch, pos] or lists of tokens.
        queries: places to count; by default every real token.
        batch: prompts run at a time.
    """
    prompts = read_prompts(model, input, attention_mask)
    counted = prompts.mask if queries is None else _checked(queries, prompts.mask)
    chosen = choose_layers(model.n_layers, layers)
    totals: dict[int, Sums] = {layer: {} for layer in chosen}
    for rows, columns, part in batches(prompts, batch):
        before, here = previous_tokens(part), counted[rows, columns]

        def look(layer: Layer, part: Batch = part, before: Tensor = before, here: Tensor = here):
            for piece in tiles(layer):
                found = statistics(layer, piece, part.tokens, before, here)
                totals[layer.number] = _add(totals[layer.number], found)

        each_layer(model, part, chosen, look)
    made = provenance(model, prompts.tokens.cpu(), prompts.mask.cpu())
    windows = [model.blocks[layer].attn.window for layer in chosen]
    return HeadSummary(_heads(totals, windows, made), _profile(totals, windows, made))


def previous_tokens(prompts: Batch) -> Int[Tensor, "batch pos"]:
    """The real token before each real token; -1 for the first one and on padding."""
    tokens, mask = prompts
    out = torch.full_like(tokens, -1)
    for i, row in enumerate(mask):
        real = row.nonzero()[:, 0]
        out[i, real[1:]] = tokens[i, real[:-1]]
    return out


def statistics(
    layer: Layer,
    part: Tile,
    tokens: Int[Tensor, "batch pos"],
    before: Int[Tensor, "batch pos"],
    counted: Bool[Tensor, "batch pos"],
) -> Sums:
    """Sums over the counted queries of one tile, of every head."""
    back = distances(layer, part)
    visible = back >= 0
    reachable = visible.sum(-1)  # [batch, query]
    real = counted[:, part.queries] & (reachable > 0)
    share = part.pattern / part.pattern.sum(-1, keepdim=True).clamp_min(1e-30)
    entropy = -torch.xlogy(share, share).sum(-1) / math.log(2)
    several = reachable > 1
    most = torch.where(several, reachable, 2).log2()[:, None]
    out = {
        "entropy": _sum(entropy, real),
        "entropy_share": _sum(entropy / most, real & several),
        "sink": _sum(part.sink, real),
        "distance": _sum(torch.einsum("bhqk,bqk->bhq", share, back.clamp_min(0).float()), real),
    }
    own, keys = tokens[:, part.queries, None], tokens[:, None, part.keys]
    followed = (before[:, None, part.keys] == own) & (back > 0)
    matches = {
        "previous": back == 1,
        "induction": followed,
        "duplicate": (keys == own) & (back > 0),
    }
    for name, match in matches.items():
        match = match & visible
        held = real & match.any(-1)
        chance = match.sum(-1) / reachable.clamp_min(1)
        out[name] = _sum(torch.einsum("bhqk,bqk->bhq", part.pattern, match.float()), held)
        out[f"{name}_chance"] = _sum(chance[:, None].expand_as(part.sink), held)
    return out | _bins(part, back, reachable, real)


def _bins(part: Tile, back: Tensor, reachable: Tensor, real: Tensor) -> Sums:
    """Attention by distance 0, 1, 2-3, 4-7, 8-15 ..., and what even attention would give."""
    number = torch.where(back > 0, back.clamp_min(1).log2().floor().long() + 1, 0)
    size = int(number.max()) + 1
    weight = part.pattern * (back >= 0)[:, None]
    zeros = part.pattern.new_zeros(*part.sink.shape, size)
    mass = zeros.scatter_add(-1, number[:, None].expand_as(weight), weight)
    even = ((back >= 0) / reachable.clamp_min(1)[..., None]).to(mass.dtype)
    flat = zeros[:, 0].scatter_add(-1, number, even)[:, None].expand_as(mass)
    out = {f"bin {i}": _sum(mass[..., i], real) for i in range(size)}
    return out | {f"even {i}": _sum(flat[..., i], real) for i in range(size)}


def _sum(values: Float[Tensor, "batch head query"], where: Tensor) -> tuple[Tensor, Tensor]:
    kept = torch.where(where[:, None], values, 0.0)
    return kept.double().sum((0, 2)).cpu(), where.sum().cpu()


def _add(a: Sums, b: Sums) -> Sums:
    both = {name: (a[name][0] + s, a[name][1] + n) for name, (s, n) in b.items() if name in a}
    return a | b | both


def _checked(queries: Tensor, mask: Tensor) -> Tensor:
    queries = torch.as_tensor(queries, device=mask.device)
    if queries.shape != mask.shape or queries.dtype != torch.bool:
        raise ValueError(
            f"head_summary: expected queries as bool {tuple(mask.shape)} [batch, pos]; got "
            f"{queries.dtype} {tuple(queries.shape)}"
        )
    return queries & mask


def _mean(sums: Sums, name: str) -> np.ndarray:
    total, n = sums[name]
    return (total / n if int(n) else torch.full_like(total, torch.nan)).numpy()


def _heads(totals: dict[int, Sums], windows: list[int | None], made: dict[str, Any]) -> Table:
    every = [*MEANS, *(f"{name}{end}" for name in SCORES for end in ("", "_chance"))]
    columns: dict[str, list[np.ndarray]] = {}
    for (layer, sums), window in zip(totals.items(), windows, strict=True):
        heads = len(sums["sink"][0])
        row = {"layer": np.full(heads, layer), "head": np.arange(heads)}
        row |= {"window": np.full(heads, window or np.nan)} | {n: _mean(sums, n) for n in every}
        counts = {"n": "sink"} | {f"n_{name}": name for name in SCORES}
        row |= {name: np.full(heads, int(sums[of][1])) for name, of in counts.items()}
        for name, column in row.items():
            columns.setdefault(name, []).append(column)
    notes = (
        "previous, induction, duplicate are attention with the sink counted: 1 - sink at most; "
        "_chance is even attention over the reachable keys",
        "no window (NaN): the layer sees every earlier token; n counts queries, padding left out",
    )
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    units = {"entropy": "bits", "distance": "tokens", "window": "tokens"}
    return Table(joined, "Attention heads", SOURCE, units, notes, made)


def _profile(totals: dict[int, Sums], windows: list[int | None], made: dict[str, Any]) -> Table:
    names = ("layer", "head", "window", "nearest", "farthest", "attention", "chance", "n")
    rows: list[tuple] = []
    for (layer, sums), window in zip(totals.items(), windows, strict=True):
        n = int(sums["sink"][1])
        for i in range(sum(name.startswith("bin ") for name in sums)):
            near, far = (0, 0) if i == 0 else (2 ** (i - 1), 2**i - 1)
            mass, even = (sums[f"{kind} {i}"][0] / max(n, 1) for kind in ("bin", "even"))
            rows += [
                (layer, head, window or np.nan, near, far, float(mass[head]), float(even[head]), n)
                for head in range(len(mass))
            ]
    columns = {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}
    units = {name: "tokens" for name in ("window", "nearest", "farthest")}
    notes = ("attention over all ranges + sink = 1; chance is even attention, without a sink",)
    return Table(columns, "Attention by distance", SOURCE, units, notes, made)
