"""What lies in a checkpoint folder, from headers alone: files, tensors and what is wrong.

Nothing here raises for a broken shard; problems are collected, so that opening can name all of them
and `checkpoint_info` can still describe the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gptoss_workbench.checkpoint import original_layout
from gptoss_workbench.checkpoint.config_json import read_config
from gptoss_workbench.checkpoint.errors import CheckpointError
from gptoss_workbench.checkpoint.safetensors_file import Entry, read_header
from gptoss_workbench.checkpoint.shards import find_shards, read_json
from gptoss_workbench.config import Config

Layout = Literal["hf", "original"]


@dataclass(frozen=True)
class Inventory:
    """The headers of one checkpoint folder."""

    folder: Path
    config: Config
    raw_config: dict[str, Any]
    """config.json as it is in the file."""
    layout: Layout
    files: tuple[Path, ...]
    """Shards that are there."""
    entries: dict[str, Entry]
    """Tensors in them, under their stored names."""
    problems: tuple[str, ...]
    """Missing, truncated or contradictory shards, one sentence each."""


def take_inventory(folder: Path) -> Inventory:
    """Read config.json and every shard's header. Raises where there is no readable config.json."""
    raw = read_json(folder / "config.json")
    try:
        config = read_config(raw)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    files, problems = find_shards(folder)
    entries: dict[str, Entry] = {}
    for file in files:
        try:
            header = read_header(file)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        twice = sorted(entries.keys() & header.keys())
        problems += [f"{name} is in {entries[name].file.name} and {file.name}" for name in twice]
        entries |= header
    layout: Layout = "original" if original_layout.is_original(entries) else "hf"
    if not entries and "model_type" not in raw:
        layout = "original"
    return Inventory(folder, config, raw, layout, tuple(files), entries, tuple(problems))
