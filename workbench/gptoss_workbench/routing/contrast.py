"""Which experts tell two sets of prompts apart: risk differences, and which of them are stable.

    p_i = (tokens of set i that go to the expert) / (tokens of set i)
    d   = p_1 - p_2                                      in [-1, 1]; nothing to tell: 0

Source: SteerMoE (arXiv 2509.09660); its selection rate counts tokens, every chosen rank alike.
Intervals: Newcombe's hybrid score interval (1998, method 10) from two Wilson intervals. Tokens of a
prompt depend on each other, so by default each share's n is divided by its design effect
(Rao and Scott 1992): the variance between prompts over the variance of independent tokens.

Stable: selected in nearly all bootstrap resamples of the prompts (SAFEx, arXiv 2506.17368, read as
an abstract only). Within a resample an expert is selected if it is among the `n` largest |d| *and*
|d| exceeds `errors` of its own standard errors, because experts that move together keep a high rank
in every resample even when labels mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from gptoss_workbench.routing.per_prompt import PromptCounts, layer_expert, prompt_counts
from gptoss_workbench.routing.trace import RoutingTrace
from gptoss_workbench.table import Table

UNITS = ("prompt", "token")
STEERING = (
    "steering by it: steer_experts gives every promoted expert of a layer the same logit, so more "
    "than k promotions in one layer are a tie that expert numbers decide; it warns"
)


def expert_contrast(first: RoutingTrace, second: RoutingTrace, *, unit: str = "prompt") -> Table:
    """Risk difference of every expert's selection rate, largest |d| first.

        de, en = (routing.where(label=lang, part="body") for lang in ("de", "en"))
        expert_contrast(de, en).where(layer=2)

    Args:
        unit: what counts as independent: "prompt" (design effect), or "token" (as published).

    Columns: p1, p2, difference with its 95 % interval (low, high), `sure`: the interval stays
    off 0 when widened for all experts at once (Bonferroni), n1, n2 in tokens.
    """
    if unit not in UNITS:
        raise ValueError(f"expert_contrast: unit is 'prompt' or 'token'; got {unit!r}")
    counts = _pair(first, second, "expert_contrast")
    p1, p2 = (_share(each) for each in counts)
    n1, n2 = (_effective(each) if unit == "prompt" else _tokens(each) for each in counts)
    low, high = newcombe(p1, n1, p2, n2)
    wide = newcombe(p1, n1, p2, n2, z=NormalDist().inv_cdf(1 - 0.025 / p1.size))
    order = np.argsort(-np.abs(p1 - p2), kind="stable")
    columns = layer_expert(first) | {
        "p1": p1, "p2": p2, "difference": p1 - p2, "low": low, "high": high,
        "sure": (wide[0] > 0) | (wide[1] < 0),
        "n1": _tokens(counts[0]), "n2": _tokens(counts[1]),
    }  # fmt: skip
    prompts = [len(each.tokens) for each in counts]
    return Table(
        {name: column[order] for name, column in columns.items()},
        "risk difference of each expert's selection rate, first - second",
        "d = p1 - p2, p = tokens routed to the expert / tokens (SteerMoE, arXiv 2509.09660); "
        "interval: Newcombe 1998, method 10",
        {"p1": "of tokens", "p2": "of tokens", "difference": "of tokens"},
        [f"{prompts[0]} and {prompts[1]} prompts; independent unit: {unit}; chance: 0", STEERING],
        {"unit": unit, "first": dict(first.provenance), "second": dict(second.provenance)},
    )


def stable_experts(
    first: RoutingTrace,
    second: RoutingTrace,
    *,
    n: int = 8,
    threshold: float = 0.9,
    errors: float = 2.0,
    resamples: int = 200,
    seed: int = 0,
) -> Table:
    """How often each expert is selected when prompts are drawn again, most often first.

    Args:
        n: how many experts a resample may select.
        threshold: share of resamples from which an expert counts as `stable`.
        errors: standard errors that |d| must exceed to be selected at all.

    Columns: difference (of the whole sample), selected (share of resamples), stable.
    """
    _check(n, threshold, resamples)
    counts = _pair(first, second, "stable_experts")
    rng = np.random.default_rng(seed)
    found = np.zeros(counts[0].sums[0].size)
    for _ in range(resamples):
        (p1, v1), (p2, v2) = (_drawn(each, rng) for each in counts)
        found += _selected(p1 - p2, np.sqrt(v1 + v2), n, errors)
    share = found / resamples
    difference = _share(counts[0]) - _share(counts[1])
    order = np.lexsort((-np.abs(difference), -share))
    columns = layer_expert(first) | {
        "difference": difference, "selected": share, "stable": share >= threshold
    }  # fmt: skip
    options = {"n": n, "threshold": threshold, "errors": errors, "seed": seed}
    return Table(
        {name: column[order] for name, column in columns.items()},
        f"share of {resamples} resamples of the prompts that select the expert",
        "bootstrap-stable risk difference (after SAFEx, arXiv 2506.17368)",
        {"difference": "of tokens", "selected": "of resamples"},
        [f"selected: among the {n} largest |d| and beyond {errors:g} standard errors"],
        options | {"resamples": resamples},
    )


def detection_and_control(
    answered: RoutingTrace,
    refused: RoutingTrace,
    plain: RoutingTrace,
    *,
    n: int = 8,
    threshold: float = 0.9,
    resamples: int = 200,
    seed: int = 0,
) -> Table:
    """Stable experts in two roles: those that see a request, and those that decide the reply.

    detection: stable against `plain`, with the same sign, in `answered` and in `refused`: they
    follow the request whatever the reply. control: stable between `refused` and `answered`, and
    not detection. SAFEx names two such groups; these set rules are ours.

    Columns: role, and the differences answered - plain, refused - plain, refused - answered.
    """
    pairs = {
        "answered_plain": (answered, plain),
        "refused_plain": (refused, plain),
        "refused_answered": (refused, answered),
    }
    found = {
        name: stable_experts(*pair, n=n, threshold=threshold, resamples=resamples, seed=seed)
        for name, pair in pairs.items()
    }
    place = layer_expert(plain)
    ordered = {
        name: table.rows(np.lexsort((table["expert"], _rank(table["layer"], plain.layers))))
        for name, table in found.items()
    }
    seen = [ordered[name] for name in ("answered_plain", "refused_plain")]
    detection = seen[0]["stable"] & seen[1]["stable"]
    detection &= np.sign(seen[0]["difference"]) == np.sign(seen[1]["difference"])
    control = ordered["refused_answered"]["stable"] & ~detection
    role = np.where(detection, "detection", np.where(control, "control", ""))
    columns = place | {name: table["difference"] for name, table in ordered.items()}
    return Table(
        {name: column[role != ""] for name, column in (columns | {"role": role}).items()},
        "stable experts that follow the request (detection) or the reply (control)",
        "set rules over stable_experts (after SAFEx, arXiv 2506.17368)",
        {name: "of tokens" for name in pairs},
        [f"stable: selected in {threshold:.0%} of {resamples} resamples"],
        {"n": n, "threshold": threshold, "resamples": resamples, "seed": seed},
    )


def newcombe(
    p1: np.ndarray, n1: np.ndarray, p2: np.ndarray, n2: np.ndarray, *, z: float = 1.959963984540054
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of p1 - p2 for independent shares (Newcombe 1998, method 10: hybrid score)."""
    (low1, high1), (low2, high2) = _score(p1, n1, z), _score(p2, n2, z)
    below = np.sqrt((p1 - low1) ** 2 + (high2 - p2) ** 2)
    above = np.sqrt((high1 - p1) ** 2 + (p2 - low2) ** 2)
    return p1 - p2 - below, p1 - p2 + above


