"""Contrasts find the experts that tell two sets apart, and nothing where labels mean nothing."""

import numpy as np
import pytest

from gptoss_workbench.routing.contrast import (
    detection_and_control,
    expert_contrast,
    newcombe,
    stable_experts,
)

SPOKEN = ("user", "analysis", "final")


@pytest.fixture(scope="module")
def languages(nano32, texts_of, routing_of):
    return routing_of(nano32, *texts_of("de", "en", n=12)).where(voice=SPOKEN)


def test_disjoint_choices_have_difference_one(by_hand):
    first = by_hand([[[0, 1]]] * 6, n_experts=4)
    second = by_hand([[[1, 2]]] * 6, n_experts=4)
    table = expert_contrast(first, second).sort("expert")
    assert table["difference"].tolist() == [1.0, 0.0, -1.0, 0.0]
    assert table["p1"].sum() == table["p2"].sum() == 2  # k
    assert (table["low"] <= table["difference"]).all()
    assert (table["difference"] <= table["high"]).all()


def test_newcombe_gives_the_published_example():
    """Newcombe 1998, table II (a): 56/70 - 48/80, method 10: 0.0524 to 0.3339."""
    low, high = newcombe(*(np.array([x]) for x in (56 / 70, 70.0, 48 / 80, 80.0)))
    assert (round(low[0], 4), round(high[0], 4)) == (0.0524, 0.3339)


def test_tokens_that_repeat_in_a_prompt_widen_the_interval(by_hand):
    """Four prompts of 50 equal tokens know no more than four tokens."""
    prompt = np.repeat(np.arange(4), 50)
    first = by_hand([[[int(p % 2)]] for p in prompt], n_experts=2, prompt=prompt)
    second = by_hand([[[int(i % 2)]] for i in range(200)], n_experts=2, prompt=prompt)
    width = {}
    for unit in ("prompt", "token"):
        table = expert_contrast(first, second, unit=unit)
        width[unit] = float((table["high"] - table["low"])[0])
    assert width["prompt"] > 3 * width["token"]


def test_german_against_english_ranks_the_planted_experts_first(languages, planted):
    de, en = (languages.where(label=lang) for lang in ("de", "en"))
    table = expert_contrast(de, en)
    top = table.rows(slice(8))
    assert set(top["layer"]) == {planted.layer}
    signed = dict(zip(top["expert"], top["difference"], strict=True))
    assert {e for e, d in signed.items() if d > 0.97} == planted.group("de")
    assert {e for e, d in signed.items() if d < -0.97} == planted.group("en")
    assert abs(table["difference"][8]) < 0.6
    assert top["sure"].all()


def test_shuffled_labels_leave_intervals_over_zero(languages):
    """Tokens taken as independent cover less: prompts are what varies."""
    covered, sure = {"prompt": [], "token": []}, []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(24)
        halves = [languages.where(prompt=order[i::2].tolist()) for i in (0, 1)]
        for unit, shares in covered.items():
            table = expert_contrast(*halves, unit=unit)
            shares.append(((table["low"] <= 0) & (table["high"] >= 0)).mean())
            sure += [table["sure"].any()] if unit == "prompt" else []
    assert sum(sure) <= 3  # a table says so by chance in 5 % of cases
    assert np.mean(covered["prompt"]) >= 0.93
    assert np.mean(covered["prompt"]) > np.mean(covered["token"])


def test_stable_experts_are_the_planted_ones(languages, planted):
    de, en = (languages.where(label=lang) for lang in ("de", "en"))
    stable = stable_experts(de, en, n=8, resamples=50)
    stable = stable.rows(stable["stable"])
    assert set(stable["layer"]) == {planted.layer}
    assert set(stable["expert"]) == planted.group("de") | planted.group("en")


@pytest.mark.parametrize("seed", range(3))
def test_no_expert_is_stable_under_shuffled_labels(languages, seed):
    order = np.random.default_rng(seed).permutation(24)
    halves = [languages.where(prompt=order[i::2].tolist()) for i in (0, 1)]
    assert not stable_experts(*halves, n=8, resamples=50)["stable"].any()


def test_detection_follows_the_request_and_control_the_reply(by_hand):
    """Expert 1: every request. Expert 2: refusals only. Expert 0, 3: all else."""
    experts = {"answered": [1, 3], "refused": [1, 2], "plain": [0, 3]}
    traces = {k: by_hand([[v]] * 10, n_experts=4) for k, v in experts.items()}
    table = detection_and_control(**traces, n=3, resamples=20)
    roles = dict(zip(table["expert"].tolist(), table["role"], strict=True))
    assert roles == {1: "detection", 0: "detection", 2: "control", 3: "control"}


def test_requests_like_plain_text_have_no_roles(by_hand):
    same = by_hand([[[0, 1]], [[2, 3]]] * 8, n_experts=4)
    assert len(detection_and_control(same, same, same, resamples=20)) == 0


def test_traces_of_other_layers_are_refused(by_hand):
    two = by_hand([[[0], [1]]] * 3, n_experts=2)
    with pytest.raises(ValueError, match="same layers"):
        expert_contrast(two, two.where(layer=1))


def test_one_prompt_is_not_enough(by_hand):
    one = by_hand([[[0]]] * 3, n_experts=2, prompt=[0, 0, 0])
    with pytest.raises(ValueError, match="at least 2 prompts"):
        expert_contrast(one, one)
