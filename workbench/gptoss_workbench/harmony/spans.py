"""Tokens know their role, channel, message and sentence.

    spans = harmony.spans(ids, tokenizer)
    spans.mask(channel="analysis", part="body")     # numpy bool, one entry a token
    spans.sentences[3], spans.text(spans.sentences[3])

Header tokens and markers carry the role and channel of the message they belong to, `part` tells
them from its body. Reading never raises, whatever the model wrote (rules in `track`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, cast, overload

import numpy as np

from gptoss_workbench.harmony import show
from gptoss_workbench.harmony.messages import CHANNELS, ROLES
from gptoss_workbench.harmony.sentences import sentence_of_pieces
from gptoss_workbench.harmony.track import Cut, Markers, cut
from gptoss_workbench.tokenizer import Ids, Tokenizer, as_ids

if TYPE_CHECKING:
    import pandas

PARTS = ("marker", "header", "body", "pad")


class TokenLabel(NamedTuple):
    """What one token is."""

    role: str | None
    """Role of its message; None outside messages and where no header names one."""
    channel: str | None
    """Channel of its message, header and markers included."""
    recipient: str | None
    """Recipient of its message."""
    part: str
    """One of PARTS."""
    message: int
    """Number of its message, -1 for padding and stray markers."""
    sentence: int
    """Number of its sentence, counted through the whole stream; -1 outside bodies."""


_PAD = TokenLabel(None, None, None, "pad", -1, -1)
_STRAY = _PAD._replace(part="marker")


@dataclass(frozen=True)
class MessageSpan:
    """One message; places are token indices, stops exclusive."""

    index: int
    role: str | None
    channel: str | None
    recipient: str | None
    start: int
    stop: int
    body_start: int
    body_stop: int
    complete: bool
    """Whether <|end|>, <|return|> or <|call|> closes it."""
    name: str | None = None
    """A tool's full name, or an author's."""
    content_type: str | None = None
    """As in the header, "<|constrain|>json" say."""


@dataclass(frozen=True)
class SentenceSpan:
    """One sentence of a message's body; places are token indices, stop exclusive."""

    index: int
    message: int
    channel: str | None
    start: int
    stop: int


@dataclass(frozen=True, repr=False)
class Spans:
    """A token stream with a label on every token."""

    labels: tuple[TokenLabel, ...]
    """One row a token."""
    pieces: tuple[str, ...]
    """The text each token adds: a character cut over tokens stands on the last of them."""
    messages: tuple[MessageSpan, ...]
    """The messages in order; in a slice those that it touches, cut to it, numbers kept."""
    sentences: tuple[SentenceSpan, ...]
    """The sentences in order."""

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[TokenLabel]:
        return iter(self.labels)

    @overload
    def __getitem__(self, at: int) -> TokenLabel: ...
    @overload
    def __getitem__(self, at: slice) -> Spans: ...
    def __getitem__(self, at: int | slice) -> TokenLabel | Spans:
        if not isinstance(at, slice):
            return self.labels[at]
        a, b, step = at.indices(len(self))
        if step != 1:
            raise ValueError(f"Spans: expected a slice of neighbouring tokens, got step {step}")
        b = max(a, b)
        sentences = [
            replace(s, start=max(s.start, a) - a, stop=min(s.stop, b) - a)
            for s in self.sentences
            if s.start < b and s.stop > a
        ]
        messages = [_clipped(m, a, b) for m in self.messages if m.start < b and m.stop > a]
        return Spans(self.labels[a:b], self.pieces[a:b], tuple(messages), tuple(sentences))

    def text(self, span: MessageSpan | SentenceSpan | None = None) -> str:
        """Give the text of a sentence, of a message's body, or of everything."""
        if isinstance(span, MessageSpan):
            return "".join(self.pieces[span.body_start : span.body_stop])
        return "".join(self.pieces if span is None else self.pieces[span.start : span.stop])

    def mask(
        self,
        *,
        role: str | Sequence[str | None] | None = None,
        channel: str | Sequence[str | None] | None = None,
        part: str | Sequence[str] | None = None,
        message: int | Sequence[int] | None = None,
        sentence: int | Sequence[int] | None = None,
    ) -> np.ndarray:
        """Select the tokens that answer to every argument given.

            spans.mask(role="assistant", channel=("analysis", "final"), part="body")

        Each argument is a value or a tuple of values; None asks for nothing, so tokens without a
        channel are channel=(None,). A role or channel of harmony's that no message has selects
        nothing; any other name that is not here raises.
        """
        if part is not None and not set(_several(part)) <= set(PARTS):
            raise ValueError(f"Spans.mask: expected part among {PARTS}, got {part!r}")
        out = np.ones(len(self), dtype=bool)
        asked = {"role": role, "channel": channel, "part": part}
        for field, value in {**asked, "message": message, "sentence": sentence}.items():
            if value is not None:
                wanted = set(_several(value))
                self._check(field, wanted)
                found = (getattr(label, field) in wanted for label in self.labels)
                out &= np.fromiter(found, dtype=bool, count=len(self))
        return out

    def _check(self, field: str, wanted: set[Any]) -> None:
        """Refuse roles and channels that are neither harmony's nor in these messages."""
        known = {"role": ROLES, "channel": CHANNELS}.get(field)
        if known is None:
            return
        here = {getattr(label, field) for label in self.labels} - {None}
        if unknown := wanted - {None} - here - set(known):
            there = ", ".join(sorted(map(str, here))) or "none"
            named = ", ".join(sorted(map(repr, unknown)))
            raise ValueError(
                f"Spans.mask: no {field} {named}; here are {there}, "
                f"and harmony knows {', '.join(known)}"
            )

    def to_pandas(self) -> pandas.DataFrame:
        """Give one row a token, with its text in front."""
        import pandas

        table = pandas.DataFrame(list(self.labels), columns=list(TokenLabel._fields))
        table.insert(0, "piece", list(self.pieces))
        return table

    def to_json(self) -> dict[str, list[Any]]:
        """Give plain lists, fit for `json.dumps`; `from_json` reads them."""
        return {
            "labels": [list(label) for label in self.labels],
            "pieces": list(self.pieces),
            "messages": [list(astuple(message)) for message in self.messages],
            "sentences": [list(astuple(sentence)) for sentence in self.sentences],
        }

    @classmethod
    def from_json(cls, saved: dict[str, list[Any]]) -> Spans:
        """Read what `to_json` gave."""
        wanted = ("labels", "pieces", "messages", "sentences")
        if not isinstance(saved, dict) or not all(key in saved for key in wanted):
            got = sorted(saved) if isinstance(saved, dict) else type(saved).__name__
            raise ValueError(f"Spans.from_json: expected a dict with {wanted}, got {got}")
        return cls(
            tuple(TokenLabel(*row) for row in saved["labels"]),
            tuple(saved["pieces"]),
            tuple(MessageSpan(*row) for row in saved["messages"]),
            tuple(SentenceSpan(*row) for row in saved["sentences"]),
        )

    def __repr__(self) -> str:
        head = f"Spans({len(self)} tokens, {len(self.messages)} messages, "
        lines = [show.summary(m, self.text(m)) for m in self.messages[:12]]
        if len(self.messages) > 12:
            lines.append(f"… and {len(self.messages) - 12} more")
        return "\n  ".join([f"{head}{len(self.sentences)} sentences)", *lines])

    def _repr_html_(self) -> str:
        return show.html(self.labels, self.pieces)


