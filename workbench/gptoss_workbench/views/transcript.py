"""The tokens of one row of a trace as a view tells them: text, message, lane, sentence.

A lane is what a token is coloured by: the channel where there is one, else the role.
Colours are Okabe and Ito's; every lane also has a letter, so colour is never the only carrier.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gptoss_workbench.harmony import TokenLabel

if TYPE_CHECKING:
    from gptoss_workbench.trace import Trace

LANES: dict[str, tuple[str, str]] = {
    "system": ("S", "#8a8f98"),
    "developer": ("D", "#CC79A7"),
    "user": ("U", "#56B4E9"),
    "analysis": ("A", "#E69F00"),
    "commentary": ("C", "#D55E00"),
    "final": ("F", "#009E73"),
    "tool": ("T", "#0072B2"),
    "assistant": ("M", "#F0E442"),
    "text": ("X", "#a9aeb6"),
}
"""Lane: its letter and its colour. `assistant` is a model's message before its channel is known,
`text` is what stands in no message."""

PLAIN = TokenLabel(None, None, None, "body", 0, -1)
"""What a token of a trace without spans is."""


class Token(NamedTuple):
    """One token that is not a pad."""

    position: int
    """Its place in the prompt."""
    id: int
    text: str
    lane: str
    role: str
    channel: str
    part: str
    message: int
    sentence: int
    """Number of the sentence in the whole stream, -1 outside of any."""


class Transcript(NamedTuple):
    """One row of a trace without its pads."""

    tokens: list[Token]
    columns: list[int]
    """Where each token stands in the trace's tensors."""
    recipients: list[str]
    """To whom each token's message is addressed, empty where it says nothing."""
    key: str
    """Equal for views of one row of one trace: by it, views on a page follow each other."""

    @property
    def positions(self) -> list[int]:
        """Places of the tokens in the prompt."""
        return [token.position for token in self.tokens]

    def counts(self) -> dict[str, int]:
        """Tokens in each lane, in the order in which the lanes appear."""
        return dict(Counter(token.lane for token in self.tokens))

    def header(self) -> dict[str, Any]:
        """Everything the drawing side needs to write the text down."""
        return {
            "trace": self.key,
            "lanes": self._lanes(),
            "messages": self._messages(),
            "tokens": {
                "position": self.positions,
                "id": [token.id for token in self.tokens],
                "text": [token.text for token in self.tokens],
                "part": [token.part for token in self.tokens],
                "sentence": [token.sentence for token in self.tokens],
            },
        }

    def _lanes(self) -> list[dict[str, Any]]:
        return [
            {"name": name, "letter": LANES[name][0], "color": LANES[name][1], "count": count}
            for name, count in self.counts().items()
        ]

    def _messages(self) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        for i, token in enumerate(self.tokens):
            if not out or out[-1]["message"] != token.message:
                shown = {"lane": token.lane, "role": token.role, "channel": token.channel}
                shown["recipient"] = self.recipients[i]
                out.append({"message": token.message, "start": i, "stop": i + 1} | shown)
            out[-1]["stop"] = i + 1
        return out


def transcript(trace: Trace, row: int = 0) -> Transcript:
    """Read one row of a trace, pads left out."""
    require(trace, ("tokens", "mask", "places", "spans"), "a Trace, as model.trace(...) gives")
    rows = len(trace.tokens)
    if not -rows <= row < rows:
        raise ValueError(f"views: the trace has rows 0 to {rows - 1}; got row={row}")
    kept = trace.mask[row].nonzero().flatten().tolist()
    if not kept:
        raise ValueError(f"views: row {row} of the trace holds pads only")
    ids = trace.tokens[row].tolist()
    strings = [f"[{id}]" for id in ids] if trace.strings is None else trace.strings[row]
    labels = [PLAIN] * len(ids) if trace.spans is None else trace.spans[row].labels
    tokens = [_token(trace.places[i], ids[i], strings[i], labels[i]) for i in kept]
    facts = [row, [t[:3] for t in tokens], sorted(map(str, trace.provenance.items()))]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    return Transcript(tokens, kept, [labels[i].recipient or "" for i in kept], key)


def require(given: object, fields: Sequence[str], told: str) -> None:
    """Raise a TypeError for what lacks the fields that a view reads."""
    if not all(hasattr(given, name) for name in fields):
        raise TypeError(f"views: expected {told}; got {type(given).__name__}")


def lane(role: str | None, channel: str | None) -> str:
    """Name the lane of a token: its channel for the model's own messages, else its role."""
    if role is None or role in ("system", "developer", "user"):
        return role or "text"
    if role != "assistant":
        return "tool"
    return channel if channel in LANES else "assistant"


def visible(text: str) -> str:
    """Write spaces, line ends and tabs as signs one can see."""
    return text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")


def _token(position: int, id: int, text: str, label: TokenLabel) -> Token:
    role, channel = label.role or "", label.channel or ""
    named = lane(label.role, label.channel)
    place = (label.part, label.message, label.sentence)
    return Token(position, id, text, named, role, channel, *place)
