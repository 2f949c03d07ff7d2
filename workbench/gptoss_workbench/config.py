"""The shape of a gpt-oss model: every number in config.json that the forward pass needs.

Fields carry config.json's own names. `checkpoint/config_json.py` reads the spellings of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

LAYER_TYPES = ("sliding_attention", "full_attention")

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_local_experts",
    "num_experts_per_tok",
    "sliding_window",
    "max_position_embeddings",
)
"""The fields that are positive integers."""

QUANTIZATION = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}
"""The quantization_config of every gpt-oss checkpoint: experts packed, all else bfloat16."""


@dataclass(frozen=True)
class RopeScaling:
    """YaRN: how the rotary frequencies are stretched beyond the context of pre-training."""

    factor: float
    beta_fast: float
    beta_slow: float
    original_max_position_embeddings: int
    truncate: bool = False
    """Round the range of interpolated frequencies outwards. False in the released models."""

    def __post_init__(self) -> None:
        if self.factor < 1 or self.original_max_position_embeddings < 1:
            raise ValueError(f"RopeScaling: expected factor >= 1 and a context >= 1, got {self}")
        if not self.beta_fast > self.beta_slow > 0:
            raise ValueError(f"RopeScaling: expected beta_fast > beta_slow > 0, got {self}")


@dataclass(frozen=True)
class Config:
    """One gpt-oss model's sizes and constants, checked when made."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_local_experts: int
    num_experts_per_tok: int
    sliding_window: int
    layer_types: tuple[str, ...]
    rope_theta: float
    rope_scaling: RopeScaling | None
    """None is plain RoPE."""
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    swiglu_limit: float = 7.0
    eos_token_id: tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_layer_types(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        """Read a config.json, in the Hugging Face or the `original/` spelling.

        Config.from_dict(json.loads(Path("config.json").read_text()))
        """
        from gptoss_workbench.checkpoint.config_json import read_config

        return read_config(raw)

    def to_dict(self) -> dict[str, Any]:
        """The Hugging Face config.json of this model, in the published spelling."""
        eos = self.eos_token_id
        return {
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "num_local_experts": self.num_local_experts,
            "num_experts_per_tok": self.num_experts_per_tok,
            "experts_per_token": self.num_experts_per_tok,
            "sliding_window": self.sliding_window,
            "layer_types": list(self.layer_types),
            "rope_theta": self.rope_theta,
            "rope_scaling": _rope_dict(self.rope_scaling),
            "max_position_embeddings": self.max_position_embeddings,
            "initial_context_length": self.initial_context_length,
            "rms_norm_eps": self.rms_norm_eps,
            "swiglu_limit": self.swiglu_limit,
            "attention_bias": True,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.9,
            "tie_word_embeddings": False,
            "use_cache": True,
            "torch_dtype": "bfloat16",
            "eos_token_id": eos[0] if eos and len(eos) == 1 else eos and list(eos),
            "pad_token_id": self.pad_token_id,
            "quantization_config": QUANTIZATION,
        }

    @property
    def initial_context_length(self) -> int:
        """The context before YaRN stretched it (4096 in the released models)."""
        if self.rope_scaling is None:
            return self.max_position_embeddings
        return self.rope_scaling.original_max_position_embeddings

    @property
    def n_params(self) -> int:
        """All parameters, each packed 4-bit value counted as one."""
        return 2 * self._embedding + self._trunk(self.num_local_experts)

    @property
    def n_active_params(self) -> int:
        """Parameters a token passes through: chosen experts only, unembedding, no embedding."""
        return self._embedding + self._trunk(self.num_experts_per_tok)

    @property
    def _embedding(self) -> int:
        return self.vocab_size * self.hidden_size

    def _trunk(self, experts: int) -> int:
        """Parameters between the embedding and the unembedding, with so many experts a layer."""
        hidden, ff = self.hidden_size, self.intermediate_size
        query = self.num_attention_heads * self.head_dim
        key = self.num_key_value_heads * self.head_dim
        attention = 2 * query * hidden + query + 2 * key * (hidden + 1) + hidden
        router = self.num_local_experts * (hidden + 1)
        expert = 2 * ff * (hidden + 1) + hidden * (ff + 1)
        layer = attention + self.num_attention_heads + 2 * hidden + router + experts * expert
        return self.num_hidden_layers * layer + hidden


def alternating_layers(n: int) -> tuple[str, ...]:
    """The published pattern: even layers slide, odd layers see everything."""
    return tuple(LAYER_TYPES[layer % 2] for layer in range(n))


def _check_sizes(config: Config) -> None:
    for name in SIZES:
        size = getattr(config, name)
        if type(size) is not int or size < 1:
            raise ValueError(f"Config: expected {name} to be a positive integer, got {size!r}")
    if config.num_attention_heads % config.num_key_value_heads:
        raise ValueError(
            "Config: num_attention_heads must be a multiple of num_key_value_heads, "
            f"got {config.num_attention_heads} and {config.num_key_value_heads}"
        )
    for name in ("hidden_size", "intermediate_size"):
        if getattr(config, name) % 32:
            raise ValueError(
                f"Config: {name} must be a multiple of 32, the MXFP4 block, "
                f"got {getattr(config, name)}"
            )
    if config.head_dim % 2:
        raise ValueError(f"Config: head_dim must be even to be rotated, got {config.head_dim}")
    if config.num_experts_per_tok > config.num_local_experts:
        raise ValueError(
            f"Config: cannot choose {config.num_experts_per_tok} experts a token "
            f"out of {config.num_local_experts}"
        )


def _check_layer_types(config: Config) -> None:
    if len(config.layer_types) != config.num_hidden_layers:
        raise ValueError(
            f"Config: expected one layer type for each of {config.num_hidden_layers} layers, "
            f"got {len(config.layer_types)}"
        )
    unknown = sorted(set(config.layer_types) - set(LAYER_TYPES))
    if unknown:
        raise ValueError(f"Config: expected layer types {LAYER_TYPES}, got {unknown}")


def _rope_dict(scaling: RopeScaling | None) -> dict[str, Any]:
    return {"rope_type": "yarn", **asdict(scaling)} if scaling else {"rope_type": "default"}


GPT_OSS_20B = Config(
    vocab_size=201088,
    hidden_size=2880,
    intermediate_size=2880,
    num_hidden_layers=24,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=64,
    num_local_experts=32,
    num_experts_per_tok=4,
    sliding_window=128,
    layer_types=alternating_layers(24),
    rope_theta=150000.0,
    rope_scaling=RopeScaling(
        factor=32.0, beta_fast=32.0, beta_slow=1.0, original_max_position_embeddings=4096
    ),
    max_position_embeddings=131072,
    eos_token_id=(200002,),
    pad_token_id=199999,
)

GPT_OSS_120B = replace(
    GPT_OSS_20B, num_hidden_layers=36, num_local_experts=128, layer_types=alternating_layers(36)
)
