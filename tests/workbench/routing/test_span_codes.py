"""Quick labels are the labels of harmony.spans, on any stream."""

from random import Random

import numpy as np
import pytest

from gptoss_workbench import harmony
from gptoss_workbench.nano import data
from gptoss_workbench.routing.record import CHANNELS, PARTS, ROLES
from gptoss_workbench.routing.span_codes import Labeller, unlabelled


def expected(ids, tokenizer):
    """What harmony.spans says, as codes; a pad token in a text counts as a marker."""
    rows = [
        (
            ROLES.index(label.role or ""),
            CHANNELS.index(label.channel if label.channel in CHANNELS else "other")
            if label.channel
            else 0,
            PARTS.index("marker" if label.part == "pad" else label.part),
            label.message,
            label.sentence,
        )
        for label in harmony.spans(ids, tokenizer)
    ]
    return np.array(rows).reshape(-1, 5).T


def same(ids, tokenizer, label):
    same_window([ids], tokenizer, label)


def same_window(prompts, tokenizer, label):
    tokens = np.array([i for ids in prompts for i in ids], np.int32)
    found = label(tokens, np.array([len(ids) for ids in prompts]))
    wanted = np.concatenate([expected(ids, tokenizer) for ids in prompts], 1)
    for name, column, row in zip(found._fields, found, wanted, strict=True):
        assert column.shape == row.shape and (column == row).all(), (name, prompts, column, row)


@pytest.fixture(scope="module")
def tokenizer(nano):
    return nano.tokenizer


def test_labels_of_samples_are_those_of_spans(tokenizer):
    label, rng = Labeller(tokenizer), Random(0)
    for _ in range(60):
        ids = tokenizer.encode(data.sample(rng).text())
        same(ids, tokenizer, label)
        same(ids[: rng.randrange(len(ids))], tokenizer, label)
        same(ids[rng.randrange(len(ids)) :], tokenizer, label)


def test_labels_of_random_streams_are_those_of_spans(tokenizer):
    label, rng = Labeller(tokenizer), Random(1)
    special = list(tokenizer.special.values())
    words = [
        *("user", "assistant", " to", "=", "functions.x", "analysis", "final", "json", "Né. ü"),
        *("One.", " Two!", "\n", "  ", " e.g.", "3.5", "漢字。", "🙂", "a " * 12, "commentary"),
    ]
    bits = [tokenizer.encode(word) for word in words]
    for _ in range(400):
        ids = []
        for _ in range(rng.randrange(14)):
            choice = rng.random()
            if choice < 0.45:
                ids.append(rng.choice(special))
            elif choice < 0.5:
                ids.append(rng.randrange(tokenizer.vocab_size))
            else:
                ids += rng.choice(bits)
        same(ids, tokenizer, label)


def test_a_well_formed_stream_with_one_marker_changed_is_still_read_alike(tokenizer):
    label, rng = Labeller(tokenizer), Random(2)
    special = list(tokenizer.special.values())
    for _ in range(60):
        ids = tokenizer.encode(data.sample(rng).text())
        spots = [i for i, token in enumerate(ids) if token in special]
        ids[rng.choice(spots)] = rng.choice(special)
        same(ids, tokenizer, label)
        ids.insert(rng.randrange(len(ids)), rng.choice(special))
        same(ids, tokenizer, label)


def test_prompts_of_a_window_are_labelled_as_each_by_itself(tokenizer):
    label, rng = Labeller(tokenizer), Random(3)
    odd = tokenizer.encode("漢字。🙂 One. Two!")
    for _ in range(10):
        prompts = [tokenizer.encode(data.sample(rng).text()) for _ in range(6)]
        prompts[1] = prompts[1][: rng.randrange(len(prompts[1]))]
        prompts[2] = prompts[2][rng.randrange(len(prompts[2])) :]
        prompts[3:3] = [[], [rng.randrange(tokenizer.vocab_size)] * 2, odd, odd[1:], []]
        same_window(prompts, tokenizer, label)


@pytest.mark.parametrize("prompts", [[[]], [[], []]])
def test_a_window_without_a_token_has_no_label(tokenizer, prompts):
    codes = Labeller(tokenizer)(np.empty(0, np.int32), np.zeros(len(prompts), np.int64))
    assert all(len(column) == 0 for column in codes)


def test_unlabelled_text_is_a_body_outside_messages():
    codes = unlabelled(3)
    assert {PARTS[code] for code in codes.part} == {"body"}
    assert set(codes.message) == set(codes.sentence) == {-1}
    assert not codes.role.any() and not codes.channel.any()
