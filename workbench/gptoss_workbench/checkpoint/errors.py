"""What goes wrong with a checkpoint, as one message that says what to do."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 5


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file, what was expected and the remedy."""


class NotEnoughMemory(CheckpointError, MemoryError):
    """The model would not fit; the message carries the estimate."""


def one_message(heading: str, problems: Sequence[str]) -> str:
    """All problems as one text, the first few of them named."""
    lines = [f"  - {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  - and {len(problems) - SHOWN} more")
    return "\n".join([heading, *lines])
