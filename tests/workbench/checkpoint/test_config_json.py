"""config.json in its three spellings, and what it may not say."""

import json

import pytest

from gptoss_workbench.checkpoint import original_layout
from gptoss_workbench.checkpoint.synthetic import TINY
from gptoss_workbench.config import GPT_OSS_20B, Config, RopeScaling


def as_transformers_5(raw):
    """The same config as transformers 5 saves it."""
    rope = dict(raw["rope_scaling"], rope_theta=raw["rope_theta"])
    rest = {k: v for k, v in raw.items() if k not in ("rope_scaling", "rope_theta")}
    return rest | {"rope_parameters": rope}


def with_rope(**changes):
    raw = TINY.to_dict()
    rope = raw["rope_scaling"] | changes
    return raw | {"rope_scaling": {k: v for k, v in rope.items() if v is not None}}


def test_both_spellings_of_the_rope_read_the_same():
    raw = GPT_OSS_20B.to_dict()
    assert Config.from_dict(as_transformers_5(raw)) == Config.from_dict(raw) == GPT_OSS_20B


def test_what_transformers_saves_is_read(tmp_path):
    from transformers import GptOssConfig

    GptOssConfig(**TINY.to_dict()).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in raw
    assert Config.from_dict(raw) == TINY


def test_original_keys_read_the_same_but_for_token_ids():
    read = Config.from_dict(original_layout.config_dict(GPT_OSS_20B))
    assert read.eos_token_id is None
    fields = vars(GPT_OSS_20B) | {"eos_token_id": None, "pad_token_id": None}
    assert vars(read) == fields


def test_truncate_is_honoured_and_true_where_unsaid_as_in_transformers():
    assert Config.from_dict(with_rope(truncate=True)).rope_scaling.truncate is True
    assert Config.from_dict(with_rope(truncate=None)).rope_scaling.truncate is True
    assert Config.from_dict(with_rope(truncate=False)).rope_scaling.truncate is False


def test_yarn_defaults_are_those_of_transformers():
    read = Config.from_dict(with_rope(beta_fast=None, beta_slow=None))
    assert read.rope_scaling == RopeScaling(32.0, 32.0, 1.0, 4096)


def test_layer_types_alternate_where_unsaid():
    raw = TINY.to_dict()
    del raw["layer_types"]
    assert Config.from_dict(raw).layer_types == TINY.layer_types


def test_older_names_of_expert_counts_are_read():
    raw = TINY.to_dict()
    raw["num_experts"] = raw.pop("num_local_experts")
    del raw["num_experts_per_tok"]
    assert Config.from_dict(raw) == TINY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "unsupported model type 'mixtral': expected model_type 'gpt_o"),
        ({"model_type": None}, "unsupported model type None"),
        ({"hidden_size": None}, "config key hidden_size is missing"),
        ({"num_experts_per_tok": None, "experts_per_token": None}, "num_experts_per_tok or exp"),
        ({"rope_theta": None}, "rope_theta is missing"),
        ({"rope_scaling": None}, "neither rope_scaling nor rope_parameters"),
        ({"rope_scaling": "yarn"}, "expected rope_scaling to be an object"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "unsupported rope_type 'llama3'"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_parameters and rope_scaling disagr"),
        ({"attention_bias": False}, "attention_bias: gpt-oss has True, got False"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings: gpt-oss has False"),
        ({"hidden_act": "gelu"}, "hidden_act: gpt-oss has 'silu', got 'gelu'"),
        ({"swiglu_alpha": 1.0}, "swiglu_alpha"),
    ],
)
def test_what_is_not_computed_here_raises(change, message):
    with pytest.raises(ValueError, match=message):
        Config.from_dict(TINY.to_dict() | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factor": None}, "factor is missing"),
        ({"attention_factor": 1.0}, "unsupported attention_factor 1.0: expected 1.34"),
        ({"mscale": 0.7}, "unsupported rope key mscale"),
        ({"partial_rotary_factor": 0.5}, "unsupported rope key partial_rotary_factor"),
        ({"rope_theta": 10000.0}, "rope_theta is stated twice and differs"),
    ],
)
def test_another_rope_raises(change, message):
    with pytest.raises(ValueError, match=message):
        Config.from_dict(with_rope(**change))


def test_a_stated_attention_factor_that_is_the_usual_one_is_read():
    assert Config.from_dict(with_rope(attention_factor=1.3465735902799727)) == TINY
