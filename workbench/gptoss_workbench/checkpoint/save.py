"""Writing a checkpoint that this package, transformers, vLLM and others load.

The Hugging Face layout, experts packed, bfloat16 otherwise, exactly as the released weights are.
All files are written to a folder beside the target, which is then renamed: there is a whole
checkpoint, or none.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from gptoss_workbench.checkpoint import hf_layout, validate
from gptoss_workbench.checkpoint.errors import CheckpointError, one_message
from gptoss_workbench.checkpoint.open import Checkpoint, beside
from gptoss_workbench.checkpoint.safetensors_file import spec_of, tensor_bytes, write_file
from gptoss_workbench.checkpoint.shards import split, write_index
from gptoss_workbench.config import Config

TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "harmony.json",
    "generation_config.json",
)
"""What is copied beside the weights, so that the saved folder takes text as the first one did."""


TextSource = str | Path | Checkpoint | Literal[False] | None
"""Where text files are copied from."""


class Saveable(Protocol):
    """A model that can be saved."""

    @property
    def config(self) -> Config: ...

    def checkpoint_tensors(self) -> Mapping[str, Tensor]: ...


def save_checkpoint(
    model_or_tensors: Saveable | Mapping[str, Tensor],
    folder: str | Path,
    *,
    config: Config | None = None,
    tokenizer_files_from: TextSource = None,
    shard_bytes: int = 5_000_000_000,
) -> Path:
    """Write a model, or tensors under their Hugging Face names, as a new checkpoint folder.

    save_checkpoint(model, "my-gpt-oss")

    Args:
        config: needed with tensors; a model brings its own.
        tokenizer_files_from: a folder or an opened checkpoint whose tokenizer.json,
            generation_config.json and chat template go along. None is the folder that the model
            was loaded from; False leaves them out.
        shard_bytes: a file is closed before it grows beyond this.
    """
    tensors, config = _tensors_and_config(model_or_tensors, config)
    problems = validate.check_specs(
        {name: spec_of(tensor) for name, tensor in tensors.items()}, hf_layout.expected(config)
    )
    if problems:
        raise CheckpointError(one_message("save_checkpoint: cannot write these tensors:", problems))
    validate.check_scales(tensors, config)
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"save_checkpoint: {folder} exists and is not an empty folder")
    texts = _text_files(text_source(model_or_tensors, tokenizer_files_from))
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(tensors, config, partial, shard_bytes)
        for file in texts:
            shutil.copyfile(file, partial / file.name)
        partial.chmod(0o755)  # mkdtemp keeps others out
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def text_source(model: object, given: TextSource) -> TextSource:
    """Where text files come from: as told, else the folder that a model was loaded from."""
    own = getattr(model, "folder", None)
    if given is None and own is not None and not own.is_dir():
        raise CheckpointError(
            f"save_checkpoint: {own}, which the model was loaded from, is gone; pass "
            "tokenizer_files_from= another folder, or False for no tokenizer"
        )
    return own if given is None else given


def _tensors_and_config(
    source: Saveable | Mapping[str, Tensor], config: Config | None
) -> tuple[Mapping[str, Tensor], Config]:
    if isinstance(source, Mapping):
        if config is None:
            raise CheckpointError("save_checkpoint: tensors need config=, a Config; got none")
        return source, config
    if config is not None and config != source.config:
        raise CheckpointError("save_checkpoint: config= differs from the model's own; leave it out")
    return source.checkpoint_tensors(), source.config


def _write(tensors: Mapping[str, Tensor], config: Config, folder: Path, shard_bytes: int) -> None:
    specs = hf_layout.expected(config)
    shards = split(specs, shard_bytes)
    for file, names in shards.items():
        write_file(folder / file, ((n, specs[n], map(tensor_bytes, [tensors[n]])) for n in names))
    write_index(folder, specs, shards)
    _write_json(folder / "config.json", config.to_dict())
    _write_json(
        folder / "generation_config.json",
        {"eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id},
    )


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _text_files(source: TextSource) -> list[Path]:
    if source is None or source is False:
        return []
    folder = source.folder if isinstance(source, Checkpoint) else Path(source).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"save_checkpoint: tokenizer_files_from={folder} is not a folder")
    found = [beside(folder, name) for name in TEXT_FILES]
    return [file for file in found if file is not None]
