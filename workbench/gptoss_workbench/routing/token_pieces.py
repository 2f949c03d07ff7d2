"""The text that each token of many prompts adds, looked up in tables that grow with their ids."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gptoss_workbench.tokenizer import Tokenizer

_UNSEEN, _CUT = -1, -2


class Pieces(NamedTuple):
    """What tokens add to their text, one entry a token."""

    texts: list[str]
    sizes: np.ndarray
    """int64, characters"""
    inked: np.ndarray
    """int64, characters from the first that is not white space on"""


class TokenPieces:
    """`tokenizer.pieces` for a whole window; remembers the tokens that are whole characters."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._texts: list[str] = []
        self._sizes, self._inked = np.empty(0, np.int64), np.empty(0, np.int64)

    def __call__(self, tokens: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> Pieces:
        """Pieces of prompts that lie one after another in `tokens`, at `starts` to `stops`."""
        self._learn(tokens)
        texts = list(map(self._texts.__getitem__, tokens.tolist()))
        found = Pieces(texts, self._sizes[tokens], self._inked[tokens])
        cut = np.flatnonzero(found.sizes == _CUT)
        for prompt in np.unique(np.searchsorted(stops, cut, side="right")):
            self._decode(found, tokens, slice(int(starts[prompt]), int(stops[prompt])))
        return found

    def _learn(self, tokens: np.ndarray) -> None:
        more = int(tokens.max(initial=-1)) + 1 - len(self._texts)
        if more > 0:
            self._texts += [""] * more
            self._sizes, self._inked = (
                np.append(table, np.full(more, _UNSEEN)) for table in (self._sizes, self._inked)
            )
        for i in np.unique(tokens[self._sizes[tokens] == _UNSEEN]).tolist():
            raw = self.tokenizer.token_bytes(i)
            text = raw.decode("utf-8", "ignore")
            if text.encode() == raw:
                self._texts[i] = text
                self._sizes[i], self._inked[i] = len(text), len(text.lstrip())
            else:
                self._sizes[i] = _CUT

    def _decode(self, found: Pieces, tokens: np.ndarray, at: slice) -> None:
        """A prompt in which characters are cut over tokens, by the tokenizer."""
        found.texts[at] = texts = self.tokenizer.pieces(tokens[at])
        found.sizes[at] = [len(text) for text in texts]
        found.inked[at] = [len(text.lstrip()) for text in texts]
