"""config.json, in each spelling a gpt-oss checkpoint comes with, to a `Config`.

Three are read: the published Hugging Face one (`rope_scaling` beside `rope_theta`), that of
transformers 5 (`rope_parameters`), and OpenAI's `original/`. A key that would change the forward
pass in a way this package does not compute raises; it is never passed over, because a rope that is
silently plain, or a range silently rounded, is hard to notice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gptoss_workbench.config import Config, RopeScaling, alternating_layers

FIXED = {
    "attention_bias": True,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "swiglu_alpha": 1.702,
}
"""Keys a gpt-oss config may state but not change. What runs is the clamped SwiGLU."""

Raw = Mapping[str, Any]


def read_config(raw: Raw) -> Config:
    """Read a config.json; a missing or unsupported key raises ValueError and is named."""
    return _from_original(raw) if is_original(raw) else _from_hf(raw)


def is_original(raw: Raw) -> bool:
    """Whether a config.json has the keys of OpenAI's `original/` folder."""
    return "model_type" not in raw and "num_experts" in raw


def _from_hf(raw: Raw) -> Config:
    _check_supported(raw)
    theta, scaling = _read_rope(raw)
    layers = _need(raw, "num_hidden_layers")
    types = raw.get("layer_types")
    return Config(
        vocab_size=_need(raw, "vocab_size"),
        hidden_size=_need(raw, "hidden_size"),
        intermediate_size=_need(raw, "intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=_need(raw, "num_attention_heads"),
        num_key_value_heads=_need(raw, "num_key_value_heads"),
        head_dim=_need(raw, "head_dim"),
        num_local_experts=_need(raw, "num_local_experts", "num_experts"),
        num_experts_per_tok=_need(raw, "num_experts_per_tok", "experts_per_token"),
        sliding_window=_need(raw, "sliding_window"),
        layer_types=alternating_layers(layers) if types is None else tuple(types),
        rope_theta=theta,
        rope_scaling=scaling,
        max_position_embeddings=_need(raw, "max_position_embeddings"),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-5)),
        swiglu_limit=float(raw.get("swiglu_limit", 7.0)),
        eos_token_id=_token_ids(raw.get("eos_token_id")),
        pad_token_id=raw.get("pad_token_id"),
    )


def _from_original(raw: Raw) -> Config:
    context, factor = _need(raw, "initial_context_length"), _need(raw, "rope_scaling_factor")
    layers = _need(raw, "num_hidden_layers")
    scaling = RopeScaling(
        factor=float(factor),
        beta_fast=float(_need(raw, "rope_ntk_beta")),
        beta_slow=float(_need(raw, "rope_ntk_alpha")),
        original_max_position_embeddings=context,
    )
    return Config(
        vocab_size=_need(raw, "vocab_size"),
        hidden_size=_need(raw, "hidden_size"),
        intermediate_size=_need(raw, "intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=_need(raw, "num_attention_heads"),
        num_key_value_heads=_need(raw, "num_key_value_heads"),
        head_dim=_need(raw, "head_dim"),
        num_local_experts=_need(raw, "num_experts"),
        num_experts_per_tok=_need(raw, "experts_per_token"),
        sliding_window=_need(raw, "sliding_window"),
        layer_types=alternating_layers(layers),
        rope_theta=float(_need(raw, "rope_theta")),
        rope_scaling=scaling if factor > 1 else None,
        max_position_embeddings=int(context * factor),
        swiglu_limit=float(raw.get("swiglu_limit", 7.0)),
    )


def _check_supported(raw: Raw) -> None:
    if raw.get("model_type") != "gpt_oss":
        raise ValueError(
            f"unsupported model type {raw.get('model_type')!r}: expected model_type 'gpt_oss' "
            "(gpt-oss-20b, gpt-oss-120b and their fine-tunes)"
        )
    for name, value in FIXED.items():
        if raw.get(name, value) != value:
            raise ValueError(f"config key {name}: gpt-oss has {value!r}, got {raw[name]!r}")


def _need(raw: Raw, *names: str) -> Any:
    for name in names:
        if raw.get(name) is not None:
            return raw[name]
    raise ValueError(f"config key {' or '.join(names)} is missing")


def _token_ids(value: int | list[int] | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    return (value,) if isinstance(value, int) else tuple(value)


def _read_rope(raw: Raw) -> tuple[float, RopeScaling | None]:
    """rope_theta and the YaRN numbers, from either spelling; both at once must agree."""
    spellings = [raw[key] for key in ("rope_parameters", "rope_scaling") if raw.get(key)]
    if any(not isinstance(rope, Mapping) for rope in spellings):
        raise ValueError(f"expected rope_scaling to be an object, got {spellings}")
    if not spellings:
        raise ValueError(
            "config has neither rope_scaling nor rope_parameters, so its rope is unknown: state "
            'YaRN as the released models do, or plain RoPE as {"rope_type": "default"}'
        )
    read = [(_theta(raw, rope), _scaling(rope)) for rope in spellings]
    if read[0] != read[-1]:
        raise ValueError(f"rope_parameters and rope_scaling disagree: {read[0]} and {read[1]}")
    return read[0]


def _theta(raw: Raw, rope: Raw) -> float:
    stated = [float(d["rope_theta"]) for d in (rope, raw) if d.get("rope_theta") is not None]
    if not stated:
        raise ValueError("config key rope_theta is missing")
    if stated[0] != stated[-1]:
        raise ValueError(f"rope_theta is stated twice and differs: {stated}")
    return stated[0]


def _scaling(rope: Raw) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type"))
    if kind == "default":
        return None
    if kind != "yarn":
        raise ValueError(f"unsupported rope_type {kind!r}: expected 'yarn' or 'default'")
    factor = float(_need(rope, "factor"))
    _check_attention_factor(rope, factor)
    return RopeScaling(
        factor=factor,
        beta_fast=float(rope.get("beta_fast") or 32),
        beta_slow=float(rope.get("beta_slow") or 1),
        original_max_position_embeddings=_need(rope, "original_max_position_embeddings"),
        truncate=rope.get("truncate", True),  # transformers rounds unless the key says otherwise
    )


def _check_attention_factor(rope: Raw, factor: float) -> None:
    """cos and sin are scaled by 0.1 ln(factor) + 1; a config that states another scale raises."""
    expected, stated = 0.1 * math.log(factor) + 1, rope.get("attention_factor")
    if stated is not None and not math.isclose(stated, expected, rel_tol=1e-6):
        raise ValueError(f"unsupported attention_factor {stated}: expected {expected} or none")
    for name, fixed in (("mscale", None), ("mscale_all_dim", None), ("partial_rotary_factor", 1.0)):
        if rope.get(name, fixed) not in (None, fixed):
            raise ValueError(f"unsupported rope key {name}: got {rope[name]!r}")
