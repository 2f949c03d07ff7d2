"""What hooks cost when nobody looks, and when somebody does, at gpt-oss-20b's true shapes.

    python kernels/bench/hooks.py [--layers 2 --repeats 150 --tokens 512]

One process, one model over mapped weights. Decoding one token is compared with the same source
without hook points (`unhooked`), and with itself, which shows the noise; a prompt with keeping the
residual stream and the route, and with keeping everything. Variants run in an order drawn anew each
round; the figure is the geometric mean of the rounds' ratios, with its 95 % interval from 10,000
resamples.
"""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import machine
import numpy as np
import torch
import typer
from cpu import checkpoint
from observing import is_common
from unhooked import unhooked_model

import gptoss_workbench as wb
from gptoss_workbench.checkpoint import open_checkpoint
from gptoss_workbench.config import GPT_OSS_20B, alternating_layers

BARE = "no hook code"


class Cost(NamedTuple):
    """Time of a variant over that of hooks off."""

    what: str
    variant: str
    ratio: float
    low: float
    high: float
    rounds: int


def main(
    layers: int = 2,
    repeats: int = 150,
    tokens: int = 512,
    prompts: int = 8,
    context: int = 128,
    threads: int = 1,
    folder: Path = Path("out/bench"),
) -> None:
    """Measure, print and store; `repeats` rounds of decoding, `prompts` of prompts."""
    torch.set_num_threads(threads)
    config = replace(GPT_OSS_20B, num_hidden_layers=layers, layer_types=alternating_layers(layers))
    path = checkpoint(folder / f"gpt-oss-20b-{layers}-layers", config)
    opened = open_checkpoint(path)
    model = wb.load(path)
    bare = unhooked_model()(opened.config, opened.tensors())
    with torch.no_grad():
        check(model, bare)
        rows = costs("decode", decoding({"hooks off": model, "hooks off again": model, BARE: bare},
                                        context, repeats), repeats)  # fmt: skip
        rows += costs(f"prompt of {tokens}", observing(model, tokens), prompts)
    for row in rows:
        print(f"{row.what:<16} {row.variant:<20} {row.ratio:.4f} x hooks off "
              f"[{row.low:.4f}, {row.high:.4f}], {row.rounds} rounds")  # fmt: skip
    about = [layers, threads, model.backend]
    machine.store("hooks", [*Cost._fields, "layers", "threads", "backend"],
                  ([*row, *about] for row in rows))  # fmt: skip


def check(model, bare) -> None:
    """Refuse to compare two models that compute different things."""
    prompt = torch.arange(33)[None]
    if not torch.equal(model(prompt), bare(prompt)):
        raise SystemExit("the model without hook points gives other logits: unhooked.py is wrong")


def decoding(models: dict, context: int, repeats: int) -> dict[str, Callable]:
    """Each continues a cache of its own by one token."""
    jobs = {}
    drawn = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, GPT_OSS_20B.vocab_size, (1, context), generator=drawn)
    for name, model in models.items():
        cache = model.new_cache(context + repeats + 1)
        model(prompt, past_key_values=cache, return_type=None)
        jobs[name] = lambda model=model, cache=cache: model(prompt[:, :1], past_key_values=cache)
    return jobs


def observing(model, tokens: int) -> dict[str, Callable]:
    """A prompt with three sets of observers."""
    drawn = torch.Generator().manual_seed(1)
    prompt = torch.randint(0, GPT_OSS_20B.vocab_size, (1, tokens), generator=drawn)

    def watched(keep):
        return lambda: model.run_with_cache(prompt, names_filter=keep, logits_to_keep=1)

    plain = {"hooks off": lambda: model(prompt, logits_to_keep=1)}
    return plain | {"residual + routing": watched(is_common), "everything": watched(None)}


def costs(what: str, jobs: dict[str, Callable], repeats: int) -> list[Cost]:
    """Ratios to hooks off, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    lots = random.Random(0)
    for round_ in range(repeats + 1):
        for name in lots.sample(list(jobs), len(jobs)):
            started = time.process_time()
            jobs[name]()
            if round_:
                seconds[name].append(time.process_time() - started)
    base = np.array(seconds.pop("hooks off"))
    return [Cost(what, name, *interval(np.array(spent) / base), repeats)
            for name, spent in seconds.items()]  # fmt: skip


def interval(ratios: np.ndarray) -> tuple[float, float, float]:
    """Geometric mean and its 95 % interval by resampling rounds."""
    logs = np.log(ratios)
    drawn = np.random.default_rng(0).choice(logs, (10_000, len(logs))).mean(1)
    low, high = np.exp(np.quantile(drawn, [0.025, 0.975]))
    return float(np.exp(logs.mean())), float(low), float(high)


if __name__ == "__main__":
    typer.run(main)
