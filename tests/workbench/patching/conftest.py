"""What the patching tests share: nano in float32, and a prompt with one changed value."""

from random import Random

import pytest
import torch

import gptoss_workbench as wb
from gptoss_workbench.nano import WORDS, sample
from gptoss_workbench.nano.render import ANALYSIS
from gptoss_workbench.patching import logit_difference


@pytest.fixture(scope="module")
def nano32():
    return wb.load(dtype=torch.float32)


@pytest.fixture(scope="module")
def corrupted_definition(nano32):
    """A program cut where the first definition's value is stated; its digit is what differs.

    Gives both prompts, the metric, the digit's place and those of a distractor's sentence.
    """
    rng = Random(0)
    while True:
        s = sample(rng, task="vars", lang="en", effort="medium", n=3)
        if s.developer is None and [d.computed for d in s.defs] == [False, False, True]:
            break
    first, second = s.defs[:2]
    value, other = int(first.left), (int(first.left) + 4) % 10
    start = f"{s.prompt_text()}{ANALYSIS}{WORDS['en'].steps} {first.name} is"
    changed = start.replace(f" {first.name} is {value}.", f" {first.name} is {other}.", 1)
    clean, corrupted = (nano32.to_tokens(text) for text in (start, changed))
    place = int((clean != corrupted)[0].nonzero())
    strings = nano32.to_str_tokens(clean)
    at = next(i for i in range(place + 1, len(strings)) if strings[i] == f" {second.name}")
    right, wrong = (nano32.to_single_token(f" {v}") for v in (value, other))
    return clean, corrupted, logit_difference(right, wrong), place, range(at, at + 4)
