"""Keys and values of earlier tokens, so that generation and chunked prefill compute each once.

Sliding layers keep only what their window can still reach. Padding is never stored as a visible
key: each row remembers its own positions, so rows of different length share a cache.

Without gradients a full layer writes into memory sized up front, so a step copies its own token
and nothing else; with gradients chunks are joined anew, since a graph may hold the earlier ones.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptoss_workbench.config import Config
from gptoss_workbench.harmony.voices import VoiceTracker
from gptoss_workbench.tokenizer import Tokenizer

PAD = -1
"""Position of a key that no query may see."""


class _Arena:
    """A tensor [batch, place, ...] that grows along its places without being copied each time."""

    def __init__(self, room: int):
        self.room, self.used = room, 0
        self.store: Tensor | None = None

    def append(self, part: Tensor) -> Tensor:
        """Write `part` after what is there; returns all of it, a view."""
        end = self.used + part.shape[1]
        if self.store is None or end > self.store.shape[1] or not _writable(self.store):
            self._move(part, end)
        assert self.store is not None
        self.store[:, self.used : end] = part
        self.used = end
        return self.store[:, :end]

    def _move(self, part: Tensor, end: int) -> None:
        grown = end if self.store is None else end + end // 2
        places = max(self.room, grown)
        store = part.new_empty((part.shape[0], places, *part.shape[2:]))
        if self.store is not None:
            store[:, : self.used] = self.store[:, : self.used]
        self.store = store


def _writable(store: Tensor) -> bool:
    return not store.is_inference() or torch.is_inference_mode_enabled()


class LayerCache:
    """One layer's keys and values, oldest first; `room` places are set aside at the first chunk."""

    def __init__(self, window: int | None, room: int = 0):
        self.window = window
        self._arenas: tuple[_Arena, ...] = tuple(_Arena(room) for _ in range(3))
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
        chunk, parts = k.shape[1], (k, v, positions)
        if self.window is None and not torch.is_grad_enabled():
            parts = self._written(parts)
        elif self.k is not None and self.v is not None and self.positions is not None:
            before = (self.k, self.v, self.positions)
            parts = [torch.cat(pair, 1) for pair in zip(before, parts, strict=True)]
        self._keep(*parts)
        self.seen += chunk
        return parts[0], parts[1], parts[2]

    def forget(self) -> None:
        """Free what is held, the memory set aside for more included; nothing can follow."""
        self.k = self.v = self.positions = None
        self._arenas = ()

    def _written(self, parts: tuple[Tensor, ...]) -> list[Tensor]:
        """Append in place; chunks that were joined under gradients move in first."""
        held = 0 if self.k is None else self.k.shape[1]
        if held != self._arenas[0].used:
            for arena, part in zip(self._arenas, (self.k, self.v, self.positions), strict=True):
                assert part is not None
                arena.used, arena.store = 0, None
                arena.append(part)
        return [arena.append(part) for arena, part in zip(self._arenas, parts, strict=True)]

    def _keep(self, k: Tensor, v: Tensor, positions: Tensor) -> None:
        reach = self.window - 1 if self.window is not None else None
        if reach is None or k.shape[1] <= reach:
            self.k, self.v, self.positions = k, v, positions
            return
        # a GPU is not waited for: sorting costs less than standing still in every sliding layer
        if reach and (positions.is_cuda or bool((positions[:, -reach:] == PAD).any())):
            order = torch.argsort(positions, dim=1, stable=True)[:, -reach:]
            rows = torch.arange(k.shape[0], device=k.device)[:, None]
            self.k, self.v, self.positions = k[rows, order], v[rows, order], positions[rows, order]
            return
        first = k.shape[1] - reach
        self.k, self.v = k[:, first:].clone(), v[:, first:].clone()
        self.positions = positions[:, first:].clone()


class KVCache:
    """All layers' keys and values; pass it as `past_key_values=` and it grows in place.

    `room` is how many tokens to set memory aside for; beyond it grows by half at a time.
    """

    def __init__(self, config: Config, *, room: int = 0):
        sliding = [kind == "sliding_attention" for kind in config.layer_types]
        self.layers = [
            LayerCache(config.sliding_window if slides else None, room) for slides in sliding
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
