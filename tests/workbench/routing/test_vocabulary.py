"""Vocabulary specialisation: hashing reads 1, a random router k / E, targets are the next token."""

from dataclasses import replace

import numpy as np
import pytest

from gptoss_workbench.routing.rerun import predicted_tokens
from gptoss_workbench.routing.vocabulary import vocabulary_specialisation


@pytest.fixture
def hashed(by_hand):
    """Layer 0 hashes the token id to two experts; layer 1 draws them at random."""
    rng = np.random.default_rng(0)
    token = rng.integers(0, 12, 3000)
    first = token % 8
    drawn = rng.permuted(np.tile(np.arange(8), (3000, 1)), axis=1)[:, :2]
    experts = np.stack([np.stack([first, (first + 3) % 8], 1), drawn], axis=1)
    return by_hand(experts, n_experts=8, token=token, prompt=np.arange(3000) // 30)


def test_a_layer_that_hashes_ids_reads_1_and_a_random_one_k_over_e(hashed):
    table = vocabulary_specialisation(hashed).layers
    assert table["share"][0] == table["again"][0] == 1
    assert abs(table["again"][1] - 0.25) < 0.01 and table["chance"][1] == 0.25
    assert table["share"][1] > table["again"][1]


def test_few_occurrences_do_not_look_like_specialisation(by_hand):
    rng = np.random.default_rng(0)
    token = np.repeat(np.arange(2000), 2)
    drawn = rng.permuted(np.tile(np.arange(8), (4000, 1)), axis=1)[:, None, :2]
    table = vocabulary_specialisation(by_hand(drawn, n_experts=8, token=token), at_least=2).layers
    assert table["share"][0] > 0.55 and abs(table["again"][0] - 0.25) < 0.02


def test_top_tokens_of_an_expert_are_those_hashed_to_it(hashed):
    tops = vocabulary_specialisation(hashed).experts.where(layer=0)
    for expert in range(8):
        mine = tops.where(expert=expert)
        wanted = {t for t in range(12) if expert in (t % 8, (t % 8 + 3) % 8)}
        assert set(mine["token"].tolist()) == wanted and (mine["share"] == 1).all()


def test_script_compat_counts_the_first_expert_only(by_hand):
    experts = [[[0, 1]], [[0, 2]], [[0, 3]], [[0, 1]]] * 10
    routing = by_hand(experts, n_experts=4, token=np.zeros(40))
    paper = vocabulary_specialisation(routing).layers
    script = vocabulary_specialisation(routing, script_compat=True).layers
    assert script["share"][0] == 1 and script["chance"][0] == 0.25
    assert np.isclose(paper["share"][0], (1 + 0.5**2 + 0.25**2 * 2) / 2)
    assert "top-1" in script.source and "all k" in paper.source


def test_the_target_is_the_next_token_of_the_same_prompt(by_hand):
    token = np.array([1, 2, 3, 1, 2, 3, 1, 2] * 5)
    prompt = np.repeat(np.arange(10), 4)
    pos = np.tile(np.arange(4), 10)
    expert = np.append(token[1:], 0) % 4
    routing = by_hand(expert[:, None, None], n_experts=4, token=token, prompt=prompt)
    record = routing.record()._replace(pos=pos.astype(np.int32))
    routing = replace(routing, shards=[lambda: record])
    found = vocabulary_specialisation(routing, of="target").layers
    assert found["share"][0] == 1 and found["n"][0] == 30
    starts = routing.where(keep=lambda r: r.pos == 0)
    one = vocabulary_specialisation(starts, of="target", at_least=2)
    assert one.layers["n"][0] == 10 and one.layers["share"][0] == 1
    assert vocabulary_specialisation(routing).layers["share"][0] < 0.9


def test_predicted_ids_are_those_the_model_predicts(small):
    from gptoss_workbench.routing import trace_routing

    rows = [[5, 6, 7, 8], [9, 10, 11], [12] * 6]
    routing = trace_routing(small, rows, progress=False, shard_tokens=8)
    predicted = predicted_tokens(small, routing)
    for number, row in enumerate(rows):
        wanted = small(np.array([row]))[0].argmax(-1).tolist()
        assert predicted[number].tolist() == wanted
    found = vocabulary_specialisation(routing, of="predicted", predicted=predicted, at_least=2)
    ids = np.concatenate([predicted[i] for i in range(3)])
    counts = np.bincount(ids)
    assert found.layers["n"][0] == counts[counts > 1].sum()
    with pytest.raises(ValueError, match="predicted="):
        vocabulary_specialisation(routing, of="predicted")


def test_layers_counted_in_several_passes_are_the_same(hashed, monkeypatch):
    from gptoss_workbench.routing import vocabulary

    whole = vocabulary_specialisation(hashed)
    monkeypatch.setattr(vocabulary, "HELD", 1)
    for a, b in zip(whole, vocabulary_specialisation(hashed), strict=True):
        assert all((a[name] == b[name]).all() for name in a.columns)


def test_nano_s_early_layers_follow_the_token_more_than_its_planted_one(taught, planted):
    found = vocabulary_specialisation(taught)
    table = found.layers
    assert (table["again"] > table["chance"] + 0.1).all()
    assert table["again"][0] > table.where(layer=planted.layer)["again"][0]
    assert all(isinstance(string, str) for string in found.experts["string"])


def test_too_rare_is_said(hashed):
    with pytest.raises(ValueError, match="lower at_least"):
        vocabulary_specialisation(hashed, at_least=10_000)
