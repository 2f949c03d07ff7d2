"""Tokens a second, memory and shares of the bandwidth of a model on a GPU, rivals in turn."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gpu_agreement
import gpu_rivals
import machine
import torch
from observing import is_common
from rounds import Row, in_turn, ratios, told
from work import bytes_per_token

import gptoss_workbench as wb
from gptoss_workbench.checkpoint.synthetic import random_tensors
from gptoss_workbench.config import Config
from gptoss_workbench.decoder import Decoder
from gptoss_workbench.model import GptOss

COPIED = 1 << 28
"""Bytes of the copy that measures the bandwidth."""
FILTERS: dict[str, Callable[[str], bool] | None] = {
    "residual + routing": is_common,
    "everything": None,
}


class Plan(NamedTuple):
    """What is measured."""

    checkpoint: Path | None
    config: Config
    """of drawn weights, where there is no checkpoint"""
    prompts: list[int]
    contexts: list[int]
    repeats: int
    rivals: bool
    steps: int = 16
    """tokens decoded in one turn"""


def tiny() -> Plan:
    """Everything once."""
    return Plan(None, gpu_agreement.small(), [3], [2], 1, rivals=False, steps=1)


def measure(plan: Plan, device: torch.device) -> list[Row]:
    """All rows, printed as they come."""
    model = loaded(plan, device)
    rivals = gpu_rivals.found(plan.checkpoint, device) if plan.rivals else {}
    read = bandwidth(device, COPIED if device.type == "cuda" else 1 << 20)
    rows = [Row("copy", "torch", "", read / 1e9, "GB/s")]
    print(told(rows[0]), flush=True)
    for length in plan.prompts:
        rows += shown(prefill(model, length, plan.repeats, rivals))
    for length in plan.contexts:
        rows += shown(decode(model, length, plan, rivals, read))
    return rows + shown(memory(model, plan.prompts[-1]))


def loaded(plan: Plan, device: torch.device) -> GptOss:
    """The model on the device, and how long that took."""
    started = time.perf_counter()
    if plan.checkpoint is not None:
        model = wb.load(plan.checkpoint, device=device, backend="triton")
    else:
        tensors = random_tensors(plan.config, seed=0)
        model = GptOss(plan.config, tensors, device=device, backend="triton")
    print(f"{model!r}, ready in {time.perf_counter() - started:.1f} s", flush=True)
    return model


def prefill(model: GptOss, length: int, repeats: int, rivals: dict) -> list[Row]:
    """Tokens a second of one prompt, logits of its last token."""
    tokens = drawn(model, length)

    def run(keep: tuple) -> None:
        how = {"past_key_values": model.new_cache(length), "logits_to_keep": 1}
        if keep:
            model.run_with_cache(tokens, names_filter=keep[0], **how)
        else:
            model(tokens, **how)

    jobs = {"hooks off": partial(run, ())}
    jobs |= {name: partial(run, (keep,)) for name, keep in FILTERS.items()}
    jobs |= {name: partial(rival.prefill, tokens) for name, rival in rivals.items()}
    times = timed(jobs, tokens.device, repeats)
    return compared(f"prefill {length}", length, times)


def decode(model: GptOss, length: int, plan: Plan, rivals: dict, read: float) -> list[Row]:
    """Tokens a second after a context, one at a time; the share of the bandwidth they use."""
    tokens, steps = drawn(model, length), drawn(model, plan.steps)
    room = length + plan.steps * (plan.repeats + 2)
    caches = {name: model.new_cache(room) for name in ("graph", "hooks off", *FILTERS)}
    with torch.no_grad():
        for cache in caches.values():
            for part in tokens.split(1024, 1):
                model(part, past_key_values=cache, return_type=None)
    decoder = Decoder(model, caches.pop("graph"), room=room)

    def run(name: str) -> None:
        for step in steps.split(1, 1):
            how = {"past_key_values": caches[name], "logits_to_keep": 1}
            if name in FILTERS:
                model.run_with_cache(step, names_filter=FILTERS[name], **how)
            else:
                model(step, **how)

    def replay() -> None:
        for step in steps.split(1, 1):
            decoder.step(step, torch.ones_like(step, dtype=torch.bool))

    jobs = {"hooks off": replay, "hooks off, no graph": partial(run, "hooks off")}
    jobs |= {name: partial(run, name) for name in FILTERS}
    for name, rival in rivals.items():
        rival.fill(tokens)
        jobs[name] = partial(rival.decode, steps)
    times = timed(jobs, tokens.device, plan.repeats)
    size = bytes_per_token(model.config, length)
    return [
        row._replace(share=row.value * size / read, of="copy")
        for row in compared(f"decode at {length}", plan.steps, times)
        if isinstance(row.value, float)
    ]


def memory(model: GptOss, length: int) -> list[Row]:
    """Peak memory of a prompt, and what the weights take."""
    if model.embed.weight.device.type != "cuda":
        return []
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    with torch.no_grad():
        model(drawn(model, length), logits_to_keep=1)
    peak = torch.cuda.max_memory_allocated() - held
    return [
        Row("memory", "weights", "", held / 1e9, "GB"),
        Row(f"memory, prefill {length}", "hooks off", "", peak / 1e9, "GB more"),
    ]


def timed(jobs: dict, device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Seconds of each job, in turn, all kernels done."""

    def clocked(job: Callable[[], object]) -> float:
        wait(device)
        started = time.perf_counter()
        with torch.no_grad():
            job()
        wait(device)
        return time.perf_counter() - started

    return in_turn({name: partial(clocked, job) for name, job in jobs.items()}, repeats)


def compared(what: str, tokens: int, times: dict[str, list[float]]) -> list[Row]:
    return [
        Row(what, who, "", tokens / statistics.median(spent), "tokens/s",
            *ratios(spent, times["hooks off"]))
        for who, spent in times.items()
    ]  # fmt: skip


def bandwidth(device: torch.device, size: int) -> float:
    """Bytes a second, read and written, of a large copy: the best of ten."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    spent = timed({"copy": lambda: target.copy_(source)}, device, 10)["copy"]
    return 2 * size / min(spent)


def drawn(model: GptOss, length: int) -> torch.Tensor:
    """Random tokens [1, pos], the same for everyone."""
    rng = torch.Generator().manual_seed(length)
    vocab = model.config.vocab_size
    return torch.randint(vocab, (1, length), generator=rng).to(model.embed.weight.device)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def shown(rows: list[Row]) -> list[Row]:
    for row in rows:
        print(told(row), flush=True)
    return rows


def about(device: torch.device) -> str:
    """Which device, in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else machine.machine()


def store(rows: list[Row], device: torch.device) -> Path:
    """Write results/gpu-<device>.csv."""
    return machine.store("gpu", Row._fields, rows, on=about(device).replace(" ", "_"))
