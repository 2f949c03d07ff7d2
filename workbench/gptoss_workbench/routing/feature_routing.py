"""Which features predict that a token goes to an expert; experts as unions of features.

    precision(f, e) = tokens with f that go to e / tokens with f
    recall(f, e)    = tokens with f that go to e / tokens that go to e        F1: harmonic mean
    card of e       = the union of features that, added one by one, raises F1 on training prompts
                      most; scored on held-out prompts

Source: RouterInterp (ICLR 2026, on gpt-oss-20b): experts as unions of fine features, compared with
what the current and previous token ids alone predict. Features are any matrix [token, latent]:
autoencoder latents, probes, labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptoss_workbench.routing.per_prompt import layer_expert
from gptoss_workbench.routing.record import Record
from gptoss_workbench.routing.trace import RoutingTrace
from gptoss_workbench.table import Table

LATENTS = 4096
"""Latents compared with all experts at a time."""
SOURCE = "features that predict routing (after RouterInterp, ICLR 2026)"


def feature_routing(
    routing: RoutingTrace,
    features: np.ndarray,
    *,
    threshold: float = 0.0,
    names: Sequence[str] | None = None,
    top: int = 5,
) -> Table:
    """Precision, recall and F1 of the best features of every expert, best F1 first in each.

    Args:
        features: [token, latent], a row for each selected token of the trace, in its order.
        threshold: a feature is on where its value exceeds it.
        top: features kept for each expert.

    Columns: layer, expert, feature, name, precision, recall, f1, base (share of tokens that go to
    the expert: the precision of a feature that means nothing), on (tokens with the feature).
    """
    record = routing.record()
    on = _on(record, features, threshold)
    goes = _goes(routing, record)
    uses, base = goes.sum(0), goes.mean(0)
    target = goes.astype(np.float32).T
    best = np.full((goes.shape[1], 0), 0.0)
    kept: dict[str, np.ndarray] = {"feature": best.astype(int), "f1": best, "hits": best}
    for start in range(0, on.shape[1], LATENTS):
        part = on[:, start : start + LATENTS].astype(np.float32)
        hits = (target @ part).astype(float)  # [layer expert, latent]
        f1 = _f1(hits, part.sum(0, dtype=float)[None], uses[:, None])
        number = np.broadcast_to(np.arange(start, start + part.shape[1]), f1.shape)
        new = {"feature": number, "f1": f1, "hits": hits}
        kept = _top({name: np.concatenate([kept[name], new[name]], 1) for name in kept}, top)
    feature, n = kept["feature"], on.sum(0)
    each = feature.shape[1]
    columns = {name: np.repeat(column, each) for name, column in layer_expert(routing).items()} | {
        "feature": feature.ravel(), "name": _names(names, on.shape[1])[feature.ravel()],
        "precision": _ratio(kept["hits"], n[feature]).ravel(),
        "recall": _ratio(kept["hits"], uses[:, None]).ravel(), "f1": kept["f1"].ravel(),
        "base": np.repeat(base, each), "on": n[feature].ravel(),
    }  # fmt: skip
    return Table(
        columns,
        f"the {each} features that predict each expert best",
        SOURCE,
        {"precision": "of tokens with the feature", "recall": "of tokens routed to the expert"},
        ["chance: precision = base; no held-out split here, see expert_cards"],
        dict(routing.provenance) | {"threshold": threshold},
    )


def expert_cards(
    routing: RoutingTrace,
    features: np.ndarray,
    *,
    threshold: float = 0.0,
    names: Sequence[str] | None = None,
    n: int = 8,
    held_out: float = 0.5,
    seed: int = 0,
) -> Table:
    """Every expert as a union of features, scored on prompts that did not choose them.

    Args:
        features: [token, latent], a row for each selected token of the trace, in its order.
        n: features a union may hold.
        held_out: share of the prompts to score on.

    Columns: layer, expert, features ("name + name"), precision, recall, f1 of the union;
    bigram_recall and bigram_f1 of (previous token, token) pairs that went to the expert more often
    than not in training; shuffled_f1 of the union with tokens' features shuffled; base, n (tokens
    of held-out prompts that go to the expert).
    """
    record = routing.record()
    on, goes = _on(record, features, threshold), _goes(routing, record)
    train = _split(record.prompt, held_out, seed)
    labels, bigrams = _names(names, on.shape[1]), _bigrams(record)
    mixed = on[np.random.default_rng(seed).permutation(len(on))]
    rows = []
    for each in range(goes.shape[1]):
        chosen = _union(on[train], goes[train, each], n)
        target = goes[~train, each]
        union = _score(_any(on[~train], chosen), target)
        pairs = _score(_majority(bigrams, goes[:, each], train)[~train], target)
        noise = _score(_any(mixed[~train], chosen), target)
        rows.append((*union, pairs.recall, pairs.f1, noise.f1, target.mean(), target.sum(),
                     " + ".join(labels[chosen])))  # fmt: skip
    found = ("precision", "recall", "f1", "bigram_recall", "bigram_f1", "shuffled_f1", "base", "n",
             "features")  # fmt: skip
    columns = dict(zip(found, map(np.array, zip(*rows, strict=True)), strict=True))
    return Table(
        layer_expert(routing) | columns,
        "experts as unions of features, on held-out prompts",
        SOURCE,
        {"precision": "of tokens in the union", "recall": "of tokens routed to the expert"},
        [f"{len(np.unique(record.prompt[train]))} prompts chose the unions; chance: shuffled_f1"],
        dict(routing.provenance) | {"threshold": threshold, "n": n, "seed": seed},
    )


class _Score(NamedTuple):
    precision: float
    recall: float
    f1: float


def _on(record: Record, features: np.ndarray, threshold: float) -> np.ndarray:
    """[token, latent] bool."""
    values = np.asarray(features)
    if values.ndim != 2 or len(values) != len(record.token):
        raise ValueError(
            f"features: expected [token, latent] with a row for each of the {len(record.token)} "
            f"selected tokens; got {list(values.shape)}"
        )
    return values > threshold


def _goes(routing: RoutingTrace, record: Record) -> np.ndarray:
    """[token, layer expert] bool: whether the token goes there."""
    layers, experts = len(routing.layers), routing.n_experts
    out = np.zeros((len(record.token), layers * experts), bool)
    place = (np.arange(layers)[:, None] * experts + record.experts).reshape(len(out), -1)
    np.put_along_axis(out, place, True, 1)
    return out


def _names(names: Sequence[str] | None, count: int) -> np.ndarray:
    listed = [str(i) for i in range(count)] if names is None else list(names)
    if len(listed) != count:
        raise ValueError(f"names: expected {count}, one a feature; got {len(listed)}")
    return np.array(listed, dtype=object)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape), where=np.asarray(b) > 0)


def _f1(hits: np.ndarray, on: np.ndarray, uses: np.ndarray) -> np.ndarray:
    return _ratio(2 * hits, on + uses)


def _top(columns: dict[str, np.ndarray], top: int) -> dict[str, np.ndarray]:
    order = np.argsort(-columns["f1"], axis=1, kind="stable")[:, :top]
    return {name: np.take_along_axis(column, order, 1) for name, column in columns.items()}


def _split(prompts: np.ndarray, held_out: float, seed: int) -> np.ndarray:
    """[token] bool: of a training prompt."""
    numbers = np.random.default_rng(seed).permutation(np.unique(prompts))
    cut = round(len(numbers) * (1 - held_out))
    if not 0 < cut < len(numbers):
        raise ValueError(
            f"expert_cards: {len(numbers)} prompts cannot be split with held_out={held_out}"
        )
    return np.isin(prompts, numbers[:cut])


def _union(on: np.ndarray, goes: np.ndarray, n: int) -> list[int]:
    """Features whose union has the largest F1, added greedily while it rises."""
    chosen: list[int] = []
    covered, best = np.zeros(len(goes), bool), 0.0
    target = goes.astype(np.float32)
    while len(chosen) < n:
        free = (~covered).astype(np.float32)
        hits = (target * free) @ on + (covered & goes).sum()
        size = free @ on + covered.sum()
        f1 = _f1(hits, size, np.array(goes.sum()))
        leader = int(f1.argmax())
        if f1[leader] <= best + 1e-9:
            break
        chosen.append(leader)
        covered, best = covered | on[:, leader], float(f1[leader])
    return chosen


def _any(on: np.ndarray, features: list[int]) -> np.ndarray:
    """Whether a token has one of the features."""
    return np.asarray(on[:, features].any(1))


def _score(predicted: np.ndarray, goes: np.ndarray) -> _Score:
    hits, on, uses = (predicted & goes).sum(), predicted.sum(), goes.sum()
    return _Score(*(float(_ratio(np.array(a), np.array(b)))
                    for a, b in ((hits, on), (hits, uses), (2 * hits, on + uses))))  # fmt: skip


def _bigrams(record: Record) -> np.ndarray:
    """[token] number of each (previous token, token) pair; a prompt's first token has none before.

    Previous means of the record's row before, so with filters it is the last selected token.
    """
    before = np.where(np.diff(record.prompt, prepend=-1) == 0, np.roll(record.token, 1), -1)
    pairs = np.stack([before, record.token], 1)
    return np.unique(pairs, axis=0, return_inverse=True)[1].ravel()


def _majority(bigrams: np.ndarray, goes: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Whether each token's bigram went to the expert more often than not in training."""
    size = int(bigrams.max()) + 1
    seen = np.bincount(bigrams[train], minlength=size)
    hits = np.bincount(bigrams[train], goes[train].astype(float), size)
    return (hits > seen / 2)[bigrams]
