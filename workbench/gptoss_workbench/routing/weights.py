"""How alike experts are as weights: their neurons, matched, and their gate vectors.

    neuron n of an expert: a_n = [gate row n | up row n | down column n]
    cosine(e, f)  = Σ_n <a_n^e, a_n^f> / (‖A^e‖ ‖A^f‖)               neurons in stored order
    matched(e, f) = Σ_n <a_n^e, a_π(n)^f> / (‖A^e‖ ‖A^f‖)            neurons paired by π
    gate cosine   = <W_r[e], W_r[f]> / (‖W_r[e]‖ ‖W_r[f]‖)

Source: A Closer Look into Mixture-of-Experts (arXiv 2406.18219). An expert whose neurons are
permuted computes the same, so stored order alone says nothing of two that were trained apart.

π is greedy: the two most alike free neurons (cosine of a_n) are paired, then the next two. That is
found in rounds in which neurons that prefer each other are paired. For permuted copies it is the
permutation; else it is close to the best assignment, never above it. `chance` says what matching
alone finds: the same matching against an expert whose entries are shuffled. Biases take no part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_kernels.mxfp4 import unpack
from gptoss_workbench.table import Table

PAPER = "A Closer Look into Mixture-of-Experts (arXiv 2406.18219)"


def expert_cosine(
    model: Any,
    layer: int,
    *,
    pairs: Iterable[tuple[int, int]] | None = None,
    seed: int = 0,
) -> Table:
    """Cosine of the weights of pairs of experts, as stored and with neurons matched.

    Two experts are decoded at a time (gpt-oss-20b: 0.2 GB and some seconds a pair), so give
    `pairs=` on large models; None is all.

    Columns: layer, expert, other, cosine, matched, chance, moved (share of neurons paired with one
    at another place).
    """
    mlp = model.blocks[layer].mlp
    wanted = list(combinations(range(mlp.n_experts), 2)) if pairs is None else list(pairs)
    _check(wanted, mlp.n_experts)
    rows = [_compare(mlp, e, f, seed) for e, f in wanted]
    columns = dict(zip(("cosine", "matched", "chance", "moved"), np.array(rows).T, strict=True))
    place = {
        "layer": np.full(len(wanted), layer),
        "expert": np.array([e for e, _ in wanted]), "other": np.array([f for _, f in wanted]),
    }  # fmt: skip
    return Table(
        place | columns,
        f"cosine of expert weights in layer {layer}",
        f"Σ <a_n, a_π(n)> / (‖A‖ ‖B‖) over neurons ({PAPER}); π greedy",
        {"moved": "of neurons"},
        ["chance: the same matching against shuffled weights; biases take no part"],
        {"model": model.name, "fingerprint": model.fingerprint, "seed": seed},
    )


def gate_cosine(model: Any, *, layers: Sequence[int] | None = None) -> Table:
    """Cosine of the router's rows for every pair of experts of a layer.

    Columns: layer, expert, other, cosine.
    """
    chosen = range(model.n_layers) if layers is None else layers
    parts = []
    for layer in chosen:
        rows = model.blocks[layer].mlp.router.weight.float()
        unit = rows / rows.norm(dim=-1, keepdim=True)
        first, second = torch.triu_indices(len(rows), len(rows), 1)
        values = (unit @ unit.mT)[first, second]
        parts.append([torch.full_like(first, layer), first, second, values])
    names = ("layer", "expert", "other", "cosine")
    columns = [torch.cat(each).cpu().numpy() for each in zip(*parts, strict=True)]
    width = model.config.hidden_size
    return Table(
        dict(zip(names, columns, strict=True)),
        "cosine of gate vectors",
        f"rows of the router's weight, its bias left out ({PAPER})",
        {},
        [f"chance: 0 ± {width**-0.5:.2g} (random directions in {width} dimensions)"],
        {"model": model.name, "fingerprint": model.fingerprint},
    )


def neurons(mlp: Any, expert: int) -> Float[Tensor, "d_ff inner"]:
    """An expert's neurons, one a row: gate row, up row and down column; decoded, float32."""
    own = mlp.stored(slice(expert, expert + 1))
    gate_up = unpack(own.gate_up_blocks[0], own.gate_up_scales[0])
    down = unpack(own.down_blocks[0], own.down_scales[0])
    return torch.cat([gate_up[0::2], gate_up[1::2], down.mT], -1)


def match_neurons(
    first: Float[Tensor, "d_ff inner"], second: Float[Tensor, "d_ff inner"]
) -> Int[Tensor, " d_ff"]:
    """Greedy pairing by cosine: the row of `second` that goes with each row of `first`."""
    alike = _unit(first) @ _unit(second).mT
    out = torch.full((len(first),), -1, device=first.device)
    while bool((out < 0).any()):
        best = alike.argmax(1)  # what each row prefers
        back = alike.argmax(0)  # what each column prefers
        rows = torch.arange(len(first), device=first.device)
        agreed = (back[best] == rows) & (out < 0)
        out[agreed] = best[agreed]
        alike[agreed] = -torch.inf
        alike[:, best[agreed]] = -torch.inf
    return out


def _compare(mlp: Any, expert: int, other: int, seed: int) -> tuple[float, float, float, float]:
    a, b = neurons(mlp, expert), neurons(mlp, other)
    order = match_neurons(a, b)
    generator = torch.Generator().manual_seed(seed)
    shuffled = b[:, torch.randperm(b.shape[1], generator=generator).to(b.device)]
    null = match_neurons(a, shuffled)
    moved = (order != torch.arange(len(order), device=order.device)).float().mean()
    return (_cosine(a, b), _cosine(a, b[order]), _cosine(a, shuffled[null]), float(moved))


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-30))


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-30)


def _check(pairs: Sequence[tuple[int, int]], experts: int) -> None:
    if wrong := [pair for pair in pairs if not all(0 <= e < experts for e in pair)]:
        raise ValueError(f"expert_cosine: experts are 0 to {experts - 1}; got pairs {wrong}")
    if not pairs:
        raise ValueError("expert_cosine: pairs= is empty; None compares all")
