"""Cut text into sentences: simple, deterministic, the same for every language.

A sentence ends behind
- `.`, `!`, `?` or `…` (closing quotes, brackets and asterisks included) before white space or the
  end of the text,
- `。`, `！`, `？` or `｡`, whatever follows,
- a newline.

It does not end inside numbers ("3.5") or behind a common abbreviation ("e.g.", "Dr.", "U.S."), and
a list's number ("2. ", "(b) ") stays with its item. White space belongs to the sentence before it,
at the very start to the first one. A single capital is no abbreviation: "The answer is B. So" ends.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_CLOSING = r"[\"'”’»)\]}*_`」』）]*"
_END = re.compile(rf"(?:[.!?…]+{_CLOSING}(?=\s|\Z)|[。！？｡]+{_CLOSING}|\n)(?=(\s*))")
"""An end, and as its group the white space behind it."""
_NUMBER = re.compile(r"\s*[(\[*_#>-]*\s*(?:\d{1,3}|[A-Za-z]|[ivx]+)[.)]+[*_]*\Z")
_DOTTED = re.compile(r"(?:\A|[^\w.])(?:\w\.){2,}\Z")
_LAST_WORD = re.compile(r"([^\W\d_]+)\.\Z")
LOOK_BACK = 24
"""Characters before a full stop that tell whether it ends a sentence."""

# fmt: off
ABBREVIATIONS = frozenset((
    "al", "approx", "bzw", "ca", "cf", "dr", "eq", "eqs", "etc", "fig", "figs", "inc", "jr", "ltd",
    "mr", "mrs", "ms", "nr", "prof", "resp", "sr", "st", "vs",
))
# fmt: on


def sentences(text: str) -> list[str]:
    """Cut text into its sentences; joined, they are the text."""
    starts = sentence_starts(text)
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=bool(text))]


def sentence_starts(text: str) -> list[int]:
    """Give the offset at which each sentence begins; the first is 0, empty text has none."""
    starts = [0] if text else []
    for end in _END.finditer(text, len(text) - len(text.lstrip())):
        begins = end.end(1)
        if starts[-1] < begins < len(text):
            said = text[max(starts[-1], end.end() - LOOK_BACK) : end.end()]
            if end.group() == "\n" or _ends(said):
                starts.append(begins)
    return starts


def sentence_of_pieces(pieces: Sequence[str]) -> list[int]:
    """Number each token's sentence, given the text that each token adds.

    A token belongs to the sentence of its first character that is not white space. Sentences that
    own no token, being parts of one, are not counted.
    """
    ends = iter([*sentence_starts("".join(pieces))[1:], float("inf")])
    end, at, number, fresh = next(ends), 0, -1, True
    out = []
    for piece in pieces:
        ink = at if piece[:1].strip() else at + len(piece) - len(piece.lstrip())
        at += len(piece)
        while ink >= end and (ink < at or not piece):
            end, fresh = next(ends), True
        number, fresh = number + fresh, False
        out.append(number)
    return out


def _ends(said: str) -> bool:
    """Tell whether a sentence may end here: not behind an abbreviation or a list's number."""
    if _NUMBER.match(said):
        return False
    if not said.endswith("."):
        return True
    if said.count(".") > 1 and _DOTTED.search(said):
        return False
    word = _LAST_WORD.search(said)
    return word is None or word.group(1).lower() not in ABBREVIATIONS
