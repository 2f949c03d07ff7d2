"""Weights of experts: permuted copies are recognised, strangers are not."""

import numpy as np
import pytest
import torch

from gptoss_kernels.mxfp4 import pack
from gptoss_workbench.model import GptOss
from gptoss_workbench.routing.gate_rank import all_expert_norms, gate_norm_rank, spearman
from gptoss_workbench.routing.weights import expert_cosine, gate_cosine, match_neurons, neurons


@pytest.fixture(scope="module")
def twins(tiny_module):
    """Layer 0's expert 1 is a copy of expert 0; expert 2 one with its neurons permuted."""
    tensors = {name: tensor.clone() for name, tensor in tiny_module.checkpoint_tensors().items()}
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    rows = torch.stack([2 * order, 2 * order + 1], 1).flatten()
    name, mlp = "model.layers.0.mlp.experts", tiny_module.blocks[0].mlp
    down = neurons(mlp, 0)[:, -64:].mT  # [d_model, d_ff]
    for part in ("gate_up_proj_blocks", "gate_up_proj_scales", "gate_up_proj_bias"):
        tensor = tensors[f"{name}.{part}"]
        tensor[1], tensor[2] = tensor[0], tensor[0][rows]
    for part in ("down_proj_blocks", "down_proj_scales", "down_proj_bias"):
        tensors[f"{name}.{part}"][1] = tensors[f"{name}.{part}"][0]
    blocks, scales = pack(down[:, order])
    tensors[f"{name}.down_proj_blocks"][2], tensors[f"{name}.down_proj_scales"][2] = blocks, scales
    tensors["model.layers.0.mlp.router.weight"][5] = tensors["model.layers.0.mlp.router.weight"][4]
    return GptOss(tiny_module.config, tensors, dtype=torch.float32)


@pytest.fixture(scope="module")
def tiny_module():
    from gptoss_workbench.checkpoint.synthetic import TINY, random_tensors

    return GptOss(TINY, random_tensors(TINY, 0), dtype=torch.float32)


def test_a_copy_has_cosine_one(twins):
    row = expert_cosine(twins, 0, pairs=[(0, 1)])
    assert row["cosine"][0] == pytest.approx(1, abs=1e-6)
    assert row["moved"][0] == 0


def test_permuted_neurons_are_recognised_only_by_matching(twins):
    row = expert_cosine(twins, 0, pairs=[(0, 2)])
    assert abs(row["cosine"][0]) < 0.1
    assert row["matched"][0] > 0.97  # packing the permuted down projection rounds
    assert row["moved"][0] > 0.9


def test_strangers_match_no_better_than_shuffled_weights(twins):
    table = expert_cosine(twins, 0, pairs=[(0, 3), (3, 4), (5, 6)])
    assert (np.abs(table["cosine"]) < 0.1).all()
    assert (np.abs(table["matched"] - table["chance"]) < 0.05).all()
    assert (table["matched"] < 0.5).all()


def test_matching_is_a_permutation():
    g = torch.Generator().manual_seed(0)
    a, order = torch.randn(50, 8, generator=g), torch.randperm(50, generator=g)
    found = match_neurons(a, a[order] * 3)
    assert torch.equal(order[found], torch.arange(50))
    other = match_neurons(a, torch.randn(50, 8, generator=g))
    assert torch.equal(other.sort().values, torch.arange(50))


def test_gate_vectors_that_are_equal_have_cosine_one(twins):
    table = gate_cosine(twins, layers=[0])
    assert len(table) == 8 * 7 // 2
    assert table.where(expert=4, other=5)["cosine"][0] == pytest.approx(1, abs=1e-6)
    others = table.rows(~((table["expert"] == 4) & (table["other"] == 5)))
    assert np.abs(others["cosine"]).max() < 0.5


def test_norms_of_all_experts_are_those_of_the_chosen_ones(tiny, tokens):
    _, cache = tiny.run_with_cache(tokens)
    norms = all_expert_norms(tiny.blocks[1].mlp, cache["blocks.1.ln2.hook_out"].flatten(0, 1))
    chosen = cache["expert_indices", 1].flatten(0, 1)
    expected = cache["expert_out", 1].norm(dim=-1).flatten(0, 1)
    torch.testing.assert_close(norms.gather(1, chosen), expected)


@pytest.mark.parametrize(("sign", "expected"), [(1, 1.0), (-1, -1.0)])
def test_norms_in_the_order_of_the_gate_give_rank_correlation_one(tiny, tokens, sign, expected):
    """Router and experts speak by their biases alone: logit e, norm e (or the reverse)."""
    tensors = dict(tiny.checkpoint_tensors())
    name, rank = "model.layers.1.mlp", torch.arange(8.0)
    tensors[f"{name}.router.weight"] = torch.zeros_like(tensors[f"{name}.router.weight"])
    tensors[f"{name}.router.bias"] = (sign * rank).bfloat16()
    tensors[f"{name}.experts.down_proj_scales"] = torch.zeros_like(
        tensors[f"{name}.experts.down_proj_scales"]
    )
    tensors[f"{name}.experts.down_proj_bias"] = (1 + rank)[:, None].expand(8, 64).bfloat16()
    table = gate_norm_rank(GptOss(tiny.config, tensors, dtype=torch.float32), tokens, sample=20)
    row = table.where(layer=1)
    assert row["spearman"][0] == pytest.approx(expected)
    assert row["overlap"][0] == (1 if sign > 0 else 0)
    assert abs(row["shuffled"][0]) < 0.3
    assert (
        np.abs(table.rows(table["layer"] != 1)["spearman"]).max() < 0.6
    )  # random weights: no order


def test_spearman_is_pearson_of_ranks():
    a = np.array([[1.0, 5, 2, 9]])
    assert spearman(a, np.exp(a))[0] == pytest.approx(1)
    assert spearman(a, np.array([[4.0, 3, 2, 1]]))[0] == pytest.approx(-0.8)
