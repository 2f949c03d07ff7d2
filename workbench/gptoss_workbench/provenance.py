"""What made a result, without times, so that equal runs say the same."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from gptoss_kernels.backend import instruction_set


def of_model(model: Any) -> dict[str, Any]:
    """The model as it stands: name, fingerprint, precision, edits in force, observers, versions."""
    dtype = getattr(model.cfg, "dtype", None)
    return {
        "model": getattr(model, "name", None),
        "fingerprint": getattr(model, "fingerprint", None),
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "backend": getattr(model, "backend", None),
        "instructions": instruction_set(getattr(model, "backend", "")),
        "edits": [repr(edit) for edit in getattr(model, "active_edits", ())],
        "hooks": [name for name, point in model.hook_dict.items() if point.observed],
        "versions": {
            "gptoss-workbench": _version("gptoss-workbench"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def provenance(model: Any, tokens: Tensor, mask: Tensor) -> dict[str, Any]:
    """The model, and a hash of the tokens it was run on."""
    digest = hashlib.sha256(tokens.long().numpy().tobytes() + mask.numpy().tobytes())
    seed = getattr(model, "seed", None)
    return of_model(model) | {"tokens_sha256": digest.hexdigest(), "seed": seed}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