def spans(tokens: Ids, tokenizer: Tokenizer, *, start_role: str | None = None) -> Spans:
    """Label every token of a stream; never raises on what it contains.

    start_role="assistant" is for a bare completion, which begins behind <|start|>assistant. It is
    the role of every message whose header names none.
    """
    ids = as_ids(tokens)
    pieces, markers = tokenizer.pieces(ids), Markers(tokenizer)
    labels = [_PAD if i in markers.pad else _STRAY for i in ids]
    sentences: list[SentenceSpan] = []
    cuts = cut(ids, pieces, markers, start_role)
    for index, found in enumerate(cuts):
        first = len(sentences)
        sentences += _sentences(found, index, first, pieces)
        labels[found.start : found.stop] = _labels(found, index, sentences[first:], ids, markers)
    messages = [_message_span(index, found) for index, found in enumerate(cuts)]
    return Spans(tuple(labels), tuple(pieces), tuple(messages), tuple(sentences))


def _sentences(found: Cut, index: int, first: int, pieces: Sequence[str]) -> list[SentenceSpan]:
    """Cut a message's body into sentences, numbered from `first`."""
    at, out = found.body_start, []
    for number, group in groupby(sentence_of_pieces(pieces[at : found.body_stop])):
        stop = at + len(list(group))
        out.append(SentenceSpan(first + number, index, found.header.channel, at, stop))
        at = stop
    return out


def _labels(
    found: Cut,
    index: int,
    sentences: Sequence[SentenceSpan],
    ids: Sequence[int],
    markers: Markers,
) -> list[TokenLabel]:
    """Label a message's tokens; alike tokens share one label."""
    role, _, channel, recipient, _ = found.header
    marker = TokenLabel(role, channel, recipient, "marker", index, -1)
    header = marker._replace(part="header")
    out = [marker if i in markers.opening else header for i in ids[found.start : found.body_start]]
    for s in sentences:
        out += [marker._replace(part="body", sentence=s.index)] * (s.stop - s.start)
    return out + [marker] * (found.stop - found.body_stop)


def _message_span(index: int, found: Cut) -> MessageSpan:
    role, name, channel, recipient, content_type = found.header
    places = (found.start, found.stop, found.body_start, found.body_stop, found.complete)
    return MessageSpan(index, role, channel, recipient, *places, name, content_type)


def _clipped(span: MessageSpan, a: int, b: int) -> MessageSpan:
    start, stop, body_start, body_stop = (
        min(max(place, a), b) - a
        for place in (span.start, span.stop, span.body_start, span.body_stop)
    )
    whole = span.complete and span.stop <= b
    return replace(
        span, start=start, stop=stop, body_start=body_start, body_stop=body_stop, complete=whole
    )


def _several(value: object) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        return (value,)
    return tuple(cast("Iterable[Any]", value))
