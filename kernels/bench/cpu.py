"""The forward pass on this CPU at gpt-oss-20b's true shapes, beside llama.cpp and transformers.

    python kernels/bench/cpu.py [--layers 6 --repeats 7 --threads 1,2 --folder out/bench]

A synthetic checkpoint (bfloat16 rest, MXFP4 experts, full unembedding) of some layers is written
once, and converted for llama.cpp once. Each contestant is a process of its own with its weights
mapped; they take turns, one works while the others sleep, and each measures its own seconds.
The table is printed and stored under results/, one CSV per machine.
"""

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import agreement
import contest
import machine
import startup
import torch
import typer
from child import Child, ChildError
from rivals import RivalMissing, environment, gguf_of
from rounds import Row, told

from gptoss_workbench.checkpoint.synthetic import write_random
from gptoss_workbench.config import GPT_OSS_20B, Config, alternating_layers

PRODUCTS = 512
"""Tokens of the expert layer alone."""


class Table:
    """Rows, printed as they come."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, rows: list[Row]) -> None:
        for row in rows:
            print(told(row), flush=True)
        self.rows += rows

    def lacks(self, who: str, why: Exception) -> None:
        """A rival that is not here: said, and written down."""
        print(f"{who} is not measured: {why}", flush=True)
        self.rows.append(Row("missing", who, "", "", "", of=" ".join(str(why).split())))


def main(
    layers: int = 6,
    repeats: int = 7,
    folder: Path = Path("out/bench"),
    threads: str = "1,2",
    prompts: str = "128,512,2048",
    contexts: str = "128,2048",
    dense_layers: int = 0,
    dense_prompts: str = "128,512",
    starts: bool = True,
    llama: bool = True,
    dense: bool = True,
) -> None:
    """Measure, print and store.

    Args:
        dense_layers: of transformers, whose experts are dequantised; 0 is as many as fit.
        starts: time loading, too, which drops the checkpoint from the page cache.
        llama, dense: leave a rival out with --no-llama, --no-dense.
    """
    table, several = Table(), numbers(threads)
    config = replace(GPT_OSS_20B, num_hidden_layers=layers, layer_types=alternating_layers(layers))
    path = checkpoint(folder / f"gpt-oss-20b-{layers}-layers", config)
    most, dtype = max(several), "bfloat16"
    if starts:
        prompt = contest.drawn(max(numbers(prompts)), config)
        table.add(startup.startup(path, prompt, repeats=min(3, repeats), threads=most))
        table.add(startup.memory(path, prompt, threads=most))
    with ExitStack() as open_:
        ours = open_.enter_context(Child(sys.executable, "ours.py", threads=most))
        about = native(ours.ask("load", path=str(path)))
        print(about)
        room = max(agreement.TOKENS, *numbers(prompts), *numbers(contexts))
        room += contest.STEPS * (repeats + 1)
        rival = open_llama(table, open_, ours, path, config, room, most) if llama else None
        for n in several:
            plan = contest.Plan(repeats, n)
            rows, limits = contest.products(ours, PRODUCTS, plan)
            table.add(rows)
            dtype = "bfloat16" if limits.name.startswith("bf16") else "float32"
            for tokens in numbers(prompts):
                table.add(contest.prefill(ours, rival, tokens, config, plan, limits))
            for context in numbers(contexts):
                table.add(contest.decode(ours, rival, context, config, plan))
    if dense:
        plans = [contest.Plan(repeats, n) for n in several]
        sizes = numbers(dense_prompts), numbers(contexts)[:1]
        fit = dense_layers or fitting(config, dtype)
        with_transformers(table, path, config, fit, dtype, plans, sizes)
    store(table.rows, layers, about.rsplit(maxsplit=1)[-1])


def native(loaded: dict) -> str:
    """What was loaded; refuses to time the reference backend under the name of the native one."""
    if loaded["backend"] != "native":
        from gptoss_kernels.backend import why_missing

        raise SystemExit(f"the native backend is not here: {why_missing('native')}")
    return loaded["about"]


def numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def checkpoint(path: Path, config: Config) -> Path:
    """The synthetic checkpoint, written where it is not there yet."""
    if not (path / "config.json").exists():
        for file in write_random(config, path):
            print(f"wrote {file.name}", flush=True)
    return path


def open_llama(
    table: Table, open_: ExitStack, ours: Child, path: Path, config: Config, room: int, threads: int
) -> Child | None:
    """llama.cpp with the same weights, once its logits show that they are the same."""
    try:
        python = environment(path.parent)
        file = gguf_of(path, python)
        child = open_.enter_context(Child(python, "llama.py", threads=threads))
        loaded = child.ask("load", path=str(file), room=room)
        print(f"llama.cpp: {loaded['about']}")
    except (RivalMissing, ChildError) as why:
        table.lacks("llama.cpp", why)
        return None
    table.add([Row("load, cache as it is", "llama.cpp", threads, loaded["seconds"], "s")])
    found = agreement.agreement(ours, child, contest.drawn(agreement.TOKENS, config))
    what, names = f"logits, {agreement.TOKENS} tokens", ("median cosine", "lowest", "same argmax")
    table.add(
        [Row(what, f"llama.cpp, {n}", 1, f"{v:.5f}", "") for n, v in zip(names, found, strict=True)]
    )
    if not found.good:
        raise SystemExit(f"llama.cpp runs another model: median cosine below {agreement.COSINE}")
    return child


def with_transformers(
    table: Table,
    path: Path,
    config: Config,
    layers: int,
    dtype: str,
    plans: list[contest.Plan],
    sizes: tuple[list[int], list[int]],
) -> None:
    """transformers, TransformerLens and nnsight over the first layers, beside ours over these.

    In the precision in which torch multiplies faster here: bfloat16 needs a CPU made for it.
    """
    if layers < 1:
        return table.lacks("transformers", MemoryError("not one dequantised layer fits"))
    most = max(plan.threads for plan in plans)
    with (
        Child(sys.executable, "ours.py", threads=most) as ours,
        Child(sys.executable, "hf.py", threads=most) as hf,
    ):
        try:
            loaded = hf.ask("load", path=str(path), layers=layers, dtype=dtype)
        except ChildError as why:
            return table.lacks("transformers", why)
        for library, why in loaded["missing"].items():
            table.lacks(library, ImportError(why))
        print(native(ours.ask("cut", path=str(path), layers=layers)))
        about = f"{layers} layers, dequantised to {dtype}"
        table.add([Row("precision", "transformers", "", about, "")])
        for plan in plans:
            table.add(contest.body(ours, hf, loaded["variants"], layers, config, plan,
                                   prompts=sizes[0], contexts=sizes[1]))  # fmt: skip


def fitting(config: Config, dtype: str) -> int:
    """Dequantised layers that fit beside 6 GiB for the rest and for loading."""
    lines = Path("/proc/meminfo")
    if not lines.exists():
        return 2
    free = next(x for x in lines.read_text().splitlines() if x.startswith("MemAvailable"))
    room = int(free.split()[1]) / 2**20 - 6
    each = 2 if dtype == "bfloat16" else 4  # GiB
    return max(0, min(config.num_hidden_layers, int(room / each)))


def store(rows: list[Row], layers: int, isa: str) -> None:
    plain = ([f"{x:.4g}" if isinstance(x, float) else x for x in row] for row in rows)
    columns = [*Row._fields, "layers", "isa", "torch"]
    path = machine.store("cpu", columns, ([*row, layers, isa, torch.__version__] for row in plain))
    print(f"stored in results/{path.name}")


if __name__ == "__main__":
    typer.run(main)
