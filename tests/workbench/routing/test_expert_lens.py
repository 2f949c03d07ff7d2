"""The lens on single experts, the cosine of ranks with the mix, and loss with fewer experts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gptoss_workbench.model import GptOss
from gptoss_workbench.routing.expert_lens import expert_lens, expert_mix_cosine, loss_by_k


@pytest.fixture
def speaking(tiny):
    """`tiny` with layer 1's expert 3, often chosen, always writing token 77's unembedding."""
    tensors = dict(tiny.checkpoint_tensors())
    name = "model.layers.1.mlp.experts.down_proj"
    direction = tensors["lm_head.weight"][77].float() / tensors["model.norm.weight"].float()
    for part, value in (("scales", 0), ("bias", 10 * direction)):
        tensor = tensors[f"{name}_{part}"].clone()
        tensor[3] = value
        tensors[f"{name}_{part}"] = tensor
    bias = tensors["model.layers.1.mlp.router.bias"].clone()
    bias[3] = 4
    tensors["model.layers.1.mlp.router.bias"] = bias
    return GptOss(tiny.config, tensors, dtype=torch.float32)


def test_an_expert_that_writes_a_token_raises_it_most(speaking, tokens):
    table = expert_lens(speaking, tokens, layers=[1], top=1)
    said = table["expert"] == 3
    assert said.sum() > 3
    assert (table["token"][said] == 77).all()
    assert (table["token"][~said] == 77).mean() < 0.2


def test_contributions_are_the_experts_part_of_the_logit(tiny, tokens):
    """Against the cache: weight · W_U (f / s · w)."""
    table = expert_lens(tiny, tokens, layers=[2], positions=[7], top=3).where(prompt=1)
    _, cache = tiny.run_with_cache(tokens)
    out, weights = cache["expert_out", 2][1, 7], cache["expert_weights", 2][1, 7]
    scaled = out / cache["ln_final.hook_scale"][1, 7] * tiny.ln_final.weight.float()
    parts = weights[:, None] * (scaled @ tiny.unembed.weight.float().mT)
    best = (parts / weights[:, None]).topk(3)
    assert table["token"].tolist() == best.indices.flatten().tolist()
    expected = parts.gather(1, best.indices).flatten()
    np.testing.assert_allclose(table["contribution"], expected, rtol=2e-4, atol=1e-5)
    assert table["pos"].tolist() == [7] * 6 and table["rank"].tolist() == [0] * 3 + [1] * 3


def test_padding_is_left_out(nano32):
    table = expert_lens(nano32, ["Given A is 3.", "Given"], layers=[0], top=1)
    long, short = (len(nano32.tokenizer.encode(text)) for text in ("Given A is 3.", "Given"))
    assert (table["prompt"] == 0).sum() == 4 * long and (table["prompt"] == 1).sum() == 4 * short
    assert "string" in table.columns


def test_a_single_expert_is_the_whole_mix(tiny, tokens):
    alone = replace(tiny.config, num_experts_per_tok=1)
    model = GptOss(alone, tiny.checkpoint_tensors(), dtype=torch.float32)
    table = expert_mix_cosine(model, tokens)
    np.testing.assert_allclose(table["cosine"], 1, atol=1e-6)
    assert (table["other"] < 0.999).all()  # the same layer's output at another token is not


def test_the_first_rank_is_nearer_to_the_mix_than_the_last(nano32, texts_of):
    table = expert_mix_cosine(nano32, texts_of(n=1)[0])
    first, last = table.where(rank=0)["cosine"], table.where(rank=3)["cosine"]
    assert first.mean() > last.mean() + 0.1
    assert (table["cosine"] > table["other"]).mean() > 0.8
    assert (table["low"] <= table["cosine"]).all() and (table["cosine"] <= table["high"]).all()


def test_the_models_own_k_changes_no_loss_and_one_expert_costs(nano32, texts_of):
    table = loss_by_k(nano32, texts_of(n=1)[0], ks=(4, 1), voices=("analysis", "final"))
    assert table["rise"][0] == pytest.approx(0, abs=1e-6)
    assert table["rise"][1] > 0.05
    assert table["perplexity"][1] == pytest.approx(np.exp(table["loss"][1]))


def test_loss_on_all_tokens_is_the_models_own(tiny, tokens):
    own = float(tiny(tokens, return_type="loss").detach())
    assert loss_by_k(tiny, tokens, ks=(2,))["loss"][0] == pytest.approx(own, abs=1e-5)


def test_unknown_voices_are_listed(nano32):
    with pytest.raises(ValueError, match="analysis, commentary"):
        loss_by_k(nano32, "Given A is 3.", voices=["thought"])
