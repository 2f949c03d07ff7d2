"""Edits that Triton's kernels obey: the bits of hooks that do the same, no layer taken apart."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from gptoss_hooks import ablate, patch, scale, steer
from gptoss_hooks.edits import act
from gptoss_hooks.edits.plan import plan
from gptoss_kernels.triton import launch
from gptoss_workbench.checkpoint.synthetic import TINY, random_tensors
from gptoss_workbench.config import alternating_layers
from gptoss_workbench.model import GptOss

SMALL = replace(
    TINY,
    vocab_size=40,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    layer_types=alternating_layers(2),
    num_attention_heads=4,
    num_key_value_heads=1,
    num_local_experts=5,
    sliding_window=4,
)
NEURONS = torch.randn(64, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def model():
    return GptOss(SMALL, random_tensors(SMALL, seed=0), backend="triton")


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(3, 40, (1, 5), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def clean(model, tokens):
    """Logits, and how often each kernel was started."""
    return counted(model, tokens)


def run(model, tokens, *edits):
    with torch.no_grad():
        return model(tokens, edits=edits)


def counted(model, tokens, *edits):
    launch.launched.clear()
    launch.counting = True
    try:
        return run(model, tokens, *edits), Counter(launch.launched)
    finally:
        launch.counting = False


INSIDE = {
    "a head": [scale("z", 0.3, layers=1, heads=[0, 2], tokens=[2, 4])],
    "heads to zero": [ablate("z", layers=0, heads=1), scale("z", 1.7, tokens=3)],
    "rows of a pattern": [ablate("pattern", layers=1, heads=[1, 3], tokens=slice(2, None))],
    "a pattern and its z": [ablate("pattern", heads=0), scale("z", 0.3)],
    "slots": [scale("expert_out", -0.7, experts=[0, 3], tokens=[1, 4]),
              ablate("expert_out", experts=2)],
    "neurons": [ablate("expert_post", layers=0, experts=1, neurons=[3, 40]),
                ablate("expert_post", layers=0, neurons=range(9, 30))],
    "posts": [patch("expert_post", NEURONS, layers=1, experts=[1, 2], tokens=slice(1, 4)),
              ablate("expert_post", experts=2, tokens=3)],
    "neurons, then posts": [ablate("expert_post", experts=4),
                            ablate("expert_post", to=0.5, experts=1)],
}  # fmt: skip
OUTSIDE = {
    "two factors": [scale("z", 0.3), scale("z", 0.3, heads=1)],
    "a vector": [steer("z", NEURONS[:16], layers=1)],
    "a number for a pattern": [ablate("pattern", to=0.0)],
    "a factor for a pattern": [scale("pattern", 0.5)],
    "neurons scaled": [scale("expert_post", 0.3)],
    "neurons of some tokens": [ablate("expert_post", neurons=1, tokens=2)],
    "some neurons set": [ablate("expert_post", to=0.5, neurons=1)],
    "posts, then neurons": [ablate("expert_post", to=0.5), ablate("expert_post", neurons=1)],
    "each place its own": [patch("expert_out", torch.ones(1, 5, 1, 1), layers=0)],
}


TOGETHER = (
    ("heads to zero", "slots", "neurons"),
    ("a pattern and its z", "posts"),
    ("a head", "rows of a pattern", "neurons, then posts"),
)
"""Of different points, so that they can act in one pass."""


def several(*names):
    return [edit for name in names for edit in INSIDE[name]]


def inside(model, edits):
    sites = plan(edits, model).sites
    return {act.in_kernel(model.hook_dict[name], steps) for name, steps in sites.items()}


@pytest.mark.parametrize("names", TOGETHER, ids=lambda names: ", ".join(names))
def test_a_kernel_does_what_hooks_would_bit_for_bit(model, tokens, clean, names, monkeypatch):
    edits = several(*names)
    assert inside(model, edits) == {True}
    found, launched = counted(model, tokens, *edits)
    assert launched == clean[1] and not torch.equal(found, clean[0])
    assert all(point.in_kernel is None for point in model.hook_dict.values())
    monkeypatch.setattr(act, "in_kernel", lambda point, steps: False)
    wanted, launched = counted(model, tokens, *edits)
    assert torch.equal(found, wanted)
    assert ("rows of a pattern" in names or "a pattern and its z" in names) == (
        launched != clean[1]
    )


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_a_kernel_would_do_otherwise_stays_with_hooks(model, name):
    assert inside(model, OUTSIDE[name]) == {False}


def test_other_backends_take_none(make_model):
    model = make_model(backend="reference")
    for edits in INSIDE.values():
        assert not {True} & inside(model, [replace(edit, layers=None) for edit in edits[:1]])


def test_observers_see_what_edits_made_and_change_no_bit(model, tokens):
    edits = several("a head", "rows of a pattern", "slots", "neurons")
    names = ("hook_z", "hook_pattern", "hook_expert_post", "hook_expert_out", "hook_expert_gate")
    options = {"names_filter": lambda name: name.endswith(names)}
    with torch.no_grad():
        seen, cache = model.run_with_cache(tokens, edits=edits, **options)
        clean = model.run_with_cache(tokens, **options)[1]
    assert torch.equal(seen, run(model, tokens, *edits))
    assert torch.equal(cache["z", 0], clean["z", 0])
    assert not cache["pattern", 1][:, [1, 3], 2:].any() and cache["pattern", 1][:, 0].any()
    post = clean["expert_post", 0].float()
    assert (cache["expert_post", 0] != post).any() and (cache["expert_out", 0] == 0).any()


def test_gradients_pass_and_leave_the_bits(model, tokens):
    few, kept = tokens[:1, :3], {}
    edits = [scale("z", 0.3, heads=1), *several("neurons"), scale("expert_out", -0.7, experts=1)]
    hook = ("hook_embed", lambda g, hook: kept.update(grad=g))
    found = model.run_with_hooks(few, bwd_hooks=[hook], edits=edits)
    assert torch.equal(found, run(model, few, *edits))
    found[0, -1, 5].backward()
    assert kept["grad"].isfinite().all() and kept["grad"].any()
