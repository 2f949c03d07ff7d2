"""What one token's routing record holds, as columns of plain arrays.

A record has one row a token, prompts one after another, pads left out: the token, where it stands,
its harmony labels as small codes, and every traced layer's expert choice. A token's voice (who
speaks, see `harmony.voices`) is what `by="channel"` splits by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptoss_workbench.harmony.voices import VOICES

ROLES = ("", "system", "developer", "user", "assistant", "tool")
"""Codes of `role`; "" is text outside messages."""
CHANNELS = ("", "analysis", "commentary", "final", "other")
"""Codes of `channel`; "" is a message without one."""
PARTS = ("marker", "header", "body")
"""Codes of `part`."""


class Record(NamedTuple):
    """Columns of equal length, one entry a token."""

    prompt: np.ndarray
    """int32, number of the prompt in the corpus"""
    pos: np.ndarray
    """int32, place in its prompt"""
    token: np.ndarray
    """int32"""
    role: np.ndarray
    """uint8, into ROLES"""
    channel: np.ndarray
    """uint8, into CHANNELS"""
    part: np.ndarray
    """uint8, into PARTS"""
    message: np.ndarray
    """int32, number of its message, -1 outside"""
    sentence: np.ndarray
    """int32, number of its sentence, -1 outside"""
    experts: np.ndarray
    """int8 or int16 [token, layer, k], best first"""
    weights: np.ndarray
    """float16 or float32 [token, layer, k], what the experts' outputs are multiplied by"""
    logits: np.ndarray | None = None
    """float16 or float32 [token, layer, expert], the router's logits, where asked for"""
    margins: np.ndarray | None = None
    """float16 or float32 [token, layer], logit of the last chosen above the first left out"""
    norms: np.ndarray | None = None
    """float16 or float32 [token, layer, k], L2 norm of each chosen expert's unweighted output"""
    peaks: np.ndarray | None = None
    """float32 [token, layer, k], largest absolute entry of that output"""

    @property
    def voice(self) -> np.ndarray:
        """uint8, into VOICES."""
        return _VOICE_OF[self.role, self.channel, self.part]

    def at(self, index: np.ndarray | slice) -> Record:
        """Some tokens of every column."""
        return Record(*(None if c is None else c[index] for c in self))  # pyright: ignore[reportArgumentType]

    def layers(self, places: Sequence[int]) -> Record:
        """Some layers of every column that has them, by place."""
        names = ("experts", "weights", "logits", "margins", "norms", "peaks")
        cut = {n: c[:, list(places)] for n in names if (c := getattr(self, n)) is not None}
        return self._replace(**cut)


def join(records: Sequence[Record]) -> Record:
    """Records one after another; a column that one of them lacks is left out."""
    columns = zip(*records, strict=True)
    kept = (None if any(c is None for c in cs) else np.concatenate(cs) for cs in columns)
    return Record(*kept)  # pyright: ignore[reportArgumentType]


def _voices() -> np.ndarray:
    out = np.zeros((len(ROLES), len(CHANNELS), len(PARTS)), np.uint8)
    for r, role in enumerate(ROLES):
        for c, channel in enumerate(CHANNELS):
            out[r, c] = VOICES.index("header")
            out[r, c, PARTS.index("body")] = VOICES.index(channel or role or "text")
    return out


_VOICE_OF = _voices()
