"""What routing a corpus costs, against the residual stream alone on the same batches.

    python kernels/bench/routing_corpus.py [--tokens 100000 --rounds 10]

gpt-oss-nano and texts of its own kind. "residual only" runs the batches that `trace_routing` makes,
nothing recorded and no unembedding; "routing" is the whole call: tokenizing, running, labelling,
writing shards, but not removing them again. Rounds are interleaved, each with its own part of the
texts; medians are reported, printed and stored under results/, one CSV per machine.
"""

import statistics
import time
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

import machine
import torch
import typer

import gptoss_workbench
from gptoss_workbench.nano import data
from gptoss_workbench.routing import trace_routing
from gptoss_workbench.routing.buckets import batches, padded, windows
from gptoss_workbench.routing.prompts import read_prompts

BATCH, SHARD = 4096, 32_768


class Round(NamedTuple):
    """Seconds of one round, and its tokens."""

    tokens: int
    residual: float
    routing: float


def main(
    tokens: int = 100_000, rounds: int = 10, threads: int = 1, dtype: str = "bfloat16"
) -> None:
    """Measure, print and store."""
    torch.set_num_threads(threads)
    model = gptoss_workbench.load(dtype=getattr(torch, dtype))
    rng = Random(0)
    parts = [texts_of(model, rng, tokens // rounds) for _ in range(rounds)]
    measure(model, parts[0][:20])
    seconds = []
    for number, texts in enumerate(parts):
        seconds.append(measure(model, texts, routing_first=bool(number % 2)))
    rows = table(seconds)
    for row in rows:
        print("{:<14} {:>8} tokens/s   {:>6} of residual only".format(*row))
    store(rows, sum(each.tokens for each in seconds), rounds, threads, model)


def texts_of(model, rng: Random, tokens: int) -> list[str]:
    """Samples of all tasks and languages, at least so many tokens."""
    texts, total = [], 0
    while total < tokens:
        texts.append(data.sample(rng).text())
        total += len(model.tokenizer.encode(texts[-1]))
    return texts


def measure(model, texts: list[str], *, routing_first: bool = False) -> Round:
    """Process seconds of both variants on the same texts."""
    with TemporaryDirectory() as folder:
        return measure_in(folder, model, texts, routing_first=routing_first)


def measure_in(folder: str, model, texts: list[str], *, routing_first: bool) -> Round:
    """Process seconds of both variants on the same texts, the shards in a folder."""
    prepared = [
        tuple(map(torch.from_numpy, padded(window, rows, model.pad_id)[:2]))
        for window in windows(read_prompts(model, texts), SHARD)
        for rows in batches(window.lengths, BATCH)
    ]

    def residual() -> None:
        with torch.no_grad():
            for ids, mask in prepared:
                model(ids, attention_mask=mask, return_type=None)

    def routing() -> None:
        trace_routing(
            model, texts, folder=folder, batch_tokens=BATCH, shard_tokens=SHARD, progress=False
        )

    seconds = {}
    for run in (routing, residual) if routing_first else (residual, routing):
        started = time.process_time()
        run()
        seconds[run.__name__] = time.process_time() - started
    return Round(sum(int(mask.sum()) for _, mask in prepared), **seconds)


def table(rounds: list[Round]) -> list[tuple[str, str, str]]:
    """Median tokens per second, and the median of the per-round ratios."""
    rows = []
    for name in ("residual", "routing"):
        speed = statistics.median(each.tokens / getattr(each, name) for each in rounds)
        share = statistics.median(each.residual / getattr(each, name) for each in rounds)
        rows.append(
            (f"{name} only" if name == "residual" else name, f"{speed:.0f}", f"{share:.3f}")
        )
    return rows


def store(rows: list, tokens: int, rounds: int, threads: int, model) -> None:
    columns = ["variant", "tokens_per_second", "share_of_residual_only", "tokens"]
    machine.store("routing-corpus", columns, ([*row, tokens] for row in rows))
    print(f"{model.name}, {tokens:,} tokens, batches of {BATCH}, {rounds} interleaved rounds,")
    print(f"{threads} thread(s), {model.cfg.dtype}, {model.backend}, torch {torch.__version__},")
    print(machine.machine())


if __name__ == "__main__":
    typer.run(main)
