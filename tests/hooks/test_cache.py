"""ActivationCache: names, slices, and parts that sum to the logit without anything folded."""

from types import SimpleNamespace

import pytest
import torch

from gptoss_hooks import axes
from gptoss_hooks.cache import ActivationCache, act_name
from gptoss_hooks.decompose import take
from gptoss_workbench.checkpoint.synthetic import TINY, random_tensors
from gptoss_workbench.model import GptOss

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
"""A logit here is a float32 sum of up to 70 parts, each rounded once."""


@pytest.fixture(scope="module")
def model():
    return GptOss(TINY, random_tensors(TINY, 0), dtype=torch.float32, backend="reference")


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(3, 256, (2, 13), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run(model, tokens):
    with torch.no_grad():
        return model.run_with_cache(tokens)


@pytest.fixture
def cache(run, model):
    return ActivationCache(dict(run[1].cache_dict), model)


def own_logits(logits, tokens):
    return logits.gather(-1, tokens[..., None])[..., 0]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (("resid_post", 2), "blocks.2.hook_resid_post"),
        (("resid_post", -1), "blocks.3.hook_resid_post"),
        (("q", 3, "attn"), "blocks.3.attn.hook_q"),
        (("k", 1), "blocks.1.attn.hook_k"),
        ("embed", "hook_embed"),
        ("scale", "ln_final.hook_scale"),
        (("scale", 3, "ln1"), "blocks.3.ln1.hook_scale"),
        ("normalized2ln2", "blocks.2.ln2.hook_normalized"),
        ("attn_out1", "blocks.1.hook_attn_out"),
        (("attn", 0), "blocks.0.attn.hook_pattern"),
        (("expert_post", 2), "blocks.2.mlp.hook_expert_post"),
        (("router_logits", 2), "blocks.2.mlp.hook_router_logits"),
        (("expert_indices", 0), "blocks.0.mlp.hook_expert_indices"),
        (("sink", 0), "blocks.0.attn.hook_sink"),
        ("blocks.1.hook_out", "blocks.1.hook_resid_post"),
        ("embed.hook_out", "hook_embed"),
    ],
)
def test_names_long_and_short_find_the_same_tensor(cache, key, name):
    assert cache[key] is cache.cache_dict[name]
    assert key in cache


def test_gradients_have_short_names_too():
    assert act_name("z_grad", 2) == "blocks.2.attn.hook_z_grad"


def test_a_dense_neuron_name_points_to_the_experts(cache):
    with pytest.raises(KeyError, match="hook_expert_post"):
        cache["post", 2]
    assert ("post", 2) not in cache


def test_an_activation_that_was_not_kept_names_near_ones_and_the_filter(model, run):
    some = ActivationCache({"blocks.1.attn.hook_q": run[1]["q", 1]}, model)
    with pytest.raises(KeyError, match=r"blocks\.1\.attn\.hook_q.*names_filter"):
        some["k", 1]


def test_a_layer_beyond_the_model_is_refused(cache):
    with pytest.raises(KeyError, match="between -4 and 3"):
        cache["resid_post", 4]


def test_it_is_a_mapping(cache):
    assert len(cache) == len(list(cache)) == len(cache.keys()) == len(cache.values())
    assert dict(cache.items()) == cache.cache_dict
    assert "no_such_point" not in cache


def test_parts_sum_to_the_logit_with_sinks_and_value_biases(run, cache, model, tokens):
    assert model.b_V.abs().max() > 0.01 and cache["sink", 0].max() > 0.01
    wanted = own_logits(run[0], tokens)
    parts, labels = cache.decompose_resid(return_labels=True)
    assert labels[:3] == ["embed", "0_attn_out", "0_mlp_out"] and len(parts) == len(labels) == 9
    torch.testing.assert_close(cache.logit_attrs(parts, tokens).sum(0), wanted, **CLOSE)
    heads, labels = cache.stack_head_results(incl_remainder=True, return_labels=True)
    assert labels[9] == "L1H1" and labels[-1] == "remainder" and len(heads) == 33
    torch.testing.assert_close(cache.logit_attrs(heads, tokens).sum(0), wanted, **CLOSE)
    full, labels = cache.get_full_resid_decomposition(return_labels=True)
    assert labels[-3:] == ["3_mlp_out", "embed", "bias"]
    torch.testing.assert_close(cache.logit_attrs(full, tokens).sum(0), wanted, **CLOSE)


