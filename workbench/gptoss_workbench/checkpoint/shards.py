"""Shard files: which files of a folder hold the weights, and how weights are spread over files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptoss_workbench.checkpoint.errors import CheckpointError
from gptoss_workbench.checkpoint.safetensors_file import Spec

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
NUMBERED = re.compile(r"model-{1,2}(\d{5})-of-(\d{5})\.safetensors")
"""Hugging Face numbers shards model-00001-of-00002, `original/` model--00001-of-00007."""


def find_shards(folder: Path) -> tuple[list[Path], list[str]]:
    """The shard files that exist, and a sentence for each that does not."""
    wanted = _from_index(folder) or _from_names(folder)
    files = [folder / name for name in wanted]
    problems = [
        f"shard {file.name} is missing from {folder}; download or copy it again"
        for file in files
        if not file.is_file()
    ]
    if not wanted:
        problems.append(
            f"no weights in {folder}: expected {SINGLE}, or model-*.safetensors with {INDEX}"
        )
    return [file for file in files if file.is_file()], problems


def _from_index(folder: Path) -> list[str]:
    index = folder / INDEX
    if not index.is_file() or (folder / SINGLE).is_file():
        return []
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; download or copy it again")
    return sorted({str(file) for file in weight_map.values()})


def _from_names(folder: Path) -> list[str]:
    """Shards by their file names: one file, or all of a numbered series."""
    if (folder / SINGLE).is_file():
        return [SINGLE]
    names = sorted(file.name for file in folder.glob("model-*.safetensors"))
    numbered = [match for match in map(NUMBERED.fullmatch, names) if match]
    if not numbered:
        return []
    first = numbered[0]
    total, stem = int(first[2]), first[0][: first.start(1)]
    start = min(1, int(first[1]))  # gpt-oss-20b counts 0, 1, 2 "of 2"
    return [f"{stem}{i:05d}-of-{total:05d}.safetensors" for i in range(start, total + 1)]


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file, or a CheckpointError that names the file."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file.parent} holds no {file.name}; a gpt-oss checkpoint folder has config.json "
            "and *.safetensors"
        ) from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value


def split(specs: Mapping[str, Spec], shard_bytes: int) -> dict[str, list[str]]:
    """Shard file names and the tensors each holds, in order; one file where all fits."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += spec.nbytes
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    total = len(shards)
    return {f"model-{i:05d}-of-{total:05d}.safetensors": s for i, s in enumerate(shards, 1)}


def write_index(folder: Path, specs: Mapping[str, Spec], shards: dict[str, list[str]]) -> None:
    """Write model.safetensors.index.json, where there is more than one shard."""
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(spec.nbytes for spec in specs.values())},
            "weight_map": {name: file for file, names in shards.items() for name in names},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2))
