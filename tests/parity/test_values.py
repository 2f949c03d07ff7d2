"""What hooks show equals the oracle's own intermediate values, and a plain loop over experts."""

from dataclasses import replace

import pytest
import torch

from gptoss_kernels.mxfp4 import unpack
from gptoss_workbench.model import GptOss


@pytest.fixture(scope="module")
def case(oracle):
    """Odd in every size, more tokens than the window, a limit that clamps."""
    config = replace(oracle.random_config(11), sliding_window=31, swiglu_limit=1.5)
    return oracle.random_case(11, config)


@pytest.fixture(scope="module")
def theirs(oracle, case):
    model = oracle.transformers_model(case.config, case.tensors)
    return oracle.ask(
        model, case.tokens, case.mask, output_hidden_states=True, output_attentions=True
    )


@pytest.fixture(scope="module")
def ours(case):
    model = GptOss(case.config, case.tensors, dtype=torch.float32)
    with torch.no_grad():
        return model.run_with_cache(case.tokens, attention_mask=case.mask)[1]


@pytest.fixture(scope="module")
def layers(case):
    return range(case.config.num_hidden_layers)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)  # sums of ~100 float32


def test_the_residual_equals_the_hidden_states(case, theirs, ours, layers):
    for layer in layers:
        close(ours["resid_pre", layer][case.mask], theirs.hidden_states[layer][case.mask])
    close(ours["ln_final.hook_out"][case.mask], theirs.hidden_states[-1][case.mask])


def test_each_layer_starts_where_the_last_one_ended(ours, layers):
    for layer in layers[1:]:
        assert torch.equal(ours["resid_pre", layer], ours["resid_post", layer - 1])


def test_the_pattern_equals_the_attentions(case, theirs, ours, layers):
    for layer in layers:
        pattern = ours["pattern", layer].transpose(1, 2)[case.mask]
        close(pattern, theirs.attentions[layer].transpose(1, 2)[case.mask])


def test_the_sink_takes_what_the_pattern_leaves(case, theirs, ours, layers):
    for layer in layers:
        left = 1 - theirs.attentions[layer].sum(-1)
        close(ours["sink", layer].transpose(1, 2)[case.mask], left.transpose(1, 2)[case.mask])
        assert (left.transpose(1, 2)[case.mask] > 0.001).any()


def test_router_logits_indices_and_weights_equal(case, theirs, ours, layers):
    k = case.config.num_experts_per_tok
    for layer in layers:
        logits = theirs.router_logits[layer].unflatten(0, case.tokens.shape)[case.mask]
        close(ours["router_logits", layer][case.mask], logits)
        top = logits.topk(k)
        assert torch.equal(ours["expert_indices", layer][case.mask], top.indices)
        close(ours["expert_weights", layer][case.mask], top.values.softmax(-1))


def test_every_slot_equals_its_expert_by_hand(case, ours, layers):
    """gate, up, post and out of each token's ranked experts, from decoded weights, in float64."""
    limit = case.config.swiglu_limit
    clamped = 0
    for layer in layers:
        name = f"model.layers.{layer}.mlp.experts"
        w1, w2 = (
            unpack(case.tensors[f"{name}.{half}_blocks"], case.tensors[f"{name}.{half}_scales"])
            for half in ("gate_up_proj", "down_proj")
        )
        b1, b2 = (case.tensors[f"{name}.{half}_bias"] for half in ("gate_up_proj", "down_proj"))
        normed = ours[f"blocks.{layer}.ln2.hook_out"]
        indices, weights = ours["expert_indices", layer], ours["expert_weights", layer]
        for row, place in [(0, 0), (0, 7), (0, 128), (0, -1), (1, int(case.mask[1].nonzero()[0]))]:
            total = torch.zeros(case.config.hidden_size, dtype=torch.float64)
            for slot, expert in enumerate(indices[row, place].tolist()):
                u = w1[expert].double() @ normed[row, place].double() + b1[expert].double()
                gate, up = u[0::2], u[1::2]
                kept = gate.clamp(max=limit)
                post = kept * torch.sigmoid(1.702 * kept) * (up.clamp(-limit, limit) + 1)
                out = w2[expert].double() @ post + b2[expert].double()
                total += float(weights[row, place, slot]) * out
                clamped += int((gate > limit).sum())
                found = [ours[f"expert_{part}", layer][row, place, slot].double() for part in PARTS]
                for value, expected in zip(found, (gate, up, post, out), strict=True):
                    close(value, expected)
            close(ours["mlp_out", layer][row, place].double(), total)
    assert clamped


PARTS = ("gate", "up", "post", "out")


def test_a_token_is_the_sum_of_what_its_layers_add(ours, layers):
    total = ours["embed"].clone()
    for layer in layers:
        total += ours["attn_out", layer] + ours["mlp_out", layer]
    close(ours["resid_post", layers[-1]], total)
