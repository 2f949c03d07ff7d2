"""What steering does, layer by layer, beside what random directions of the same norm do.

    add      x ← x + strength · d         at one layer's site, every position
    ablate   x ← x - strength · (x·d̂) d̂   at every layer's residual (before, between and after),
                                          every position; d is the named layer's direction

Arditi et al. 2406.11717; additive steering: Turner et al. 2308.10248. A single control at a single
layer misleads (some random directions do break a model at layer 0), so controls are drawn several
times at every layer and their whole range is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gptoss_hooks.points import HookFunction, HookPoint
from gptoss_workbench.patching.metrics import Judge, as_metric
from gptoss_workbench.patching.nodes import listed
from gptoss_workbench.steering.directions import Directions
from gptoss_workbench.table import Table

if TYPE_CHECKING:
    from gptoss_workbench.model import GptOss

SOURCE = "steering with matched random controls: Arditi et al. 2406.11717; Turner et al. 2308.10248"
STREAM = ("resid_pre", "resid_mid", "resid_post")
Classifier = Callable[[str], float]
"""What a completion counts: 1 or True for the behaviour, 0 or False for its absence."""


def steering_effect(
    model: GptOss,
    direction: Directions,
    texts: Sequence[str],
    *,
    metric: Judge | None = None,
    classifier: Classifier | None = None,
    mode: str = "add",
    strength: float = 1.0,
    layers: Sequence[int] | None = None,
    controls: int = 10,
    seed: int = 0,
    max_new_tokens: int = 32,
    batch: int = 64,
) -> Table:
    """Measure steering at every layer: baseline, steered, and the range of random controls.

    steering_effect(model, found, prompts, classifier=lambda text: "Sorry" in text)

    Args:
        texts: prompts.
        metric: read off the prompts' last logits (a Metric, or a function of logits); or
        classifier: a number for each greedy completion of `max_new_tokens`.
        mode: "add" or "ablate".
        strength: in units of the direction's own norm.
        batch: rows (prompts x directions) of one forward pass.
    """
    if isinstance(texts, str):
        raise ValueError("steering_effect: expected a list of prompts; got one text")
    if (metric is None) == (classifier is None):
        raise ValueError("steering_effect: give either metric= or classifier=")
    if mode not in ("add", "ablate") or controls < 1:
        raise ValueError(f"mode is 'add' or 'ablate', controls 1 or more; got {mode!r}, {controls}")
    at = direction.layers if layers is None else listed("layers", layers, model.n_layers).tolist()
    measure = _Measure(model, list(texts), metric, classifier, max_new_tokens, batch)
    baseline = float(measure(torch.zeros(1, model.cfg.d_model), [])[0])
    rows = []
    for layer in at:
        drawn = direction.random(layer, draws=controls, seed=seed)
        vectors = torch.cat([direction.vector(layer)[None], drawn])
        value = measure(vectors, _where(model, direction.site, layer, mode), mode, strength)
        rows.append((layer, value))
    what = as_metric(metric, model).name if metric is not None else "share of completions"
    return _table(rows, baseline, len(measure.texts), f"{what}, {mode} x {strength:g}", controls)


def _where(model: GptOss, site: str, layer: int, mode: str) -> list[str]:
    if mode == "add":
        return [f"blocks.{layer}.hook_{site}"]
    return [f"blocks.{each}.hook_{part}" for each in range(model.n_layers) for part in STREAM]


class _Measure:
    """Reads the mean of a metric, or of a classifier, under each of several directions."""

    def __init__(
        self,
        model: GptOss,
        texts: list[str],
        metric: Judge | None,
        classifier: Classifier | None,
        max_new_tokens: int,
        batch: int,
    ):
        self.model, self.texts, self.classifier = model, texts, classifier
        self.metric = None if metric is None else as_metric(metric, model)
        self.max_new_tokens = max_new_tokens
        self.tokens, self.mask = model.read(texts, padding_side="left")
        self.step = max(1, batch // len(texts))

    @torch.no_grad()
    def __call__(
        self, vectors: Tensor, names: list[str], mode: str = "add", strength: float = 1.0
    ) -> np.ndarray:
        """[direction] means over the prompts."""
        parts = []
        for some in vectors.split(self.step):
            hook = _hook(some.to(self.tokens.device), mode, strength)
            with self.model.hooks([(name, hook) for name in names]):
                parts.append(self._read(len(some)))
        return np.concatenate(parts)

    def _read(self, n: int) -> np.ndarray:
        tokens, mask = self.tokens.repeat(n, 1), self.mask.repeat(n, 1)
        if self.metric is not None:
            logits = self.model(tokens, attention_mask=mask, logits_to_keep=self.metric.keep)
            return self.metric(logits.unflatten(0, (n, -1))).mean(1).double().cpu().numpy()
        assert self.classifier is not None
        written = self.model.generate(
            tokens,
            attention_mask=mask,
            max_new_tokens=self.max_new_tokens,
            return_type="generation",
        )
        decode = self.model.require_tokenizer().decode
        judged = [float(self.classifier(decode(row))) for row in written.completions]
        return np.array(judged).reshape(n, -1).mean(1)


def _hook(vectors: Tensor, mode: str, strength: float) -> HookFunction:
    """Steer each block of rows by its own direction."""

    def hook(tensor: Tensor, hook: HookPoint) -> Tensor:
        x = tensor.float().unflatten(0, (len(vectors), -1))
        aim = vectors[:, None, None]  # [direction, 1, 1, d_model]
        if mode == "ablate":
            unit = aim / aim.norm(dim=-1, keepdim=True)
            aim = -(x * unit).sum(-1, keepdim=True) * unit
        return (x + strength * aim).to(tensor.dtype).flatten(0, 1)

    return hook


def _table(
    rows: list[tuple[int, np.ndarray]], baseline: float, n: int, what: str, controls: int
) -> Table:
    value = np.stack([each for _, each in rows])
    drawn = value[:, 1:]
    columns = {
        "layer": np.array([layer for layer, _ in rows]),
        "baseline": np.full(len(rows), baseline),
        "steered": value[:, 0],
        "effect": value[:, 0] - baseline,
        "control": drawn.mean(1) - baseline,
        "control min": drawn.min(1) - baseline,
        "control max": drawn.max(1) - baseline,
        "n": np.full(len(rows), n),
    }
    note = f"control: effects of {controls} random directions of equal norm at that layer"
    return Table(columns, f"Steering: {what}", SOURCE, notes=(note,))
