"""`load`: from nothing, a folder or a hub id to a model."""

from pathlib import Path

import torch

from gptoss_workbench import checkpoint as checkpoints
from gptoss_workbench.model import GptOss
from gptoss_workbench.moving import Moving
from gptoss_workbench.tokenizer import Tokenizer


def load(
    source: str | Path | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    backend: str | None = None,
    revision: str | None = None,
) -> GptOss:
    """Open a checkpoint as a model; weights stay packed and memory-mapped.

    load()                               # gpt-oss-nano, embedded in the package
    load("/models/gpt-oss-20b")          # a folder, Hugging Face or original/ layout
    load("openai/gpt-oss-20b")           # a hub id, through the local hub cache

    Args:
        source: a folder, a hub id, or None or "gpt-oss-nano" for the embedded model.
        dtype: of the activations, as torch.float32 or "float32"; None is bfloat16, as released.
            There is no third.
        device: None is the CPU.
        backend: 'native', 'triton' or 'reference'; None is the fastest available.
        revision: of a hub id.

    Raises CheckpointError with one message: what was expected, what came, what to do.
    """
    dtype, device = _dtype(dtype), _device(device)
    opened = checkpoints.open_checkpoint(source, revision=revision)
    checkpoints.check_memory(opened.config, dtype_bytes=dtype.itemsize, device=device)
    found = opened.tokenizer_path
    mapped = opened.tensors()
    return GptOss(
        opened.config,
        mapped if device.type == "cpu" else Moving(mapped, device),
        dtype=dtype,
        device=device,
        backend=backend,
        tokenizer=Tokenizer.from_folder(found.parent) if found else None,
        name=opened.source if source is None else Path(opened.source).name,
        fingerprint=opened.fingerprint(),
        generation_config=opened.generation_config,
        folder=opened.folder,
    )


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """The dtype of a name; whether a model can have it is the model's to say."""
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype or torch.bfloat16
    if not isinstance(named, torch.dtype):
        raise ValueError(f"load: dtype is 'bfloat16' or 'float32'; got {dtype!r}")
    return named


def _device(device: torch.device | str | None) -> torch.device:
    """The device, if tensors can be made on it."""
    try:
        named = torch.device(device or "cpu")
        torch.empty(0, device=named)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(
            f"load: device={str(device)!r} cannot be used on this machine ({why}); leave device= "
            "out for the CPU, and see `gptoss doctor`"
        ) from error
    return named
