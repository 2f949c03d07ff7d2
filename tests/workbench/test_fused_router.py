"""On Triton a layer's router is two kernels while it is only read, and its operations otherwise."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from gptoss_kernels.triton import launch, linear
from gptoss_workbench.checkpoint.synthetic import TINY, random_tensors
from gptoss_workbench.config import alternating_layers
from gptoss_workbench.model import GptOss

SMALL = replace(
    TINY,
    vocab_size=70,
    hidden_size=96,
    num_hidden_layers=2,
    layer_types=alternating_layers(2),
    num_local_experts=5,
)
POINTS = [f"blocks.1.mlp.hook_{name}" for name in
          ("router_logits", "expert_indices", "expert_weights")]  # fmt: skip
ROUTER = ("choose", "weigh", "merge", "route")


@pytest.fixture(scope="module")
def model():
    return GptOss(SMALL, random_tensors(SMALL, seed=0), backend="triton")


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    """So many inputs are summed in parts, as gpt-oss's 2880 are."""
    monkeypatch.setattr(linear, "PIECE", 40)


@pytest.fixture
def token():
    return torch.tensor([[5]])


def counted(run):
    """What a call gives, and the kernels of routers that it starts."""
    launch.launched.clear()
    launch.counting = True
    try:
        result = run()
    finally:
        launch.counting = False
    names = Counter(name.strip("_").removesuffix("_kernel") for name in launch.launched)
    return result, {name: names[name] for name in ROUTER}, sum(names.values())


@torch.no_grad()
def test_a_tokens_routers_take_half_the_launches_and_have_the_same_bits(model, token, monkeypatch):
    fused, seen, launches = counted(lambda: model(token))
    one_by_one = model.blocks[0].mlp.ops._replace(router=None)
    for block in model.blocks:
        monkeypatch.setattr(block.mlp, "ops", one_by_one)
    plain, before, all_before = counted(lambda: model(token))
    assert torch.equal(fused, plain)
    assert (seen["route"], seen["choose"], seen["weigh"]) == (2, 0, 0)
    assert (before["route"], before["choose"], before["weigh"]) == (0, 2, 2)
    assert before["merge"] - seen["merge"] == 2
    assert all_before - launches == 2 * 2  # of 4 launches a layer 2 are left


@torch.no_grad()
def test_who_only_reads_sees_what_the_kernels_chose(model, token):
    (_, cache), seen, _ = counted(lambda: model.run_with_cache(token, names_filter=POINTS))
    assert seen["route"] == 2
    logits, indices, weights = (cache[name] for name in POINTS)
    assert logits.dtype == torch.float32
    assert torch.equal(indices, model.blocks[1].mlp.ops.choose(logits, model.blocks[1].mlp.k))
    assert torch.equal(weights, model.blocks[1].mlp.ops.weigh(logits, indices))


@torch.no_grad()
@pytest.mark.parametrize("point", POINTS)
def test_an_edit_on_the_way_acts_and_takes_its_own_layer_apart(model, token, point):
    def edit(x, hook):
        return (x + 1) % 5 if x.dtype == torch.int64 else x.flip(-1)

    found, seen, _ = counted(lambda: model.run_with_hooks(token, fwd_hooks=[(point, edit)]))
    assert not torch.equal(found, model(token))
    assert seen["route"] == (2 if point.endswith("weights") else 1)


def test_gradients_reach_what_the_router_reads(model, token):
    kept = {}

    def lift(x, hook):
        kept[hook.name] = x.detach().requires_grad_()
        return kept[hook.name]

    name = "blocks.0.hook_resid_pre"
    logits, seen, _ = counted(lambda: model.run_with_hooks(token, fwd_hooks=[(name, lift)]))
    logits.float().square().sum().backward()
    assert seen["route"] == 0 and kept[name].grad.abs().max() > 0
