"""The Hugging Face layout: every tensor of a checkpoint, by name, shape and dtype.

Weights are [out, in]. Expert weights stay packed: `_blocks` holds two 4-bit values a byte, 32 of
them in 16 bytes along the input axis, `_scales` one power of two for each 32. Rows of gate_up_proj
alternate gate, up.
"""

from __future__ import annotations

from collections.abc import Iterator

from gptoss_workbench.checkpoint.safetensors_file import Spec
from gptoss_workbench.config import Config

MXFP4_BLOCK = 32

PARTS: tuple[str, ...] = (
    "embed",
    "unembed",
    "attention",
    "norms",
    "router",
    "blocks",
    "scales",
    "expert biases",
)
"""What `part` sorts tensors into."""


def expected(config: Config) -> dict[str, Spec]:
    """Every tensor a checkpoint of this config has, in the order it is written."""
    return dict(_model(config))


def part(name: str) -> str:
    """Which of PARTS a tensor belongs to."""
    if name.startswith(("model.embed_tokens", "lm_head")):
        return "embed" if name.startswith("model") else "unembed"
    if ".experts." in name:
        endings = {"blocks": "blocks", "scales": "scales", "bias": "expert biases"}
        return endings[name.rsplit("_", 1)[1]]
    if ".mlp.router." in name:
        return "router"
    return "attention" if ".self_attn." in name else "norms"


def _model(config: Config) -> Iterator[tuple[str, Spec]]:
    hidden = config.hidden_size
    yield "model.embed_tokens.weight", _bf16(config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        yield from _block(config, f"model.layers.{layer}")
    yield "model.norm.weight", _bf16(hidden)
    yield "lm_head.weight", _bf16(config.vocab_size, hidden)


def _block(config: Config, block: str) -> Iterator[tuple[str, Spec]]:
    hidden, ff = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    yield f"{block}.input_layernorm.weight", _bf16(hidden)
    shapes = {"q": (query, hidden), "k": (key, hidden), "v": (key, hidden), "o": (hidden, query)}
    for name, (rows, columns) in shapes.items():
        yield f"{block}.self_attn.{name}_proj.weight", _bf16(rows, columns)
        yield f"{block}.self_attn.{name}_proj.bias", _bf16(rows)
    yield f"{block}.self_attn.sinks", _bf16(config.num_attention_heads)
    yield f"{block}.post_attention_layernorm.weight", _bf16(hidden)
    yield f"{block}.mlp.router.weight", _bf16(config.num_local_experts, hidden)
    yield f"{block}.mlp.router.bias", _bf16(config.num_local_experts)
    for name, rows, columns in (("gate_up_proj", 2 * ff, hidden), ("down_proj", hidden, ff)):
        weight = f"{block}.mlp.experts.{name}"
        packed = (config.num_local_experts, rows, columns // MXFP4_BLOCK)
        yield f"{weight}_blocks", Spec("U8", (*packed, MXFP4_BLOCK // 2))
        yield f"{weight}_scales", Spec("U8", packed)
        yield f"{weight}_bias", _bf16(*packed[:2])


def _bf16(*shape: int) -> Spec:
    return Spec("BF16", shape)
