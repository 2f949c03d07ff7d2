"""A KV cache at fixed addresses: a decoded token writes into it without the host knowing where.

A captured CUDA graph replays the same reads and writes, so tensors may neither move nor change
shape, and the place of the next token is itself on the device. Places not yet written have position
-1, which no query sees. Sliding layers hold their window and some slack; when that is used up the
window moves to the front, between two steps.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gptoss_workbench.config import Config
from gptoss_workbench.kv_cache import PAD, KVCache

SLACK = 512
"""Tokens a sliding layer takes before its window moves to the front."""


class _Place:
    """Where layers of one kind write next: a number here, and the same on the device.

    They have their keys at the same positions [batch, place]: the first layer writes them for all.
    """

    def __init__(self, positions: Tensor, places: int):
        self.used, self.places = 0, places
        self.next = torch.zeros(1, dtype=torch.long, device=positions.device)
        self.positions = positions.new_empty((len(positions), places))
        self.restart(positions)

    def restart(self, positions: Tensor) -> None:
        """Hold other positions [batch, place] from the front, and nothing behind them."""
        self.used = positions.shape[1]
        self.next.fill_(self.used)
        self.positions.fill_(PAD)
        self.positions[:, : self.used] = positions

    def keep_last(self, count: int) -> None:
        """Forget all places but the last ones, which have moved to the front."""
        self.positions[:, :count] = last_of(self.positions, count, self.used)
        self.positions[:, count:] = PAD
        self.used = count
        self.next.fill_(count)


def last_of(store: Tensor, count: int, used: int) -> Tensor:
    """A copy of the last `count` of `used` places."""
    return store[:, used - count : used].clone()


class FixedLayer:
    """One layer's keys and values [batch, place, kv_head, d_head]."""

    def __init__(self, k: Tensor, v: Tensor, place: _Place, *, first: bool):
        self.place, self.first, self.seen = place, first, 0
        shape = (k.shape[0], place.places)
        self.k, self.v = (each.new_empty((*shape, *each.shape[2:])) for each in (k, v))
        self.restart(k, v)

    def restart(self, k: Tensor, v: Tensor) -> None:
        """Hold other keys and values from the front, and zeros behind them."""
        held = k.shape[1]
        for store, part in ((self.k, k), (self.v, v)):
            store[:, :held] = part
            store[:, held:] = 0

    def extend(
        self,
        k: Float[Tensor, "batch pos kv_head d_head"],
        v: Float[Tensor, "batch pos kv_head d_head"],
        positions: Int[Tensor, "batch pos"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Write a chunk at the next places; returns all places, written or not."""
        at = self.place.next
        if k.shape[1] > 1:
            at = at + torch.arange(k.shape[1], device=at.device)
        self.k.index_copy_(1, at, k)
        self.v.index_copy_(1, at, v)
        if self.first:
            self.place.positions.index_copy_(1, at, positions)
        self.seen += k.shape[1]
        return self.k, self.v, self.place.positions


class FixedCache(KVCache):
    """What `cache` holds, at fixed addresses, with room for `room` tokens in all."""

    def __init__(self, cache: KVCache, config: Config, *, room: int):
        super().__init__(config)
        assert cache.lengths is not None
        windows = [layer.window for layer in cache.layers]
        self.window = next((window for window in windows if window is not None), None)
        self.places: dict[int | None, _Place] = {}
        self.layers = []
        for layer, window in zip(cache.layers, windows, strict=True):
            assert layer.k is not None and layer.v is not None and layer.positions is not None
            first = window not in self.places
            if first:
                size = _size(window, room, layer.k.shape[1])
                self.places[window] = _Place(layer.positions, size)
            fixed = FixedLayer(layer.k, layer.v, self.places[window], first=first)
            self.layers.append(fixed)  # pyright: ignore[reportArgumentType]
            layer.forget()  # one copy at a time, not one a layer
        self.lengths = cache.lengths.clone()
        self._count_as(cache)

    def _count_as(self, cache: KVCache) -> None:
        """Have seen what another cache has seen."""
        assert cache.lengths is not None and self.lengths is not None
        self.lengths.copy_(cache.lengths)
        self.known = cache.lengths.cpu().clone()
        """`lengths` on the CPU, so that a step need not ask the device"""
        self.seen, self.history = cache.seen, cache.history
        self._voices, self._heard = cache._voices, cache._heard
        for layer in self.layers:
            layer.seen = self.seen

    def fits(self, rows: int, room: int) -> bool:
        """Whether a text of so many rows and tokens has room here."""
        enough = all(_size(w, room, 0) <= place.places for w, place in self.places.items())
        return enough and len(self.known) == rows

    def restart(self, cache: KVCache) -> None:
        """Hold what another cache holds instead, at the same addresses; that one forgets it."""
        for kept, layer in zip(self.layers, cache.layers, strict=True):
            assert isinstance(kept, FixedLayer) and layer.positions is not None
            assert layer.k is not None and layer.v is not None
            if kept.first:
                kept.place.restart(layer.positions)
            kept.restart(layer.k, layer.v)
            layer.forget()
        self._count_as(cache)

    def positions(self, mask: Tensor) -> Int[Tensor, "batch pos"]:
        """Positions of a new chunk's real tokens (padding: -1); makes room for the chunk."""
        self.make_room(mask.shape[1])
        return super().positions(mask)

    def known_positions(self, mask: Bool[Tensor, "batch 1"]) -> Int[Tensor, "batch 1"]:
        """Positions of the next token of each row (padding: -1); all on the CPU."""
        return torch.where(mask, self.known[:, None], PAD)

    def make_room(self, tokens: int) -> None:
        """Before a step: let sliding layers forget what no window reaches; raises when full."""
        for window, place in self.places.items():
            if place.used + tokens <= place.places:
                continue
            if window is None:
                raise ValueError(
                    f"FixedCache: {place.places} places are used up; expected room for "
                    f"{tokens} more: give it the length of the whole text"
                )
            kept = min(window - 1, place.used)
            for layer in self.layers:
                if layer.place is place:  # pyright: ignore[reportAttributeAccessIssue]
                    for store in (layer.k, layer.v):
                        store[:, :kept] = last_of(store, kept, place.used)  # pyright: ignore
            place.keep_last(kept)

    def count(self, mask: Tensor) -> None:
        """On the device: a chunk with this mask [batch, pos] is written."""
        assert self.lengths is not None
        self.lengths.add_(mask.sum(1))
        for place in self.places.values():
            place.next.add_(mask.shape[1])

    def advance(self, mask: Tensor, tokens: Tensor | None = None, *, counted: bool = False) -> None:
        """Count a chunk as seen; `counted` where the device has done its part in a graph."""
        self.seen += mask.shape[1]
        self.history.append((tokens, mask))
        self.known += mask.sum(1).cpu()
        for place in self.places.values():
            place.used += mask.shape[1]
        if not counted:
            self.count(mask)
        for layer in self.layers:
            layer.seen = self.seen


def _size(window: int | None, room: int, held: int) -> int:
    if window is None:
        return max(room, held)
    return min(max(room, held), max(held, window - 1) + SLACK)
