"""Checkpoints with random weights: small ones for tests, full-shape ones for work offline.

    python -m gptoss_workbench.checkpoint.synthetic --out DIR             # gpt-oss-20b, 13.8 GB
    python -m gptoss_workbench.checkpoint.synthetic --out DIR --layers 2  # a cut of it, 3.3 GB
    python -m gptoss_workbench.checkpoint.synthetic --out DIR --layers 36 --experts 128

Each tensor has a generator of its own, keyed by seed and name: its bytes do not depend on the
shards, and a cut is a prefix of the whole. Every bias, sink and norm is far from trivial, so that
leaving one out shows. Two strengths: gentle, where bfloat16 stays within 2 % of float32, and sharp,
with peaked attention and large experts, where an error in float32 is amplified.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gptoss_workbench.checkpoint import hf_layout, original_layout
from gptoss_workbench.checkpoint.errors import CheckpointError
from gptoss_workbench.checkpoint.safetensors_file import (
    DTYPES,
    Spec,
    spec_of,
    tensor_bytes,
    write_file,
)
from gptoss_workbench.checkpoint.shards import SINGLE, split, write_index
from gptoss_workbench.config import GPT_OSS_20B, Config, RopeScaling, alternating_layers

CHUNK = 1 << 23
"""Values drawn at a time."""

TINY = Config(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=16,
    num_local_experts=8,
    num_experts_per_tok=2,
    sliding_window=8,
    layer_types=alternating_layers(4),
    rope_theta=150000.0,
    rope_scaling=RopeScaling(32.0, 32.0, 1.0, 4096),
    max_position_embeddings=131072,
    eos_token_id=(2,),
    pad_token_id=1,
)
"""A model for tests: no two widths equal, a window short enough to be crossed."""


def random_tensors(config: Config, seed: int = 0, *, gentle: bool = True) -> dict[str, Tensor]:
    """All tensors of a random model under their Hugging Face names.

    random_tensors(TINY, seed=0)["model.layers.0.self_attn.sinks"]
    """
    tensors = {}
    for name, spec in hf_layout.expected(config).items():
        data = bytearray(b"".join(_draw(name, spec, seed, gentle)))
        tensors[name] = torch.frombuffer(data, dtype=DTYPES[spec.dtype]).reshape(spec.shape)
    return tensors


def write_original(tensors: dict[str, Tensor], config: Config, folder: Path) -> None:
    """Write tensors with Hugging Face names as an `original/` folder."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = original_layout.from_hf(tensors, config)
    write_file(
        folder / SINGLE, [(name, spec_of(t), [tensor_bytes(t)]) for name, t in stored.items()]
    )
    raw = original_layout.config_dict(config)
    (folder / "config.json").write_text(json.dumps(raw, indent=2))


def write_random(
    config: Config,
    folder: Path,
    *,
    seed: int = 0,
    gentle: bool = True,
    shard_bytes: int = 2_500_000_000,
) -> Iterator[Path]:
    """Write a random checkpoint in the Hugging Face layout, yielding each shard when it is there.

    Memory stays below 300 MB whatever the size. No tokenizer is written.
    """
    specs = hf_layout.expected(config)
    _check_disk(folder, sum(spec.nbytes for spec in specs.values()))
    shards = split(specs, shard_bytes)
    for file, names in shards.items():
        items = [(n, specs[n], _draw(n, specs[n], seed, gentle)) for n in names]
        write_file(folder / file, items)
        yield folder / file
    write_index(folder, specs, shards)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2))


def _draw(name: str, spec: Spec, seed: int, gentle: bool) -> Iterator[bytes]:
    """The bytes of one tensor, chunk by chunk."""
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    left = math.prod(spec.shape)
    while left:
        n = min(left, CHUNK)
        left -= n
        match hf_layout.part(name):
            case "blocks":
                yield _blocks(rng, n)
            case "scales":
                yield _scales(rng, n, 32 * spec.shape[-1], gentle)
            case _:
                mean, std = _spread(name, spec, gentle)
                yield _bf16(mean + std * rng.standard_normal(n, dtype=np.float32))


def _spread(name: str, spec: Spec, gentle: bool) -> tuple[float, float]:
    """Mean and standard deviation of a bfloat16 tensor."""
    fan_in = spec.shape[-1] ** -0.5
    match hf_layout.part(name):
        case "norms":
            return 1.0, 0.2
        case "embed":
            return 0.0, 1.0
        case "unembed":
            return 0.0, fan_in
        case "router":
            return 0.0, 2 * fan_in if name.endswith("weight") else 0.5
        case "expert biases":
            return 0.0, 0.125 if gentle else 0.5
    if name.endswith("sinks"):
        return 0.0, 1.5
    if name.endswith("bias"):
        return 0.0, 0.3
    peaked = "q_proj" in name or "k_proj" in name
    return 0.0, fan_in if peaked and gentle else 2 * fan_in


def _blocks(rng: np.random.Generator, n: int) -> bytes:
    codes = _codes()[rng.integers(0, 4096, 2 * n, dtype=np.uint16)]
    return (codes[0::2] | (codes[1::2] << 4)).tobytes()


def _scales(rng: np.random.Generator, n: int, columns: int, gentle: bool) -> bytes:
    """Scale bytes over four powers of two; weights then have 2.3 x 2^exponent as their spread."""
    gain = 0.4 if gentle else 1.6
    exponent = round(math.log2(gain / math.sqrt(columns) / 2.3))
    return (rng.integers(-2, 2, n, dtype=np.int16) + 127 + exponent).astype(np.uint8).tobytes()


@cache
def _codes() -> np.ndarray:
    """4096 FP4 codes with the frequencies a block of normal weights has."""
    edges = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    z = np.abs(np.random.Generator(np.random.SFC64(0)).standard_normal(4096)) * 2.4
    codes = np.searchsorted(edges, z).astype(np.uint8)
    codes[1::2] |= 8  # the sign
    return codes


def _bf16(values: np.ndarray) -> bytes:
    """float32 to bfloat16 bit patterns, rounded to nearest even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()


def _check_disk(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed * 1.02:
        raise CheckpointError(
            f"{folder}: the checkpoint takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    published = {"layers": 24, "hidden": 2880, "intermediate": 2880, "experts": 32, "top-k": 4}
    published |= {"heads": 64, "kv-heads": 8, "head-dim": 64, "window": 128, "vocab": 201088}
    for name, default in published.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sharp", action="store_true", help="peaked attention, large experts")
    parser.add_argument("--shard-gb", type=float, default=2.5)
    args = parser.parse_args()
    try:
        for file in write_random(
            _config(args),
            args.out,
            seed=args.seed,
            gentle=not args.sharp,
            shard_bytes=int(args.shard_gb * 1e9),
        ):
            print(f"{file.name}: {file.stat().st_size / 1e9:.2f} GB", flush=True)
    except ValueError as error:
        parser.error(str(error))


def _config(args: argparse.Namespace) -> Config:
    return replace(
        GPT_OSS_20B,
        num_hidden_layers=args.layers,
        layer_types=alternating_layers(args.layers),
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_local_experts=args.experts,
        num_experts_per_tok=args.top_k,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        head_dim=args.head_dim,
        sliding_window=args.window,
        vocab_size=args.vocab,
        eos_token_id=(min(200002, args.vocab - 1),),
        pad_token_id=min(199999, args.vocab - 2),
    )


if __name__ == "__main__":
    main()
