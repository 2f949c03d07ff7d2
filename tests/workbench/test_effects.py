"""Effect tables: an effect beside its matched random controls."""

import random

import numpy as np
import pytest
import torch

from gptoss_hooks import EditError, ban, scale, set_k, steer, steer_experts, swap, zero
from gptoss_workbench.effect_controls import control_of, matched
from gptoss_workbench.effects import _against, effect_table
from gptoss_workbench.nano.data import PLANTED_LAYER, expert_group, sample
from gptoss_workbench.nano.language import LANGUAGES


def test_controls_have_the_verb_and_sizes_of_the_edit(small):
    rng, load = np.random.default_rng(0), {0: np.arange(8.0), 1: np.ones(8)}
    for edit in (zero([0, 1]), swap((1, 5), layers=1), steer_experts([(0, 1)], [(1, 2)])):
        drawn = control_of([edit], small, load, rng)
        assert {type(each) for each in drawn} == {type(edit)}
        assert drawn != [edit]
    (drawn,) = control_of([steer("resid_post", torch.ones(64), layers=0)], small, {}, rng)
    assert drawn.vector.norm() == pytest.approx(8.0)
    assert abs(float(drawn.vector.sum())) < 40
    (drawn,) = control_of([scale("z", 0.0, heads=[1, 2], layers=0)], small, {}, rng)
    assert len(drawn.heads) == 2 and not {1, 2} & set(drawn.heads)
    with pytest.raises(EditError, match="give controls=0"):
        control_of([set_k(1)], small, {}, rng)


def test_experts_are_matched_by_load():
    load = np.array([0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9])
    for seed in range(5):
        drawn = matched([0, 4], load, np.random.default_rng(seed))
        assert drawn[0] in (1, 2, 3) and drawn[1] in (5, 6, 7)
    with pytest.raises(EditError, match="not as many others"):
        matched(range(5), load, np.random.default_rng(0))


def test_the_effect_is_the_difference_in_loss(small, tokens):
    edit = zero([0, 1], layers=1)
    table = effect_table(small, edit, tokens, groups=["a", "b"], controls=2)
    for row in range(2):
        one = tokens[row : row + 1]
        base, edited = (float(small(one, "loss", edits=e)) for e in ([], [edit]))
        assert table["effect"][row] == pytest.approx(edited - base, abs=1e-5)
    assert table["n"].tolist() == [12, 12]
    assert (table["control_low"] <= table["control_high"]).all()
    again = effect_table(small, edit, tokens, groups=["a", "b"], controls=2)
    assert np.array_equal(table["control"], again["control"])
    assert table.units["effect"] == "nats/token" and "nearest" in table.source


def test_any_metric_a_row_can_be_asked_for(small, tokens):
    def top(logits, tokens, mask):
        return logits[:, -1].amax(-1)

    table = effect_table(small, scale("mlp_out", 0.0), tokens, metric=top, controls=0)
    runs = (small(tokens, edits=edits)[:, -1].detach() for edits in ([], [scale("mlp_out", 0.0)]))
    base, edited = (run.amax(-1).mean().item() for run in runs)
    assert table["effect"][0] == pytest.approx(edited - base, abs=1e-5)
    assert "z" not in table.columns


def test_a_language_needs_its_planted_experts_and_no_other_does(nano):
    rng, own = random.Random(5), ("analysis", "final")
    texts = [sample(rng, task="vars", lang=lang, effort="medium", n=3).text() for lang in LANGUAGES]
    for lang in LANGUAGES:
        edit = zero(list(expert_group(lang)), layers=PLANTED_LAYER)
        table = effect_table(nano, edit, texts, groups=LANGUAGES, voices=own, controls=0)
        for other, effect in zip(table["group"], table["effect"], strict=True):
            assert effect > 1.0 if other == lang else abs(effect) < 0.01, (lang, other)


def test_other_experts_do_not_do_what_the_planted_ones_do(nano):
    text = sample(random.Random(5), task="vars", lang="de", effort="medium", n=3).text()
    edit = zero(list(expert_group("de")), layers=PLANTED_LAYER)
    row = effect_table(nano, edit, [text], groups="channel", controls=3).where(group="analysis")
    assert row["effect"][0] > 3 * np.abs(row["control_high"][0]) and row["p"][0] == 0.25


def test_only_what_the_named_voices_say_is_counted(nano):
    texts = [sample(random.Random(i), task="vars", effort="medium", n=3).text() for i in range(3)]
    edit = scale("mlp_out", 0.5, layers=1)
    split = effect_table(nano, edit, texts, groups="channel", controls=0)
    said = split.where(group=["analysis", "final"])
    both = effect_table(nano, edit, texts, voices=("analysis", "final"), controls=0)
    assert both["n"][0] == said["n"].sum() < split["n"].sum()
    expected = (said["effect"] * said["n"]).sum() / said["n"].sum()
    assert both["effect"][0] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="analyses"):
        effect_table(nano, edit, texts, voices="analyses", controls=0)
    with pytest.raises(ValueError, match="nothing to count"):
        effect_table(nano, edit, texts, voices="commentary", controls=0)


def test_a_scope_that_no_text_has_is_refused_and_one_that_some_have_is_not(nano):
    texts = ["Given E is 7. Find E?"] * 3 + ["Given B is 7. B is 1. C is 2. Find B?"] * 3
    table = effect_table(nano, ban(range(4), layers=2, tokens=" E"), texts, controls=1)
    assert table["effect"][0] != 0
    with pytest.raises(EditError, match="acted on no token; the voices here are"):
        effect_table(nano, ban(range(4), layers=2, channels="final"), texts, controls=1)


def test_p_counts_from_the_middle_of_edit_and_controls_and_z_needs_a_spread():
    drawn = np.array([[0.1, 0.0], [0.2, 0.0], [0.3, 0.0]])
    found = _against(np.array([0.2, 5.0]), drawn)
    assert found["p"].tolist() == [1.0, 0.25]
    assert abs(found["z"][0]) < 1e-9 and np.isnan(found["z"][1])
    assert _against(np.array([0.9, 5.0]), drawn)["p"][0] == 0.25


def test_one_text_has_no_interval_and_the_least_p_is_said(nano):
    table = effect_table(nano, ban([0, 1], layers=2), ["Given E is 7. Find E?"], controls=4)
    assert np.isnan(table["low"][0]) and np.isnan(table["high"][0])
    assert "p is at least 0.2" in repr(table)
