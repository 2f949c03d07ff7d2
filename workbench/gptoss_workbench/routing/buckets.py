"""Cutting a stream of prompts into windows, and a window into batches of like length.

Both depend on the prompts' lengths and nothing else, so a run that is repeated makes the same
batches. A window is what one shard holds; no batch crosses its border.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gptoss_workbench.routing.prompts import Prompt


class Window(NamedTuple):
    """A run of prompts, neighbours in the corpus."""

    first: int
    """Number of the first one."""
    prompts: list[Prompt]

    @property
    def lengths(self) -> np.ndarray:
        """int64, tokens of each prompt."""
        return np.array([len(prompt.tokens) for prompt in self.prompts], np.int64)

    @property
    def tokens(self) -> np.ndarray:
        """int32, all tokens, one prompt after another."""
        return np.concatenate([prompt.tokens for prompt in self.prompts])

    @property
    def sha256(self) -> bytes:
        """What tells whether two windows hold the same prompts under the same labels."""
        labels = "\x1f".join(f"{p.label!r}{int(p.cut)}" for p in self.prompts)
        parts = (self.lengths.astype("<i8"), self.tokens.astype("<i4"))
        return hashlib.sha256(b"".join(part.tobytes() for part in parts) + labels.encode()).digest()


def windows(prompts: Iterable[Prompt], most: int) -> Iterator[Window]:
    """Cut the stream before the prompt that would bring a window above `most` tokens.

    A single prompt longer than that is a window of its own.
    """
    held: list[Prompt] = []
    first, tokens = 0, 0
    for prompt in prompts:
        if held and (tokens + len(prompt.tokens) > most or len(held) >= most):
            yield Window(first, held)
            held, first, tokens = [], first + len(held), 0
        held.append(prompt)
        tokens += len(prompt.tokens)
    if held:
        yield Window(first, held)


def batches(lengths: Sequence[int] | np.ndarray, most: int) -> list[np.ndarray]:
    """Which prompts run together: longest first, at most `most` places, pads included.

    A single prompt longer than that runs alone; empty ones do not run.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    out, at = [], 0
    while at < len(order):
        rows = max(1, most // int(lengths[order[at]]))
        out.append(np.sort(order[at : at + rows]))
        at += rows
    return out


class Padded(NamedTuple):
    """A batch, padded on the right, and where its tokens lie in the window."""

    tokens: np.ndarray
    """int64 [batch, pos]"""
    mask: np.ndarray
    """bool [batch, pos]"""
    places: np.ndarray
    """int64, place in the window of every real token, in the order of `mask`"""


def padded(window: Window, rows: np.ndarray, filler: int) -> Padded:
    """Lay some prompts of a window out as one batch."""
    lengths = window.lengths
    starts = np.cumsum(lengths) - lengths
    mask = np.arange(lengths[rows].max()) < lengths[rows][:, None]
    tokens = np.full(mask.shape, filler, np.int64)
    tokens[mask] = np.concatenate([window.prompts[i].tokens for i in rows])
    places = (starts[rows][:, None] + np.arange(mask.shape[1]))[mask]
    return Padded(tokens, mask, places)
