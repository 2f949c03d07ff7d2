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
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    backend: str | None = None,
    revision: str | None = None,
) -> GptOss:
    """Open a checkpoint as a model; weights stay packed and memory-mapped.

    load()                               # gpt-oss-nano, embedded in the package
    load("/models/gpt-oss-20b")          # a folder, Hugging Face or original/ layout
    load("openai/gpt-oss-20b")           # a hub id, through the local hub cache

    Args:
        dtype: of the activations; None is bfloat16, as released. float32 is the other choice.
        device: None is the CPU.
        backend: 'native', 'triton' or 'reference'; None is the fastest available.
        revision: of a hub id.

    Raises CheckpointError with one message: what was expected, what came, what to do.
    """
    opened = checkpoints.open_checkpoint(source, revision=revision)
    device = torch.device(device or "cpu")
    dtype = dtype or torch.bfloat16
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
    )
