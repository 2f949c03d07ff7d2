"""A checkpoint of gpt-oss-20b's full shape is traced, continued and differentiated within 16 GiB.

    pytest tests/full -m full -s        # GPTOSS_FULL_CHECKPOINT=DIR takes one that is there

The weights are random (13.8 GB, written to a temporary folder first); the shapes are the released
ones. Each job runs in a fresh process (measured.py), which prints memory and times.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.full

GIB = 1 << 30
DISK = 14.2e9
"""Bytes the checkpoint needs, with some to spare."""

MEASURED = Path(__file__).with_name("measured.py")


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


def measured(job: str, checkpoint: Path) -> dict[str, Any]:
    """Figures of a fresh process that does one job within 16 GiB, on all cores."""
    start = time.perf_counter()
    command = [sys.executable, str(MEASURED), job, str(checkpoint)]
    environment = os.environ | {"OMP_NUM_THREADS": str(os.cpu_count())}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr
    figures = json.loads(process.stdout.splitlines()[-1])
    figures["seconds"] = time.perf_counter() - start
    figures["weights"] = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    print(job, json.dumps(figures, indent=1))
    for name in ("peak_rss", "peak_anonymous", "peak_address_space"):
        print(f"{name}: {figures[name] / GIB:.2f} GiB")
    assert figures["confined_by"] in ("memory cgroup", "RLIMIT_AS")
    assert figures["samples"] > 20
    return figures


@pytest.fixture(scope="module")
def trace(checkpoint):
    return measured("trace", checkpoint)


@pytest.fixture(scope="module")
def context(checkpoint):
    return measured("context", checkpoint)


@pytest.fixture(scope="module")
def gradients(checkpoint):
    return measured("gradients", checkpoint)


def fits_16_gib(figures: dict[str, Any]) -> bool:
    """Whether it fits a machine of 16 GiB, even if every page of the weights were resident."""
    return max(figures["peak_rss"], figures["weights"] + figures["peak_anonymous"]) <= 14.8 * GIB


def test_a_trace_stays_within_a_16_gib_machine(trace):
    """Mapped weights belong to the page cache; anonymous memory is what no one can take back."""
    assert fits_16_gib(trace)
    assert trace["peak_anonymous"] <= 1.0 * GIB


def test_a_trace_takes_at_most_five_minutes(trace):
    assert trace["seconds"] <= 300


def test_every_token_and_layer_has_four_experts(trace):
    assert trace["experts"] == trace["expert_weights"] == [24, 1, 64, 4]
    assert trace["weight_sum_error"] < 1e-5
    assert trace["experts_used"] == 32


def test_a_context_of_4096_is_continued_under_hooks_within_a_16_gib_machine(context):
    """Residuals and routes of a chunk of 512 tokens and of 32 after it are kept."""
    assert context["context"] == 4096 and context["finite"]
    assert context["kept"] == 4 * 24 and context["positions"] == [544]
    assert context["kept_bytes"] == 24 * 544 * (2 * 2880 + 4 * 32 + 8 * 4 + 4 * 4)
    assert fits_16_gib(context)
    assert context["peak_anonymous"] <= 1.0 * GIB


def test_gradients_reach_every_residual_pattern_and_neuron_within_16_gib(gradients):
    assert gradients["found"] == gradients["nonzero"] == 3 * 24 and gradients["finite"]
    assert gradients["shapes"] == [[1, 64, 4, 2880], [1, 64, 64, 64], [1, 64, 2880]]
    assert fits_16_gib(gradients)
