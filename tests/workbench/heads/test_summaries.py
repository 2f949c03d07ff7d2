"""Head statistics: exact on patterns set by hand, equal to the pattern hook's, true on nano."""

import math
import sys
from itertools import pairwise
from random import Random

import numpy as np
import pytest
import torch

import gptoss_workbench as wb
from gptoss_workbench.heads import head_summary
from gptoss_workbench.heads.summaries import previous_tokens, statistics
from gptoss_workbench.heads.tiles import Layer, Tile, each_layer, tiles
from gptoss_workbench.nano.data import sample
from gptoss_workbench.text import Batch

A, B, C = 5, 6, 7


def by_hand(tokens, pattern, window=None):
    """Statistics of one prompt with a pattern [head, query, key] that somebody wrote down."""
    n = len(tokens)
    tokens, positions = torch.tensor([tokens]), torch.arange(n)[None]
    prompts = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    none = torch.empty(0)
    layer = Layer(0, none, none, none, positions, window)
    part = Tile(slice(0, n), slice(0, n), pattern[None], 1 - pattern.sum(-1)[None])
    found = statistics(layer, part, tokens, previous_tokens(prompts), prompts.mask)
    return {name: (total / count).tolist() for name, (total, count) in found.items() if count}


def test_a_pattern_set_by_hand_scores_exactly():
    pattern = torch.zeros(2, 5, 5)
    for q in range(1, 5):
        pattern[0, q, q - 1] = 1
    pattern[:, 0, 0] = 1
    pattern[1, 1, 1] = 1
    pattern[1, 2, 1] = 0.75  # A again: the token after the first A is at place 1
    pattern[1, 3, 2] = 0.5  # B again: at place 2
    pattern[1, 3, 1] = 0.25  # its own earlier occurrence
    pattern[1, 4, 4] = 1
    seen = by_hand([A, B, A, B, C], pattern)
    assert seen["previous"] == [1.0, (0 + 0.75 + 0.5 + 0) / 4]
    assert seen["induction"] == [1.0, (0.75 + 0.5) / 2]
    assert seen["duplicate"] == [0.0, (0 + 0.25) / 2]
    assert seen["sink"] == [0.0, (0.25 + 0.25) / 5]
    assert seen["induction_chance"][0] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert seen["previous_chance"][0] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 4)
    assert seen["distance"] == pytest.approx([4 / 5, (1 + 1 / 0.75 * (0.5 + 2 * 0.25)) / 5])
    assert seen["bin 1"] == pytest.approx([4 / 5, (0.75 + 0.5) / 5])


def test_even_attention_has_full_entropy_and_only_chance():
    pattern = torch.tril(torch.ones(1, 6, 6))
    pattern = pattern / pattern.sum(-1, keepdim=True) * 0.5  # half of it goes to the sink
    seen = by_hand([A, B, A, A, C, B], pattern)
    assert seen["entropy"][0] == pytest.approx(sum(math.log2(n) for n in range(1, 7)) / 6)
    assert seen["entropy_share"][0] == pytest.approx(1)
    for name in ("previous", "induction", "duplicate"):
        assert seen[name][0] == pytest.approx(0.5 * seen[f"{name}_chance"][0])
    for i in range(4):
        assert seen[f"bin {i}"][0] == pytest.approx(0.5 * seen[f"even {i}"][0])


def test_a_window_hides_what_lies_too_far_back():
    pattern = torch.eye(4)[None]
    wide, narrow = (by_hand([A, B, C, A], pattern, window) for window in (None, 2))
    assert wide["duplicate_chance"][0] == pytest.approx(1 / 4)
    assert "duplicate" not in narrow and "induction" not in narrow
    assert narrow["previous_chance"][0] == pytest.approx(1 / 2)


def from_the_hook(model, tokens, mask):
    """Sink and previous-token score of every head, from whole patterns."""
    names = ["pattern", "sink"]
    _, cache = model.run_with_cache(tokens, attention_mask=mask, names_filter=names)
    out = []
    for layer in range(model.n_layers):
        for head in range(8):
            sink = cache["sink", layer][:, head][mask].mean()
            values = []
            for row in range(len(tokens)):
                real = mask[row].nonzero()[:, 0].tolist()
                pattern = cache["pattern", layer][row, head]
                values += [float(pattern[b, a]) for a, b in pairwise(real)]
            out.append((float(sink), sum(values) / len(values)))
    return np.array(out)


@pytest.mark.parametrize("side", ["left", "right"])
def test_tiles_give_what_the_pattern_hook_gives(tiny, tokens, side, monkeypatch):
    module = sys.modules["gptoss_workbench.heads.tiles"]
    monkeypatch.setattr(module, "SCORES", 2 * 8 * 13 * 3)  # three queries at a time
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[1, slice(0, 4) if side == "left" else slice(9, 13)] = False
    found = head_summary(tiny, tokens, attention_mask=mask).heads
    expected = from_the_hook(tiny, tokens, mask)
    np.testing.assert_allclose(found["sink"], expected[:, 0], atol=1e-6)
    np.testing.assert_allclose(found["previous"], expected[:, 1], atol=1e-6)
    assert set(found["n"]) == {13 + 9}
    windows = found["window"][:9]
    assert (windows[:8] == 8).all() and np.isnan(windows[8])


