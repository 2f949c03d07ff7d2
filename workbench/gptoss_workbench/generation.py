"""What a model wrote: tokens, text and messages by channel."""

import codecs
from dataclasses import dataclass, field, replace
from html import escape
from typing import NamedTuple

from torch import Tensor

from gptoss_workbench import harmony
from gptoss_workbench.harmony import Message
from gptoss_workbench.text import Batch, pad
from gptoss_workbench.tokenizer import Tokenizer


class Piece(NamedTuple):
    """One streamed token."""

    row: int
    token: int
    text: str
    """what this token adds to the row's text ("" while a character is incomplete)"""


class Texts:
    """Text each token adds to its row, holding back incomplete characters."""

    def __init__(self, tokenizer: Tokenizer | None, rows: int):
        self.tokenizer = tokenizer
        self.decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(rows)]

    def add(self, row: int, token: int) -> str:
        """The text one more token adds to a row."""
        if self.tokenizer is None:
            return ""
        return self.decoders[row].decode(self.tokenizer.token_bytes(token))


@dataclass
class Generation:
    """Prompts with what the model wrote after them.

    `text`, `messages`, `final`, `analysis` and `tool_calls` are the first row's; of a batch,
    `generation[3].final` is another's, and `[row.final for row in generation]` are all.
    """

    prompts: list[list[int]]
    completions: list[list[int]]
    """tokens the model wrote, the stop token included"""
    stopped: list[str]
    """why each row ended: the stop token's text, 'length', 'context' or 'interrupted'"""
    pad_id: int
    seed: int | None
    tokenizer: Tokenizer | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: int | slice) -> "Generation":
        """One row, or a run of rows, as a Generation."""
        if isinstance(rows, int):
            if not -len(self) <= rows < len(self):
                raise IndexError(f"Generation: expected a row of {len(self)}, got {rows}")
            rows = slice(rows % len(self), rows % len(self) + 1)
        return replace(
            self,
            prompts=self.prompts[rows],
            completions=self.completions[rows],
            stopped=self.stopped[rows],
        )

    @property
    def batch(self) -> Batch:
        """Prompts and completions, padded on the right, with their mask."""
        rows = [p + c for p, c in zip(self.prompts, self.completions, strict=True)]
        return pad(rows, self.pad_id, "right")

    @property
    def tokens(self) -> Tensor:
        """[batch, pos] prompts and completions, padded on the right."""
        return self.batch.tokens

    @property
    def mask(self) -> Tensor:
        """[batch, pos] True on real tokens."""
        return self.batch.mask

    @property
    def texts(self) -> list[str]:
        """Each completion as text, special tokens shown."""
        return [self._tokenizer.decode(row) for row in self.completions]

    @property
    def text(self) -> str:
        """The first row's completion."""
        return self.texts[0]

    @property
    def messages(self) -> list[Message]:
        """What the first row said, by channel; append to the conversation for the next turn."""
        return self.messages_of(0)

    def messages_of(self, row: int) -> list[Message]:
        """What one row said, by channel. Malformed output is kept as far as it can be read.

        A message that the prompt left open, such as a chain of thought that is continued, keeps its
        channel; its content is what was written here.
        """
        prompt, completion = self.prompts[row], self.completions[row]
        return harmony.parse(prompt + completion, self._tokenizer, prompt=len(prompt))

    def channel(self, name: str, row: int = 0) -> str:
        """All text of one channel ('analysis', 'commentary', 'final') joined."""
        return "".join(m.content for m in self.messages_of(row) if m.channel == name)

    @property
    def final(self) -> str:
        """The first row's answer: text of the final channel; "" until it has begun."""
        return self.channel("final")

    @property
    def analysis(self) -> str:
        """The first row's chain of thought: text of the analysis channel."""
        return self.channel("analysis")

    @property
    def tool_calls(self) -> list[Message]:
        """Messages of the first row that are addressed to a tool."""
        return [m for m in self.messages if m.recipient not in (None, "assistant", "all")]

    @property
    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError("this generation has tokens only: the model has no tokenizer")
        return self.tokenizer

    def __repr__(self) -> str:
        shown = self.text if self.tokenizer is not None and self.completions else self.completions
        more = f" (+{len(self.completions) - 1} rows)" if len(self.completions) > 1 else ""
        return f"Generation({shown!r}{more}, stopped by {self.stopped}{self._unanswered()})"

    def _unanswered(self) -> str:
        """What to do about rows that were cut off while they thought."""
        if self.tokenizer is None:
            return ""
        cut = [row for row, why in enumerate(self.stopped) if why in ("length", "context")]
        channels = [{m.channel for m in self.messages_of(row)} for row in cut]
        if not any(spoken - {None} and "final" not in spoken for spoken in channels):
            return ""
        return "; no final message yet: raise max_new_tokens, or go on with generate(this, ...)"

    def _repr_html_(self) -> str:
        row = self.prompts[0] + self.completions[0]
        note = escape(self._unanswered().removeprefix("; "))
        shown = harmony.spans(row, self._tokenizer)._repr_html_()
        return f"{shown}<p>{note}</p>" if note else shown
