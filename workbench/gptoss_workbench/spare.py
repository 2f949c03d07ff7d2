"""The last decoder of a model, kept for the next generation with what it captured."""

from typing import Any

from gptoss_workbench.decoder import Decoder
from gptoss_workbench.kv_cache import KVCache

KEPT = 512 << 20
"""Bytes up to which keys, values and edits are kept while nothing is generated."""
STEP = 512
"""Room is rounded up to a multiple of so many tokens, so that the next text may fit too."""


class Spare:
    """Lends one generation at a time the decoder of an earlier one; a copy of it is empty."""

    def __init__(self) -> None:
        self.decoder: Decoder | None = None

    def take(self, model: Any, rows: int, room: int) -> Decoder | None:
        """The decoder kept, if such a text fits; it is given up either way."""
        decoder, self.decoder = self.decoder, None
        return decoder if decoder is not None and decoder.resumes(model, rows, room) else None

    def keep(self, decoder: Decoder) -> None:
        """Have it ready for the next generation, unless it is large."""
        if decoder.nbytes <= KEPT:
            decoder.rest()
            self.decoder = decoder

    def __reduce__(self) -> tuple[type, tuple]:
        return Spare, ()


def begin(model: Any, spare: Decoder | None, cache: KVCache, room: int) -> Decoder:
    """A decoder that goes on from `cache`: the spare one, or a new one."""
    if spare is None:
        return Decoder(model, cache, room=-(-room // STEP) * STEP)
    spare.cache.restart(cache)
    return spare
