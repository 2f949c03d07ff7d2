"""Edits on disk: <name>.json, and their tensors in <name>.safetensors beside it.

Each file appears whole or not at all. Tensors are named by their content, so a json beside other
tensors than its own is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from gptoss_hooks.edits.edit import Edit, Edits, digest
from gptoss_hooks.edits.routing import (
    Ban,
    Bias,
    Force,
    Replay,
    RouteAround,
    SetK,
    SteerExperts,
    Swap,
    Zero,
)
from gptoss_hooks.edits.sites import Ablate, Patch, Scale, Steer

FORMAT, VERSION = "gptoss-workbench edits", 1
KINDS = (
    Ban, Zero, RouteAround, Force, Bias, Swap, SetK, Replay, SteerExperts,
    Ablate, Patch, Steer, Scale,
)  # fmt: skip
KIND: dict[str, Any] = {kind.verb: kind for kind in KINDS}


def save_edits(path: str | Path, edits: Edits) -> Path:
    """Write a list of edits; gives the json's path."""
    if not isinstance(path, str | Path):
        raise TypeError(
            f"save_edits(path, edits): the path comes first; got {type(path).__name__} there"
        )
    json_file, tensors_file = _files(path)
    document = {"format": FORMAT, "version": VERSION, "edits": [e.to_json() for e in edits]}
    tensors = {name: t for edit in edits for name, t in edit.tensors().items()}
    json_file.parent.mkdir(parents=True, exist_ok=True)
    halves = [f.with_name(f".{f.name}.{os.getpid()}.part") for f in (tensors_file, json_file)]
    try:
        if tensors:
            save_file({name: t.contiguous().clone() for name, t in tensors.items()}, halves[0])
            halves[0].replace(tensors_file)
        halves[1].write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        halves[1].replace(json_file)
    finally:
        for half in halves:
            half.unlink(missing_ok=True)
    return json_file


def load_edits(path: str | Path) -> list[Edit]:
    """Read what `save_edits` wrote."""
    json_file, tensors_file = _files(path)
    saved = json.loads(json_file.read_text())
    if not isinstance(saved, dict) or (saved.get("format"), saved.get("version")) != (
        FORMAT,
        VERSION,
    ):
        raise ValueError(f"load_edits: {json_file} is not {FORMAT!r} of version {VERSION}")
    tensors = load_file(tensors_file) if tensors_file.exists() else {}
    return [from_json(each, tensors) for each in saved["edits"]]


def from_json(saved: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Edit:
    """Read what `Edit.to_json` gave; `tensors` are those of `Edit.tensors`, by name."""
    verb = saved.get("verb")
    if verb not in KIND:
        raise ValueError(f"from_json: the verb is one of {', '.join(KIND)}; got {verb!r}")
    kind = KIND[verb]
    given = {f.name: read(saved[f.name], tensors or {}) for f in fields(kind) if f.name in saved}
    return kind(**given)


def plain(value: Any) -> Any:
    """A field as plain data."""
    if isinstance(value, Tensor):
        return {"tensor": digest(value)}
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if isinstance(value, Mapping):
        return {"named": {name: plain(each) for name, each in value.items()}}
    return [plain(each) for each in value] if isinstance(value, tuple) else value


def read(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """A field from plain data."""
    if isinstance(value, list):
        return tuple(read(each, tensors) for each in value)
    if not isinstance(value, dict):
        return value
    if "slice" in value:
        return slice(*value["slice"])
    if "named" in value:
        return {name: read(each, tensors) for name, each in value["named"].items()}
    name = value["tensor"]
    if name not in tensors:
        raise ValueError(f"load_edits: the tensors beside the json lack {name}; save both again")
    return tensors[name]


def _files(path: str | Path) -> tuple[Path, Path]:
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".json", ".safetensors") else path
    return stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".safetensors")
