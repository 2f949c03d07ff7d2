"""nPMI of tokens and experts, and what multiplying gates does."""

import numpy as np
import pytest
import torch

from gptoss_workbench.routing import trace_routing
from gptoss_workbench.routing.token_pmi import gate_multiplier, token_pmi

WAIT = 7


@pytest.fixture
def waiting(by_hand):
    """Expert 3 is used on WAIT and nowhere else; 0 always; 1 and 2 by turns."""
    token = np.array([1, 2, WAIT, 1, 2, WAIT, 1, 2])
    experts = [[[0, 3 if t == WAIT else 1 + i % 2]] for i, t in enumerate(token)]
    return by_hand(experts, n_experts=5, token=token)


def test_an_expert_used_only_on_wait_has_npmi_one(waiting):
    table = token_pmi(waiting, {"wait": [WAIT]})
    assert (table["expert"][0], table["npmi"][0]) == (3, 1.0)
    values = dict(zip(table["expert"].tolist(), table["npmi"], strict=True))
    assert values[0] == pytest.approx(0)  # always used: independent
    assert values[1] == values[2] == values[4] == -1  # never with it


def test_an_expert_also_used_elsewhere_has_less(waiting):
    values = token_pmi(waiting, [1]).where(expert=2)
    p = {"joint": 1 / 8, "x": 3 / 8, "e": 3 / 8}
    expected = np.log2(p["joint"] / p["x"] / p["e"]) / -np.log2(p["joint"])
    assert values["npmi"][0] == pytest.approx(expected)
    assert values["npmi"][0] < 0.5


def test_shuffled_tokens_leave_no_expert_near_one(by_hand):
    rng = np.random.default_rng(0)
    token = np.array([WAIT] * 100 + [1] * 300)
    experts = np.array([[[3 if t == WAIT else rng.integers(0, 3)]] for t in token])
    assert token_pmi(by_hand(experts, n_experts=4, token=token), [WAIT])["npmi"][0] == 1
    shuffled = by_hand(experts, n_experts=4, token=rng.permutation(token))
    assert np.abs(token_pmi(shuffled, [WAIT])["npmi"]).max() < 0.15


def test_a_token_that_never_occurs_is_refused(waiting):
    with pytest.raises(ValueError, match=r"no token of \['99'\]"):
        token_pmi(waiting, [99])


def test_factor_one_changes_nothing_and_zero_is_the_edit_zero(nano32, texts_of, planted):
    from gptoss_hooks.edits import zero

    texts, group = texts_of("de", n=2)[0], sorted(planted.group("de"))
    experts = [(planted.layer, e) for e in group[:2]]
    table = gate_multiplier(nano32, texts, experts, factors=(1.0, 0.0))
    assert table["rise"][0] == 0
    batch = nano32.read(texts)
    edit = zero(group[:2], layers=planted.layer)
    with torch.no_grad():
        expected = nano32(batch.tokens, "loss", attention_mask=batch.mask, edits=[edit])
    assert table["loss"][1] == pytest.approx(float(expected), abs=1e-5)


def test_loud_experts_of_the_language_cost_and_random_others_do_not(nano32, texts_of, planted):
    texts = texts_of("de", n=2)[0]
    experts = [(planted.layer, e) for e in planted.group("de")]
    spoken = ("analysis", "final")
    table = gate_multiplier(nano32, texts, experts, factors=(16.0, 1.0), voices=spoken)
    assert table["rise"][0] > 0.2
    assert abs(table["random"][0]) < 0.05 * table["rise"][0]
    assert table["rise"][1] == table["random"][1] == 0


def test_tokens_can_be_named_by_their_text(nano):
    trace = trace_routing(nano, ["Given E is 7. B is E plus 1. Find B?"] * 2, progress=False)
    by_text = token_pmi(trace, {"plus": [" plus"]})
    by_id = token_pmi(trace, {"plus": [nano.to_single_token(" plus")]})
    assert np.array_equal(by_text["npmi"], by_id["npmi"])
    assert token_pmi(trace, " plus")["event"][0] == " plus"
    with pytest.raises(ValueError, match="no token is 'pluss'"):
        token_pmi(trace, ["pluss"])
