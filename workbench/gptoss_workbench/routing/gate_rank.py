"""Does the router prefer experts with large outputs? Asked of all experts, not only the chosen.

    per token: Spearman's ρ between the router's logits and ‖f_e(x)‖₂ over all E experts

Source: A Closer Look into Mixture-of-Experts (arXiv 2406.18219). Logits rank like the probabilities
over all E (a softmax keeps order), which is the "router probability" meant here; the weights over
the kept k exist for k experts only and take no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gptoss_hooks.points import HookPoint
from gptoss_kernels.moe import ExpertTap
from gptoss_workbench.intervals import bootstrap
from gptoss_workbench.table import Table

ENTRIES = 1 << 24
"""Expert output values held at a time: 64 MiB of float32."""


def gate_norm_rank(
    model: Any, tokens: Any, *, layers: Sequence[int] | None = None, sample: int = 64, seed: int = 0
) -> Table:
    """Mean rank correlation of router logit and output norm over all experts, a layer a row.

    Runs every expert on `sample` tokens: E / k times the experts' usual cost.

    Args:
        tokens: text or tokens [batch, pos].
        sample: tokens drawn from those that are real.

    Columns: layer, spearman with its 95 % interval (bootstrap over tokens), shuffled (the same with
    each token's norms permuted among experts: what nothing gives), overlap (share of the k chosen
    that are among the k loudest), chance (k / E), n (tokens).
    """
    batch = model.read(tokens)
    real = batch.mask.flatten().nonzero()[:, 0].cpu()
    drawn = np.random.default_rng(seed).permutation(len(real))[:sample]
    keep = _Norms(model, real[np.sort(drawn)], seed)
    chosen = list(range(model.n_layers)) if layers is None else sorted(layers)
    names = [f"blocks.{i}.{p}" for i in chosen for p in ("ln2.hook_out", "mlp.hook_router_logits")]
    with torch.no_grad(), model.recording(names, keep):
        model(batch.tokens, attention_mask=batch.mask, return_type=None)
    values = np.stack(keep.rows, 1)  # [token, layer, 3]: spearman, shuffled, overlap
    low, high = bootstrap(lambda s: s / len(values), values[..., 0], seed=seed)
    k, experts = model.config.num_experts_per_tok, model.config.num_local_experts
    columns = {
        "layer": np.array(chosen), "spearman": values[..., 0].mean(0), "low": low, "high": high,
        "shuffled": values[..., 1].mean(0), "overlap": values[..., 2].mean(0),
        "chance": np.full(len(chosen), k / experts), "n": np.full(len(chosen), len(values)),
    }  # fmt: skip
    return Table(
        columns,
        "rank correlation of router logit and expert output norm, over all experts",
        "Spearman(router logit, ‖f_e‖₂) a token (arXiv 2406.18219)",
        {"overlap": "of the chosen k"},
        ["router probability here: over all E experts; interval over tokens"],
        {"model": model.name, "fingerprint": model.fingerprint, "sample": sample, "seed": seed},
    )


def all_expert_norms(mlp: Any, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token expert"]:
    """L2 norm of every expert's output on the same inputs."""
    experts, width = mlp.n_experts, x.shape[-1]
    everyone = torch.arange(experts, device=x.device)
    found: list[Tensor] = []

    def look(out: Tensor) -> Tensor:
        found.append(out.float().norm(dim=-1)[0])
        return out

    for part in x.split(max(1, ENTRIES // (experts * width))):
        indices = everyone.expand(1, len(part), experts).contiguous()
        weights = torch.zeros(indices.shape, device=x.device)
        mlp.ops.moe(part[None], indices, weights, mlp.experts, limit=mlp.limit,
                    tap=ExpertTap(out=look))  # fmt: skip
    return torch.cat(found)


class _Norms:
    """Takes each layer's sampled inputs through all experts."""

    def __init__(self, model: Any, places: Tensor, seed: int):
        self.model, self.places, self.inputs = model, places, torch.empty(0)
        self.k, self.seed = model.config.num_experts_per_tok, seed
        self.rows: list[np.ndarray] = []

    def __call__(self, tensor: Tensor, hook: HookPoint) -> None:
        here = tensor.flatten(0, 1)[self.places.to(tensor.device)]
        if hook.name.endswith("hook_out"):
            self.inputs = here
            return
        mlp = self.model.blocks[int(hook.name.split(".")[1])].mlp
        norms = all_expert_norms(mlp, self.inputs).cpu().numpy()
        logits = here.float().cpu().numpy()
        other = np.random.default_rng(self.seed).permuted(norms, axis=1)
        chosen, loudest = (_top(values, self.k) for values in (logits, norms))
        overlap = (chosen & loudest).sum(1) / self.k
        self.rows.append(np.stack([spearman(logits, norms), spearman(logits, other), overlap], 1))


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlation of each row; equal values take ranks in stored order."""
    ranks = [each.argsort(1, kind="stable").argsort(1) for each in (a, b)]
    centred = [rank - rank.mean(1, keepdims=True) for rank in ranks]
    scale = np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
    return (centred[0] * centred[1]).sum(1) / np.maximum(scale, 1e-30)


def _top(values: np.ndarray, k: int) -> np.ndarray:
    out = np.zeros(values.shape, bool)
    np.put_along_axis(out, np.argsort(-values, 1, kind="stable")[:, :k], True, 1)
    return out
