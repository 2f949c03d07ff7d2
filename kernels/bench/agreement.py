"""Whether llama.cpp runs the same model: logits of one prompt on both sides.

It rounds activations to 8 bits before each expert product and rounds YaRN's range outwards, so its
logits are near ours, not equal: a median cosine of 0.99995 on six layers. The synthetic residual
stream is mostly the embedding, so a wrong conversion is near, too: on two layers gate and up
swapped leave 0.9973, values in our order instead of ggml's 0.9947, sinks without effect 0.972.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from child import Child

TOKENS = 32
COSINE = 0.9995
"""Least cosine at the median position: ten times the distance that 8-bit activations leave."""


class Agreement(NamedTuple):
    """How alike two runs' logits are, over positions."""

    median: float
    """cosine at the median position"""
    lowest: float
    """cosine at the worst position; a routing decision that falls the other way costs most"""
    same: float
    """share of positions whose largest logit is the same"""

    @property
    def good(self) -> bool:
        return self.median >= COSINE


def agreement(ours: Child, llama: Child, tokens: list[int]) -> Agreement:
    """Run both on one prompt."""
    with TemporaryDirectory() as folder:
        logits = []
        for child in (ours, llama):
            file = Path(folder) / f"{child.name}.npy"
            child.ask("logits", tokens=tokens[:TOKENS], file=str(file))
            logits.append(np.load(file).astype(np.float64))
    return compare(*logits)


def compare(a: np.ndarray, b: np.ndarray) -> Agreement:
    """Logits [pos, vocab] of both sides."""
    size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(1) / size
    same = (a.argmax(1) == b.argmax(1)).mean()
    return Agreement(float(np.median(cosine)), float(cosine.min()), float(same))