def _score(p: np.ndarray, n: np.ndarray, z: float) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval; n need not be whole."""
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


def _pair(first: RoutingTrace, second: RoutingTrace, what: str) -> list[PromptCounts]:
    if first.layers != second.layers or first.n_experts != second.n_experts:
        raise ValueError(
            f"{what}: both traces must show the same layers and experts; got layers "
            f"{list(first.layers)} and {list(second.layers)}, {first.n_experts} and "
            f"{second.n_experts} experts"
        )
    counts = [prompt_counts(each) for each in (first, second)]
    if min(len(each.tokens) for each in counts) < 2:
        raise ValueError(f"{what}: needs at least 2 prompts on each side, to know how they vary")
    return counts


def _check(n: int, threshold: float, resamples: int) -> None:
    if n < 1 or resamples < 1 or not 0 < threshold <= 1:
        raise ValueError(
            "stable_experts: expected n >= 1, resamples >= 1 and a threshold in (0, 1]; "
            f"got {n}, {resamples}, {threshold}"
        )


def _hits(counts: PromptCounts) -> np.ndarray:
    return counts.sums.reshape(len(counts.tokens), -1)  # [prompt, layer expert]


def _share(counts: PromptCounts) -> np.ndarray:
    return _hits(counts).sum(0) / counts.tokens.sum()


def _tokens(counts: PromptCounts) -> np.ndarray:
    return np.full(counts.sums[0].size, counts.tokens.sum())


def _effective(counts: PromptCounts) -> np.ndarray:
    """Tokens over the design effect, which is at least 1.

    Where a share is 0 or 1 nothing shows how prompts vary: each prompt then counts as one token.
    """
    p, n, prompts = _share(counts), counts.tokens.sum(), len(counts.tokens)
    residual = _hits(counts) - p * counts.tokens[:, None]
    between = (residual**2).sum(0) / n**2 * prompts / (prompts - 1)
    within = p * (1 - p) / n
    effect = np.divide(between, within, out=np.full_like(p, n / prompts), where=within > 0)
    return n / np.maximum(effect, 1)


def _drawn(counts: PromptCounts, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Share and its variance in one resample of the prompts."""
    prompts = len(counts.tokens)
    picked = rng.integers(0, prompts, prompts)
    hits, tokens = _hits(counts)[picked], counts.tokens[picked]
    share = hits.sum(0) / tokens.sum()
    residual = hits - share * tokens[:, None]
    return share, (residual**2).sum(0) / tokens.sum() ** 2 * prompts / (prompts - 1)


def _selected(difference: np.ndarray, error: np.ndarray, n: int, errors: float) -> np.ndarray:
    size = np.abs(difference)
    among = np.zeros(size.size, bool)
    among[np.argsort(-size, kind="stable")[:n]] = True
    return among & (size > errors * error)


def _rank(layers: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Where each layer stands in the trace's own order."""
    place = {layer: i for i, layer in enumerate(order)}
    return np.array([place[layer] for layer in layers.tolist()])