def test_entropy_is_that_of_the_whole_pattern(tiny, tokens):
    found = head_summary(tiny, tokens, layers=[0, 3]).heads
    _, cache = tiny.run_with_cache(tokens, names_filter=["pattern"])
    for layer in (0, 3):
        p = cache["pattern", layer]
        p = p / p.sum(-1, keepdim=True)
        bits = -torch.xlogy(p, p).sum(-1).mean((0, 2)) / math.log(2)
        np.testing.assert_allclose(found.where(layer=layer)["entropy"], bits, atol=1e-5)


def test_batches_and_padding_change_nothing(tiny, tokens):
    rows = [tokens[0].tolist(), tokens[1, :6].tolist()]
    together, apart = (head_summary(tiny, rows, batch=n) for n in (2, 1))
    for name in ("entropy", "sink", "previous", "distance"):
        np.testing.assert_allclose(together.heads[name], apart.heads[name], atol=1e-6)
    np.testing.assert_allclose(
        together.distance["attention"], apart.distance["attention"], atol=1e-6
    )


def test_attention_over_all_distances_and_the_sink_is_one(tiny, tokens):
    found = head_summary(tiny, tokens)
    for layer in range(4):
        for head in range(8):
            far = found.distance.where(layer=layer, head=head)
            sink = found.heads.where(layer=layer, head=head)["sink"][0]
            assert far["attention"].sum() + sink == pytest.approx(1, abs=1e-5)
            assert far["chance"].sum() == pytest.approx(1, abs=1e-5)
    assert found.distance.where(layer=0)["nearest"].max() == 4  # a window of 8
    assert found.distance.where(layer=1)["nearest"].max() == 8


def test_a_tile_holds_no_more_scores_than_it_may(tiny, monkeypatch):
    module = sys.modules["gptoss_workbench.heads.tiles"]
    monkeypatch.setattr(module, "SCORES", 1 << 14)
    tokens = torch.randint(3, 256, (1, 200), generator=torch.Generator().manual_seed(0))
    sizes, widths = [], []

    def look(layer):
        for part in tiles(layer):
            sizes.append(part.pattern.numel())
            widths.append((layer.number, part.keys.stop - part.keys.start))

    each_layer(tiny, Batch(tokens, torch.ones_like(tokens, dtype=torch.bool)), [0, 1], look)
    assert max(sizes) <= 1 << 14
    assert max(w for n, w in widths if n == 0) == 8 + 10 - 1  # window and queries of a tile
    assert max(w for n, w in widths if n == 1) == 200


@pytest.fixture(scope="module")
def copying():
    """nano, prompts of task copy, and the places whose next letter was seen before."""
    model = wb.load(dtype=torch.float32)
    rng = Random(5)
    prompts = model.encode_batch([sample(rng, task="copy", lang="en").text() for _ in range(6)])
    where = torch.zeros_like(prompts.mask)
    for i, row in enumerate(prompts.tokens.tolist()):
        strings = model.require_tokenizer().strings(row)
        end = int(prompts.mask[i].sum())
        answer = max(j for j in range(end) if strings[j] == "<|message|>")
        where[i, answer + 1 : end - 2] = True
    return model, prompts, where


def test_nano_copies_with_induction_heads_in_layer_1(copying):
    model, (tokens, mask), where = copying
    found = head_summary(model, tokens, attention_mask=mask, queries=where).heads
    score = found["induction"].reshape(4, 8)
    assert score[1].max() > 0.8 and np.median(score[1]) > 0.6
    assert score[[0, 2, 3]].max() < 0.4
    assert found["induction_chance"].max() < 0.1


def test_with_other_letters_in_front_the_score_is_lost(copying):
    """Negative control: the same patterns, scored as if the prompts' letters stood elsewhere."""
    model, prompts, where = copying
    other = prompts.tokens.clone()
    for i in range(len(other)):
        earlier = torch.arange(other.shape[1]) < int(where[i].nonzero()[0])
        again = earlier & torch.isin(other[i], other[i, where[i]])
        other[i, again] = other[i, again].roll(2)
    before = previous_tokens(Batch(other, prompts.mask))
    scores = []

    def look(layer):
        parts = [statistics(layer, p, other, before, where)["induction"] for p in tiles(layer)]
        scores.append(sum(p[0] for p in parts) / sum(int(p[1]) for p in parts))

    each_layer(model, prompts, [1], look)
    assert float(scores[0].max()) < 0.2


def test_without_a_repetition_there_is_nothing_to_score(tiny):
    tokens = torch.randperm(200, generator=torch.Generator().manual_seed(0))[None, :24] + 3
    found = head_summary(tiny, tokens).heads
    assert set(found["n_induction"]) == {0} and np.isnan(found["induction"]).all()


def test_random_weights_stay_near_chance(tiny):
    half = torch.randint(3, 256, (4, 12), generator=torch.Generator().manual_seed(0))
    found = head_summary(tiny, torch.cat([half, half], 1)).heads
    score, chance = (
        found.where(window=np.isnan)[name] for name in ("induction", "induction_chance")
    )
    assert np.median(score) < 2 * np.median(chance)
    assert set(found.where(window=8)["n_induction"]) == {0}  # 11 tokens back is out of reach


def test_wrong_queries_are_refused(tiny, tokens):
    with pytest.raises(ValueError, match="expected queries as bool"):
        head_summary(tiny, tokens, queries=torch.ones(2, 3, dtype=torch.bool))
