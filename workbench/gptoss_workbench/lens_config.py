"""`model.cfg`: sizes and switches of a model under TransformerLens's names."""

from dataclasses import dataclass, field

import torch

from gptoss_workbench.config import Config


@dataclass
class LensConfig:
    """`model.cfg`: sizes under TransformerLens's names, and its switches."""

    n_layers: int
    d_model: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    d_vocab_out: int
    n_ctx: int
    num_experts: int
    experts_per_token: int
    eps: float
    dtype: torch.dtype
    device: torch.device
    model_name: str
    architecture: str = "GptOssForCausalLM"
    act_fn: str = "swiglu"
    normalization_type: str = "RMS"
    positional_embedding_type: str = "rotary"
    default_prepend_bos: bool = False
    attn_only: bool = False
    final_rms: bool = True
    window_size: int | None = None
    attn_types: list[str] = field(default_factory=list)
    """'local' (sliding window) or 'global', a layer"""
    use_attn_result: bool = False
    use_split_qkv_input: bool = False
    use_attn_in: bool = False
    use_hook_mlp_in: bool = False


def lens_config(config: Config, dtype: torch.dtype, device: torch.device, name: str) -> LensConfig:
    """The same sizes under TransformerLens's names."""
    return LensConfig(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        n_key_value_heads=config.num_key_value_heads,
        d_head=config.head_dim,
        d_mlp=config.intermediate_size,
        d_vocab=config.vocab_size,
        d_vocab_out=config.vocab_size,
        n_ctx=config.max_position_embeddings,
        num_experts=config.num_local_experts,
        experts_per_token=config.num_experts_per_tok,
        eps=config.rms_norm_eps,
        dtype=dtype,
        device=device,
        model_name=name,
        window_size=config.sliding_window,
        attn_types=["local" if t == "sliding_attention" else "global" for t in config.layer_types],
    )
