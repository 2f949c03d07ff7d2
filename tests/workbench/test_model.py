"""The model as a whole: what it accepts, what it returns, and TransformerLens's names for it."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from gptoss_workbench.checkpoint.synthetic import TINY, random_tensors
from gptoss_workbench.model import GptOss

SIGNATURES = {
    "forward": "input return_type loss_per_token prepend_bos padding_side attention_mask "
    "start_at_layer stop_at_layer past_key_values",
    "run_with_cache": "return_cache_object remove_batch_dim names_filter stop_at_layer "
    "start_at_layer pos_slice incl_bwd reset_hooks_end clear_contexts device",
    "run_with_hooks": "fwd_hooks bwd_hooks reset_hooks_end clear_contexts",
    "hooks": "fwd_hooks bwd_hooks reset_hooks_end clear_contexts",
    "add_hook": "name hook dir is_permanent",
    "reset_hooks": "clear_contexts direction including_permanent level",
    "generate": "input max_new_tokens stop_at_eos eos_token_id do_sample top_k top_p temperature "
    "freq_penalty use_past_kv_cache prepend_bos padding_side return_type verbose",
    "to_tokens": "input prepend_bos padding_side move_to_device truncate",
    "to_str_tokens": "input prepend_bos",
    "to_string": "tokens",
    "to_single_token": "string",
}
"""TransformerLens's arguments in its order; ours may follow."""


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_are_transformer_lens_s_in_its_order(name):
    parameters = inspect.signature(getattr(GptOss, name)).parameters.values()
    plain = [p.name for p in parameters if p.name != "self" and p.kind != p.VAR_POSITIONAL]
    wanted = SIGNATURES[name].split()
    assert plain[: len(wanted)] == wanted


def test_defaults_differ_from_transformer_lens_s_in_the_three_stated_ways():
    generate = inspect.signature(GptOss.generate).parameters
    assert generate["do_sample"].default is False and "seed" in generate
    for name in ("forward", "generate", "to_tokens", "to_str_tokens"):
        assert inspect.signature(getattr(GptOss, name)).parameters["prepend_bos"].default is False


# -- what it refuses ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_only_the_two_precisions_are_accepted(dtype):
    with pytest.raises(ValueError, match="use bfloat16 or float32"):
        GptOss(TINY, {}, dtype=dtype)


def test_an_unknown_backend_lists_the_known_ones():
    with pytest.raises(ValueError, match="'fast' is unknown; choose one of native, triton"):
        GptOss(TINY, {}, backend="fast")


def test_a_backend_that_is_not_here_says_what_is(monkeypatch):
    from gptoss_kernels import backend

    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(backend, "available", lambda device="cpu": ("reference",))
    with pytest.raises(ValueError, match=r"'triton' is not available on cpu.*Here are reference"):
        GptOss(TINY, {}, backend="triton")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.tensor([[3, 256]]), r"token 256 is out of range.*256 tokens \(0 to 255\)"),
        (torch.tensor([[-1, 3]]), "token -1 is out of range"),
        (torch.ones(2, 3), r"expected integer tokens \[batch, pos\].*float32"),
        (torch.ones(2, 3, dtype=torch.bool), "torch.bool"),
        (torch.ones(1, 2, 3, dtype=torch.long), r"\(1, 2, 3\)"),
        (torch.zeros(1, 0, dtype=torch.long), "input is empty"),
        ([], "input is empty"),
        ("text", "has no tokenizer.json in its folder.*o200k_harmony"),
    ],
    ids=["high", "low", "float", "bool", "rank", "no tokens", "empty list", "text"],
)
def test_inputs_that_make_no_sense_are_refused(tiny, given, message):
    with pytest.raises(ValueError, match=message):
        tiny(given)


def test_a_mask_must_fit(tiny, tokens):
    with pytest.raises(ValueError, match=r"attention_mask: expected \(2, 13\); got \(2, 12\)"):
        tiny(tokens, attention_mask=torch.ones(2, 12))


def test_a_row_of_nothing_but_padding_stays_finite(tiny, tokens):
    mask = torch.tensor([[True] * 13, [False] * 13])
    logits = tiny(tokens, attention_mask=mask)
    assert logits.isfinite().all()