def test_neurons_are_not_expanded_silently(cache):
    with pytest.raises(ValueError, match="expert_out"):
        cache.get_full_resid_decomposition(expand_neurons=True)


@pytest.mark.parametrize("pos", [-1, (3, 7), slice(2, None), [0, 4, -1], torch.tensor(5)])
def test_a_position_slice_gives_the_same_numbers(run, cache, tokens, pos):
    parts = cache.decompose_resid(pos_slice=pos)
    attrs = cache.logit_attrs(parts, take(tokens, pos, 1), pos_slice=pos)
    torch.testing.assert_close(attrs.sum(0), take(own_logits(run[0], tokens), pos, 1), **CLOSE)
    heads = cache.stack_head_results(pos_slice=pos)
    torch.testing.assert_close(heads, take(cache.stack_head_results(), pos, 2))


def test_a_logit_difference_is_a_difference_of_logits(run, cache):
    parts = cache.decompose_resid(pos_slice=-1)
    attrs = cache.logit_attrs(parts, 7, incorrect_tokens=torch.tensor(9), pos_slice=-1)
    wanted = run[0][:, -1, 7] - run[0][:, -1, 9]
    torch.testing.assert_close(attrs.sum(0), wanted, **CLOSE)
    with pytest.raises(ValueError, match="same shape"):
        cache.logit_attrs(parts, 7, incorrect_tokens=torch.tensor([9, 9]), pos_slice=-1)


def test_one_token_a_row_holds_at_every_place(run, cache):
    targets = torch.tensor([7, 9])
    attrs = cache.logit_attrs(cache.decompose_resid(), targets)
    wanted = torch.stack([run[0][0, :, 7], run[0][1, :, 9]])
    torch.testing.assert_close(attrs.sum(0), wanted, **CLOSE)


def test_the_layer_inputs_are_sums_of_earlier_parts(cache):
    for layer, mlp_input, name in ((2, False, "ln1"), (2, True, "ln2"), (0, False, "ln1")):
        parts = cache.decompose_resid(layer, mlp_input=mlp_input, apply_ln=True)
        wanted = cache[f"blocks.{layer}.{name}.hook_out"]
        torch.testing.assert_close(parts.sum(0), wanted, **CLOSE)
        full = cache.get_full_resid_decomposition(layer, mlp_input=mlp_input, apply_ln=True)
        torch.testing.assert_close(full.sum(0), wanted, **CLOSE)


def test_accumulated_streams_normalised_anew_end_at_the_final_norm(cache):
    stack, labels = cache.accumulated_resid(incl_mid=True, apply_ln=True, return_labels=True)
    assert labels == [f"{layer}_{at}" for layer in range(4) for at in ("pre", "mid")] + [
        "final_post"
    ]
    torch.testing.assert_close(stack[-1], cache["ln_final.hook_out"])
    _, labels = cache.accumulated_resid(2, mlp_input=True, return_labels=True)
    assert labels == ["0_pre", "1_pre", "2_pre", "2_mid"]


def test_the_unembedding_has_no_mlp_input(cache):
    with pytest.raises(ValueError, match="mlp_input"):
        cache.decompose_resid(mlp_input=True, mode="mlp", apply_ln=True)
    with pytest.raises(ValueError, match="between 0 and 4"):
        cache.accumulated_resid(5)


def test_head_results_sum_to_attention_without_its_bias(cache, model):
    cache.compute_head_results()
    for layer in range(4):
        total = cache["result", layer].sum(-2) + model.blocks[layer].attn.b_O
        torch.testing.assert_close(total, cache["attn_out", layer], **CLOSE)
    assert cache.stack_activation("result").shape[:2] == (4, 2)


