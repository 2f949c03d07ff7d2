"""From `load()` to the first token, with files in and out of the page cache, and what it holds."""

import os
import statistics
import sys
from pathlib import Path

import page_cache
from child import Child
from memory import Watch, status
from rounds import Row

LEFT = 0.02
"""Share of a file that may stay in the page cache for a start to be called cold."""


def startup(checkpoint: Path, tokens: list[int], *, repeats: int, threads: int) -> list[Row]:
    """Load to first token, warm and cold, each in a new process with torch imported."""
    files = sorted(checkpoint.glob("*.safetensors"))
    page_cache.fill(files)
    rows = [timed("warm", checkpoint, tokens, repeats, threads)]
    if not hasattr(os, "posix_fadvise"):
        return [*rows, missing("this system has no posix_fadvise")]
    page_cache.drop(files)
    left = page_cache.resident(files)
    if left > LEFT:
        return [*rows, missing(f"{left:.0%} of the files stay in the page cache")]
    return [*rows, timed("cold", checkpoint, tokens, 1, threads)]


def timed(kind: str, checkpoint: Path, tokens: list[int], repeats: int, threads: int) -> Row:
    """Median seconds of `repeats` new processes."""
    spent = []
    for _ in range(repeats):
        with Child(sys.executable, "ours.py", threads=threads) as ours:
            told = ours.ask("first_token", path=str(checkpoint), tokens=tokens[:16])
            spent.append(told["first token"])
    return Row(f"first token, {kind}", "hooks off", threads, statistics.median(spent), "s")


def missing(why: str) -> Row:
    return Row("first token, cold", "hooks off", "", "", "", of=f"not measured: {why}")


def memory(checkpoint: Path, tokens: list[int], *, threads: int) -> list[Row]:
    """What a new process holds for a prompt and a few tokens after it, hooks off."""
    if not Path("/proc/self/status").exists():
        return [Row("memory", "hooks off", "", "", "", of="not measured: this system has no /proc")]
    with Child(sys.executable, "ours.py", threads=threads) as ours, Watch(ours.pid) as watch:
        ours.ask("load", path=str(checkpoint))
        ours.ask(
            "fill", tokens=tokens, threads=threads, room=len(tokens) + 4, variants=["hooks off"]
        )
        ours.ask("decode", tokens=tokens[:4], variant="hooks off")
        peak = status(ours.pid, "VmHWM")
    what = f"prompt of {len(tokens)}"
    return [
        Row(what, "peak resident", threads, peak / 2**30, "GiB"),
        Row(what, "most anonymous", threads, watch.most / 2**30, "GiB"),
    ]
