"""What every edit is: a small immutable value that says what is changed, and where.

    ban(3, layers=12, channels="analysis")

An edit is printed as the call that makes it, compares by content, hashes, and can be saved. It
holds no model: unknown layers, experts and sites are found when it is given to one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import cleandoc, signature
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from gptoss_hooks.points import EditError

Many = int | Sequence[int] | None
"""One number, several, or None for all."""
Places = int | str | slice | Sequence[int] | Sequence[str] | None
"""Tokens of a row: positions (negative ones count from its end), or every token with that text."""
Voices = str | Sequence[str] | None
"""Harmony voices: analysis, final, commentary, user, system, developer, tool, header ..."""

SCOPE = """
Where it acts:
    layers: blocks, negative ones counted from the last; None is all.
    tokens: positions of a row's real tokens (negative ones from its end, where it has one), a
        slice of them, or texts: every token that reads so, " E" say, with its space.
    channels: voices of harmony: "analysis", "commentary", "final" or "other" (channels of the
        assistant; "assistant" where it names none), "system", "developer", "user", "tool",
        "header", and "text" outside messages; None is all.

Raises EditError where it cannot act: unknown layers or names, or no such token in what runs.
"""
PARTS = """
Which part of the activation:
    heads, neurons, experts: entries of its axes head or kv_head, d_ff, and of the slots (or router
        logits) of an expert; None is all.
"""
SHOWN = 8
"""Largest tensor whose numbers are printed."""


@dataclass(frozen=True, repr=False, eq=False)
class Edit:
    """Base of all edits: where it acts, how it prints and compares."""

    verb: ClassVar[str]
    layers: tuple[int, ...] | None = None
    """blocks, negative ones counted from the last; None is all"""
    tokens: Any = None
    """positions, a slice, texts, or None for all tokens"""
    channels: tuple[str, ...] | None = None
    """voices, or None for all"""

    def __iter__(self) -> Iterator[Edit]:
        """One edit stands for a list of one wherever edits are given."""
        yield self

    def _arguments(self) -> list[str]:
        """The call's arguments: what is changed by place, where by keyword, defaults left out."""
        where = [f for f in fields(self) if f.name in ("layers", "tokens", "channels")]
        out = []
        for field in [f for f in fields(self) if f not in where] + where:
            value = getattr(self, field.name)
            if not out and field not in where:
                out.append(shown(value))
            elif not same(value, field.default):
                out.append(f"{field.name}={shown(value)}")
        return out

    def __repr__(self) -> str:
        return f"{self.verb}({', '.join(self._arguments())})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Edit) or type(other) is not type(self):
            return NotImplemented
        return all(same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def __hash__(self) -> int:
        return hash((self.verb, *(_key(getattr(self, f.name)) for f in fields(self))))

    def to_json(self) -> dict[str, Any]:
        """Plain data; tensors as a name in `tensors()`. `from_json` reads it."""
        from gptoss_hooks.edits.store import plain

        return {"verb": self.verb} | {f.name: plain(getattr(self, f.name)) for f in fields(self)}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors this edit holds, by a name made of their content."""
        return {digest(t): t for f in fields(self) for t in _held(getattr(self, f.name))}


Verb = TypeVar("Verb", bound=Callable)


def scoped(verb: Verb) -> Verb:
    """Add to a verb's documentation what its arguments of place mean, the same for all."""
    more = PARTS + SCOPE if "heads" in signature(verb).parameters else SCOPE
    verb.__doc__ = f"{cleandoc(verb.__doc__ or '')}\n{more}"
    return verb


def numbers(value: Many, what: str, verb: str) -> tuple[int, ...] | None:
    """One number or several as a tuple; None stays."""
    if value is None:
        return None
    if isinstance(value, (bool, str, float)):
        raise EditError(f"{verb}: {what}= takes whole numbers; got {value!r}")
    listed = [value] if isinstance(value, int) else list(_plain(value))
    if not listed:
        raise EditError(f"{verb}: {what}= is empty, so the edit cannot act; leave it out for all")
    if wrong := [v for v in listed if isinstance(v, bool) or not isinstance(v, int)]:
        raise EditError(f"{verb}: {what}= takes whole numbers; got {wrong[0]!r}")
    return tuple(dict.fromkeys(listed))


def places(value: Places, verb: str) -> Any:
    """`tokens=` as it is kept: a slice, positions, texts, or None."""
    if value is None or isinstance(value, slice):
        return value
    listed: list[Any] = [value] if isinstance(value, (int, str)) else list(_plain(value))
    if listed and all(isinstance(each, str) for each in listed):
        return tuple(listed)
    return numbers(listed, "tokens", verb)


def voices(value: Voices, verb: str) -> tuple[str, ...] | None:
    """`channels=` as it is kept: names of voices, or None."""
    if value is None:
        return None
    listed = (value,) if isinstance(value, str) else tuple(value)
    if not listed or not all(isinstance(each, str) for each in listed):
        raise EditError(f"{verb}: channels= takes names such as 'analysis'; got {value!r}")
    return listed


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def shown(value: Any) -> str:
    """A value as Python; a single number without its tuple, a large tensor by its digest."""
    if isinstance(value, Tensor):
        if value.numel() <= SHOWN and value.dtype == torch.float32:
            return repr(value.tolist())
        return f"<{str(value.dtype)[6:]} {list(value.shape)} {digest(value)[:8]}>"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {shown(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple) and len(value) == 1 and not isinstance(value[0], tuple):
        return shown(value[0])
    if isinstance(value, tuple):
        return f"({', '.join(map(shown, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def same(a: Any, b: Any) -> bool:
    """Equality that compares tensors by content."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        both = isinstance(a, Tensor) and isinstance(b, Tensor)
        return both and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def digest(tensor: Tensor) -> str:
    """16 hexadecimal digits of a tensor's content, type and shape."""
    held = tensor.detach().cpu().contiguous()
    head = f"{held.dtype} {tuple(held.shape)}".encode()
    body = held.reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(head + body).hexdigest()[:16]


def _held(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return list(value.values()) if isinstance(value, Mapping) else []


def _key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, Mapping):
        return tuple((name, digest(each)) for name, each in value.items())
    return (value.start, value.stop, value.step) if isinstance(value, slice) else value


Edits = Edit | Sequence[Edit]
"""Interventions in the order they act; one needs no list."""
