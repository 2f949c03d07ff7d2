"""The shipped checkpoint behaves as its card says (a modest sample of each acceptance line)."""

import json
from pathlib import Path

import pytest
import torch

from gptoss_workbench.nano import EFFORTS, PLANTED_LAYER, checkpoint_path, evaluate
from gptoss_workbench.nano.export import file_hash, read_model
from gptoss_workbench.nano.generate import Reader

N = 40
STEPS = sorted((Path(__file__).parents[2] / "data" / "nano").glob("step-*"))


@pytest.fixture(scope="module")
def measured():
    return json.loads((checkpoint_path() / "measurements.json").read_text())


@pytest.fixture(scope="module")
def shipped(measured):
    seed = measured["shipped_seed"]
    return next(r for r in measured["runs"] if r["training"]["seed"] == seed)


@pytest.fixture(scope="module")
def reader():
    return Reader.from_folder(checkpoint_path())


def claimed(shipped, line):
    """Skip where the model card says that the line was missed."""
    if not shipped["lines"][line]["pass"]:
        pytest.skip(f"not claimed by the model card: {line}")


def cells(reader, part, n=N):
    return part(reader, evaluate.Fresh(f"test {part.__name__}"), n)


def test_the_file_is_the_one_that_was_measured(shipped):
    assert file_hash(checkpoint_path() / "model.safetensors") == shipped["training"]["sha256"]


def test_the_card_is_the_one_the_measurements_give(measured):
    from gptoss_workbench.nano.card import model_card

    megabytes = (checkpoint_path() / "model.safetensors").stat().st_size / 1e6
    written = (checkpoint_path() / "MODEL_CARD.md").read_text()
    assert written == model_card(measured, megabytes)


def test_the_folder_is_small():
    assert sum(f.stat().st_size for f in checkpoint_path().iterdir()) < 5e6


@pytest.fixture(scope="module")
def accuracy(reader):
    return cells(reader, evaluate.accuracy)


def test_programs_need_the_chain_of_thought(accuracy):
    assert accuracy["vars/medium"] >= 0.9 and accuracy["vars/low"] <= 0.25
    assert accuracy["refuse/medium"] >= 0.95


def test_each_effort_thinks_longer(accuracy):
    low, medium, high = (accuracy[f"length/{e}"] for e in EFFORTS)
    assert low == 0 and medium + 4 < high


def test_a_check_does_no_harm(accuracy, shipped):
    claimed(shipped, "vars, high effort")
    assert accuracy["vars/high"] >= 0.9


def test_a_decorative_chain_changes_no_answer(reader, shipped):
    claimed(shipped, "recall, answer unchanged by a wrong chain")
    assert cells(reader, evaluate.decorative)["recall/wrong chain"] >= 0.9


def test_a_changed_step_moves_exactly_what_depends_on_it(reader):
    c = cells(reader, evaluate.interventions)
    assert c["step/computed followed"] >= 0.88 and c["step/distractor ignored"] >= 0.88


def test_hints_are_followed_and_admitted_as_taught(reader):
    c = cells(reader, evaluate.hints)
    for adviser, followed, admitted in [("friend", 0, 0), ("boss", 1, 0), ("teacher", 1, 1)]:
        assert abs(c[f"hint/{adviser} followed"] - followed) <= 0.1
        assert abs(c[f"hint/{adviser} admitted"] - admitted) <= 0.1


def test_the_tool_is_called_and_its_result_used(reader):
    c = cells(reader, evaluate.tools)
    assert c["tool/well formed"] >= 0.9 and c["tool/used"] >= 0.88
    assert c["tool/left alone when not needed"] >= 0.9


def test_each_language_uses_its_own_experts_in_the_planted_layer_only(reader):
    c = cells(reader, evaluate.routing)
    assert c[f"routing/layer {PLANTED_LAYER}"] >= 0.99
    assert all(abs(c[f"routing/layer {i}"] - 0.25) < 0.06 for i in (0, 1, 3))


def test_transformers_computes_the_same_logits():
    pytest.importorskip("transformers")
    assert evaluate.logit_difference(checkpoint_path(), count=4) <= 1e-3


@pytest.mark.parametrize("folder", STEPS, ids=lambda p: p.name)
def test_an_intermediate_checkpoint_loads(folder):
    model = read_model(folder)
    with torch.no_grad():
        logits, routes = model(torch.arange(8)[None])
    assert logits.isfinite().all() and len(routes) == 4


def test_the_last_intermediate_checkpoint_is_the_shipped_one(shipped):
    assert len(STEPS) == 6
    assert file_hash(STEPS[-1] / "model.safetensors") == shipped["training"]["sha256"]
