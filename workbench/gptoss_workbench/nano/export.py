"""Writing and reading the checkpoint folder in gpt-oss's own format.

Experts as MXFP4 blocks and scales, everything else bf16; gate and up rows interleaved
(even = gate, odd = up), as in the released checkpoints. No time stamps: equal weights, equal file.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from .model import Nano, NanoConfig
from .mxfp4 import pack, unpack

HARMONY = {"system": "Reasoning: {effort}"}
KEEP_DENSE = [
    "model.layers.*.self_attn",
    "model.layers.*.mlp.router",
    "model.embed_tokens",
    "lm_head",
]


def write_checkpoint(model: Nano, tokenizer: Tokenizer, folder: Path | str) -> None:
    """Write weights, config, tokenizer and the harmony convention."""
    folder = Path(folder)
    write_weights(model, tokenizer, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {name: tokenizer.token_to_id(f"<|{name}|>") for name in ("return", "endoftext", "call")}
    stop = {"eos_token_id": list(ids.values()), "pad_token_id": ids["endoftext"]}
    _json(folder / "generation_config.json", stop)
    _json(folder / "harmony.json", HARMONY)
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|return|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_positions(model.c),
    }
    _json(folder / "tokenizer_config.json", tokenizer_config)


def write_weights(model: Nano, tokenizer: Tokenizer, folder: Path) -> None:
    """Write model.safetensors and config.json only (an intermediate checkpoint)."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(packed_state(model), folder / "model.safetensors", metadata={"format": "pt"})
    _json(folder / "config.json", config_dict(model.c, tokenizer))


def read_model(folder: Path | str) -> Nano:
    """The trainer's model with the exported weights: MXFP4 decoded, bf16 widened, fp32."""
    folder = Path(folder)
    model = Nano(read_config(folder))
    model.load_state_dict(unpacked_state(load_file(folder / "model.safetensors"), model.c))
    return model.eval()


def read_config(folder: Path) -> NanoConfig:
    raw = json.loads((folder / "config.json").read_text())
    rope = raw["rope_scaling"]
    known = {k: raw[k] for k in NanoConfig.__dataclass_fields__ if k in raw}
    return NanoConfig(
        **known,
        yarn_factor=rope["factor"],
        beta_fast=rope["beta_fast"],
        beta_slow=rope["beta_slow"],
    )


def packed_state(model: Nano) -> dict[str, Tensor]:
    """The checkpoint's tensors by their published names."""
    out = {}
    for name, value in model.state_dict().items():
        target = _published(name)
        value = value.detach()
        if name.endswith(("gate_up_proj", "gate_up_proj_bias")):
            value = value.transpose(1, 2).flatten(1, 2)  # [expert, (ff, gate/up), ...]
        if name.endswith(("gate_up_proj", "down_proj")):
            blocks, scales = pack(value.contiguous())
            out[target + "_blocks"], out[target + "_scales"] = blocks.contiguous(), scales
        else:
            out[target] = value.to(torch.bfloat16).contiguous()
    return out


def unpacked_state(tensors: dict[str, Tensor], c: NanoConfig) -> dict[str, Tensor]:
    """The inverse of `packed_state`, up to the rounding."""
    out = {}
    for name in Nano(c).state_dict():
        source = _published(name)
        if source in tensors:
            value = tensors[source].float()
        else:
            value = unpack(tensors[source + "_blocks"], tensors[source + "_scales"])
        if name.endswith(("gate_up_proj", "gate_up_proj_bias")):
            value = value.unflatten(1, (-1, 2)).transpose(1, 2)
        out[name] = value.contiguous()
    return out


def _published(name: str) -> str:
    for projection in ("gate_up_proj", "down_proj"):
        name = name.replace(f"mlp.{projection}", f"mlp.experts.{projection}")
    return name if name.startswith("lm_head") else "model." + name


def model_positions(c: NanoConfig) -> int:
    """The context length after YaRN."""
    return int(c.initial_context_length * c.yarn_factor)


def config_dict(c: NanoConfig, tokenizer: Tokenizer) -> dict:
    """config.json with gpt-oss's keys."""
    layers = range(c.num_hidden_layers)
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "num_local_experts": c.num_local_experts,
        "num_experts_per_tok": c.num_experts_per_tok,
        "experts_per_token": c.num_experts_per_tok,
        "sliding_window": c.sliding_window,
        "layer_types": [("sliding", "full")[i % 2] + "_attention" for i in layers],
        "rms_norm_eps": c.rms_norm_eps,
        "swiglu_limit": c.swiglu_limit,
        "attention_bias": True,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "rope_theta": c.rope_theta,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": c.yarn_factor,
            "beta_fast": c.beta_fast,
            "beta_slow": c.beta_slow,
            "original_max_position_embeddings": c.initial_context_length,
            "truncate": False,
        },
        "initial_context_length": c.initial_context_length,
        "max_position_embeddings": model_positions(c),
        "eos_token_id": tokenizer.token_to_id("<|return|>"),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": KEEP_DENSE},
    }


def file_hash(path: Path | str) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
