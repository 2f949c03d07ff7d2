"""A process of its own that runs one job on a checkpoint within 16 GiB and prints its figures.

    python measured.py trace|context|gradients CHECKPOINT

Before anything is loaded the process confines itself: to a memory cgroup (version 2) where it can
make one, else its address space, in which mapped weights count too. A thread samples its memory.
"""

import json
import os
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GIB = 1 << 30
LIMIT = 16 * GIB
COMMON = ("hook_resid_post", "hook_router_logits", "hook_expert_indices", "hook_expert_weights")
FILLED, CHUNK, WRITTEN = 3552, 512, 32
"""Tokens of the long context, 4096 in all: taken as read, run as a chunk, generated."""
REPEATS = 3


def status(field: str) -> int:
    """Bytes that the system states of this process, such as RssAnon."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(field + ":"))


@contextmanager
def confined() -> Iterator[str]:
    """Hold this process to LIMIT bytes while the block runs; gives the means."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    home = Path("/sys/fs/cgroup") / path
    group = home / f"gptoss-full-{os.getpid()}"
    if not joined(group):
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
        yield "RLIMIT_AS"
        return
    try:
        yield "memory cgroup"
    finally:
        (home / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def joined(group: Path) -> bool:
    """Whether this process is now in a new cgroup of LIMIT bytes; False where none can be made."""
    if not (group.parent / "cgroup.procs").exists():  # no version 2 here
        return False
    try:
        group.mkdir()
    except OSError:
        return False
    try:
        if not (group / "memory.max").exists():
            raise OSError("memory is not counted here")
        (group / "memory.max").write_text(str(LIMIT))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        group.rmdir()
        return False
    return True


@contextmanager
def sampled(figures: dict) -> Iterator[None]:
    """Watch memory every 20 ms while the block runs."""
    anonymous, done = [], threading.Event()

    def sample() -> None:
        while not done.wait(0.02):
            anonymous.append(status("RssAnon"))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    figures |= {
        "samples": len(anonymous),
        "peak_anonymous": max(anonymous),
        "peak_rss": status("VmHWM"),
        "peak_address_space": status("VmPeak"),
    }


def random_tokens(size: int):
    """Tokens [1, size] of the vocabulary, the same every time."""
    import torch

    return torch.randint(0, 199998, (1, size), generator=torch.Generator().manual_seed(0))


def trace(model) -> dict:
    """A trace of 64 tokens."""
    start = time.perf_counter()
    routing = model.trace(random_tokens(64), routing=True).routing
    return {
        "seconds_to_trace": time.perf_counter() - start,
        "experts": list(routing.experts.shape),
        "expert_weights": list(routing.weights.shape),
        "weight_sum_error": float((routing.weights.sum(-1) - 1).abs().max()),
        "experts_used": int(routing.experts.unique().numel()),
    }


def context(model) -> dict:
    """A chunk of a prompt and what is written after it, at the end of a context of 4096.

    A real prefill of all of it takes longer than the test has, so random keys and values stand for
    the first FILLED tokens; residuals and routes are kept of the others.
    """
    import torch

    kept: dict[str, list] = {}

    def keep(tensor, point) -> None:
        kept.setdefault(point.name, []).append(tensor)

    cache = filled_cache(model)
    tokens, times = random_tokens(CHUNK), [time.perf_counter()]
    with torch.no_grad(), model.recording(lambda name: name.endswith(COMMON), keep):
        for _ in range(1 + WRITTEN):
            logits = model(tokens, past_key_values=cache, logits_to_keep=1)
            tokens = logits[:, -1].argmax(-1, keepdim=True)
            times.append(time.perf_counter())
    return {
        "kept": len(kept),
        "positions": sorted({sum(t.shape[1] for t in parts) for parts in kept.values()}),
        "kept_bytes": sum(part.nbytes for parts in kept.values() for part in parts),
        "finite": all(bool(part.isfinite().all()) for parts in kept.values() for part in parts),
        "context": len(cache),
        "prompt_tokens_per_second": CHUNK / (times[1] - times[0]),
        "written_tokens_per_second": WRITTEN / (times[-1] - times[1]),
    }


def filled_cache(model):
    """A KV cache with room for 4096 tokens that holds random keys and values of the first ones."""
    import torch

    c, cache = model.config, model.new_cache(room=FILLED + CHUNK + WRITTEN)
    mask = torch.ones(1, FILLED, dtype=torch.bool)
    positions = cache.positions(mask)
    with torch.no_grad():
        for layer in cache.layers:
            shape = (1, FILLED, c.num_key_value_heads, c.head_dim)
            k, v = (torch.randn(shape).to(model.activation_dtype) for _ in range(2))
            layer.extend(k, v, positions)
    cache.advance(mask, random_tokens(FILLED))
    return cache


def gradients(model) -> dict:
    """One logit back to every residual, pattern and expert neuron."""
    import torch

    rounds, found = [], {}

    def keep(grad, hook) -> None:
        found[hook.name] = grad

    tokens = random_tokens(64)
    names = model.hook_names(["resid_post", "pattern", "expert_post"])
    for _ in range(REPEATS + 1):
        with torch.no_grad():
            bare = seconds(lambda: model(tokens, logits_to_keep=1))[0]
        found.clear()
        with model.hooks(bwd_hooks=[(name, keep) for name in names]):
            forward, logits = seconds(lambda: model(tokens, logits_to_keep=1))
            backward, _ = seconds(logits[0, -1].max().backward)
        rounds.append((bare, forward, backward))
    alone, forward, backward = map(statistics.median, zip(*rounds[1:], strict=True))
    return {
        "seconds_forward_alone": alone,
        "seconds_forward": forward,
        "seconds_backward": backward,
        "backward_per_forward_alone": backward / alone,
        "asked": len(names),
        "found": len(found),
        "shapes": sorted({tuple(grad.shape) for grad in found.values()}),
        "finite": all(grad.isfinite().all() for grad in found.values()),
        "nonzero": sum(bool(grad.any()) for grad in found.values()),
    }


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """How long it takes, and what it gives."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


JOBS = {"trace": trace, "context": context, "gradients": gradients}


def main(job: str, checkpoint: str) -> None:
    figures: dict = {}
    with confined() as figures["confined_by"], sampled(figures):
        start = time.perf_counter()
        import torch

        import gptoss_workbench as wb

        model = wb.load(checkpoint)
        figures["seconds_to_load"] = time.perf_counter() - start
        figures |= JOBS[job](model)
        figures |= {
            "backend": model.backend,
            "dtype": str(model.activation_dtype),
            "threads": torch.get_num_threads(),
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
