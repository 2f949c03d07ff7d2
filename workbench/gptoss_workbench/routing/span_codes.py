"""A prompt's harmony labels as small codes, quickly enough to label a corpus.

The messages are those of `harmony.spans`, cut by the same rules (`harmony.track`); what differs is
that labels are written as arrays, message by message, instead of one object a token.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np

from gptoss_workbench.harmony.sentences import sentence_starts
from gptoss_workbench.harmony.track import Cut, Markers, cut
from gptoss_workbench.routing.record import CHANNELS, PARTS, ROLES
from gptoss_workbench.tokenizer import Tokenizer

MARKER, HEADER, BODY = (PARTS.index(part) for part in ("marker", "header", "body"))


class SpanCodes(NamedTuple):
    """Labels of tokens, one entry a token; codes as in `Record`."""

    role: np.ndarray
    channel: np.ndarray
    part: np.ndarray
    message: np.ndarray
    sentence: np.ndarray


def unlabelled(count: int) -> SpanCodes:
    """The labels of plain text: a body outside every message."""
    role, channel = np.zeros(count, np.uint8), np.zeros(count, np.uint8)
    outside = np.full(count, -1, np.int32)
    return SpanCodes(role, channel, np.full(count, BODY, np.uint8), outside, outside.copy())


def role_code(role: str | None) -> int:
    """Number of a role in ROLES."""
    return ROLES.index(role or "")


def channel_code(channel: str | None) -> int:
    """Number of a channel in CHANNELS; an unknown one is "other"."""
    channel = channel or ""
    return CHANNELS.index(channel if channel in CHANNELS else "other")


class _Message(NamedTuple):
    """Where one message lies, and the labels of its header."""

    start: int
    body_start: int
    body_stop: int
    stop: int
    role: int
    channel: int
    head: np.ndarray
    """Parts of the tokens before its body."""


_WELL_FORMED = re.compile("(?:SC?K?ME)*(?:SC?K?M)?")
"""The markers of a stream in which every message has its header and its end but the last."""


class Labeller:
    """Labels prompts of one tokenizer; remembers the headers it has read."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.markers = tokenizer, Markers(tokenizer)
        self._whole: dict[int, str | None] = {}
        self._headers: dict[tuple[int, ...], _Message | None] = {}
        m = self.markers
        single = {"S": m.start, "C": m.channel, "M": m.message, "K": m.constrain}
        self._kinds = {i: kind for kind, i in single.items() if i is not None}
        self._kinds |= dict.fromkeys(m.closing, "E") | dict.fromkeys(m.pad, "P")

    def __call__(self, ids: Sequence[int]) -> SpanCodes:
        """Labels of one prompt's tokens."""
        ids = list(ids)
        pieces = self._pieces(ids)
        out = unlabelled(len(ids))
        out.part[:] = MARKER
        found = self._quick(ids)
        if found is None:
            found = [self._read(each, ids) for each in cut(ids, pieces, self.markers, None)]
        for index, each in enumerate(found):
            out.role[each.start : each.stop] = each.role
            out.channel[each.start : each.stop] = each.channel
            out.message[each.start : each.stop] = index
            out.part[each.start : each.body_start] = each.head
            out.part[each.body_start : each.body_stop] = BODY
        out.sentence[:] = _sentences(pieces, found)
        return out

    def _quick(self, ids: Sequence[int]) -> list[_Message] | None:
        """The messages of a well-formed stream; None where the rules of `cut` are needed."""
        kinds = self._kinds
        named = list(map(kinds.get, ids))
        at = [i for i, kind in enumerate(named) if kind]
        signs = "".join(filter(None, named))
        if not at or at[0] or _WELL_FORMED.fullmatch(signs) is None:
            return None
        opens = [i for i, sign in zip(at, signs, strict=True) if sign == "S"]
        bodies = [i + 1 for i, sign in zip(at, signs, strict=True) if sign == "M"]
        closes = [i for i, sign in zip(at, signs, strict=True) if sign == "E"]
        stops = [i + 1 for i in closes]
        if opens[1:] != stops[: len(opens) - 1] or (
            len(stops) == len(opens) and stops[-1] < len(ids)
        ):
            return None
        if len(closes) < len(opens):
            closes, stops = [*closes, len(ids)], [*stops, len(ids)]
        out = []
        for start, body, body_stop, stop in zip(opens, bodies, closes, stops, strict=True):
            header = self._header(tuple(ids[start:body]))
            if header is None:
                return None
            out.append(_Message(start, body, body_stop, stop, *header[4:]))
        return out

    def _header(self, ids: tuple[int, ...]) -> _Message | None:
        """What a header from <|start|> to <|message|> says; None if it is none after all."""
        if ids not in self._headers:
            pieces = self.tokenizer.pieces(ids)
            found = cut(ids, pieces, self.markers, None)
            whole = len(found) == 1 and found[0].body_start == len(ids)
            self._headers[ids] = self._read(found[0], ids) if whole else None
        return self._headers[ids]

    def _read(self, found: Cut, ids: Sequence[int]) -> _Message:
        opening, header = self.markers.opening, found.header
        before = ids[found.start : found.body_start]
        head = np.array([MARKER if i in opening else HEADER for i in before], np.uint8)
        role, channel = role_code(header.role), channel_code(header.channel)
        return _Message(*found[:4], role, channel, head)

    def _pieces(self, ids: Sequence[int]) -> Sequence[str]:
        """`tokenizer.pieces`, from memory where every token is whole characters by itself."""
        for i in set(ids) - self._whole.keys():
            raw = self.tokenizer.token_bytes(i)
            text = raw.decode("utf-8", "ignore")
            self._whole[i] = text if text.encode() == raw else None
        pieces = [self._whole[i] for i in ids]
        return self.tokenizer.pieces(ids) if None in pieces else cast("list[str]", pieces)


def _sentences(pieces: Sequence[str], messages: Sequence[_Message]) -> np.ndarray:
    """Number each body token's sentence through the stream, as `harmony.spans` does.

    A token belongs to the sentence of its first character that is not white space; one without
    such a character stays with the token before it.
    """
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    inked = np.fromiter(map(len, map(str.lstrip, pieces)), np.int64, len(pieces))
    stop = np.cumsum(lengths)
    ink = stop - inked
    at, stays = ink.tolist(), ((inked == 0) & (lengths > 0)).tolist()
    begins, inside = np.zeros(len(pieces), np.int32), np.zeros(len(pieces), bool)
    for each in messages:
        a, b = each.body_start, each.body_stop
        if a == b:
            continue
        inside[a:b], begins[a] = True, 1
        offset = int(stop[a] - lengths[a])
        for end in sentence_starts("".join(pieces[a:b]))[1:]:
            i = bisect_left(at, offset + end, a, b)
            while i < b and stays[i]:
                i += 1
            if i < b:
                begins[i] = 1
    return np.where(inside, np.cumsum(begins) - 1, -1)
