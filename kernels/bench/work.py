"""How much one token takes: bytes read when decoding, operations of a prompt."""

from gptoss_workbench.checkpoint import hf_layout
from gptoss_workbench.config import Config


def bytes_per_token(config: Config, context: int) -> float:
    """Weights (k of the experts) and cached keys and values that one decoded token reads."""
    used = config.num_experts_per_tok / config.num_local_experts
    total = 0.0
    for name, spec in hf_layout.expected(config).items():
        if "embed_tokens" not in name:
            total += spec.nbytes * (used if ".experts." in name else 1)
    cached = 4 * config.num_key_value_heads * config.head_dim  # bytes a token and layer
    for kind in config.layer_types:
        sliding = kind == "sliding_attention"
        total += cached * (min(context, config.sliding_window) if sliding else context)
    return total


def operations_per_token(config: Config) -> float:
    """Multiplications and additions of one prompt token in projections and experts."""
    width = config.hidden_size
    heads = (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    experts = config.num_experts_per_tok * 3 * width * config.intermediate_size
    router = width * config.num_local_experts
    return 2.0 * config.num_hidden_layers * (heads * width + experts + router)
