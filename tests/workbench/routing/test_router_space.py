"""The router's row space: what is outside it never reaches a logit."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gptoss_workbench.routing.router_space import (
    RouterSpace,
    control_energy,
    router_space,
    router_spectrum,
)


@pytest.fixture
def seen(nano32, texts_of):
    """Layer 1's inputs and router logits on a text."""
    names = ["blocks.1.ln2.hook_normalized", "blocks.1.hook_resid_mid"]
    names += ["blocks.1.mlp.hook_router_logits"]
    tokens = torch.tensor([nano32.tokenizer.encode(texts_of("de", n=1)[0][0])])
    _, cache = nano32.run_with_cache(tokens, names_filter=names)
    return tokens, [cache[name] for name in names]


def logits_with(model, tokens, name, change):
    kept = []
    model.run_with_hooks(
        tokens,
        fwd_hooks=[
            (name, lambda x, hook: change(x)),
            ("blocks.1.mlp.hook_router_logits", lambda x, hook: kept.append(x)),
        ],
        stop_at_layer=2,
    )
    return kept[0]


def test_control_and_content_add_up_and_are_orthogonal(nano32, seen):
    space, x = router_space(nano32, 1), seen[1][0]
    torch.testing.assert_close(space.control(x) + space.content(x), x)
    assert (space.control(x) * space.content(x)).sum(-1).abs().max() < 1e-3
    assert space.rank == 16 and space.basis.shape == (16, 128)


def test_random_content_of_the_normalised_vector_leaves_router_logits(nano32, seen):
    space, (tokens, (_, _, logits)) = router_space(nano32, 1), seen
    name = "blocks.1.ln2.hook_normalized"
    same = logits_with(
        nano32, tokens, name, lambda x: space.control(x) + 3 * space.content(x.flip(1))
    )
    assert (same - logits).abs().max() < 1e-5
    other = logits_with(nano32, tokens, name, lambda x: space.content(x) + space.control(x.flip(1)))
    assert (other - logits).abs().max() > logits.std()


def test_on_the_raw_residual_it_holds_only_with_the_contents_norm_kept(nano32, seen):
    space, (tokens, (_, _, logits)) = router_space(nano32, 1), seen
    name = "blocks.1.hook_mlp_in"
    same = logits_with(nano32, tokens, name, space.randomised)
    assert (same - logits).abs().max() < 1e-5
    scaled = logits_with(nano32, tokens, name, lambda x: space.control(x) + 3 * space.content(x))
    assert (scaled - logits).abs().max() > 0.1 * logits.std()


def test_the_spectrum_sums_to_one_and_sees_a_planted_direction(make_model):
    model = make_model()
    table = router_spectrum(model, layers=[0])
    assert table["energy"].sum() == pytest.approx(1) and table["cumulative"][-1] == pytest.approx(1)
    assert table["energy"][0] < 2 * table["chance"][0]  # random weights look random
    from gptoss_workbench.model import GptOss

    tensors = dict(model.checkpoint_tensors())
    weight = tensors["model.layers.0.mlp.router.weight"]
    one = torch.linspace(-1, 1, 8)[:, None] * torch.ones(64)
    tensors["model.layers.0.mlp.router.weight"] = (one + 1e-3 * weight.float()).bfloat16()
    planted = router_spectrum(GptOss(model.config, tensors, dtype=torch.float32), layers=[0])
    assert planted["energy"][0] > 0.99 > planted["chance"][0]


def test_nanos_planted_router_reads_four_directions_one_a_language(nano32, planted):
    table = router_spectrum(nano32)
    four = table.where(component=3)
    cumulative = dict(zip(four["layer"].tolist(), four["cumulative"], strict=True))
    assert cumulative.pop(planted.layer) > 0.95
    assert max(cumulative.values()) < 0.9
    chance = table.where(layer=planted.layer, component=range(4))["chance"]
    assert chance.sum() < 0.5


def test_a_router_that_reads_little_has_a_small_space(make_model):
    from gptoss_workbench.model import GptOss

    model = make_model()
    tensors = dict(model.checkpoint_tensors())
    weight = tensors["model.layers.0.mlp.router.weight"].clone()
    weight[4:] = weight[:4]
    tensors["model.layers.0.mlp.router.weight"] = weight
    assert router_space(GptOss(model.config, tensors, dtype=torch.float32), 0).rank == 4


def test_control_energy_is_above_that_of_a_random_direction(nano32, texts_of):
    table = control_energy(nano32, texts_of("de", n=2)[0])
    assert table["chance"].tolist() == [16 / 128] * 4
    assert (table["energy"] > 0).all() and (table["energy"] < 1).all()
    planted = table.where(layer=2)
    assert planted["energy"][0] > planted["chance"][0]


def test_energy_of_random_vectors_is_chance(nano32):
    space = router_space(nano32, 2)
    x = torch.randn(2000, 128, generator=torch.Generator().manual_seed(0))
    share = (space.control(x).square().sum(-1) / x.square().sum(-1)).mean()
    assert share == pytest.approx(16 / 128, abs=0.005)
    assert np.isclose(float(space.basis.square().sum()), 16, atol=1e-3)


def test_a_space_on_a_gpu_splits_vectors_of_a_trace_on_the_cpu():
    """Fake tensors have devices that this machine has not, and refuse to mix them."""
    with FakeTensorMode():
        space = RouterSpace(0, torch.empty(4, 8, device="cuda"), torch.empty(4, device="cuda"))
        x = torch.empty(3, 8)
        parts = space.control(x), space.content(x), space.randomised(x)
        assert {part.device.type for part in parts} == {"cpu"}
        with pytest.raises(RuntimeError, match="same device"):
            x @ space.basis.mT
