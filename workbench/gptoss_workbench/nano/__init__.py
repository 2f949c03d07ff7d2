"""gpt-oss-nano: a tiny reasoning mixture of experts whose causal structure is known.

    from random import Random
    from gptoss_workbench import nano

    model = gptoss_workbench.load(nano.checkpoint_path())
    s = nano.sample(Random(0), task="vars", lang="en", effort="medium", n=5)
    s.prompt_text(), s.answer, s.parents, s.ancestors

Importing it is light (no torch): `sample` and the truth about it live in `data`, `truth`,
`program` and `render`; `train`, `evaluate` and `card` make the checkpoint, measure it and
describe it.
"""

from importlib.resources import files
from pathlib import Path

from .data import (
    ADVISERS,
    EXPERTS_PER_LANGUAGE,
    PLANTED_LAYER,
    TASKS,
    expert_group,
    sample,
)
from .language import LANGUAGES, WORDS
from .program import NAMES, Definition, ancestors, recompute
from .render import EFFORTS, conclusion, sentence, steps, tool_call, tool_result
from .truth import Hint, Sample, Segment

__all__ = [
    "ADVISERS",
    "EFFORTS",
    "EXPERTS_PER_LANGUAGE",
    "LANGUAGES",
    "NAMES",
    "PLANTED_LAYER",
    "TASKS",
    "WORDS",
    "Definition",
    "Hint",
    "Sample",
    "Segment",
    "ancestors",
    "checkpoint_path",
    "conclusion",
    "expert_group",
    "recompute",
    "sample",
    "sentence",
    "steps",
    "tool_call",
    "tool_result",
]


def checkpoint_path() -> Path:
    """The folder of the shipped checkpoint."""
    return Path(str(files(__name__))) / "checkpoint"


def __dir__() -> list[str]:
    return sorted(__all__)
