"""The forward pass on this CPU at gpt-oss-20b's true shapes: speed, what observing costs, memory.

    python kernels/bench/cpu.py [--layers 4 --repeats 7 --folder DIR --rival]

A synthetic checkpoint (bfloat16 rest, MXFP4 experts, full unembedding) of some layers is written
once and mapped. One process; variants run in turn, round after round, and medians are reported with
the median of the ratios within a round. `--rival` adds transformers, its experts dequantised.
The table is printed and stored under results/, one CSV per machine.
"""

import gc
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import machine
import torch
import typer
from observing import is_common

import gptoss_workbench as wb
from gptoss_workbench.checkpoint import hf_layout
from gptoss_workbench.checkpoint.synthetic import write_random
from gptoss_workbench.config import GPT_OSS_20B, Config, alternating_layers

STEPS = 4
"""Tokens decoded for one figure."""


class Case(NamedTuple):
    """One thing that is timed."""

    name: str
    tokens: int
    threads: int


class Figure(NamedTuple):
    """One row of the table."""

    case: str
    variant: str
    threads: int
    tokens_per_second: float
    ratio: float
    share: float
    """of the read bandwidth (decode) or of torch's float32 matrix product (prefill)"""


def main(
    layers: int = 4,
    repeats: int = 7,
    folder: Path = Path("out/bench"),
    threads: str = "1,2",
    prompts: str = "128,512,2048",
    contexts: str = "128,2048",
    rival: bool = False,
) -> None:
    """Measure, print and store."""
    path = folder / f"gpt-oss-20b-{layers}-layers"
    if not (path / "config.json").exists():
        cut = replace(GPT_OSS_20B, num_hidden_layers=layers, layer_types=alternating_layers(layers))
        for file in write_random(cut, path):
            print(f"wrote {file.name}", flush=True)
    started = time.perf_counter()
    model = wb.load(path)
    first_token(model)
    print(f"{model!r}\nload to first token, page cache as it is: {since(started):.2f} s")
    rows: list[Figure] = []
    runs = variants(model, path, rival)
    for n in map(int, threads.split(",")):
        with on_threads(n):
            limits = Limits(read_bandwidth(model), matmul_rate())
            print(f"{n} thread(s): reads {limits.read / 1e9:.1f} GB/s, "
                  f"float32 matmul {limits.matmul / 1e9:.0f} GFLOP/s")  # fmt: skip
            for size in map(int, prompts.split(",")):
                rows += prefill(runs, Case("prefill", size, n), repeats, limits, model)
            for size in map(int, contexts.split(",")):
                rows += decode(runs, Case("decode", size, n), repeats, limits, model)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak resident {peak:.2f} GiB, anonymous now {anonymous() / 2**30:.2f} GiB")
    store(rows, layers)


class Limits(NamedTuple):
    """What the hardware gives, measured in the same run."""

    read: float
    """bytes a second, from the mapped weights"""
    matmul: float
    """float32 operations a second in torch's matrix product"""


def since(started: float) -> float:
    return time.perf_counter() - started


@contextmanager
def on_threads(n: int) -> Iterator[None]:
    """Run on `n` threads while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def first_token(model) -> None:
    """The next token after a prompt of 16."""
    with torch.no_grad():
        model(prompt(16), logits_to_keep=1)


def prompt(tokens: int) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(tokens)
    return torch.randint(0, GPT_OSS_20B.vocab_size, (1, tokens), generator=drawn)


def variants(model, path: Path, rival: bool) -> dict[str, Callable]:
    """Each runs tokens, continuing a cache when it is given one."""

    def watched(keep):
        def run(tokens, cache):
            return model.run_with_cache(
                tokens, names_filter=keep, past_key_values=cache, logits_to_keep=1
            )

        return run

    def plain(tokens, cache):
        return model(tokens, past_key_values=cache, logits_to_keep=1)

    out = {"hooks off": plain, "residual + routing": watched(is_common)}
    out["everything"] = watched(None)
    if rival:
        out["transformers"] = transformers_run(path)
    return out


def transformers_run(path: Path) -> Callable:
    """Transformers' own class on the same weights, dequantised to bfloat16."""
    from transformers import DynamicCache, GptOssForCausalLM, Mxfp4Config

    loaded = GptOssForCausalLM.from_pretrained(
        path, dtype=torch.bfloat16, quantization_config=Mxfp4Config(dequantize=True)
    ).eval()

    def run(tokens, cache):
        return loaded(tokens, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1)

    run.new_cache = lambda room: DynamicCache(config=loaded.config)
    return run


