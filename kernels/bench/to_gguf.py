"""A checkpoint as one GGUF file for llama.cpp, value for value.

    python to_gguf.py CHECKPOINT OUT.gguf

Needs numpy and gguf, nothing of ours: it runs in the rivals' environment. Experts stay MXFP4 (each
block's 32 values in ggml's order), matrices bfloat16; vectors and the router become float32, as
llama.cpp wants them, which loses nothing. There are no words: tokens are numbers on both sides.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np

ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
NUMPY = {"BF16": "<u2", "U8": "u1"}
BF16, F32 = gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.F32
MXFP4 = gguf.GGMLQuantizationType.MXFP4
GGML_BLOCK = 17
"""Bytes of ggml's MXFP4 block: the scale, then 16 bytes of two values."""


class Piece(NamedTuple):
    """One tensor to be written."""

    name: str
    shape: tuple[int, ...]
    """of `make`'s result, in its items"""
    kind: gguf.GGMLQuantizationType
    make: Callable[[], np.ndarray]


def convert(folder: Path, target: Path) -> None:
    """Write `target` in one step; memory stays at one expert matrix."""
    config, tensors = json.loads((folder / "config.json").read_text()), mapped(folder)
    partial = target.with_name(target.name + ".partial")
    writer = gguf.GGUFWriter(partial, "gpt-oss")
    describe(writer, config)
    pieces = list(plan(tensors, config["num_hidden_layers"]))
    for name, shape, kind, _ in pieces:
        item = np.dtype({BF16: np.uint16, F32: np.float32, MXFP4: np.uint8}[kind])
        nbytes = int(np.prod(shape)) * item.itemsize
        writer.add_tensor_info(name, shape, item, nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for piece in pieces:
        writer.write_tensor_data(piece.make())
    writer.close()
    partial.replace(target)


def mapped(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of the shards, memory-mapped; bfloat16 as its 16 bits."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        raw = np.memmap(file, np.uint8, "r")
        length = int(raw[:8].view("<u8")[0])
        for name, told in json.loads(bytes(raw[8 : 8 + length])).items():
            if name != "__metadata__":
                begin, end = (8 + length + at for at in told["data_offsets"])
                found[name] = raw[begin:end].view(NUMPY[told["dtype"]]).reshape(told["shape"])
    return found


def describe(writer: gguf.GGUFWriter, config: dict) -> None:
    """The sizes and constants that llama.cpp reads."""
    rope = config["rope_scaling"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_sliding_window_pattern([t == "sliding_attention" for t in config["layer_types"]])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])


def plan(tensors: dict[str, np.ndarray], layers: int) -> Iterator[Piece]:
    """All tensors under llama.cpp's names."""
    yield matrix("token_embd.weight", tensors["model.embed_tokens.weight"])
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        ours = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        yield from block(f"blk.{layer}", ours)
    yield vector("output_norm.weight", tensors["model.norm.weight"])
    yield matrix("output.weight", tensors["lm_head.weight"])


def block(blk: str, ours: dict[str, np.ndarray]) -> Iterator[Piece]:
    """One layer."""
    yield vector(f"{blk}.attn_norm.weight", ours["input_layernorm.weight"])
    for name, theirs in ATTENTION.items():
        yield matrix(f"{blk}.{theirs}.weight", ours[f"{name}.weight"])
        yield vector(f"{blk}.{theirs}.bias", ours[f"{name}.bias"])
    yield vector(f"{blk}.attn_sinks.weight", ours["self_attn.sinks"])
    yield vector(f"{blk}.post_attention_norm.weight", ours["post_attention_layernorm.weight"])
    for part in ("weight", "bias"):
        yield vector(f"{blk}.ffn_gate_inp.{part}", ours[f"mlp.router.{part}"])
    for theirs, name, rows in (
        ("gate", "gate_up_proj", slice(0, None, 2)),
        ("up", "gate_up_proj", slice(1, None, 2)),
        ("down", "down_proj", slice(None)),
    ):
        blocks, scales, bias = (
            ours[f"mlp.experts.{name}_{part}"][:, rows] for part in ("blocks", "scales", "bias")
        )
        yield experts(f"{blk}.ffn_{theirs}_exps.weight", blocks, scales)
        yield vector(f"{blk}.ffn_{theirs}_exps.bias", bias)


def matrix(name: str, bits: np.ndarray) -> Piece:
    return Piece(name, bits.shape, BF16, lambda: bits)


def vector(name: str, bits: np.ndarray) -> Piece:
    return Piece(name, bits.shape, F32, lambda: widened(bits))


def experts(name: str, blocks: np.ndarray, scales: np.ndarray) -> Piece:
    outer, (rows, columns) = blocks.shape[0], scales.shape[1:]
    return Piece(name, (outer, rows, columns * GGML_BLOCK), MXFP4, lambda: packed(blocks, scales))


def widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def packed(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """ggml's blocks: byte i holds values i (low) and i + 16 (high); ours 2i and 2i + 1."""
    out = np.empty((*scales.shape, GGML_BLOCK), np.uint8)
    out[..., 0] = scales
    first, second = blocks[..., :8], blocks[..., 8:]
    out[..., 1::2] = (first & 15) | (second << 4)
    out[..., 2::2] = (first >> 4) | (second & 240)
    return out.reshape(*scales.shape[:-1], -1)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
