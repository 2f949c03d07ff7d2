"""TransformerLens's names for the weights: views of what is stored."""

import pytest
import torch

SHAPES = {
    "W_E": (256, 64), "W_U": (64, 256), "b_U": (256,),
    "W_Q": (4, 8, 64, 16), "W_K": (4, 2, 64, 16), "W_V": (4, 2, 64, 16), "W_O": (4, 8, 16, 64),
    "b_Q": (4, 8, 16), "b_K": (4, 2, 16), "b_V": (4, 2, 16), "b_O": (4, 64),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_weights_have_transformer_lens_shapes_in_the_model_s_dtype(tiny, tiny_bf16, name):
    assert getattr(tiny, name).shape == SHAPES[name]
    assert getattr(tiny, name).dtype == torch.float32
    assert getattr(tiny_bf16, name).dtype == torch.bfloat16


def test_the_named_weights_compute_what_the_model_computes(tiny, tokens):
    _, cache = tiny.run_with_cache(tokens, names_filter=lambda name: True)
    x = cache["blocks.1.ln1.hook_out"]
    for part, point in (("Q", "q"), ("K", "k"), ("V", "v")):
        weight, bias = getattr(tiny, f"W_{part}")[1], getattr(tiny, f"b_{part}")[1]
        found = torch.einsum("bpd,ndh->bpnh", x, weight) + bias
        torch.testing.assert_close(found, cache[point, 1], atol=1e-5, rtol=1e-5)
    out = torch.einsum("bpnh,nhd->bpd", cache["z", 1], tiny.W_O[1]) + tiny.b_O[1]
    torch.testing.assert_close(out, cache["attn_out", 1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tiny.W_E[tokens], cache["embed"])
    logits = cache["ln_final.hook_out"] @ tiny.W_U + tiny.b_U
    torch.testing.assert_close(logits, cache["unembed.hook_out"], atol=1e-5, rtol=1e-5)


def test_biases_accumulate_over_attention_outputs_only(tiny):
    torch.testing.assert_close(tiny.accumulated_bias(2), tiny.b_O[:2].sum(0))
    torch.testing.assert_close(tiny.accumulated_bias(2, mlp_input=True), tiny.b_O[:3].sum(0))
    assert not tiny.accumulated_bias(0).any()


def test_a_token_s_direction_is_its_column_of_the_unembedding(tiny, nano):
    assert torch.equal(tiny.tokens_to_residual_directions(7), tiny.W_U[:, 7])
    assert tiny.tokens_to_residual_directions(torch.tensor([[3, 4]])).shape == (1, 2, 64)
    token = nano.to_single_token(" 7")
    assert torch.equal(nano.tokens_to_residual_directions(" 7"), nano.W_U[:, token])


def test_cfg_says_the_sizes_under_transformer_lens_names(tiny):
    cfg = tiny.cfg
    assert (cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.n_key_value_heads) == (4, 64, 8, 2)
    assert (cfg.d_head, cfg.d_mlp, cfg.d_vocab, cfg.n_ctx) == (16, 96, 256, 131072)
    assert (cfg.num_experts, cfg.experts_per_token, cfg.dtype) == (8, 2, torch.float32)
    assert cfg.attn_types == ["local", "global", "local", "global"]


@pytest.mark.parametrize("layer", [0, -1])
def test_an_expert_decoded_computes_what_its_slot_computes(tiny, tokens, layer):
    names = ["ln2.hook_out", "mlp.hook_expert_gate", "mlp.hook_expert_up", "mlp.hook_expert_post"]
    names += ["mlp.hook_expert_out", "mlp.hook_expert_indices"]
    block = f"blocks.{layer % 4}"
    _, cache = tiny.run_with_cache(tokens, names_filter=[f"{block}.{name}" for name in names])
    x, gate, up, post, out, chosen = (cache[f"{block}.{name}"] for name in names)
    expert = int(chosen[0, 3, 1])
    own = tiny.expert_weights(layer, expert)
    assert own.gate.shape == own.up.shape == (64, 96) and own.down.shape == (96, 64)
    torch.testing.assert_close(x[0, 3] @ own.gate + own.b_gate, gate[0, 3, 1])
    torch.testing.assert_close(x[0, 3] @ own.up + own.b_up, up[0, 3, 1])
    torch.testing.assert_close(post[0, 3, 1] @ own.down + own.b_down, out[0, 3, 1])
    other = tiny.expert_weights(layer, (expert + 1) % 8)
    assert not torch.allclose(x[0, 3] @ other.gate + other.b_gate, gate[0, 3, 1])


def test_an_expert_s_weights_have_the_activations_dtype(tiny_bf16):
    assert {part.dtype for part in tiny_bf16.expert_weights(1, 2)} == {torch.bfloat16}
    for layer, expert in ((4, 0), (0, 8), (0, -1)):
        with pytest.raises(ValueError, match=f"layer of 4 and an expert of 8, got layer={layer}"):
            tiny_bf16.expert_weights(layer, expert)


@pytest.mark.parametrize("name", ["W_in", "W_gate", "W_out"])
def test_dense_names_point_to_the_experts(tiny, name):
    assert not hasattr(tiny, name)
    with pytest.raises(AttributeError, match=r"model\.expert_weights\(layer, expert\)"):
        getattr(tiny, name)
    with pytest.raises(AttributeError, match="no attribute 'W_else'"):
        tiny.W_else  # noqa: B018
