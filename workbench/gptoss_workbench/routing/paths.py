"""The way tokens take through the layers: sequences of best experts, and flows between neighbours.

    path  = (best expert of layer 0, of layer 1, ...)      share of tokens that take it
    lift  = share / Π_l share of its expert in layer l     1 if layers chose independently
    flow  = share of tokens that go from expert i of one layer to expert j of the next

Source: expert paths of arXiv 2604.17837 (tokens of like function take like paths).
"""

from __future__ import annotations

import numpy as np

from gptoss_workbench.routing.trace import RoutingTrace
from gptoss_workbench.table import Table

PAPER = "arXiv 2604.17837"


def expert_paths(routing: RoutingTrace, *, by: str | None = None, top: int = 20) -> Table:
    """The most frequent paths of best experts, and how well each belongs to one group.

    Args:
        by: "label", "channel", "role" or "part": groups to compare paths with.

    Columns: path ("3>0>7"), share, independent (what independent layers give), lift, group (the one
    that takes it most), purity (share of its tokens from that group), chance (the group's share of
    all tokens), n.
    """
    names, group_of = routing.groups(by)
    layers, experts = len(routing.layers), routing.n_experts
    counts: dict[bytes, np.ndarray] = {}
    single, groups = np.zeros((layers, experts)), np.zeros(len(names))
    for record in routing.chunks():
        best = np.ascontiguousarray(record.experts[:, :, 0].astype(np.int16))
        for layer in range(layers):
            single[layer] += np.bincount(best[:, layer], minlength=experts)
        group = group_of(record)
        groups += np.bincount(group, minlength=len(names))
        _count(counts, best, group, len(names))
    if not counts:
        raise ValueError("expert_paths: the selection holds no token; loosen where(...)")
    return _table(counts, single, groups, names, top, routing)


def expert_flow(routing: RoutingTrace) -> Table:
    """Tokens going from each best expert to each best expert of the next traced layer.

    Columns: layer (the first of the two), expert, next, share (of tokens), independent (product of
    the two shares), n; flows that no token takes are left out.
    """
    experts, parts = routing.n_experts, []
    counts = np.zeros((len(routing.layers) - 1, experts, experts), int)
    for record in routing.chunks():
        best = record.experts[:, :, 0].astype(np.int64)
        for i in range(len(counts)):
            pair = best[:, i] * experts + best[:, i + 1]
            counts[i] += np.bincount(pair, minlength=experts**2).reshape(experts, experts)
    for layer, count in zip(routing.layers, counts, strict=False):
        total = max(count.sum(), 1)
        a, b = count.nonzero()
        n = count[a, b]
        independent = count.sum(1)[a] * count.sum(0)[b] / total**2
        parts.append([np.full(len(a), layer), a, b, n / total, independent, n])
    names = ("layer", "expert", "next", "share", "independent", "n")
    columns = [np.concatenate(each) for each in zip(*parts, strict=True)]
    return Table(
        dict(zip(names, columns, strict=True)),
        "flow of tokens between the best experts of neighbouring layers",
        f"N_ij / N (after {PAPER})",
        {"share": "of tokens", "independent": "of tokens"},
        ["independent: what the two layers' shares give if they do not depend on each other"],
        dict(routing.provenance),
    )


def _count(
    counts: dict[bytes, np.ndarray], best: np.ndarray, group: np.ndarray, groups: int
) -> None:
    paths, row = np.unique(best, axis=0, return_inverse=True)
    found = np.bincount(row.ravel() * groups + group, minlength=len(paths) * groups)
    for path, each in zip(paths, found.reshape(len(paths), groups), strict=True):
        key = path.tobytes()
        counts[key] = counts.get(key, 0) + each


def _table(
    counts: dict[bytes, np.ndarray],
    single: np.ndarray,
    groups: np.ndarray,
    names: list[str],
    top: int,
    routing: RoutingTrace,
) -> Table:
    total = groups.sum()
    ranked = sorted(counts.items(), key=lambda item: (-int(item[1].sum()), item[0]))[:top]
    paths = np.stack([np.frombuffer(key, np.int16) for key, _ in ranked])
    split = np.stack([each for _, each in ranked])
    n, leader = split.sum(1), split.argmax(1)
    share = single[np.arange(single.shape[0]), paths] / total
    independent = share.prod(1)
    columns = {
        "path": np.array([">".join(map(str, path)) for path in paths.tolist()], dtype=object),
        "share": n / total, "independent": independent, "lift": n / total / independent,
        "group": np.array(names, dtype=object)[leader], "purity": split.max(1) / n,
        "chance": groups[leader] / total, "n": n,
    }  # fmt: skip
    return Table(
        columns,
        f"the {len(ranked)} most frequent of {len(counts)} paths of best experts",
        f"sequences of best experts over layers (after {PAPER})",
        {"share": "of tokens", "independent": "of tokens", "purity": "of its tokens"},
        [f"layers {list(routing.layers)}; lift 1: layers choose independently"],
        dict(routing.provenance),
    )
