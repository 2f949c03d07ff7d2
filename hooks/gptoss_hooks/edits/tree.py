"""Tensors inside tuples and mappings: moved, copied and compared by their form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def over(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The tree with every tensor changed; what appears in several places still does."""
    done: dict[int, Any] = {}

    def walk(part: Any) -> Any:
        if id(part) not in done:
            done[id(part)] = grown(part)
        return done[id(part)]

    def grown(part: Any) -> Any:
        if isinstance(part, Tensor):
            return change(part)
        if isinstance(part, Mapping):
            return {name: walk(each) for name, each in part.items()}
        if isinstance(part, tuple):
            parts = [walk(each) for each in part]
            return type(part)(*parts) if hasattr(part, "_fields") else tuple(parts)
        return part

    return walk(tree)


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor, in order; one that appears in several places comes as often."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for part in tree.values():
            yield from tensors(part)
    elif isinstance(tree, tuple):
        for part in tree:
            yield from tensors(part)


def form(tree: Any) -> Any:
    """All but the numbers in tensors: what may be copied into what without a change of meaning.

    Which tensors are one and the same is part of it.
    """
    numbers: dict[int, int] = {}

    def walk(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part.dtype, tuple(part.shape), numbers.setdefault(id(part), len(numbers))
        if isinstance(part, Mapping):
            return tuple((name, walk(each)) for name, each in part.items())
        return tuple(map(walk, part)) if isinstance(part, tuple) else part

    return walk(tree)
