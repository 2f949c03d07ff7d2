"""Checkpoints with fewer experts: rows of the router and experts are dropped, all else stays.

A token then goes to the k best experts that are left, which is what banning the dropped ones does
to the whole model. Every layer keeps the same number, since a gpt-oss config holds one. Weights
stay packed and are copied a tensor at a time while the checkpoint is written.

Source of the idea: pruned gpt-oss-20b variants with 4 to 32 experts; scores such as REAP's
(arXiv 2510.13999) or the selection frequency on a domain say which to keep.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from gptoss_workbench.checkpoint import hf_layout, save_checkpoint
from gptoss_workbench.checkpoint.save import TextSource, text_source
from gptoss_workbench.config import Config
from gptoss_workbench.table import Table

EXPERT_PARTS = ("router", "blocks", "scales", "expert biases")
"""Parts of a checkpoint whose first axis counts experts."""
Keep = Mapping[int, Sequence[int]] | Sequence[int]
"""Experts by layer, or the same experts in every layer"""


class Prunable(Protocol):
    """A model whose weights can be listed."""

    @property
    def config(self) -> Config: ...

    def checkpoint_tensors(self) -> Mapping[str, Tensor]: ...


class Pruned(NamedTuple):
    """A checkpoint with fewer experts, and which they are."""

    folder: Path
    """load(pruned.folder) is the model"""
    kept: tuple[tuple[int, ...], ...]
    """[layer][new number] = old number"""
    dropped: tuple[tuple[int, ...], ...]
    """[layer], old numbers"""
    config: Config
    """of the new checkpoint"""


def prune_experts(
    model: Prunable,
    folder: str | Path,
    *,
    keep: Keep | None = None,
    n: int | None = None,
    scores: Table | np.ndarray | Tensor | None = None,
    by: str = "saliency",
    tokenizer_files_from: TextSource = None,
) -> Pruned:
    """Write a checkpoint with fewer experts in each layer.

        prune_experts(model, "small", n=8, scores=expert_saliency(routing))
        prune_experts(model, "german", keep={0: range(16), 1: [0, 3, ...], ...})

    When fewer experts are kept than a token is given, the new config gives it all of them, with a
    warning.

    Args:
        keep: experts to keep, by layer, or one list for all layers.
        n: how many to keep, the best by `scores`; ties keep the lower number.
        scores: a Table with columns layer and expert, or [layer, expert] numbers.
        by: the Table's column to score by.
        tokenizer_files_from: a folder whose tokenizer and template go along; None is the one that
            the model was loaded from, False leaves them out.
    """
    kept = _kept(model.config, keep, n, scores, by)
    config = _config(model.config, len(kept[0]))
    tensors = PrunedTensors(model.checkpoint_tensors(), kept)
    saved = save_checkpoint(
        tensors,
        folder,
        config=config,
        tokenizer_files_from=text_source(model, tokenizer_files_from),
    )
    everyone = range(model.config.num_local_experts)
    dropped = tuple(tuple(e for e in everyone if e not in layer) for layer in kept)
    return Pruned(saved, kept, dropped, config)


class PrunedTensors(Mapping[str, Tensor]):
    """Tensors of which only the kept experts' rows are there; each is cut when it is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], kept: Sequence[Sequence[int]]):
        self._tensors, self._kept = tensors, kept

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if hf_layout.part(name) not in EXPERT_PARTS:
            return tensor
        rows = self._kept[int(name.split(".")[2])]
        return tensor[torch.tensor(rows, device=tensor.device)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _kept(
    config: Config, keep: Keep | None, n: int | None, scores: Any, by: str
) -> tuple[tuple[int, ...], ...]:
    if (keep is None) == (n is None and scores is None) or (n is None) != (scores is None):
        raise ValueError("prune_experts: give keep=, or n= and scores=")
    layers, experts = config.num_hidden_layers, config.num_local_experts
    if keep is None:
        assert n is not None
        return _best(_grid(scores, by, layers, experts), n)
    if isinstance(keep, Mapping):
        if set(keep) != set(range(layers)):
            raise ValueError(
                f"prune_experts: keep= needs every layer, 0 to {layers - 1}; got {sorted(keep)}"
            )
        rows = [keep[layer] for layer in range(layers)]
    else:
        rows = [keep] * layers
    out = tuple(tuple(sorted({int(e) for e in row})) for row in rows)
    sizes = [len(row) for row in out]
    if len(set(sizes)) > 1 or not sizes[0]:
        raise ValueError(
            "prune_experts: every layer must keep the same number of experts, at least 1, since "
            f"a gpt-oss config holds one number; got {sizes}"
        )
    if out_of_range := sorted({e for row in out for e in row if not 0 <= e < experts}):
        raise ValueError(f"prune_experts: experts are 0 to {experts - 1}; got {out_of_range}")
    return out


def _grid(scores: Any, by: str, layers: int, experts: int) -> np.ndarray:
    """Scores as [layer, expert]."""
    if isinstance(scores, Table):
        grid = np.full((layers, experts), np.nan)
        grid[scores["layer"].astype(int), scores["expert"].astype(int)] = scores[by]
    else:
        grid = np.asarray(scores, dtype=float)
    if grid.shape != (layers, experts) or np.isnan(grid).any():
        raise ValueError(
            f"prune_experts: scores= must hold a number for each of {layers} layers and {experts} "
            f"experts; got {grid.shape} with {int(np.isnan(grid).sum())} missing"
        )
    return grid


def _best(grid: np.ndarray, n: int) -> tuple[tuple[int, ...], ...]:
    if not 1 <= n <= grid.shape[1]:
        raise ValueError(f"prune_experts: n is 1 to {grid.shape[1]}; got {n}")
    ranked = np.argsort(-grid, axis=1, kind="stable")[:, :n]
    return tuple(tuple(sorted(row.tolist())) for row in ranked)


def _config(config: Config, experts: int) -> Config:
    k = min(config.num_experts_per_tok, experts)
    if k < config.num_experts_per_tok:
        warnings.warn(
            f"prune_experts: {experts} experts are left but a token is given "
            f"{config.num_experts_per_tok}; the new config gives it {k}",
            stacklevel=3,
        )
    return replace(config, num_local_experts=experts, num_experts_per_tok=k)
