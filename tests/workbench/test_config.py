"""Config: the published sizes, what is checked, and the dictionary it writes."""

from dataclasses import FrozenInstanceError, replace

import pytest

from gptoss_workbench.checkpoint.synthetic import TINY
from gptoss_workbench.config import GPT_OSS_20B, GPT_OSS_120B, Config, RopeScaling


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [
        (GPT_OSS_20B, 20_914_757_184, 3_608_307_264),
        (GPT_OSS_120B, 116_829_156_672, 5_132_849_472),
    ],
)
def test_parameters_are_the_published_totals(config, total, active):
    assert (config.n_params, config.n_active_params) == (total, active)


def test_the_released_rope_is_yarn_with_an_unrounded_range():
    assert GPT_OSS_20B.rope_scaling == RopeScaling(32.0, 32.0, 1.0, 4096, truncate=False)
    assert GPT_OSS_20B.initial_context_length == 4096


def test_layers_alternate_and_begin_sliding():
    assert GPT_OSS_20B.layer_types[:3] == (
        "sliding_attention",
        "full_attention",
        "sliding_attention",
    )


@pytest.mark.parametrize("config", [GPT_OSS_20B, GPT_OSS_120B, TINY])
def test_a_config_written_and_read_is_the_same(config):
    assert Config.from_dict(config.to_dict()) == config


def test_plain_rope_survives_the_round_trip():
    plain = replace(TINY, rope_scaling=None)
    assert Config.from_dict(plain.to_dict()) == plain
    assert plain.initial_context_length == plain.max_position_embeddings


@pytest.mark.parametrize("eos", [None, (2,), (2, 3)])
def test_stop_tokens_survive_the_round_trip(eos):
    config = replace(TINY, eos_token_id=eos)
    assert Config.from_dict(config.to_dict()).eos_token_id == eos


def test_the_written_config_says_that_experts_are_packed():
    raw = TINY.to_dict()
    assert raw["quantization_config"]["quant_method"] == "mxfp4"
    assert raw["architectures"] == ["GptOssForCausalLM"]


def test_a_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        TINY.hidden_size = 32  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads must be a multiple"),
        ({"hidden_size": 48}, "hidden_size must be a multiple of 32"),
        ({"intermediate_size": 100}, "intermediate_size must be a multiple of 32"),
        ({"head_dim": 15}, "head_dim must be even"),
        ({"num_experts_per_tok": 9}, "cannot choose 9 experts a token out of 8"),
        ({"layer_types": ("full_attention",)}, "each of 4 layers, got 1"),
        ({"layer_types": ("sliding_attention",) * 3 + ("linear",)}, r"got \['linear'\]"),
        ({"vocab_size": 0}, "vocab_size to be a positive integer, got 0"),
        ({"sliding_window": None}, "sliding_window to be a positive integer, got None"),
        ({"hidden_size": 64.0}, "hidden_size to be a positive integer, got 64.0"),
    ],
)
def test_an_impossible_shape_raises(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_an_impossible_rope_raises():
    with pytest.raises(ValueError, match="factor >= 1"):
        RopeScaling(0.5, 32.0, 1.0, 4096)
    with pytest.raises(ValueError, match="beta_fast > beta_slow"):
        RopeScaling(32.0, 1.0, 32.0, 4096)
