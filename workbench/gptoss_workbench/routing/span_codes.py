"""Harmony labels of many prompts as small codes, quickly enough to label a corpus.

The messages are those of `harmony.spans`, cut by the same rules (`harmony.track`); what differs is
that labels are written as arrays, all prompts of a window at once, instead of one object a token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gptoss_workbench.harmony.sentences import sentence_starts
from gptoss_workbench.harmony.track import Cut, Markers, cut
from gptoss_workbench.routing.record import CHANNELS, PARTS, ROLES
from gptoss_workbench.routing.token_pieces import Pieces, TokenPieces
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
    """Where one message lies, and the labels of its tokens."""

    start: int
    body_start: int
    body_stop: int
    stop: int
    role: int
    channel: int
    number: int
    """Its place among the messages of its prompt."""


_WELL_FORMED = re.compile("(?:SC?K?ME)*(?:SC?K?M)?")
"""The markers of a stream in which every message has its header and its end but the last."""


class Labeller:
    """Labels prompts of one tokenizer; remembers the headers it has read."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.markers = tokenizer, Markers(tokenizer)
        self._pieces = TokenPieces(tokenizer)
        self._headers: dict[tuple[int, ...], tuple[int, int] | None] = {}
        m = self.markers
        single = {"S": m.start, "C": m.channel, "M": m.message, "K": m.constrain}
        kinds = {i: kind for kind, i in single.items() if i is not None}
        kinds |= dict.fromkeys(m.closing, "E") | dict.fromkeys(m.pad, "P")
        self._sign = np.zeros(max(kinds, default=-1) + 2, np.uint8)
        """The letter of each marker by its id, 0 for other tokens; the last entry is for those."""
        for i, kind in kinds.items():
            self._sign[i] = ord(kind)

    def __call__(self, tokens: np.ndarray, lengths: np.ndarray) -> SpanCodes:
        """Labels of prompts of such lengths, that lie one after another in `tokens`."""
        stops = np.cumsum(lengths)
        starts = stops - lengths
        pieces = self._pieces(tokens, starts, stops)
        signs = self._sign[np.minimum(tokens, len(self._sign) - 1)]
        found = list(self._messages(tokens, signs, starts, stops, pieces.texts))
        where = np.array(found, np.int64).reshape(-1, len(_Message._fields))
        sections = _Sections(where, len(tokens))
        role, channel, number = (np.append(where[:, i], -1)[sections.owner] for i in (4, 5, 6))
        inside = sections.owner >= 0
        header = sections.head & ~np.isin(signs, _OPENING)
        return SpanCodes(
            np.where(inside, role, 0).astype(np.uint8),
            np.where(inside, channel, 0).astype(np.uint8),
            np.where(sections.body, BODY, np.where(header, HEADER, MARKER)).astype(np.uint8),
            number.astype(np.int32),
            _sentences(pieces, found, sections.body, starts, lengths),
        )

    def _messages(
        self,
        tokens: np.ndarray,
        signs: np.ndarray,
        starts: np.ndarray,
        stops: np.ndarray,
        texts: Sequence[str],
    ) -> Iterator[_Message]:
        """The messages of every prompt, in order."""
        at = np.flatnonzero(signs)
        letters, firsts = signs[at].tobytes().decode("ascii"), np.searchsorted(at, starts)
        ids, marks = tokens.tolist(), at.tolist()
        prompts = zip(starts.tolist(), stops.tolist(), firsts.tolist(), strict=True)
        nexts = [*firsts[1:].tolist(), len(marks)]
        for (start, stop, a), b in zip(prompts, nexts, strict=bool(len(starts))):
            found = self._well_formed(ids, marks[a:b], letters[a:b], start, stop)
            if found is None:
                found = self._any(ids[start:stop], texts[start:stop], start)
            yield from found

    def _well_formed(
        self, ids: Sequence[int], at: Sequence[int], letters: str, start: int, stop: int
    ) -> list[_Message] | None:
        """The messages of a well-formed prompt; None where the rules of `cut` are needed."""
        if not at or at[0] != start or _WELL_FORMED.fullmatch(letters) is None:
            return None
        spots: dict[str, list[int]] = {kind: [] for kind in "SCKME"}
        for i, kind in zip(at, letters, strict=True):
            spots[kind].append(i)
        opens, closes = spots["S"], spots["E"]
        if len(closes) < len(opens):
            closes = [*closes, stop]
        elif closes[-1] != stop - 1:
            return None
        if any(close + 1 != begin for close, begin in zip(closes, opens[1:], strict=False)):
            return None
        out = []
        for number, (begin, m, close) in enumerate(zip(opens, spots["M"], closes, strict=True)):
            header = self._header(tuple(ids[begin : m + 1]))
            if header is None:
                return None
            out.append(_Message(begin, m + 1, close, min(close + 1, stop), *header, number))
        return out

    def _any(self, ids: Sequence[int], texts: Sequence[str], start: int) -> list[_Message]:
        """The messages of any prompt, by the rules of `cut`."""
        out = []
        for number, each in enumerate(cut(ids, texts, self.markers, None)):
            a, b, c, d = (start + place for place in each[:4])
            out.append(_Message(a, b, c, d, *_codes(each), number))
        return out

    def _header(self, ids: tuple[int, ...]) -> tuple[int, int] | None:
        """Role and channel by a header from <|start|> to <|message|>; None if it is none at all."""
        if ids not in self._headers:
            found = cut(ids, self.tokenizer.pieces(ids), self.markers, None)
            whole = len(found) == 1 and found[0].body_start == len(ids)
            self._headers[ids] = _codes(found[0]) if whole else None
        return self._headers[ids]


