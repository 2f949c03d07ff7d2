"""Cut a token stream into harmony messages, whatever the model wrote.

On well-formed streams the messages are those of openai-harmony's StreamableParser. Where that
parser raises or loses text, the choice here is:

- text without a header in front (refusals do this) is a body without a channel;
- a header that never reaches <|message|> ends behind what looks like a header; the rest is body
  (but one more word at the very end of a stream counts as a header being written);
- <|start|> closes an open message, and so does a <|channel|> that <|message|> follows shortly;
- <|end|> or <|return|> between messages belongs to the message before it;
- a bare word behind the channel ("commentary json") is the content type; the parser of 0.0.8 takes
  it for the recipient where no recipient is named;
- <|endoftext|> and <|startoftext|> are padding wherever they stand and close what is open;
- a role is never refused: an unknown one is a tool's name.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from gptoss_workbench.harmony.messages import CHANNELS, ROLES
from gptoss_workbench.harmony.render import CONSTRAIN

if TYPE_CHECKING:
    from gptoss_workbench.tokenizer import Tokenizer

REACH = 32
"""Tokens within which <|message|> must follow a <|channel|> that opens a message unannounced."""

MAX_WORDS = 8
"""Most words a header may have; text longer than that before <|message|> is no header."""

_CHANNEL_SIGN, _CONSTRAIN_SIGN = "\x00", "\x01"
_INK = r"[^\s\x00\x01]"
_ROLE = rf"(?:{'|'.join(ROLES)})(?::{_INK}+)?(?!{_INK})|[\w-]+\.[\w.-]+(?!{_INK})"
_TO = rf"\s*to={_INK}+"
_CHANNEL = rf"\s*\x00\s*(?:{'|'.join(CHANNELS)}|{_INK}*)"
_HEADER = re.compile(rf"\s*(?:{_ROLE})?(?:{_TO})?(?:{_CHANNEL})?(?:{_TO})?(?:\s*\x01\s*{_INK}*)?")
"""What looks like a header, in text that never reaches <|message|>."""
_UNFINISHED = re.compile(rf"{_HEADER.pattern}(?:\s+\w*|\s*to?=?)\Z")
"""A header at the end of a stream, its last word still being written."""


class Header(NamedTuple):
    """What a message's header says."""

    role: str | None
    name: str | None
    channel: str | None
    recipient: str | None
    content_type: str | None


class Cut(NamedTuple):
    """Where one message lies in the stream; all places are token indices."""

    start: int
    body_start: int
    body_stop: int
    stop: int
    header: Header
    complete: bool
    """Whether <|end|>, <|return|> or <|call|> closes it."""


