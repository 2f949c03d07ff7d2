"""Windows and batches depend on lengths only, cover everything once, and keep their bounds."""

import numpy as np
import pytest

from gptoss_workbench.routing.buckets import Window, batches, padded, windows
from gptoss_workbench.routing.prompts import Prompt


def prompts(lengths):
    return [
        Prompt(np.arange(n, dtype=np.int32) + 10 * i, None, False) for i, n in enumerate(lengths)
    ]


@pytest.mark.parametrize("most", [1, 7, 30, 1000])
def test_windows_hold_neighbours_and_at_most_so_many_tokens(most):
    lengths = np.random.default_rng(0).integers(0, 12, 50)
    cut = list(windows(iter(prompts(lengths)), most))
    assert np.concatenate([w.lengths for w in cut]).tolist() == lengths.tolist()
    assert [w.first for w in cut] == np.cumsum([0, *(len(w.prompts) for w in cut)])[:-1].tolist()
    for window in cut:
        assert window.lengths.sum() <= most or len(window.prompts) == 1


def test_windows_read_no_further_than_they_must():
    read = []

    def stream():
        for prompt in prompts([5] * 10):
            read.append(prompt)
            yield prompt

    next(windows(stream(), 10))
    assert len(read) == 3


def test_batches_hold_each_prompt_once_within_the_bound():
    lengths = np.array([3, 0, 9, 4, 40, 1, 9])
    found = batches(lengths, 18)
    assert sorted(np.concatenate(found).tolist()) == [0, 2, 3, 4, 5, 6]
    for rows in found:
        assert len(rows) == 1 or len(rows) * lengths[rows].max() <= 18


def test_padded_batches_put_every_token_at_its_place():
    window = Window(7, prompts([3, 1, 5]))
    batch = padded(window, np.array([0, 2]), 99)
    assert batch.tokens.tolist() == [[0, 1, 2, 99, 99], [20, 21, 22, 23, 24]]
    assert (window.tokens[batch.places] == batch.tokens[batch.mask]).all()


def test_a_window_is_known_by_tokens_lengths_labels_and_cuts():
    one = Window(0, prompts([3, 2])).sha256
    assert Window(0, prompts([3, 2])).sha256 == one
    joined = [Prompt(np.concatenate([p.tokens for p in prompts([3, 2])]), None, False)]
    others = [
        prompts([2, 3]),
        joined,
        [p._replace(label="de") for p in prompts([3, 2])],
        [p._replace(cut=True) for p in prompts([3, 2])],
    ]
    assert all(Window(0, each).sha256 != one for each in others)
