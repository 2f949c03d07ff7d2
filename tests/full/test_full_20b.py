"""A checkpoint of gpt-oss-20b's full shape loads and runs within its memory.

    pytest tests/full -m full -s        # GPTOSS_FULL_CHECKPOINT=DIR takes one that is there

The weights are random (13.8 GB, written to a temporary folder first); the shapes are the released
ones. Loading happens in a fresh process, whose memory a thread samples.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.full

GIB = 1 << 30
DISK = 14.2e9
"""Bytes the checkpoint needs, with some to spare."""

SCRIPT = """
import json, sys, threading, time
sampled, done = [], threading.Event()


def status(field):
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(field + ":"))


def sample():
    while not done.wait(0.02):
        sampled.append(status("RssAnon"))


start = time.perf_counter()
thread = threading.Thread(target=sample)
thread.start()
try:
    import torch
    import gptoss_workbench as wb

    model = wb.load(sys.argv[1])
    loaded = time.perf_counter()
    tokens = torch.randint(0, 199998, (1, 64), generator=torch.Generator().manual_seed(0))
    trace = model.trace(tokens, routing=True)
    traced = time.perf_counter()
finally:
    done.set()
    thread.join()
routing = trace.routing
print(json.dumps({
    "peak_rss": status("VmHWM"),
    "peak_anonymous": max(sampled),
    "samples": len(sampled),
    "seconds_to_load": loaded - start,
    "seconds_to_trace": traced - loaded,
    "experts": list(routing.experts.shape),
    "weights": list(routing.weights.shape),
    "weight_sum_error": float((routing.weights.sum(-1) - 1).abs().max()),
    "experts_used": int(routing.experts.unique().numel()),
    "backend": model.backend,
    "dtype": str(model.activation_dtype),
    "threads": torch.get_num_threads(),
}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The folder named by GPTOSS_FULL_CHECKPOINT, or one written for this module and deleted."""
    if named := os.environ.get("GPTOSS_FULL_CHECKPOINT"):
        yield Path(named)
        return
    folder = tmp_path_factory.mktemp("full") / "gpt-oss-20b"
    free = shutil.disk_usage(folder.parent).free
    if free < DISK:
        pytest.fail(
            f"{folder.parent}: the checkpoint takes 13.8 GB, {free / 1e9:.1f} GB are free; make "
            "room, choose a place with --basetemp, or name a folder in GPTOSS_FULL_CHECKPOINT"
        )
    start = time.perf_counter()
    try:
        module = "gptoss_workbench.checkpoint.synthetic"
        subprocess.run([sys.executable, "-m", module, "--out", str(folder)], check=True)
        print(f"written in {time.perf_counter() - start:.0f} s")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def run(checkpoint):
    """Figures of one fresh process that loads the checkpoint and traces 64 tokens."""
    start = time.perf_counter()
    command = [sys.executable, "-c", SCRIPT, str(checkpoint)]
    process = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    assert process.returncode == 0, process.stderr
    figures = json.loads(process.stdout.splitlines()[-1]) | {"seconds": seconds}
    print(json.dumps(figures, indent=1))
    for name in ("peak_rss", "peak_anonymous"):
        print(f"{name}: {figures[name] / GIB:.2f} GiB")
    return figures


def test_the_whole_process_stays_within_14_8_gib(run):
    assert run["peak_rss"] <= 14.8 * GIB


def test_what_it_allocates_itself_stays_within_2_gib(run):
    """Mapped weights belong to the page cache; anonymous memory is what no one can take back."""
    assert run["samples"] > 20
    assert run["peak_anonymous"] <= 2.0 * GIB


def test_it_takes_at_most_five_minutes(run):
    assert run["seconds"] <= 300


def test_every_token_and_layer_has_four_experts(run):
    assert run["experts"] == run["weights"] == [24, 1, 64, 4]
    assert run["weight_sum_error"] < 1e-5
    assert run["experts_used"] == 32