class Markers:
    """The ids of a tokenizer's control tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        known = tokenizer.special.get
        self.start, self.channel = known("<|start|>"), known("<|channel|>")
        self.message, self.constrain = known("<|message|>"), known(CONSTRAIN)
        self.closing = _present(known("<|end|>"), known("<|return|>"), known("<|call|>"))
        self.pad = _present(known("<|endoftext|>"), known("<|startoftext|>"))
        self.opening = _present(self.start, self.channel, self.message, self.constrain)
        self.breaking = self.closing | self.pad | _present(self.start)


def _present(*ids: int | None) -> frozenset[int]:
    return frozenset(i for i in ids if i is not None)


def cut(
    ids: Sequence[int], pieces: Sequence[str], markers: Markers, start_role: str | None
) -> list[Cut]:
    """Find the messages in order; tokens outside all of them are padding or stray markers."""
    out: list[Cut] = []
    at = 0
    while at < len(ids):
        if ids[at] in markers.closing:
            if out and out[-1].stop == at:
                out[-1] = out[-1]._replace(stop=at + 1)
            at += 1
        elif ids[at] in markers.pad:
            at += 1
        else:
            out.append(_message(ids, pieces, markers, at, start_role))
            at = out[-1].stop
    return out


def _message(
    ids: Sequence[int], pieces: Sequence[str], markers: Markers, at: int, default: str | None
) -> Cut:
    started = ids[at] == markers.start
    first = at + started
    end = _scan(ids, first, markers.breaking | _present(markers.message))
    text, places = _header_text(ids, pieces, markers, first, end)
    reached = end < len(ids) and ids[end] == markers.message and len(text.split()) <= MAX_WORDS
    if not started and not _is_header(text, reached=reached, ended=end == len(ids)):
        body_start, text = at, ""
    elif reached:
        body_start = end + 1
    else:
        length = _header_length(text, ended=end == len(ids))
        body_start = first + bisect_left(places, length)
        text = text[:length]
    body_stop = _body_stop(ids, markers, body_start)
    closed = body_stop < len(ids) and ids[body_stop] in markers.closing
    header = read_header(text, started=started, default=default)
    return Cut(at, body_start, body_stop, body_stop + closed, header, closed)


def _header_length(text: str, *, ended: bool) -> int:
    """Tell how much of text that never reaches <|message|> is header."""
    if ended and _UNFINISHED.match(text):
        return len(text)
    found = _HEADER.match(text)
    return found.end() if found else 0


def _scan(ids: Sequence[int], at: int, until: frozenset[int]) -> int:
    while at < len(ids) and ids[at] not in until:
        at += 1
    return at


def _body_stop(ids: Sequence[int], markers: Markers, at: int) -> int:
    """Find the end of a body: a breaking marker, or a <|channel|> that opens a message."""
    ends = markers.breaking | _present(markers.channel)
    while True:
        at = _scan(ids, at, ends)
        if at == len(ids) or ids[at] != markers.channel or _opens(ids, markers, at):
            return at
        at += 1


def _opens(ids: Sequence[int], markers: Markers, at: int) -> bool:
    ends = markers.breaking | _present(markers.channel, markers.message)
    end = _scan(ids[at + 1 : at + 1 + REACH], 0, ends) + at + 1
    return end < len(ids) and end <= at + REACH and ids[end] == markers.message


def _header_text(
    ids: Sequence[int], pieces: Sequence[str], markers: Markers, first: int, end: int
) -> tuple[str, list[int]]:
    """Join a header's text, its markers as single signs, with the offset of each token."""
    signs = {markers.channel: _CHANNEL_SIGN, markers.constrain: _CONSTRAIN_SIGN}
    texts = [
        signs.get(ids[i]) or pieces[i].replace(_CHANNEL_SIGN, " ").replace(_CONSTRAIN_SIGN, " ")
        for i in range(first, end)
    ]
    return "".join(texts), list(accumulate(map(len, texts), initial=0))


def _is_header(text: str, *, reached: bool, ended: bool) -> bool:
    """Tell whether text not announced by <|start|> begins a header rather than a body."""
    words = text.replace(_CHANNEL_SIGN, " \x00").replace(_CONSTRAIN_SIGN, " \x01").split()
    if not words:
        return reached
    first = words[0]
    announced = (
        first[0] in "\x00\x01" or first.startswith("to=") or first.partition(":")[0] in ROLES
    )
    return announced or (ended and len(words) == 1 and first in ("to", "t"))


def read_header(text: str, *, started: bool, default: str | None) -> Header:
    """Read a header's text in which the two markers are single signs."""
    before, _, behind = text.partition(_CHANNEL_SIGN)
    words, channel_words = _words(before), _words(behind)
    role, name = default, None
    if words and not words[0].startswith(("to=", CONSTRAIN)):
        first, _, after = words[0].partition(":")
        if first in ROLES:
            role, name = first, after or None
            words.pop(0)
        elif started:
            role, name = "tool", words.pop(0)
    channel = None
    if channel_words and not channel_words[0].startswith(("to=", CONSTRAIN)):
        channel = channel_words.pop(0)
    named = [word[3:] for word in words + channel_words if word.startswith("to=")]
    bare = [word for word in words if not word.startswith(("to=", CONSTRAIN))]
    recipient = next((word for word in named + bare if word), None)
    kinds = [w for w in words + channel_words if not w.startswith("to=") and w not in bare]
    return Header(role, name, channel, recipient, kinds[-1] if kinds else None)


def _words(text: str) -> list[str]:
    """Split at white space; <|constrain|> begins a word and takes the next one in."""
    signed = re.sub(r"\s*\x01\s*", f" {_CONSTRAIN_SIGN}", text.replace(_CHANNEL_SIGN, " "))
    return [word.replace(_CONSTRAIN_SIGN, CONSTRAIN) for word in signed.split()]
