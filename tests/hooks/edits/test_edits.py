"""Edits as values: printed, compared, saved; nonsense is refused when it is written."""

import json

import pytest
import torch

import gptoss_hooks
from gptoss_hooks import (
    EditError,
    ablate,
    ban,
    bias,
    force,
    load_edits,
    patch,
    replay,
    route_around,
    save_edits,
    scale,
    set_k,
    steer,
    steer_experts,
    swap,
    zero,
)
from gptoss_hooks.edits.store import from_json

PLAIN = [
    ban(3),
    ban([3, 7], layers=2, channels="analysis"),
    zero(None, layers=(0, -1)),
    route_around([1, 2], tokens=slice(0, 4)),
    force(5, tokens=" so"),
    swap((1, 2), layers=0),
    swap([(1, 2), (3, 4)]),
    bias([1, 2], -1.5, tokens=[0, 3]),
    set_k(2, channels=("final", "analysis")),
    steer_experts([1, 2], [4], layers=1),
    steer_experts([(0, 2)], [(1, 3)]),
    ablate("z", heads=[1, 2], layers=0),
    steer("resid_post", [1.0, 2.0], 3.0, layers=1),
    scale("expert_post", 0.5, experts=3, neurons=7),
]
HELD = [
    replay(torch.arange(24).reshape(2, 1, 3, 4), layers=(0, 2)),
    replay(torch.ones(1, 1, 3, 4, dtype=torch.int64), torch.ones(1, 1, 3, 4), layers=1),
    patch("resid_post", torch.randn(1, 3, 8), layers=1),
    ablate("mlp_out", to={"blocks.0.hook_mlp_out": torch.randn(64)}),
    steer("resid_mid", torch.randn(64)),
]


@pytest.mark.parametrize("edit", PLAIN, ids=str)
def test_an_edit_prints_as_the_call_that_makes_it(edit):
    again = eval(repr(edit), {name: getattr(gptoss_hooks, name) for name in gptoss_hooks.__all__})
    assert again == edit and hash(again) == hash(edit)
    assert "\n" not in repr(edit)


def test_edits_compare_by_content():
    assert len(set(PLAIN + HELD)) == len(PLAIN + HELD)
    assert ban(3) == ban([3]) and ban(3) != zero(3) and ban(3) != ban(3, layers=0)
    vector = torch.randn(64)
    assert steer("z", vector) == steer("z", vector.clone()) != steer("z", vector + 1)
    assert hash(steer("z", vector)) == hash(steer("z", vector.clone()))


def test_an_edit_does_not_change_with_the_tensor_it_was_made_from():
    vector = torch.zeros(64)
    edit = steer("resid_post", vector)
    vector += 1
    assert edit == steer("resid_post", torch.zeros(64))
    with pytest.raises(AttributeError):
        edit.strength = 2.0


def test_edits_are_saved_and_read_back(tmp_path):
    file = save_edits(tmp_path / "figure" / "edits", PLAIN + HELD)
    assert load_edits(file) == PLAIN + HELD
    assert sorted(p.name for p in file.parent.iterdir()) == ["edits.json", "edits.safetensors"]
    assert load_edits(save_edits(tmp_path / "plain", PLAIN)) == PLAIN


def test_json_is_plain_and_is_read_back():
    for edit in PLAIN + HELD:
        saved = json.loads(json.dumps(edit.to_json()))
        assert from_json(saved, edit.tensors()) == edit


def test_tensors_of_other_edits_are_refused(tmp_path):
    file = save_edits(tmp_path / "one", [HELD[2]])
    other = save_edits(tmp_path / "two", [HELD[4]])
    file.with_suffix(".safetensors").write_bytes(other.with_suffix(".safetensors").read_bytes())
    with pytest.raises(ValueError, match="tensors beside the json lack"):
        load_edits(file)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ban([]), "experts= is empty"),
        (lambda: ban("3"), "experts= takes whole numbers; got '3'"),
        (lambda: ban(True), "takes whole numbers"),
        (lambda: ban(1, layers=1.5), "layers= takes whole numbers"),
        (lambda: bias(1, float("inf")), "finite number of nats.*see ban"),
        (lambda: swap((1, 2, 3)), "is a pair"),
        (lambda: swap([(1, 2), (2, 3)]), "without repeats"),
        (lambda: set_k(0), "whole number from 1 on; got 0"),
        (lambda: steer_experts(), "give promote= or suppress="),
        (lambda: steer_experts(1, 1), "both promoted and suppressed"),
        (lambda: steer_experts([(0, 1)], layers=2), r"or \(layer, expert\) pairs without"),
        (lambda: replay(torch.zeros(2, 3, 4)), r"experts \[layer batch pos k\]"),
        (lambda: replay(torch.zeros(2, 1, 3, 4).long(), layers=1), "names 1 blocks.*holds 2"),
        (lambda: patch("z", {"hook_embed": torch.zeros(1)}), "holds no 'z'"),
        (lambda: scale("z", float("nan")), "factor= is a finite number"),
        (lambda: ban(1, channels=()), "channels= takes names"),
    ],
)
def test_nonsense_is_refused_when_it_is_written(make, said):
    with pytest.raises(EditError, match=said):
        make()
