"""Several prompts at once: places mean the same token of each, and are told where all have it."""

import numpy as np
import pytest
import torch

from gptoss_workbench.patching import (
    activation_patching,
    attribution_patching,
    logit_difference,
    path_patching,
)
from gptoss_workbench.patching.nodes import ALL

CLEAN = ["Given E is 7. Find E?", "Given E is 7. B is 1. Find E?"]
CORRUPTED = ["Given E is 3. Find E?", "Given E is 3. B is 1. Find E?"]
METRIC = logit_difference(" 7", " 3")


@pytest.fixture(scope="module")
def swept(nano32):
    """The stream of layer 0 at the ends of prompts of 8 and of 12 tokens."""
    return activation_patching(
        nano32, CLEAN, CORRUPTED, metric=METRIC, sites="resid_pre", layers=[0],
        positions=range(-8, 0),
    )  # fmt: skip


def test_places_of_prompts_of_different_length_count_from_their_end(nano32, swept):
    assert swept.cells.pos.tolist() == list(range(-8, 0))
    for i, pair in enumerate(zip(CLEAN, CORRUPTED, strict=True)):
        alone = activation_patching(
            nano32, *pair, metric=METRIC, sites="resid_pre", layers=[0], positions=range(-8, 0)
        )
        np.testing.assert_allclose(swept.value[:, i], alone.value[:, 0], atol=1e-4)
    words = swept.table()["clean token"].tolist()
    ends = [nano32.to_str_tokens(text)[-8:] for text in CLEAN]
    assert words == [a if a == b else "" for a, b in zip(*ends, strict=True)] and "" in words
    own = swept.table(per_example=True)
    assert own["clean token"].tolist() == [w for pair in zip(*ends, strict=True) for w in pair]
    assert "8 to 12 tokens; positions count from their end" in repr(swept.table())


@pytest.mark.parametrize("positions", [None, [3], [-9], [(3, 3)], [(-1, 3)]])
@pytest.mark.parametrize("method", [activation_patching, attribution_patching, path_patching])
def test_places_that_mean_other_tokens_in_each_prompt_are_refused(nano32, method, positions):
    more = {"receivers": "final"} if method is path_patching else {"sites": "resid_pre"}
    with pytest.raises(ValueError, match=r"8 to 12 tokens.*-8 to -1.*positions='all'"):
        method(nano32, CLEAN, CORRUPTED, metric=METRIC, positions=positions, **more)


def test_all_places_and_cells_of_a_sweep_can_be_swept_again(nano32, swept):
    options = {"metric": METRIC, "sites": "resid_pre", "layers": [0]}
    every = activation_patching(nano32, CLEAN, CORRUPTED, positions="all", **options)
    np.testing.assert_allclose(every.effects, 1, atol=1e-3)
    assert every.table()["pos"].tolist() == ["all"] and len(every.where(pos="all")) == 1
    assert every.cells.pos.tolist() == [ALL] and "pos all" in every.cells.describe(0)
    best = swept.top(2)
    again = activation_patching(nano32, CLEAN, CORRUPTED, metric=METRIC, cells=best.cells)
    np.testing.assert_allclose(again.value, best.value, atol=1e-4)
    one = activation_patching(nano32, CLEAN[0], CORRUPTED[0], **options)
    with pytest.raises(ValueError, match="Count from their end"):
        activation_patching(nano32, CLEAN, CORRUPTED, metric=METRIC, cells=one.cells)
    with pytest.raises(ValueError, match="positions are -8 to 7; got 0 to 11"):
        long = activation_patching(nano32, CLEAN[1], CORRUPTED[1], **options)
        activation_patching(nano32, CLEAN[0], CORRUPTED[0], metric=METRIC, cells=long.cells)


def test_a_last_place_is_no_place_of_all(nano32, swept):
    last = swept.where(pos=-1)
    assert len(last) == 1 and last.table()["pos"].tolist() == [-1]
    assert swept.grid().labels["pos"].tolist() == list(range(-8, 0))


def test_a_token_is_told_where_prompts_of_one_length_agree(nano32):
    clean, corrupted = ["Given E is 7. Find E?", "Given B is 7. Find B?"], CORRUPTED[0]
    found = activation_patching(
        nano32, clean, [corrupted, corrupted.replace("E", "B")], metric=METRIC,
        sites="resid_pre", layers=[0],
    )  # fmt: skip
    strings = [nano32.to_str_tokens(text) for text in clean]
    wanted = [a if a == b else "" for a, b in zip(*strings, strict=True)]
    assert found.table()["clean token"].tolist() == wanted and " 7" in wanted and "" in wanted
    assert "means over 2 prompts of one length" in repr(found.table())


def test_a_noising_path_takes_its_sender_from_the_corrupted_place(nano32):
    """With a pair of places, each run is written at its own."""
    clean, corrupted = (nano32.to_tokens(each[0]) for each in (CLEAN, CORRUPTED))
    options = {"metric": METRIC, "receivers": "final", "layers": [1], "heads": [0]}
    for direction, pos, source in (("denoise", 5, 3), ("noise", 3, 5)):
        found = path_patching(
            nano32, clean, corrupted, positions=[(3, 5)], direction=direction, **options
        )
        assert (found.cells.pos[0], found.cells.source[0]) == (pos, source)


def test_a_view_of_prompts_of_different_length_stands_on_their_columns(swept):
    from gptoss_workbench.views.patching import _columns

    assert _columns(swept).pos.tolist() == list(range(4, 12))
    assert swept.prompts.clean_strings[0][:4] == [""] * 4
    assert torch.equal(swept.prompts.clean[0, 4:], swept.prompts.clean[0, -8:])