_OPENING = np.frombuffer(b"SCKM", np.uint8)
"""Markers that stand in a header."""


def _codes(found: Cut) -> tuple[int, int]:
    return role_code(found.header.role), channel_code(found.header.channel)


class _Sections:
    """Which message each token belongs to, and whether it stands before or in its body."""

    def __init__(self, where: np.ndarray, count: int):
        edges = where[:, :4].ravel()
        sizes = np.diff(edges, prepend=0, append=count)
        each = np.arange(len(where))
        outside = np.full(len(where), -1)
        owners = np.stack([outside, each, each, each], 1).ravel()
        self.owner = np.repeat(np.append(owners, -1), sizes)
        """int64, -1 outside every message"""
        part = np.repeat(np.append(np.tile([0, 1, 2, 3], len(where)), 0), sizes)
        self.head, self.body = part == 1, part == 2


def _sentences(
    pieces: Pieces,
    messages: Sequence[_Message],
    body: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
) -> np.ndarray:
    """Number each body token's sentence through its prompt, as `harmony.spans` does.

    A token belongs to the sentence of its first character that is not white space; one without
    such a character stays with the token before it.
    """
    count, ends = len(body), np.cumsum(pieces.sizes)
    ink, offsets = ends - pieces.inked, (ends - pieces.sizes).tolist()
    begins = np.zeros(count + 1, np.int32)
    places, limits = [], []
    for each in messages:
        a, b = each.body_start, each.body_stop
        if a < b:
            begins[a] = 1
            found = sentence_starts("".join(pieces.texts[a:b]))
            places += [offsets[a] + start for start in found[1:]]
            limits += [b] * (len(found) - 1)
    stays = np.append((pieces.inked == 0) & (pieces.sizes > 0), False)
    inked = np.minimum.accumulate(np.where(stays, count, np.arange(count + 1))[::-1])[::-1]
    token = inked[np.searchsorted(ink, places)]
    begins[token[token < limits]] = 1
    number = np.cumsum(begins[:count], dtype=np.int32)
    before = np.append(np.int32(0), number)[starts]
    return np.where(body, number - np.repeat(before, lengths) - 1, -1).astype(np.int32)
