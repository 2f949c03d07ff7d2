"""What a token would have cost on another route: as many experts, others.

    Δ = log p(next token | one place, one layer re-routed) - log p(next token | as it was)

Source: counterfactual routes (arXiv 2605.07260, which includes gpt-oss-20b): alternatives have the
same k and are drawn at random; read against the token's own log p, its confidence.

Weights of an alternative are the softmax of the router's logits over the new set, as in every
re-selection here. Only the place itself is re-routed, in one layer, and only its own next token is
scored: Δ is not mixed with what an altered past does to later tokens. The run starts at the layer,
from the residual it had, and ends at the place; alternatives are rows of one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_hooks.points import HookPoint
from gptoss_workbench.lens import readout
from gptoss_workbench.table import Table


class _Case(NamedTuple):
    """Places of one prompt and the experts they are given instead."""

    places: Int[Tensor, " row"]
    experts: Int[Tensor, "row k"]


def counterfactual_routes(
    model: Any,
    tokens: Any,
    *,
    layer: int,
    positions: Sequence[int] | None = None,
    n: int = 8,
    among: Sequence[int] | None = None,
    batch_tokens: int = 4096,
    seed: int = 0,
) -> Table:
    """Re-route single places through random sets of k experts; a place and alternative a row.

        counterfactual_routes(model, text, layer=2, among=range(4, 8))

    Args:
        tokens: text or tokens [pos] of one prompt.
        positions: places to re-route (they need a next token); None is all.
        n: alternatives a place.
        among: experts to draw from, k or more; None is all. A set may be the token's own: `shared`
            tells.
        batch_tokens: tokens that run at once.

    Columns: pos, token, next, alternative, experts ("1,5,8,9"), shared (experts in common with the
    route taken), log_prob (of the next token as it was: its confidence), delta, shuffled (delta of
    a token drawn from elsewhere in the prompt: what re-routing does to any token).
    """
    batch = model.read(tokens)
    if len(batch.tokens) != 1:
        raise ValueError(f"counterfactual_routes takes one prompt; got {len(batch.tokens)} rows")
    ids, rng = batch.tokens[0], np.random.default_rng(seed)
    places = _places(len(ids), positions)
    pool = np.array(range(model.config.num_local_experts) if among is None else list(among))
    k = model.config.num_experts_per_tok
    if len(np.unique(pool)) < k or pool.min() < 0 or pool.max() >= model.config.num_local_experts:
        raise ValueError(
            f"counterfactual_routes: among= needs {k} or more distinct experts of 0 to "
            f"{model.config.num_local_experts - 1}; got {pool.tolist()}"
        )
    drawn = np.stack(
        [rng.choice(np.unique(pool), k, replace=False) for _ in range(n * len(places))]
    )
    where = np.repeat(places, n)
    case = _Case(*(torch.tensor(each, device=ids.device) for each in (where, drawn)))
    targets = ids[case.places + 1]
    others = ids[torch.tensor(rng.permutation(len(ids))[where + 1], device=ids.device)]
    with torch.no_grad():
        taken, before, after = _run(model, ids, layer, case, batch_tokens)
        scores = [_log_probs(model, x, t) for t in (targets, others) for x in (before, after)]
    shared = (taken[:, :, None] == case.experts[:, None]).any(-1).sum(-1)
    columns = {
        "pos": case.places, "token": ids[case.places], "next": targets,
        "alternative": torch.arange(n).repeat(len(places)), "shared": shared,
        "log_prob": scores[0], "delta": scores[1] - scores[0], "shuffled": scores[3] - scores[2],
    }  # fmt: skip
    experts = np.array([",".join(map(str, row)) for row in drawn.tolist()], dtype=object)
    return Table(
        {name: column.cpu().numpy() for name, column in columns.items()} | {"experts": experts},
        f"change of the next token's log p on other routes through layer {layer}",
        "Δ log p on random routes of equal k (arXiv 2605.07260)",
        {"log_prob": "nats", "delta": "nats", "shuffled": "nats"},
        ["weights: softmax of the router's logits over the new set; chance: shuffled"],
        {"model": model.name, "fingerprint": model.fingerprint, "layer": layer, "seed": seed},
    )


def _places(length: int, positions: Sequence[int] | None) -> np.ndarray:
    places = np.arange(length - 1) if positions is None else np.array(sorted(positions))
    if not len(places) or places.min() < 0 or places.max() > length - 2:
        raise ValueError(
            f"counterfactual_routes: positions= are 0 to {length - 2}, since a place needs a next "
            f"token; got {positions}"
        )
    return places


def _run(
    model: Any, ids: Tensor, layer: int, case: _Case, batch_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Experts taken [row, k], and the last residual [row, d_model] before and after."""
    taken: list[Tensor] = []
    name = f"blocks.{layer}.mlp.hook_expert_indices"
    start = model(ids[None], stop_at_layer=layer)
    with model.recording([name], lambda tensor, hook: taken.append(tensor[0])):
        last = model(start, start_at_layer=layer, stop_at_layer=model.n_layers)[0]
    parts, begin = [], 0
    while begin < len(case.places):
        rows = slice(begin, begin + _fitting(case.places[begin:], batch_tokens))
        parts.append(_rerouted(model, start, layer, _Case(case.places[rows], case.experts[rows])))
        begin = rows.stop
    return taken[0][case.places], last[case.places], torch.cat(parts)


def _fitting(places: Tensor, batch_tokens: int) -> int:
    """How many of the next rows (places ascend) fit; at least one."""
    cost = (places + 1) * torch.arange(1, len(places) + 1, device=places.device)
    return max(1, int((cost <= batch_tokens).sum()))


def _rerouted(model: Any, start: Tensor, layer: int, case: _Case) -> Float[Tensor, "row d_model"]:
    rows, length = torch.arange(len(case.places)), int(case.places.max()) + 1

    def give(indices: Tensor, hook: HookPoint) -> Tensor:
        out = indices.clone()
        out[rows, case.places] = case.experts.to(out)
        return out

    last = model.run_with_hooks(
        start[:, :length].expand(len(rows), -1, -1).contiguous(),
        start_at_layer=layer,
        stop_at_layer=model.n_layers,
        fwd_hooks=[(f"blocks.{layer}.mlp.hook_expert_indices", give)],
    )
    return last[rows, case.places]


def _log_probs(model: Any, last: Tensor, targets: Tensor) -> Float[Tensor, " row"]:
    return readout(model, last[None], k=1, targets=targets).target_log_prob[0]