def prefill(runs, case: Case, repeats: int, limits: Limits, model) -> list[Figure]:
    """Tokens a second of one prompt, logits of its last token only."""
    tokens = prompt(case.tokens)
    seconds = in_turn(
        {name: lambda run=run: run(tokens, None) for name, run in runs.items()}, repeats
    )
    ceiling = limits.matmul / operations_per_token(model.config)
    return figures(case, seconds, case.tokens, ceiling)


def decode(runs, case: Case, repeats: int, limits: Limits, model) -> list[Figure]:
    """Tokens a second, one at a time, after a context."""
    room = case.tokens + STEPS * (repeats + 1)
    jobs = {}
    for name, run in runs.items():
        cache = getattr(run, "new_cache", model.new_cache)(room)
        with torch.no_grad():
            run(prompt(case.tokens), cache)
        jobs[name] = lambda run=run, cache=cache: [run(prompt(1), cache) for _ in range(STEPS)]
    ceiling = limits.read / bytes_per_token(model.config, case.tokens)
    return figures(case, in_turn(jobs, repeats), STEPS, ceiling)


def in_turn(jobs: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Wall seconds of every job, in rounds, after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(repeats + 1):
        for name, job in jobs.items():
            gc.collect()
            started = time.perf_counter()
            with torch.no_grad():
                job()
            if round_:
                seconds[name].append(since(started))
    return seconds


def figures(case: Case, seconds: dict, tokens: int, ceiling: float) -> list[Figure]:
    base, rows = seconds["hooks off"], []
    for name, spent in seconds.items():
        rate = tokens / statistics.median(spent)
        ratio = statistics.median(a / b for a, b in zip(spent, base, strict=True))
        told = f"{case.name} {case.tokens}"
        rows.append(Figure(told, name, case.threads, rate, ratio, rate / ceiling))
        print(f"{told:<13} {case.threads} t  {name:<19} {rate:>8.2f} tokens/s "
              f"{ratio:>6.3f} x time  {rate / ceiling:>6.1%} of the ceiling")  # fmt: skip
    return rows


def bytes_per_token(config: Config, context: int) -> float:
    """Weights and cache that one decoded token reads (k of the experts)."""
    used = config.num_experts_per_tok / config.num_local_experts
    total = 0.0
    for name, spec in hf_layout.expected(config).items():
        if "embed_tokens" not in name:
            total += spec.nbytes * (used if ".experts." in name else 1)
    per_layer = 4 * config.num_key_value_heads * config.head_dim
    for kind in config.layer_types:
        total += per_layer * (min(context, 128) if kind == "sliding_attention" else context)
    return total


def operations_per_token(config: Config) -> float:
    """Multiplications and additions of one prompt token in projections and experts."""
    width = config.hidden_size
    heads = (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    experts = config.num_experts_per_tok * 3 * width * config.intermediate_size
    router = width * config.num_local_experts
    return 2.0 * config.num_hidden_layers * (heads * width + experts + router)


def read_bandwidth(model) -> float:
    """Bytes a second, summing the largest weights as they are mapped; the best of five."""
    parts = [block.mlp.gate_up_proj_blocks for block in model.blocks]
    views = [part.data.flatten().view(torch.int64) for part in parts]
    spent = []
    for _ in range(5):
        started = time.perf_counter()
        for view in views:
            view.sum()
        spent.append(since(started))
    return sum(view.nbytes for view in views) / min(spent)


def matmul_rate(n: int = 1536) -> float:
    """Operations a second of torch's float32 matrix product; the best of five."""
    a, b, spent = torch.randn(512, n), torch.randn(n, 2 * n), []
    for _ in range(5):
        started = time.perf_counter()
        a @ b
        spent.append(since(started))
    return 2.0 * 512 * n * 2 * n / min(spent)


def anonymous() -> int:
    """Bytes of this process that no file stands behind; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    rows = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(rows.get("RssAnon", "0").split()[0]) * 1024


def store(rows: list[Figure], layers: int) -> None:
    plain = ([f"{x:.4g}" if isinstance(x, float) else x for x in row] for row in rows)
    columns = [*Figure._fields, "layers", "torch"]
    path = machine.store("cpu", columns, ([*row, layers, torch.__version__] for row in plain))
    print(f"stored in results/{path.name}")


if __name__ == "__main__":
    typer.run(main)
