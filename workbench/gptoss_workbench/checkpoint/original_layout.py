"""OpenAI's `original/` layout, read under Hugging Face names.

The bytes are the same; only names differ, and q, k and v lie one after another in the rows of one
tensor. Rows of a stored tensor are contiguous, so q, k and v become views, not copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gptoss_workbench.checkpoint import hf_layout
from gptoss_workbench.checkpoint.safetensors_file import Entry, Spec
from gptoss_workbench.config import Config

ENDS = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.scale": "model.norm.weight",
    "unembedding.weight": "lm_head.weight",
}

BLOCK = {
    "attn.norm.scale": "input_layernorm.weight",
    "attn.out.weight": "self_attn.o_proj.weight",
    "attn.out.bias": "self_attn.o_proj.bias",
    "attn.sinks": "self_attn.sinks",
    "mlp.norm.scale": "post_attention_layernorm.weight",
    "mlp.gate.weight": "mlp.router.weight",
    "mlp.gate.bias": "mlp.router.bias",
    "mlp.mlp1_weight.blocks": "mlp.experts.gate_up_proj_blocks",
    "mlp.mlp1_weight.scales": "mlp.experts.gate_up_proj_scales",
    "mlp.mlp1_bias": "mlp.experts.gate_up_proj_bias",
    "mlp.mlp2_weight.blocks": "mlp.experts.down_proj_blocks",
    "mlp.mlp2_weight.scales": "mlp.experts.down_proj_scales",
    "mlp.mlp2_bias": "mlp.experts.down_proj_bias",
}


def is_original(names: Mapping[str, Any]) -> bool:
    """Whether stored tensor names are those of `original/`."""
    return any(name == "embedding.weight" or name.startswith("block.") for name in names)


def expected(config: Config) -> dict[str, Spec]:
    """Every tensor an `original/` checkpoint of this config has, under its stored name."""
    specs = hf_layout.expected(config)
    fused = {}
    for stored, names in _names(config).items():
        parts = [specs[name] for name in names]
        rows = sum(spec.shape[0] for spec in parts)
        fused[stored] = Spec(parts[0].dtype, (rows, *parts[0].shape[1:]))
    return fused


def as_hf(entries: Mapping[str, Entry], config: Config) -> dict[str, Entry]:
    """The same bytes under Hugging Face names; entries must be as `expected` says."""
    specs = hf_layout.expected(config)
    renamed = {}
    for stored, names in _names(config).items():
        start = entries[stored].start
        for name in names:
            renamed[name] = replace(entries[stored], shape=specs[name].shape, start=start)
            start += specs[name].nbytes
    return renamed


def from_hf(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Tensors under the names of `original/`, q, k and v joined."""
    return {
        stored: torch.cat([tensors[name] for name in names])
        for stored, names in _names(config).items()
    }


def config_dict(config: Config) -> dict[str, Any]:
    """The config.json of `original/`, which has no place for ids, layer types or truncate."""
    scaling = config.rope_scaling
    return {
        "num_hidden_layers": config.num_hidden_layers,
        "num_experts": config.num_local_experts,
        "experts_per_token": config.num_experts_per_tok,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "swiglu_limit": config.swiglu_limit,
        "head_dim": config.head_dim,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "sliding_window": config.sliding_window,
        "initial_context_length": config.initial_context_length,
        "rope_theta": config.rope_theta,
        "rope_scaling_factor": scaling.factor if scaling else 1.0,
        "rope_ntk_alpha": scaling.beta_slow if scaling else 1.0,
        "rope_ntk_beta": scaling.beta_fast if scaling else 32.0,
    }


def first_names(config: Config) -> dict[str, str]:
    """Stored name -> the first Hugging Face name it holds."""
    return {stored: names[0] for stored, names in _names(config).items()}


def _names(config: Config) -> dict[str, tuple[str, ...]]:
    """Stored name -> the Hugging Face names its rows hold, in order."""
    names: dict[str, tuple[str, ...]] = {stored: (name,) for stored, name in ENDS.items()}
    for layer in range(config.num_hidden_layers):
        block, layers = f"block.{layer}", f"model.layers.{layer}"
        for kind in ("weight", "bias"):
            parts = tuple(f"{layers}.self_attn.{part}_proj.{kind}" for part in "qkv")
            names[f"{block}.attn.qkv.{kind}"] = parts
        names |= {f"{block}.{stored}": (f"{layers}.{name}",) for stored, name in BLOCK.items()}
    return names
