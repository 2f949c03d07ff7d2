"""Who speaks, token by token: the voice of each token as the stream up to it tells.

A body's voice is its channel where it has one, else its role; markers and headers are "header";
what stands outside messages is "text". What comes later never changes a voice, so it is the same
for a finished text, for chunks of it, and while it is being written. On a well-formed stream the
voices are those of the labels in `spans`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gptoss_workbench.harmony.messages import CHANNELS, ROLES
from gptoss_workbench.harmony.track import MAX_WORDS, Cut, Markers, cut

if TYPE_CHECKING:
    from gptoss_workbench.tokenizer import Tokenizer

VOICES = (
    "text", "system", "developer", "user", "tool", "assistant",
    "analysis", "commentary", "final", "other", "header",
)  # fmt: skip
"""All voices."""
SETTLED = 64
"""Tokens after which a body that no header opened is no longer taken for one."""


class VoiceTracker:
    """Reads one row's tokens as they come.

    tracker = VoiceTracker(tokenizer)
    tracker.read(prompt); tracker.read([token])
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.markers = tokenizer, Markers(tokenizer)
        markers = self.markers
        self.signs = markers.opening | markers.closing | markers.pad
        self.message: list[int] = []
        """tokens since the last message began"""
        self.body: str | None = None
        """voice of a body that plain tokens only go on"""

    def read(self, tokens: Sequence[int]) -> list[str]:
        """The voice of each further token."""
        return [self._next(token) for token in tokens]

    def copy(self) -> VoiceTracker:
        """A tracker that reads on from here by itself."""
        out = VoiceTracker.__new__(VoiceTracker)
        out.__dict__ |= self.__dict__ | {"message": list(self.message)}
        return out

    def _next(self, token: int) -> str:
        self.message.append(token)
        if self.body is not None and token not in self.signs:
            return self.body
        ids = self.message
        cuts = cut(ids, self.tokenizer.pieces(ids), self.markers, None)
        last, at = (cuts[-1], len(ids) - 1) if cuts else (None, 0)
        voice = "header"
        if last is not None and last.body_start <= at < last.body_stop:
            voice = voice_of(last.header.role, last.header.channel)
            self.body = voice if self._settled(last) else None
        else:
            self.body = None
        if last is not None:
            self.message = ids[last.start :]
        return voice

    def _settled(self, found: Cut) -> bool:
        """Whether no plain token can turn the body into a header again."""
        opened = self.message[found.start : found.body_start]
        if opened and opened[-1] == self.markers.message:
            return True
        said = self.message[found.start :]
        return len(said) >= SETTLED and len(self.tokenizer.decode(said).split()) > MAX_WORDS


def voice_of(role: str | None, channel: str | None) -> str:
    """The voice of a body."""
    if channel is not None:
        return channel if channel in CHANNELS else "other"
    if role is None:
        return "text"
    return role if role in ROLES else "tool"
