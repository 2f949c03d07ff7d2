"""What this machine offers the workbench, line by line."""

from __future__ import annotations

import importlib.util
import os
import platform
import time
from importlib.metadata import version
from typing import NamedTuple

LAB = ("matplotlib", "pandas", "plotly", "jupyterlab", "anywidget")


class Finding(NamedTuple):
    """One line of the report."""

    name: str
    ok: bool
    told: str


def examine() -> list[Finding]:
    """Look at Python, torch, devices, the lab extra and the embedded model; nothing is changed."""
    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    found = [Finding("python", True, f"{system}, {os.cpu_count()} cores")]
    if importlib.util.find_spec("torch") is None:
        return [*found, Finding("torch", False, "missing: pip install torch")]
    return [*found, *_torch(), *_backends(), _lab(), _nano()]


def _torch() -> list[Finding]:
    import torch

    out = [Finding("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        out.append(Finding("gpu", True, f"{card.name}, {card.total_memory / 2**30:.0f} GiB"))
    else:
        out.append(Finding("gpu", False, "none: everything runs on the CPU"))
    return out


def _backends() -> list[Finding]:
    from gptoss_kernels import backend

    names = backend.available()
    out = [Finding("backends", True, f"{', '.join(names)}; load() takes {names[0]}"), _on_gpu()]
    if why := backend.why_missing("native"):
        return [*out, Finding("native", False, f"{why}; the slow reference is used instead")]
    try:
        runs_on = backend.instruction_set("native")
    except ValueError as error:  # what GPTOSS_NATIVE_ISA asks for
        return [*out, Finding("native", False, str(error))]
    return [*out, Finding("native", True, f"runs on {runs_on}")]


def _on_gpu() -> Finding:
    import torch

    from gptoss_kernels import backend

    if why := backend.why_missing("triton", "cuda"):
        return Finding("triton", False, why)
    if not torch.cuda.is_available():
        return Finding("triton", True, f"{version('triton')}, waits for a GPU")
    return Finding("triton", True, f"{version('triton')}; load(device='cuda') takes it")


def _lab() -> Finding:
    missing = [name for name in LAB if importlib.util.find_spec(name) is None]
    if missing:
        told = f"{', '.join(missing)} missing: pip install 'gptoss-workbench[lab]'"
        return Finding("views and notebooks", False, told)
    told = ", ".join(f"{name} {version(name)}" for name in LAB)
    return Finding("views and notebooks", True, told)


def _nano() -> Finding:
    """Load the embedded model and let it write one token."""
    from gptoss_workbench import load

    start = time.perf_counter()
    try:
        model = load()
        written = model.generate(messages=[{"role": "user", "content": "Hi"}], max_new_tokens=1)
    except (ValueError, OSError, ImportError) as error:
        return Finding("gpt-oss-nano", False, " ".join(str(error).split()))
    seconds = time.perf_counter() - start
    return Finding("gpt-oss-nano", len(written.completions[0]) == 1, f"runs ({seconds:.1f} s)")
