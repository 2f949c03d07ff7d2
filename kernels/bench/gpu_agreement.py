"""Whether the Triton backend is right on this device, against the plain reference beside it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from gptoss_hooks import ablate, bias, patch, scale, steer
from gptoss_hooks.edits import Edit
from gptoss_kernels import rope
from gptoss_kernels.backend import Backend, select
from gptoss_kernels.moe import Experts
from gptoss_kernels.mxfp4 import pack
from gptoss_workbench.checkpoint.synthetic import TINY, random_tensors
from gptoss_workbench.config import Config, alternating_layers
from gptoss_workbench.model import GptOss

FAITHFUL, GRADIENT, LOGITS = 1e-5, 1e-4, 1e-3
"""Relative L2 errors allowed in float32: of an operation, a gradient, whole-model logits."""
ROUNDED = 4e-3
"""Of an operation in bfloat16: an ulp is up to 2^-8 of a value."""


class Comparison(NamedTuple):
    """One thing held against another."""

    what: str
    error: float
    bound: float

    @property
    def holds(self) -> bool:
        return self.error <= self.bound

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        return f"{self.what:<44} {self.error:9.2e} (allowed {self.bound:.0e})  {verdict}"


def compare(device: torch.device) -> Iterator[Comparison]:
    """Operations, gradients and whole models, one after the other."""
    triton, plain = select("triton", device), select("reference", device)
    for dtype in (torch.float32, torch.bfloat16):
        yield from operations(triton, plain, device, dtype)
    yield from gradients(triton, plain, device)
    yield from models(device)


def operations(
    triton: Backend, plain: Backend, device: torch.device, dtype: torch.dtype
) -> Iterator[Comparison]:
    """Each operation of the table at odd sizes, values beyond the clamp, ragged rows."""
    bound = FAITHFUL if dtype == torch.float32 else ROUNDED
    for name, args, options in cases(device, dtype):
        found, wanted = (getattr(ops, name)(*args, **options) for ops in (triton, plain))
        if name == "choose":
            yield Comparison(name, float((found != wanted).sum()), 0)
        else:
            yield Comparison(f"{name}, {str(dtype)[6:]}", apart(found, wanted), bound)


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, tuple, dict]]:
    """(operation, arguments, options)."""
    draw = Draw(device)
    n = 37 if device.type == "cuda" else 13  # the interpreter takes its time
    x = draw(2, n, 96, dtype=dtype)
    yield "rms_norm", (x, draw(96, dtype=torch.bfloat16)), {}
    for outer in (37, 160):
        weight = draw(outer, 96, dtype=torch.bfloat16)
        yield "linear", (x, weight, draw(outer, dtype=torch.bfloat16)), {}
        yield "unembed", (x[:, -1:], weight), {}
    cos_sin = rope.tables(draw.positions(2, n), rope.plain(16, 150000.0))
    yield "rotate", (draw(2, n, 8, 16, dtype=dtype), *cos_sin), {}
    logits = draw(2, n, 8)
    indices = logits.topk(4).indices
    yield "choose", (logits, 4), {}
    yield "weigh", (logits, indices), {}
    yield "moe", (10 * x, indices, logits.gather(-1, indices).softmax(-1), draw.experts(8)), {}
    for window in (None, 9):
        yield "attention", draw.attention(dtype, n), {"window": window}


class Draw:
    """Random inputs on a device, the same each time."""

    def __init__(self, device: torch.device):
        self.device, self.rng = device, torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=self.rng).to(self.device, dtype)

    def positions(self, rows: int, length: int) -> Tensor:
        """The second row is 11 tokens shorter, padded on the left."""
        positions = torch.arange(length).repeat(rows, 1)
        positions[1] -= 11
        return positions.clamp_min(-1).to(self.device)

    def experts(self, count: int) -> Experts:
        """d_model 96, d_ff 64; weights that reach the clamp."""
        up, down = (pack(torch.randn(count, *s, generator=self.rng)) for s in ((128, 96), (96, 64)))
        biases = (self(count, 128), self(count, 96))
        move = [each.to(self.device) for each in (*up, *down)]
        return Experts(move[0], move[1], biases[0], move[2], move[3], biases[1])

    def attention(self, dtype: torch.dtype, n: int) -> tuple:
        """A chunk of n queries after as many cached keys, and a hundred more."""
        keys = self.positions(2, 2 * n + 100)
        q = self(2, n, 8, 16, dtype=dtype)
        k, v = (self(2, keys.shape[1], 2, 16, dtype=dtype) for _ in range(2))
        return q, k, v, self(8), keys[:, -n:], keys


def gradients(triton: Backend, plain: Backend, device: torch.device) -> Iterator[Comparison]:
    """To the activations, through everything."""
    for name, args, options in cases(device, torch.float32):
        if name == "choose":
            continue
        found, wanted = (gradient(getattr(ops, name), args, options) for ops in (triton, plain))
        yield Comparison(f"gradient of {name}", apart(found, wanted), GRADIENT)


def gradient(operation, args: tuple, options: dict) -> Tensor:
    x = args[0].detach().clone().requires_grad_()
    y = operation(x, *args[1:], **options)
    (y * torch.linspace(-1, 1, y.numel(), device=y.device).view_as(y)).sum().backward()
    assert x.grad is not None
    return x.grad


def small() -> Config:
    """Two layers of odd widths, a window that even a short text crosses."""
    layers = {"num_hidden_layers": 2, "layer_types": alternating_layers(2)}
    widths = {"vocab_size": 70, "hidden_size": 96, "intermediate_size": 64}
    return replace(TINY, num_local_experts=5, sliding_window=4, **layers, **widths)


def models(device: torch.device) -> Iterator[Comparison]:
    """Two layers at odd widths: against the reference, and against itself in company."""
    config = small()
    tensors = random_tensors(config, seed=0)
    triton, plain = (
        GptOss(config, tensors, dtype=torch.float32, device=device, backend=name)
        for name in ("triton", "reference")
    )
    n = 23 if device.type == "cuda" else 7
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, config.vocab_size, (2, n), generator=rng).to(device)
    with torch.no_grad():
        clean, wanted = triton(tokens), plain(tokens)
        yield Comparison("logits of the whole model", apart(clean, wanted), LOGITS)
        own, theirs = (chosen(model, tokens) for model in (triton, plain))
        yield Comparison("experts chosen otherwise", float((own != theirs).sum()), 0)
        seen, _ = triton.run_with_cache(tokens, names_filter=lambda name: True)
        yield Comparison("bits changed by observing everything", unlike(seen, clean), 0)
        alone = torch.cat([triton(tokens[i : i + 1]) for i in range(2)])
        yield Comparison("bits changed by the batch", unlike(alone, clean), 0)
        cache = triton.new_cache()
        parts = [triton(part, past_key_values=cache) for part in tokens.split(3, 1)]
        yield Comparison("bits changed by chunks", unlike(torch.cat(parts, 1), clean), 0)
    yield from decoding(triton, config, tokens)


def decoding(model: GptOss, config: Config, tokens: Tensor) -> Iterator[Comparison]:
    """Steps at fixed addresses (on a GPU a captured graph) with ordinary ones."""
    plain, edited = [[]] * 4, [edits(config, value) for value in (0.5, 0.5, -0.3, 2.0)]
    yield Comparison("bits changed by decoding in a graph", steps(model, tokens, plain), 0)
    yield Comparison("bits changed by edits in a graph", steps(model, tokens, edited), 0)
    more = [*plain[:1], *edited[:2], *plain[:1]]
    yield Comparison("bits changed by edits that come and go", steps(model, tokens, more), 0)


def edits(config: Config, value: float) -> list[Edit]:
    """Of one form, their numbers made of `value`: some a kernel obeys, some are operators."""
    vector = torch.linspace(-1, 1, config.hidden_size)
    return [
        steer("resid_post", vector, value, layers=0),
        scale("z", value, layers=1, heads=[0, 3]),
        ablate("pattern", layers=0, heads=1),
        scale("expert_out", value, experts=1),
        ablate("expert_post", layers=1, experts=[0, 2], to=value),
        scale("expert_gate", value, neurons=[3, 5]),
        patch("mlp_out", (value * vector).expand(1, 40, -1), layers=1, tokens=slice(5, None)),
        bias([0, 4], 3 * value, tokens=slice(6, None)),
    ]


def steps(model: GptOss, tokens: Tensor, edits: Sequence[Sequence[Edit]]) -> float:
    """Bits in which steps under edits, a list a token, differ from ordinary passes under them."""
    from gptoss_workbench.decoder import Decoder

    start, different = tokens.shape[1] - len(edits), 0.0
    caches = model.new_cache(), model.new_cache()
    with torch.no_grad():
        for cache in caches:
            model(tokens[:, :start], past_key_values=cache)
        decoder = Decoder(model, caches[0], room=tokens.shape[1])
        for step, each in zip(tokens[:, start:].split(1, 1), edits, strict=True):
            with model.edited(*each):
                found = decoder.step(step, torch.ones_like(step, dtype=torch.bool))
                different += unlike(found, model(step, past_key_values=caches[1])[:, -1])
    return different


def chosen(model: GptOss, tokens: Tensor) -> Tensor:
    """[layer, batch, pos, k]"""
    _, cache = model.run_with_cache(tokens, names_filter=lambda n: n.endswith("expert_indices"))
    return torch.stack(list(cache.values()))


def apart(found: Tensor, wanted: Tensor) -> float:
    """Relative L2 distance; infinite where something is not finite."""
    found, wanted = found.double(), wanted.double()
    if not bool(found.isfinite().all()):
        return float("inf")
    return float((found - wanted).norm() / wanted.norm())


def unlike(found: Tensor, wanted: Tensor) -> float:
    """How many numbers differ in a bit."""
    return float((found != wanted).sum())
