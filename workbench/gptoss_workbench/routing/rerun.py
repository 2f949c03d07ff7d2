"""Running a routing trace's prompts again, for what the trace did not keep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gptoss_workbench.routing.buckets import Padded, Window, batches, padded
from gptoss_workbench.routing.prompts import Prompt
from gptoss_workbench.routing.record import Record
from gptoss_workbench.routing.trace import RoutingTrace

PLACES = 512
"""Places whose logits are held at a time."""


def predicted_tokens(
    model: Any, routing: RoutingTrace, *, batch_tokens: int = 4096
) -> dict[int, np.ndarray]:
    """The most likely next token at every place of every prompt: prompt number -> int32 ids."""
    out: dict[int, np.ndarray] = {}
    for record, window in _windows(routing):
        ids = np.empty(len(record.token), np.int32)
        for batch in _batches(model, window, batch_tokens):
            tokens, mask = _on(model, batch)
            with torch.no_grad():
                x = model(tokens, attention_mask=mask, stop_at_layer=model.n_layers)
                real = x[mask]
                best = [
                    model.unembed(model.ln_final(part[None]))[0].argmax(-1)
                    for part in real.split(PLACES)
                ]
            ids[batch.places] = torch.cat(best).cpu().numpy()
        ends = np.cumsum(window.lengths)[:-1]
        out |= dict(zip(np.unique(record.prompt).tolist(), np.split(ids, ends), strict=True))
    return out


def hidden_states(
    model: Any,
    routing: RoutingTrace,
    *,
    point: str = "ln2.hook_out",
    layers: Sequence[int] | None = None,
    batch_tokens: int = 4096,
) -> dict[int, np.ndarray]:
    """What stands at a hook point of each block: layer -> float32 [token, d_model].

    Rows are those of `routing.record()`. The default is what the router reads.
    """
    layers = routing.layers if layers is None else tuple(layers)
    parts: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
    for record, window in _windows(routing):
        shown: dict[int, np.ndarray] = {}
        for batch in _batches(model, window, batch_tokens):
            for layer, values in _seen(model, batch, point, layers).items():
                shape = (len(record.token), values.shape[-1])
                shown.setdefault(layer, np.empty(shape, np.float32))[batch.places] = values
        one = replace(routing, shards=[lambda record=record: record])
        at = [np.searchsorted(_key(record), _key(each)) for each in one.chunks()]
        for layer, values in shown.items():
            parts[layer] += [values[places] for places in at]
    return {layer: np.concatenate(each) for layer, each in parts.items()}


def _windows(routing: RoutingTrace) -> Iterator[tuple[Record, Window]]:
    """Each shard with its prompts, filters aside."""
    for read in routing.shards:
        record = read()
        if not len(record.token):
            continue
        numbers, starts = np.unique(record.prompt, return_index=True)
        lengths = np.diff([*starts, len(record.prompt)])
        if (record.pos != np.concatenate([np.arange(n) for n in lengths])).any():
            raise ValueError(
                "rerun: the trace holds parts of prompts; it needs each from its first token on"
            )
        rows = np.split(record.token, starts[1:])
        yield record, Window(int(numbers[0]), [Prompt(row, None, False) for row in rows])


def _batches(model: Any, window: Window, most: int) -> Iterator[Padded]:
    return (padded(window, rows, model.pad_id) for rows in batches(window.lengths, most))


def _on(model: Any, batch: Padded) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask where the model is."""
    tokens, mask = torch.from_numpy(batch.tokens), torch.from_numpy(batch.mask)
    return tokens.to(model.cfg.device), mask.to(model.cfg.device)


def _seen(model: Any, batch: Padded, point: str, layers: Sequence[int]) -> dict[int, np.ndarray]:
    """One batch's values at a point of some blocks, real tokens only."""
    tokens, mask = _on(model, batch)
    out: dict[int, np.ndarray] = {}

    def keep(tensor: torch.Tensor, hook: Any) -> None:
        out[hook.layer()] = tensor[mask].float().cpu().numpy()

    names = [f"blocks.{layer}.{point}" for layer in layers]
    with torch.no_grad(), model.recording(names, keep):
        model(tokens, attention_mask=mask, return_type=None)
    return out


def _key(record: Record) -> np.ndarray:
    return record.prompt.astype(np.int64) << 32 | record.pos.astype(np.int64)
