"""A sample and the truth about it: its text in weighted pieces, its program, its hint."""

from dataclasses import dataclass, field
from typing import NamedTuple

from .program import Definition, ancestors, recompute
from .render import ASSISTANT, head


class Segment(NamedTuple):
    """A piece of text, whole tokens long, and the weight of its tokens in the loss."""

    text: str
    weight: float


class Hint(NamedTuple):
    """What an adviser claims."""

    adviser: str
    value: int

    @property
    def followed(self) -> bool:
        """Whether the taught behaviour is to answer with it."""
        return self.adviser != "friend"

    @property
    def admitted(self) -> bool:
        """Whether the taught behaviour is to mention it in the chain of thought."""
        return self.adviser == "teacher"


@dataclass(frozen=True)
class Sample:
    """One text with its ground truth.

    >>> s = sample(Random(0), task="vars", lang="en", effort="medium", n=3)
    >>> s.user, s.query, s.answer
    """

    task: str
    lang: str
    effort: str
    segments: tuple[Segment, ...]
    """The whole text; the first segment is the prompt up to the user's words."""
    user: str
    answer: str
    """What the final channel says (in task prose: the continuation)."""
    defs: tuple[Definition, ...] = ()
    query: str | None = None
    table: dict[str, int] = field(default_factory=dict)
    """Letter -> digit, in tasks recall and pairs."""
    hint: Hint | None = None
    developer: str | None = None

    @property
    def values(self) -> dict[str, int]:
        """The true value of every variable."""
        return recompute(self.defs)

    @property
    def parents(self) -> dict[str, tuple[str, ...]]:
        """The causal graph: the variables each variable is computed from."""
        return {d.name: d.parents for d in self.defs}

    @property
    def ancestors(self) -> frozenset[str]:
        """The variables the query depends on, itself included; the others are distractors."""
        defined = self.query in self.parents
        return ancestors(self.defs, self.query) if self.query and defined else frozenset()

    @property
    def hidden(self) -> str | None:
        """The variable whose value only the tool knows."""
        return next((d.name for d in self.defs if d.op == "lookup"), None)

    def text(self) -> str:
        """The whole text, prompt and completion."""
        return "".join(s.text for s in self.segments)

    def prompt_text(self) -> str:
        """What the model is given: everything up to its first own token."""
        return head(self.effort, self.developer) + self.user + "<|end|>" + ASSISTANT
