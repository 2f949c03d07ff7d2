"""Parity is worth something because it fails: each known mistake breaks it by a clear margin."""

from dataclasses import replace

import pytest
import torch

from gptoss_kernels import mxfp4
from gptoss_workbench.config import LAYER_TYPES
from gptoss_workbench.model import GptOss

CLEAR = 30
"""How many times the limit a mistake must reach."""
HIDDEN = 64


@pytest.fixture(scope="module")
def right(oracle):
    """H == I, so that even a transposed down_proj fits; one scale, so that it packs exactly."""
    config = replace(
        oracle.TINY, hidden_size=HIDDEN, intermediate_size=HIDDEN, num_hidden_layers=2,
        layer_types=LAYER_TYPES, head_dim=32, sliding_window=12,
    )  # fmt: skip
    case = oracle.random_case(2, config, gentle=False)
    for name, tensor in case.tensors.items():
        if name.endswith("down_proj_scales"):
            tensor.fill_(121)
    return case


@pytest.fixture(scope="module")
def gap_of(oracle, right):
    """The gap of a model with these changes to the right one."""
    expected = oracle.oracle_run(
        oracle.transformers_model(right.config, right.tensors), right.tokens, right.mask
    )

    def measure(tensors=None, **changes):
        config = replace(right.config, **changes)
        model = GptOss(config, right.tensors | (tensors or {}), dtype=torch.float32)
        found = oracle.gap(oracle.our_run(model, right.tokens, right.mask), expected, right.mask)
        print(found)
        return found

    return measure


def test_without_a_mistake_there_is_parity(gap_of):
    assert gap_of().parity


@pytest.mark.parametrize("window", [11, 13])
def test_a_window_off_by_one_is_caught(oracle, gap_of, window):
    assert gap_of(sliding_window=window).worst > CLEAR * oracle.LIMIT


def test_swapped_layer_types_are_caught(oracle, gap_of):
    assert gap_of(layer_types=LAYER_TYPES[::-1]).worst > CLEAR * oracle.LIMIT


def test_a_rounded_yarn_range_is_caught(oracle, right, gap_of):
    rounded = replace(right.config.rope_scaling, truncate=True)
    assert gap_of(rope_scaling=rounded).worst > CLEAR * oracle.LIMIT


def test_a_transposed_down_proj_is_caught(oracle, right, gap_of):
    changed = {}
    for name in every(right, "down_proj_blocks"):
        scales = name.replace("_blocks", "_scales")
        weight = mxfp4.unpack(right.tensors[name], right.tensors[scales]).mT
        changed[name], changed[scales] = mxfp4.pack(weight)
        assert torch.equal(mxfp4.unpack(changed[name], changed[scales]), weight)
    assert gap_of(changed).worst > CLEAR * oracle.LIMIT


def test_missing_sinks_are_caught(oracle, right, gap_of):
    assert gap_of(without_sinks(right)).worst > CLEAR * oracle.LIMIT


def test_a_value_bias_folded_into_the_output_is_caught(oracle, right, gap_of):
    """Folding b_V into b_O is exact only while each row of the pattern sums to 1."""
    assert gap_of(folded(right)).worst > CLEAR * oracle.LIMIT


def test_folding_a_value_bias_is_exact_without_sinks(oracle, right):
    plain = right.tensors | without_sinks(right)
    models = [
        GptOss(right.config, tensors, dtype=torch.float32)
        for tensors in (plain, plain | folded(right))
    ]
    apart, folded_in = (oracle.our_run(m, right.tokens, right.mask).logits for m in models)
    difference = (apart - folded_in)[right.mask].abs().max()
    assert difference < oracle.LIMIT * apart[right.mask].std()


def test_swapped_nibbles_are_caught(oracle, right, gap_of):
    blocks = {name: right.tensors[name] for name in every(right, "_blocks")}
    swapped = {name: (byte << 4) | (byte >> 4) for name, byte in blocks.items()}
    assert gap_of(swapped).worst > CLEAR * oracle.LIMIT


def test_a_bias_outside_the_weighted_sum_is_caught(oracle, right, gap_of):
    """Adding b2 unweighted is the same as scaling it by k, the weights summing to 1."""
    biases = {n: right.tensors[n].float() * 2 for n in every(right, "down_proj_bias")}
    assert gap_of(biases).worst > CLEAR * oracle.LIMIT


def every(case, end: str) -> list[str]:
    return [name for name in case.tensors if name.endswith(end)]


def without_sinks(case) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(case.tensors[name], -1e9) for name in every(case, "sinks")}


def folded(case) -> dict[str, torch.Tensor]:
    """b_V moved behind the pattern: b_O + Σ_h W_O[h] b_V[kv(h)], and zero values' bias."""
    changed, group = {}, case.config.num_attention_heads // case.config.num_key_value_heads
    for name in every(case, "v_proj.bias"):
        output = name.replace("v_proj", "o_proj")
        bias = case.tensors[name].float().unflatten(0, (-1, case.config.head_dim))
        spread = bias.repeat_interleave(group, 0).flatten()
        weight = case.tensors[output.replace("bias", "weight")].float()
        changed[name] = torch.zeros_like(case.tensors[name])
        changed[output] = case.tensors[output].float() + weight @ spread
    return changed