def test_a_prompt_beyond_the_context_is_refused(make_model, tokens):
    model = make_model(
        max_position_embeddings=12, num_hidden_layers=2, layer_types=("full_attention",) * 2
    )
    with pytest.raises(ValueError, match=r"prompt too long: 13 tokens.*12 positions"):
        model(tokens)
    cache = model.new_cache()
    model(tokens[:, :8], past_key_values=cache)
    with pytest.raises(ValueError, match="too long"):
        model(tokens[:, 8:], past_key_values=cache)


def test_an_unknown_result_is_refused(tiny, tokens):
    with pytest.raises(ValueError, match="logits, loss, both or None; got 'probs'"):
        tiny(tokens, return_type="probs")


# -- what it returns ---


def test_tokens_may_be_lists_or_one_row(tiny, tokens):
    logits = tiny(tokens)
    assert torch.equal(tiny(tokens.tolist()), logits)
    torch.testing.assert_close(tiny(tokens[0]), logits[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_have_the_activations_dtype(make_model, tokens, dtype):
    assert make_model(dtype)(tokens).dtype == dtype


def test_losses_are_next_token_cross_entropies_in_nats(tiny, tokens):
    logits, loss = tiny(tokens, return_type="both")
    wanted = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(loss, wanted)
    each = tiny(tokens, return_type="loss", loss_per_token=True)
    assert each.shape == (2, 12)
    torch.testing.assert_close(each.mean(), wanted)


def test_padding_takes_no_part_in_the_loss(tiny, tokens):
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, 5:] = False
    loss = tiny(tokens, return_type="loss", attention_mask=mask, loss_per_token=True)
    assert not loss[1, 4:].any()
    alone = tiny(tokens[1:, :5], return_type="loss", loss_per_token=True)
    torch.testing.assert_close(loss[1:, :4], alone, atol=1e-5, rtol=1e-5)
    total = tiny(tokens, return_type="loss", attention_mask=mask)
    torch.testing.assert_close(total, loss.sum() / (12 + 4))


def test_layers_can_be_run_apart(tiny, tokens):
    middle = tiny(tokens, stop_at_layer=2)
    assert middle.shape == (2, 13, 64)
    assert torch.equal(tiny(middle, start_at_layer=2), tiny(tokens))
    _, cache = tiny.run_with_cache(middle, start_at_layer=2, stop_at_layer=3)
    assert {name.split(".")[1] for name in cache} == {"2"}
    with pytest.raises(ValueError, match="start_at_layer: input must be a residual"):
        tiny(tokens, start_at_layer=2)


def test_a_loss_needs_tokens(tiny, tokens):
    middle = tiny(tokens, stop_at_layer=2)
    with pytest.raises(ValueError, match="start_at_layer: a residual has no tokens"):
        tiny(middle, start_at_layer=2, return_type="loss")


def test_switches_add_what_is_kept_on_request(tiny, tokens):
    assert not [n for n in tiny.hook_names() if n.endswith(("_input", "result", "_in"))]
    tiny.set_use_attn_result(True)
    try:
        assert ("result", 3) in tiny.run_with_cache(tokens)[1]
    finally:
        tiny.set_use_attn_result(False)


def test_weights_go_out_under_their_checkpoint_names(tiny):
    tensors = random_tensors(TINY, 0)
    stored = tiny.checkpoint_tensors()
    assert set(stored) == set(tensors)
    assert all(torch.equal(stored[name], tensors[name]) for name in tensors)


def test_weights_are_used_as_they_lie():
    tensors = random_tensors(TINY, 0)
    model = GptOss(TINY, tensors, backend="reference")
    for name, stored in model.checkpoint_tensors().items():
        assert stored.data_ptr() == tensors[name].data_ptr(), name


def test_it_stays_in_evaluation_mode(tiny):
    assert not tiny.train().training


def test_it_says_what_it_is(tiny):
    assert repr(tiny) == (
        "GptOss('gpt-oss': 4 layers, d_model 64, 8 experts top-2, 8/2 heads, vocabulary 256; "
        f"float32 on cpu, {tiny.backend})"
    )


def test_a_mask_by_position_is_told_its_name(tiny, tokens):
    with pytest.raises(ValueError, match="attention_mask="):
        tiny(tokens, torch.ones_like(tokens))
