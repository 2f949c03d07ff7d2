"""Keys and values of earlier tokens, so that generation and chunked prefill compute each once.

Sliding layers keep only what their window can still reach. Padding is never stored as a visible
key: each row remembers its own positions, so rows of different length share a cache.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_workbench.config import Config
from gptoss_workbench.harmony.voices import VoiceTracker
from gptoss_workbench.tokenizer import Tokenizer

PAD = -1
"""Position of a key that no query may see."""


class LayerCache:
    """One layer's keys and values, oldest first."""

    def __init__(self, window: int | None):
        self.window = window
        self.k: Tensor | None = None
        self.v: Tensor | None = None
        self.positions: Tensor | None = None
        self.seen = 0
        """places stored so far, those that slid out of the window included"""

    def extend(
        self,
        k: Float[Tensor, "batch pos kv_head d_head"],
        v: Float[Tensor, "batch pos kv_head d_head"],
        positions: Int[Tensor, "batch pos"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Append a chunk; returns all keys, values and positions the chunk may see."""
        chunk = k.shape[1]
        if self.k is not None and self.v is not None and self.positions is not None:
            k = torch.cat([self.k, k], 1)
            v = torch.cat([self.v, v], 1)
            positions = torch.cat([self.positions, positions], 1)
        self._keep(k, v, positions)
        self.seen += chunk
        return k, v, positions

    def _keep(self, k: Tensor, v: Tensor, positions: Tensor) -> None:
        reach = self.window - 1 if self.window is not None else None
        if reach is None or k.shape[1] <= reach:
            self.k, self.v, self.positions = k, v, positions
            return
        if reach and bool((positions[:, -reach:] == PAD).any()):
            order = torch.argsort(positions, dim=1, stable=True)[:, -reach:]
            rows = torch.arange(k.shape[0], device=k.device)[:, None]
            self.k, self.v, self.positions = k[rows, order], v[rows, order], positions[rows, order]
            return
        first = k.shape[1] - reach
        self.k, self.v = k[:, first:].clone(), v[:, first:].clone()
        self.positions = positions[:, first:].clone()


class KVCache:
    """All layers' keys and values; pass it as `past_key_values=` and it grows in place."""

    def __init__(self, config: Config):
        self.layers = [
            LayerCache(config.sliding_window if kind == "sliding_attention" else None)
            for kind in config.layer_types
        ]
        self.lengths: Tensor | None = None
        """[batch] real tokens seen by each row"""
        self.seen = 0
        """places seen by all layers, padding included"""
        self.history: list[tuple[Tensor | None, Tensor]] = []
        """tokens and mask [batch, pos] of every chunk; tokens None where a residual was given"""
        self._voices: list[VoiceTracker] | None = None
        self._heard = 0

    def __len__(self) -> int:
        return 0 if self.lengths is None else int(self.lengths.max())

    def positions(self, mask: Tensor) -> Int[Tensor, "batch pos"]:
        """Positions of a new chunk's real tokens (padding: -1)."""
        if any(layer.seen != self.seen for layer in self.layers):
            raise ValueError(
                "KVCache: an interrupted or partial run left this cache half written; "
                "start again with model.new_cache()"
            )
        start = 0 if self.lengths is None else self.lengths[:, None]
        return (mask.long().cumsum(1) - 1 + start).masked_fill(~mask, PAD)

    def advance(self, mask: Tensor, tokens: Tensor | None = None) -> None:
        """Count a chunk as seen, once all layers have stored it."""
        self.seen += mask.shape[1]
        self.history.append((tokens, mask))
        seen = mask.long().sum(1)
        self.lengths = seen if self.lengths is None else self.lengths + seen

    def voices(self, tokenizer: Tokenizer, rows: int) -> list[VoiceTracker]:
        """A tracker a row that has read all tokens seen; the caller's own, to read on with."""
        if self._voices is None:
            self._voices = [VoiceTracker(tokenizer) for _ in range(rows)]
        for tokens, mask in self.history[self._heard :]:
            if tokens is None:
                raise ValueError("KVCache: it was begun with a residual, so its voices are unknown")
            for row, tracker in enumerate(self._voices):
                tracker.read(tokens[row][mask[row]].tolist())
            self._heard += 1
        return [tracker.copy() for tracker in self._voices]

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        parts = (each for layer in self.layers for each in (layer.k, layer.v))
        return sum(part.nbytes for part in parts if part is not None)

    def __repr__(self) -> str:
        held = max((layer.k.shape[1] for layer in self.layers if layer.k is not None), default=0)
        return f"KVCache({len(self)} tokens seen, at most {held} kept, {self.nbytes / 1e6:.1f} MB)"