def test_recorded_head_results_are_those_computed_afterwards(model, tokens, cache):
    name = "blocks.2.attn.hook_result"
    with torch.no_grad():
        _, recorded = model.run_with_cache(tokens, names_filter=name)
    cache.compute_head_results()
    torch.testing.assert_close(recorded[name], cache[name], atol=1e-6, rtol=1e-5)


def test_no_layers_give_an_empty_stack(cache):
    assert cache.stack_head_results(0).shape == (0, 2, 13, 64)
    only = cache.stack_head_results(0, incl_remainder=True)
    torch.testing.assert_close(only[0], cache["resid_pre", 0])
    assert cache.decompose_resid(0, incl_embeds=False, pos_slice=-1).shape == (0, 2, 64)


def test_a_single_row_loses_its_batch_axis(run, model, tokens):
    row = run[1].apply_slice_to_batch_dim(1)
    assert not row.has_batch_dim and row["resid_post", 0].shape == (13, 64)
    attrs = row.logit_attrs(row.stack_head_results(incl_remainder=True), tokens[1])
    torch.testing.assert_close(attrs.sum(0), own_logits(run[0], tokens)[1], **CLOSE)
    same = run[1].apply_slice_to_batch_dim([1]).remove_batch_dim().remove_batch_dim()
    torch.testing.assert_close(same["z", 2], row["z", 2])
    with pytest.raises(ValueError, match="no batch axis"):
        row.apply_slice_to_batch_dim(0)


def test_a_cache_of_two_rows_keeps_its_batch_axis(cache):
    with pytest.raises(ValueError, match="2 rows"):
        cache.remove_batch_dim()


def test_a_batch_slice_takes_rows_of_stack_and_scale(run, cache, tokens):
    parts = cache.decompose_resid(pos_slice=-1)
    attrs = cache.logit_attrs(parts, tokens[1, -1], pos_slice=-1, batch_slice=1)
    torch.testing.assert_close(attrs.sum(0), own_logits(run[0], tokens)[1, -1], **CLOSE)


def test_half_precision_is_refused(model):
    with pytest.raises(ValueError, match="bfloat16"):
        ActivationCache({"hook_embed": torch.zeros(1, 1, 4, dtype=torch.float16)}, model)


def test_bfloat16_activations_decompose_in_float32(tokens):
    model = GptOss(TINY, random_tensors(TINY, 0), backend="reference")
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    heads = cache.stack_head_results(incl_remainder=True)
    assert heads.dtype == torch.float32
    attrs = cache.logit_attrs(heads, tokens).sum(0)
    wanted = own_logits(logits, tokens).float()
    torch.testing.assert_close(attrs, wanted, atol=0.05, rtol=0.02)  # ln and logits are bfloat16


def test_any_object_with_apply_is_a_slice(cache):
    class Every:
        mode = "slice"

        def apply(self, tensor, dim=0):
            return tensor.index_select(dim, torch.arange(0, tensor.shape[dim], 3))

    assert cache.accumulated_resid(pos_slice=Every()).shape == (5, 2, 5, 64)
    with pytest.raises(ValueError, match="flat list"):
        cache.accumulated_resid(pos_slice=[[1], [2]])


def test_the_repr_counts_layers_of_a_kind_together(cache):
    text = repr(cache)
    assert "blocks.{l}.attn.hook_q x4  [2, 13, 8, 16] float32" in text and "4 layers" in text


def test_every_axis_of_every_hook_point_is_in_the_glossary(model):
    used = {axis for point in model.hook_dict.values() for axis in point.axes}
    assert used <= axes.GLOSSARY.keys()
    assert (
        axes.layer_of("blocks.12.attn.hook_z") == 12 and axes.layer_of("ln_final.hook_out") is None
    )


def test_a_model_without_aliases_is_enough():
    bare = SimpleNamespace(cfg=SimpleNamespace(n_layers=1))
    cache = ActivationCache({"blocks.0.hook_mlp_out": torch.zeros(1, 2, 4)}, bare)
    assert cache["mlp_out", 0].shape == (1, 2, 4)
    assert "embed" not in cache and not cache.has_embed
