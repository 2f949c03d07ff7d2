"""Experts bound to certain tokens, and what turning their weights up or down does.

    nPMI(x, e) = log2(p(e | x) / p(e)) / -log2 p(x, e)         1: e is used on x and nowhere else
                                                               0: independent;  -1: never together

Source: RICE (arXiv 2505.14681): "cognitive experts" are those with the largest nPMI with thinking
tokens; then the weights of the best two are multiplied. p counts tokens whose chosen k include e,
every rank alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptoss_hooks.points import HookPoint
from gptoss_workbench.routing.per_prompt import layer_expert
from gptoss_workbench.routing.scored_loss import scored_loss, scored_places
from gptoss_workbench.routing.trace import RoutingTrace
from gptoss_workbench.table import Table

PAPER = "RICE (arXiv 2505.14681)"


Tokens = Sequence[int | str] | str
"""Ids, or the texts of tokens."""


def token_pmi(routing: RoutingTrace, tokens: Mapping[str, Tokens] | Tokens) -> Table:
    """nPMI of every expert with each of some tokens, largest first.

        token_pmi(routing, {"wait": [" wait", " Wait"], "so": [31]})

    Args:
        tokens: ids or tokens' texts, each an event by itself, or name -> those that count as one.

    Columns: event, layer, expert, npmi, given (p(e | x)), base (p(e)), together (tokens x that go
    to e), n (tokens x). An event that does not occur is refused.
    """
    if isinstance(tokens, str):
        tokens = [tokens]
    listed = dict(tokens) if isinstance(tokens, Mapping) else {str(i): [i] for i in tokens}
    events = {name: _ids(routing, each) for name, each in listed.items()}
    both, seen, uses, total = _counts(routing, list(events.values()))
    if missing := [name for name, count in zip(events, seen, strict=True) if not count]:
        raise ValueError(f"token_pmi: the selection holds no token of {missing}")
    given, base = both / seen[:, None], uses / max(total, 1)
    value = npmi(both / total, seen[:, None] / total, base)
    place, size = layer_expert(routing), uses.size
    columns = {
        "event": np.repeat(np.array(list(events), dtype=object), size),
        **{name: np.tile(column, len(events)) for name, column in place.items()},
        "npmi": value.ravel(), "given": given.ravel(), "base": np.tile(base, len(events)),
        "together": both.ravel().astype(int), "n": np.repeat(seen, size).astype(int),
    }  # fmt: skip
    return Table(
        columns,
        "normalised pointwise mutual information of tokens and experts",
        f"log2(p(e|x) / p(e)) / -log2 p(x, e) ({PAPER})",
        {"given": "of tokens x", "base": "of all tokens"},
        [f"{int(total)} tokens; independent: 0; never together: -1"],
        dict(routing.provenance),
    ).sort("npmi", descending=True)


def _ids(routing: RoutingTrace, tokens: Tokens) -> list[int]:
    """Ids of tokens given by id or by text."""
    out: list[int] = []
    for each in [tokens] if isinstance(tokens, str) else tokens:
        out += _with_text(routing, each) if isinstance(each, str) else [int(each)]
    return out


def _with_text(routing: RoutingTrace, text: str) -> list[int]:
    if routing.strings is None:
        raise ValueError(f"token_pmi: the model had no tokenizer, so give ids; got {text!r}")
    found = [i for i, string in enumerate(routing.strings) if string == text]
    if not found:
        raise ValueError(
            f"token_pmi: no token is {text!r}; tokens within a text begin with a space"
        )
    return found


def npmi(joint: np.ndarray, x: np.ndarray, e: np.ndarray) -> np.ndarray:
    """The formula; -1 where the joint probability is 0, 0 where both are certain."""
    independent = x * e
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.log2(joint / independent) / -np.log2(joint)
    value = np.where(joint > 0, value, -1.0)
    return np.where(joint >= 1, 0.0, value)


def gate_multiplier(
    model: Any,
    tokens: Any,
    experts: Sequence[tuple[int, int]],
    *,
    factors: Sequence[float] = (0.0, 0.5, 1.0, 2.0, 4.0),
    voices: Sequence[str] | None = None,
    seed: int = 0,
) -> Table:
    """Loss when the weights of some experts are multiplied wherever they are chosen.

    The choice stays and nothing is renormalised: factor 0 is `zero`, factor 1 changes nothing.

    Args:
        experts: (layer, expert) pairs, say the best of `token_pmi`.
        voices: whose tokens the loss is of, say ("analysis", "final"); None is all.

    Columns: factor, loss, rise (over factor 1), random (rise for as many experts drawn at random
    from the same layers, none of those named), in nats a token.
    """
    batch = model.read(tokens)
    pairs = [(int(layer), int(e)) for layer, e in experts]
    rng, everyone = np.random.default_rng(seed), model.config.num_local_experts
    control = []
    for layer, _ in pairs:
        taken = {e for at, e in [*pairs, *control] if at == layer}
        control.append((layer, int(rng.choice([e for e in range(everyone) if e not in taken]))))
    places = scored_places(model, batch, voices)
    base = scored_loss(model, batch, places)
    named, random = (
        np.array([scored_loss(model, batch, places, hooks=_hooks(each, f)) for f in factors])
        for each in (pairs, control)
    )
    return Table(
        {"factor": np.array(factors), "loss": named, "rise": named - base, "random": random - base},
        f"loss with the weights of {len(pairs)} experts multiplied",
        f"g_e -> factor · g_e where e is chosen ({PAPER})",
        {"loss": "nats", "rise": "nats", "random": "nats"},
        [f"experts (layer, expert): {pairs}; random: {control}"],
        {"model": model.name, "fingerprint": model.fingerprint, "seed": seed},
    )


def _counts(
    routing: RoutingTrace, events: list[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Tokens x that go to e [event, layer expert], tokens x, tokens that go to e, all tokens."""
    layers, experts = len(routing.layers), routing.n_experts
    both, seen = np.zeros((len(events), layers * experts)), np.zeros(len(events))
    uses, total = np.zeros(layers * experts), 0
    for record in routing.chunks():
        place = (np.arange(layers)[:, None] * experts + record.experts).reshape(
            len(record.token), -1
        )
        uses += np.bincount(place.ravel(), minlength=len(uses))
        total += len(place)
        for i, ids in enumerate(events):
            here = np.isin(record.token, list(ids))
            seen[i] += here.sum()
            both[i] += np.bincount(place[here].ravel(), minlength=len(uses))
    return both, seen, uses, float(total)


def _hooks(pairs: Sequence[tuple[int, int]], factor: float) -> list[tuple[str, Any]]:
    """Functions that multiply the weights of the named experts, for each of their layers."""
    out: list[tuple[str, Any]] = []
    for layer in sorted({layer for layer, _ in pairs}):
        out += _layer_hooks(layer, [e for at, e in pairs if at == layer], factor)
    return out


def _layer_hooks(layer: int, experts: Sequence[int], factor: float) -> list[tuple[str, Any]]:
    chosen: list[Tensor] = []

    def see(indices: Tensor, hook: HookPoint) -> None:
        chosen[:] = [indices]

    def multiply(weights: Tensor, hook: HookPoint) -> Tensor:
        named = torch.isin(chosen[0], torch.tensor(experts, device=weights.device))
        return torch.where(named, weights * factor, weights)

    point = f"blocks.{layer}.mlp.hook_expert"
    return [(f"{point}_indices", see), (f"{point}_weights", multiply)]
