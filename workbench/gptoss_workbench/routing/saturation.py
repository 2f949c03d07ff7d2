"""Router saturation: how far a checkpoint already chooses the experts of the final one.

    saturation(t) = mean over tokens of |E_t ∩ E'_t| / k       (OLMoE, 2409.02060)

E_t is the set of experts kept for a token at the checkpoint, E'_t at the end; 1 for the same model,
k / E for an unrelated one (two random sets of k among E share k² / E on average).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gptoss_workbench.routing.ratios import Ratio, notes, selected, spoken, whole_prompts
from gptoss_workbench.routing.record import Record
from gptoss_workbench.routing.trace import RoutingTrace
from gptoss_workbench.table import Table


def saturation(
    routing: RoutingTrace,
    final: RoutingTrace,
    *,
    by: str | None = None,
    headers: bool = False,
) -> Table:
    """Share of a token's final experts that this routing chose too: a row a group and layer.

    Both trace the same prompts; the groups are the final one's.
    """
    return saturation_sweep({"": routing}, final, by=by, headers=headers, name="")


def saturation_sweep(
    routings: Mapping[Any, RoutingTrace],
    final: RoutingTrace,
    *,
    by: str | None = None,
    headers: bool = False,
    name: str = "step",
) -> Table:
    """Saturation of several checkpoints: one more column, the mapping's keys."""
    parts = [_columns(routing, final, by, headers) for routing in routings.values()]
    columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    if name:
        sizes = [len(part["layer"]) for part in parts]
        columns = {name: np.repeat(np.array(list(routings)), sizes)} | columns
    return Table(
        columns,
        title="Share of the final model's experts chosen already",
        source="mean |E_t ∩ E'_t| / k (OLMoE, 2409.02060); chance k / E",
        units={"share": "of k", "n": "tokens"},
        notes=notes(headers),
        provenance=final.provenance,
    )


def _columns(
    routing: RoutingTrace, final: RoutingTrace, by: str | None, headers: bool
) -> dict[str, np.ndarray]:
    """One checkpoint's rows."""
    if (routing.layers, routing.n_experts, routing.k) != (final.layers, final.n_experts, final.k):
        raise ValueError(
            f"saturation: expected layers {list(final.layers)}, {final.n_experts} experts top-"
            f"{final.k}; got {list(routing.layers)}, {routing.n_experts} top-{routing.k}"
        )
    final = selected(final, headers)
    names, group_of = final.groups(by)
    layers = len(final.layers)
    ratio, tokens = Ratio(len(names), (layers,), (1,)), np.zeros(len(names), np.int64)
    for early, late in _together(routing, final):
        group = group_of(late)
        keys, row = np.unique(
            late.prompt.astype(np.int64) * len(names) + group, return_inverse=True
        )
        shared = (early.experts[..., None] == late.experts[..., None, :]).any(-1).sum(-1)
        sums = np.zeros((len(keys), layers))
        np.add.at(sums, row, shared / final.k)
        of = np.bincount(row, minlength=len(keys)).astype(float)
        ratio.add(keys % len(names), sums, of[:, None])
        tokens += np.bincount(group, minlength=len(names))
    kept = spoken(names, tokens)
    low, high = ratio.interval()
    return {
        "group": np.repeat(np.array(names)[kept], layers),
        "layer": np.tile(final.layers, len(kept)),
        "share": ratio.share[kept].ravel(),
        "chance": np.full(len(kept) * layers, final.k / final.n_experts),
        "low": low[kept].ravel(),
        "high": high[kept].ravel(),
        "n": np.repeat(tokens[kept], layers),
    }


def _together(routing: RoutingTrace, final: RoutingTrace) -> Iterator[tuple[Record, Record]]:
    """The final trace's pieces, each with the other trace's record of the same tokens."""
    chunks = routing.chunks()
    held: Record | None = None
    for late in whole_prompts(final, max(1, final.k * len(final.layers))):
        parts, wanted = [], key(late)
        while len(wanted):
            held = held if held is not None else next(chunks, None)
            if held is None:
                raise ValueError(f"saturation: prompt {late.prompt[-1]} is in one trace only")
            mine = key(held)
            at = np.searchsorted(mine, wanted[wanted <= mine[-1]])
            if (mine[at] != wanted[: len(at)]).any():
                raise ValueError(
                    "saturation: the traces hold other places; route the same prompts with both"
                )
            parts.append(held.at(at))
            wanted = wanted[len(at) :]
            if len(wanted) or not len(mine):
                held = None
        early = parts[0].experts if len(parts) == 1 else np.concatenate([p.experts for p in parts])
        token = np.concatenate([p.token for p in parts])
        if (token != late.token).any():
            raise ValueError("saturation: the traces hold other tokens; route the same prompts")
        yield parts[0]._replace(experts=early), late


def key(record: Record) -> np.ndarray:
    """A number that grows with prompt and place."""
    return record.prompt.astype(np.int64) << 32 | record.pos.astype(np.int64)
