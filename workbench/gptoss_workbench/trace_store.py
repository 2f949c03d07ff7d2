"""Traces on disk: <name>.safetensors for the tensors, <name>.json beside it for the rest.

Both are written to temporary files and then moved into place, and the tensors' file holds the
json's SHA-256, so a pair torn by a crash or mixed by hand is refused when read.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gptoss_workbench.harmony import Spans

if TYPE_CHECKING:
    from gptoss_workbench.trace import Trace

FORMAT = "gptoss-workbench trace"
VERSION = 1
NAME_IN_FOLDER = "trace"
ACTIVATION = "activations/"


def save(trace: Trace, path: str | Path) -> Path:
    """Write a trace; give the json's path."""
    document = json.dumps(_document(trace), indent=1, ensure_ascii=False).encode()
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "json_sha256": hashlib.sha256(document).hexdigest(),
    }
    stem = _stem(path)
    stem.parent.mkdir(parents=True, exist_ok=True)
    tensors_file, json_file = _files(stem)
    half_tensors, half_json = (
        file.with_name(f".{file.name}.{os.getpid()}.part") for file in (tensors_file, json_file)
    )
    try:
        save_file(_tensors(trace), half_tensors, metadata)
        half_json.write_bytes(document)
        half_json.replace(json_file)
        half_tensors.replace(tensors_file)
    finally:
        half_tensors.unlink(missing_ok=True)
        half_json.unlink(missing_ok=True)
    return json_file


def load(path: str | Path) -> dict[str, Any]:
    """Read the fields of a saved trace; refuse other formats, versions and mixed pairs."""
    tensors_file, json_file = _files(_stem(path))
    for file in (tensors_file, json_file):
        if not file.exists():
            raise FileNotFoundError(
                f"Trace.load: expected {tensors_file.name} and {json_file.name} in "
                f"{json_file.parent}, {file.name} is missing"
            )
    document = json_file.read_bytes()
    saved = _checked(document, json_file)
    tensors = _read(tensors_file, hashlib.sha256(document).hexdigest())
    spans, context = saved["spans"], saved["context"]
    return {
        "tokens": tensors["tokens"],
        "mask": tensors["mask"],
        "strings": saved["strings"],
        "spans": spans and [Spans.from_json(row) for row in spans],
        "routing": _group(tensors, "routing/"),
        "activations": {name: tensors[ACTIVATION + name] for name in saved["axes"]},
        "axes": {name: tuple(axes) for name, axes in saved["axes"].items()},
        "layers": tuple(saved["layers"]),
        "places": tuple(saved["places"]),
        "context": context and {**(_group(tensors, "context/") or {}), **context},
        "config": saved["config"],
        "provenance": saved["provenance"],
    }


def _document(trace: Trace) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "strings": trace.strings,
        "spans": trace.spans and [row.to_json() for row in trace.spans],
        "axes": {name: list(axes) for name, axes in trace.axes.items()},
        "layers": list(trace.layers),
        "places": list(trace.places),
        "context": trace.context and {"strings": trace.context.strings},
        "config": trace.config,
        "provenance": trace.provenance,
    }


def _tensors(trace: Trace) -> dict[str, Tensor]:
    """Collect every tensor under its name in the file, each with storage of its own."""
    named: dict[str, Tensor | None] = {"tokens": trace.tokens, "mask": trace.mask}
    if trace.routing is not None:
        named |= {f"routing/{key}": value for key, value in trace.routing._asdict().items()}
    if trace.context is not None:
        named |= {"context/tokens": trace.context.tokens, "context/mask": trace.context.mask}
    named |= {ACTIVATION + name: value for name, value in trace.activations.items()}
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in named.items():
        if value is not None:
            out[name] = _owned(value, seen)
            seen.add(out[name].data_ptr())
    return out


def _owned(tensor: Tensor, seen: set[int]) -> Tensor:
    """Give a contiguous cpu tensor that shares no storage with those seen before."""
    out = tensor.detach().cpu().contiguous()
    whole = out.untyped_storage().nbytes() == out.nbytes and out.data_ptr() not in seen
    return out if whole else out.clone()


def _stem(path: str | Path) -> Path:
    """Find the pair's common name from what the caller gave."""
    path = Path(path)
    if path.is_dir():
        return path / NAME_IN_FOLDER
    return path.with_suffix("") if path.suffix in (".json", ".safetensors") else path


def _files(stem: Path) -> tuple[Path, Path]:
    return stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")


def _checked(document: bytes, file: Path) -> dict[str, Any]:
    try:
        saved = json.loads(document)
    except ValueError as broken:
        raise ValueError(f"Trace.load: {file} is not readable json: {broken}") from broken
    _refuse_others(saved if isinstance(saved, dict) else {}, file)
    return saved


def _read(file: Path, json_sha256: str) -> dict[str, Tensor]:
    try:
        with safe_open(file, "pt") as opened:
            found = opened.metadata() or {}
            _refuse_others({**found, "version": _number(found.get("version"))}, file)
            if found["json_sha256"] != json_sha256:
                raise ValueError(
                    f"Trace.load: {file.name} and {file.with_suffix('.json').name} do not belong "
                    "together (a write was cut short, or one was replaced); save the trace again"
                )
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as broken:
        raise ValueError(
            f"Trace.load: {file} is not a readable safetensors file: {broken}"
        ) from broken


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _refuse_others(saved: dict[str, Any], file: Path) -> None:
    """Raise for files of another kind, or of another version of this kind."""
    if saved.get("format") != FORMAT:
        raise ValueError(
            f"Trace.load: expected {file} to hold format {FORMAT!r}, got {saved.get('format')!r}"
        )
    version = saved.get("version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        remedy = "update gptoss-workbench to read it" if newer else "trace the prompt again"
        raise ValueError(
            f"Trace.load: {file} has format version {version}, this release reads version "
            f"{VERSION}; {remedy}"
        )


def _group(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor] | None:
    found = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    return found or None
