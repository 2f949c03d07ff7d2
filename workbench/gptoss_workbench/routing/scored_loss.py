"""Loss on chosen tokens only, without a logit kept: what an intervention costs where it matters.

The words of a prompt were never learned, so their loss drowns what happens to the answer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from gptoss_workbench.harmony.voices import VOICES, VoiceTracker
from gptoss_workbench.lens import readout


def scored_places(
    model: Any, batch: Any, voices: Sequence[str] | None = None
) -> Bool[Tensor, "batch pos"]:
    """Places whose next token is real and, with `voices`, spoken by one of them."""
    voices = [voices] if isinstance(voices, str) else voices
    if voices is not None and (unknown := set(voices) - set(VOICES)):
        raise ValueError(f"voices are {', '.join(VOICES)}; got {sorted(unknown)}")
    scored = torch.zeros_like(batch.mask)
    scored[:, :-1] = batch.mask[:, :-1] & batch.mask[:, 1:]
    if voices is not None:
        for row, ids in enumerate(batch.tokens):
            real = batch.mask[row]
            spoken = VoiceTracker(model.require_tokenizer()).read(ids[real].tolist())
            wanted = torch.zeros_like(real)
            wanted[real] = torch.tensor([v in voices for v in spoken], device=real.device)
            scored[row, :-1] &= wanted[1:]
    if not bool(scored.any()):
        raise ValueError("no token to score: none is followed by one of the voices asked for")
    return scored


def scored_loss(
    model: Any,
    batch: Any,
    places: Bool[Tensor, "batch pos"],
    *,
    edits: Sequence[Any] = (),
    hooks: Sequence[tuple[str, Any]] = (),
) -> float:
    """Mean cross entropy of the next tokens at some places, in nats."""
    with torch.no_grad():
        last = model.run_with_hooks(
            batch.tokens,
            attention_mask=batch.mask,
            stop_at_layer=model.n_layers,
            edits=list(edits),
            fwd_hooks=list(hooks),
        )
        targets = batch.tokens.roll(-1, 1)[places]
        return -float(
            readout(model, last[places][None], k=1, targets=targets).target_log_prob.mean()
        )
