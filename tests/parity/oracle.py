"""transformers' gpt-oss as the oracle: random cases, its run, ours, and the gap between them.

Loaded by conftest.py; tests get this module as the fixture `oracle`.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM, Mxfp4Config

from gptoss_kernels.mxfp4 import unpack
from gptoss_workbench.checkpoint.synthetic import TINY, random_tensors
from gptoss_workbench.config import LAYER_TYPES, Config, RopeScaling
from gptoss_workbench.model import GptOss

LIMIT = 1e-4
"""Largest logit difference allowed in float32, in standard deviations of the oracle's logits."""
MARGIN = 1e-5
"""Router margin between rank k and k + 1 below which the oracle's own choice is rounding."""
WINDOWS = (4, 5, 7, 12, 31, 64, 127, 128)


class Case(NamedTuple):
    """A random model and a ragged batch of two rows."""

    config: Config
    tensors: dict[str, Tensor]
    tokens: Tensor
    """[batch, pos]"""
    mask: Tensor
    """[batch, pos] bool; the second row is shorter"""


class Run(NamedTuple):
    """What one forward pass gave."""

    logits: Tensor
    """[batch, pos, vocab] float32"""
    experts: Tensor
    """[layer, batch, pos, k] ascending expert numbers"""
    margin: Tensor | None = None
    """[layer, batch, pos] the oracle's router logit at rank k minus that at rank k + 1"""


class Gap(NamedTuple):
    """How far a run is from the oracle, over real tokens."""

    worst: float
    """largest logit difference in standard deviations of the oracle's logits"""
    rerouted: int
    """token·layers with other experts, where the oracle's margin is clear"""

    @property
    def parity(self) -> bool:
        return self.worst <= LIMIT and self.rerouted == 0


def random_config(seed: int) -> Config:
    """One of 32 shapes: every group size crossed with every k, the rest drawn."""
    draw = random.Random(seed)
    hidden, ff = draw.sample((32, 64, 96, 128), 2)
    kv_heads, k = draw.randint(1, 3), 1 + seed // 8 % 4
    kinds = draw.choice((LAYER_TYPES, LAYER_TYPES[::-1], (*LAYER_TYPES, LAYER_TYPES[0])))
    original = draw.choice((256, 1024, 4096))
    factor = draw.choice((2.0, 8.0, 32.0))
    return replace(
        TINY,
        vocab_size=draw.choice((101, 160, 257)),
        hidden_size=hidden,
        intermediate_size=ff,
        num_hidden_layers=len(kinds),
        layer_types=kinds,
        num_attention_heads=kv_heads * (1 + seed % 8),
        num_key_value_heads=kv_heads,
        head_dim=draw.choice((8, 10, 16, 24)),
        num_local_experts=draw.choice([e for e in (3, 5, 7, 11) if e >= k]),
        num_experts_per_tok=k,
        sliding_window=WINDOWS[(3 * seed + seed // 8) % 8],
        rope_theta=draw.choice((10000.0, 150000.0)),
        rope_scaling=RopeScaling(factor, 32.0, 1.0, original),
        max_position_embeddings=int(factor * original),
        rms_norm_eps=draw.choice((1e-5, 1e-6)),
        swiglu_limit=draw.choice((7.0, 1.5)),
    )


def random_case(seed: int, config: Config | None = None, *, gentle: bool = True) -> Case:
    """Weights for `random_config(seed)` or `config`, and 130 to 149 tokens, padded on one side."""
    config = config or random_config(seed)
    g = torch.Generator().manual_seed(seed)
    n = int(torch.randint(130, 150, (), generator=g))
    short = int(torch.randint(3, n, (), generator=g))
    tokens = torch.randint(3, config.vocab_size, (2, n), generator=g)
    mask = torch.ones(2, n, dtype=torch.bool)
    mask[1, slice(0, n - short) if seed % 2 else slice(short, n)] = False
    return Case(config, random_tensors(config, seed, gentle=gentle), tokens, mask)


def transformers_model(
    config: Config, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> GptOssForCausalLM:
    """The oracle with these weights, experts decoded."""
    raw = {key: value for key, value in config.to_dict().items() if key not in _NOT_DENSE}
    model = GptOssForCausalLM(GptOssConfig(**raw, attn_implementation="eager")).eval()
    model.load_state_dict(dense(tensors))
    return model.to(dtype)


_NOT_DENSE = ("quantization_config", "torch_dtype")


def dense(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with each packed pair decoded to transformers' [expert, inner, outer]."""
    plain = {key: value for key, value in tensors.items() if value.dtype != torch.uint8}
    for key in tensors:
        if key.endswith("_blocks"):
            name = key.removesuffix("_blocks")
            plain[name] = unpack(tensors[key], tensors[f"{name}_scales"]).mT
    return plain


def from_folder(folder: Path, dtype: torch.dtype = torch.float32) -> GptOssForCausalLM:
    """The oracle as transformers itself loads it from a checkpoint."""
    return GptOssForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="eager",
        quantization_config=Mxfp4Config(dequantize=True),
    ).eval()


@torch.no_grad()
def ask(model: GptOssForCausalLM, tokens: Tensor, mask: Tensor | None = None, **more):
    """The oracle's output object; positions count real tokens only."""
    mask = torch.ones_like(tokens).bool() if mask is None else mask
    positions = (mask.long().cumsum(1) - 1).clamp_min(0)
    return model(
        tokens,
        attention_mask=mask.long(),
        position_ids=positions,
        output_router_logits=True,
        **more,
    )


def oracle_run(model: GptOssForCausalLM, tokens: Tensor, mask: Tensor | None = None) -> Run:
    """The oracle's logits and choice of experts in one uncached pass."""
    output, k = ask(model, tokens, mask), model.config.num_experts_per_tok
    router = torch.stack(output.router_logits).unflatten(1, tokens.shape).float()
    ranked = router.sort(-1, descending=True)
    if k < router.shape[-1]:
        margin = ranked.values[..., k - 1] - ranked.values[..., k]
    else:
        margin = torch.full(router.shape[:-1], torch.inf)
    return Run(output.logits.float(), ranked.indices[..., :k].sort(-1).values, margin)


@torch.no_grad()
def our_run(
    model: GptOss, tokens: Tensor, mask: Tensor | None = None, chunks: Sequence[int] | None = None
) -> Run:
    """Ours: in one pass, or chunk by chunk through a KV cache."""
    mask = torch.ones_like(tokens).bool() if mask is None else mask
    cache = model.new_cache() if chunks else None
    sizes = list(chunks or [tokens.shape[1]])
    parts = [
        model.run_with_cache(part, names_filter=routed, attention_mask=real, past_key_values=cache)
        for part, real in zip(tokens.split(sizes, 1), mask.split(sizes, 1), strict=True)
    ]
    experts = [
        torch.cat([seen[f"blocks.{i}.mlp.hook_expert_indices"] for _, seen in parts], 1)
        for i in range(model.n_layers)
    ]
    logits = torch.cat([logits for logits, _ in parts], 1)
    return Run(logits.float(), torch.stack(experts).sort(-1).values)


def routed(name: str) -> bool:
    return name.endswith("hook_expert_indices")


def gap(run: Run, oracle: Run, mask: Tensor | None = None) -> Gap:
    """The largest logit difference and the number of clear choices that differ."""
    real = torch.ones_like(oracle.logits[..., 0]).bool() if mask is None else mask
    expected = oracle.logits[real]
    worst = float((run.logits[real] - expected).abs().max() / expected.std())
    other = (run.experts != oracle.experts).any(-1) & (oracle.margin > MARGIN)
    return Gap(worst, int(other[:, real].sum()))
