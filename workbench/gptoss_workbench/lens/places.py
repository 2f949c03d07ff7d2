"""Which prompts, places and layers an analysis looks at.

Rows of different length are padded to one grid; a place is a column of it. Positions count a row's
real tokens, so -1 is the last token of every row whichever side the padding is on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gptoss_workbench.text import Batch, pad

Positions: TypeAlias = int | slice | Sequence[int] | None
"""Which real tokens of a row, counted from 0 or from the end; None is every place."""


def read_prompts(model: Any, input: Any, mask: Tensor | None = None) -> Batch:
    """Read text, texts, tokens [batch, pos] or lists of tokens of any length as one padded grid."""
    if isinstance(input, list) and input and isinstance(input[0], (list, tuple)):
        if mask is not None:
            raise ValueError("attention_mask= goes with a tensor; lists make their own mask")
        if not all(input):
            raise ValueError("input holds a prompt without tokens; leave it out")
        input, mask = pad([list(row) for row in input], model.pad_id, "right")
    return model.read(input, mask)


def batches(prompts: Batch, size: int) -> Iterator[tuple[slice, slice, Batch]]:
    """Cut a grid into `size` rows at a time, each without columns that are padding only.

    Gives (rows, columns, the part).
    """
    if size < 1:
        raise ValueError(f"batch is the number of prompts at a time, 1 or more; got {size}")
    tokens, mask = prompts
    for start in range(0, len(tokens), size):
        rows = slice(start, min(start + size, len(tokens)))
        used = mask[rows].any(0).nonzero()[:, 0]
        columns = slice(int(used[0]), int(used[-1]) + 1)
        yield rows, columns, Batch(tokens[rows, columns], mask[rows, columns])


def find_places(
    mask: Bool[Tensor, "batch pos"], positions: Positions = None
) -> Int[Tensor, "batch pos"]:
    """Columns that positions mean in every row; -1 where a row has none.

    With None the result has the shape of the mask.
    """
    if positions is None:
        columns = torch.arange(mask.shape[1], device=mask.device)
        return torch.where(mask, columns, -1)
    picked = [_pick(row.nonzero()[:, 0], positions) for row in mask]
    width = max(len(row) for row in picked)
    out = torch.full((len(mask), width), -1, device=mask.device)
    for i, row in enumerate(picked):
        out[i, : len(row)] = row
    return out


def _pick(real: Tensor, positions: int | slice | Sequence[int]) -> Tensor:
    if isinstance(positions, slice):
        return real[positions]
    wanted = [positions] if isinstance(positions, int) else [int(p) for p in positions]
    if not wanted or any(not -len(real) <= p < len(real) for p in wanted):
        raise ValueError(
            f"positions: expected numbers between {-len(real)} and {len(real) - 1} (a row here has "
            f"{len(real)} tokens), got {positions}"
        )
    return real[[p % len(real) for p in wanted]]


def next_tokens(prompts: Batch) -> Int[Tensor, "batch pos"]:
    """The real token that follows each real token; -1 for the last one and on padding."""
    tokens, mask = prompts
    out = torch.full_like(tokens, -1)
    for i, row in enumerate(mask):
        real = row.nonzero()[:, 0]
        out[i, real[:-1]] = tokens[i, real[1:]]
    return out


def choose_layers(n_layers: int, layers: int | Sequence[int] | None) -> list[int]:
    """Layers in ascending order, negative ones counted from the end; None is all."""
    if layers is None:
        return list(range(n_layers))
    wanted = [layers] if isinstance(layers, int) else [int(layer) for layer in layers]
    if not wanted or any(not -n_layers <= layer < n_layers for layer in wanted):
        raise ValueError(
            f"layers: expected numbers between {-n_layers} and {n_layers - 1}, got {layers}"
        )
    return sorted({layer % n_layers for layer in wanted})


def as_tokens(
    model: Any, given: str | int | Tensor | Sequence[int], places: Int[Tensor, "batch pos"]
) -> Int[Tensor, "batch pos"]:
    """One token for every place: a string of one token, an id, or ids that broadcast."""
    if isinstance(given, str):
        given = model.to_single_token(given)
    ids = torch.as_tensor(given, device=places.device)
    vocab = model.config.vocab_size
    if ids.dtype.is_floating_point or bool((ids >= vocab).any()) or bool((ids < -1).any()):
        raise ValueError(f"target: expected token ids between 0 and {vocab - 1}; got {given!r}")
    if ids.ndim > 2 or not _broadcasts(ids.shape, places.shape):
        raise ValueError(
            f"target: expected one token, or ids that broadcast to the places "
            f"{tuple(places.shape)} [batch, pos]; got {tuple(ids.shape)}"
        )
    return ids.long().expand(places.shape)


def _broadcasts(shape: torch.Size, wanted: torch.Size) -> bool:
    paired = zip(reversed(shape), reversed(wanted), strict=False)
    return all(have in (1, want) for have, want in paired)


def blank(like: Tensor, layers: int, shape: torch.Size) -> Tensor:
    """Room for pieces like this one at every layer and place, filled with NaN or -1."""
    filler = torch.nan if like.is_floating_point() else -1
    return torch.full((layers, *shape, *like.shape[2:]), filler, dtype=like.dtype)


def token_strings(model: Any, *tokens: Tensor) -> dict[int, str] | None:
    """The text of every token that occurs; None without a tokenizer."""
    if model.tokenizer is None:
        return None
    ids = sorted({int(i) for each in tokens for i in each.unique().tolist()} - {-1})
    return dict(zip(ids, model.tokenizer.strings(ids), strict=True))
