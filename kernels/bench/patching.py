"""What a patching sweep costs: one forward pass a cell against cells as rows of one batch.

    python kernels/bench/patching.py [--tokens 40 --repeats 5 ...]

gpt-oss-nano in float32, one process, one thread; both loops patch the same cells of one prompt,
interleaved, and the median of the per-round ratios is reported, with the largest difference of
their results. The plain loop unembeds the last position only. The prompts differ in one token,
in the middle and once more near the start: cells before it change nothing, and a sweep knows.
Stored under results/.
"""

import statistics
import time
from random import Random

import machine
import numpy as np
import torch
import typer

import gptoss_workbench as wb
from gptoss_workbench.model import GptOss
from gptoss_workbench.nano import sample
from gptoss_workbench.patching import SITES, activation_patching, logit_difference
from gptoss_workbench.patching.nodes import ALL, NONE, Cells, sources

SWEEPS = {
    "resid_pre, layer x position": {"sites": "resid_pre"},
    "attn_out, layer x position": {"sites": "attn_out"},
    "mlp_out, layer x position": {"sites": "mlp_out"},
    "z, layer x head": {"sites": "z", "positions": "all"},
}

LINE = "{:<28} changed {:>3} {:>4} cells  {:>7} s  {:>7} s  {:>5} x  differ {}"


def main(tokens: int = 40, repeats: int = 5, threads: int = 1, batch_tokens: int = 4096) -> None:
    """Measure, print and store."""
    torch.set_num_threads(threads)
    model = wb.load(dtype=torch.float32)
    text = sample(Random(0), task="vars", lang="en", effort="medium", n=6).text()
    clean = model.to_tokens(text)[:, :tokens]
    rows = []
    for name, options in SWEEPS.items():
        for place in (tokens // 2, 1):
            corrupted = clean.clone()
            corrupted[0, place] += 1
            found = measure(model, clean, corrupted, options, repeats, batch_tokens)
            rows.append((name, place, *found))
            print(LINE.format(*rows[-1]))
    store(rows, tokens, repeats)


def measure(
    model: GptOss,
    clean: torch.Tensor,
    corrupted: torch.Tensor,
    options: dict,
    repeats: int,
    batch_tokens: int,
) -> tuple[int, str, str, str, str]:
    """Cells, seconds of the plain loop and of the sweep, their ratio, their difference."""
    metric = logit_difference(40, 50)
    spent: dict[str, list[float]] = {"loop": [], "sweep": []}
    for round_ in range(repeats + 1):
        started = time.process_time()
        found = activation_patching(
            model, clean, corrupted, metric=metric, batch_tokens=batch_tokens, **options
        )
        between = time.process_time()
        plain = loop(model, clean, corrupted, found.cells, metric)
        if round_:
            spent["sweep"].append(between - started)
            spent["loop"].append(time.process_time() - between)
    with torch.no_grad():
        differ = np.abs(found.value[:, 0] - plain).max() / float(model(corrupted).std())
    ratio = statistics.median(a / b for a, b in zip(spent["loop"], spent["sweep"], strict=True))
    seconds = [f"{statistics.median(spent[name]):.2f}" for name in ("loop", "sweep")]
    return len(found), *seconds, f"{ratio:.1f}", f"{differ:.1e}"


@torch.no_grad()
def loop(
    model: GptOss, clean: torch.Tensor, corrupted: torch.Tensor, cells: Cells, metric
) -> np.ndarray:
    """One forward pass of the whole prompt for every cell."""
    hooks = sources(cells)
    _, cache = model.run_with_cache(clean, names_filter=hooks, logits_to_keep=1)
    values = []
    for site, layer, pos, head in zip(cells.site, cells.layer, cells.pos, cells.head, strict=True):
        index = (slice(None), slice(None) if pos == ALL else pos)
        index = index if head == NONE else (*index, head)

        def put(tensor, hook, index=index):
            tensor[index] = cache[hook.name][index]
            return tensor

        name = SITES[site].hook.format(layer=layer)
        logits = model.run_with_hooks(corrupted, fwd_hooks=[(name, put)], logits_to_keep=1)
        values.append(float(metric(logits)))
    return np.array(values)


def store(rows: list, tokens: int, repeats: int) -> None:
    names = ["changed", "cells", "plain_loop_s", "sweep_s", "speed_up", "difference_in_logit_std"]
    machine.store("patching", ["sweep", *names, "tokens"], ([*row, tokens] for row in rows))
    print(f"gpt-oss-nano, {tokens} tokens, {repeats} interleaved rounds (process time, medians),")
    print(f"one thread, float32, torch {torch.__version__}, {machine.machine()}")


if __name__ == "__main__":
    typer.run(main)
