"""A routing trace on disk: one safetensors file a shard, and routing.json with what made them.

    routing.json              model, options, layers, sizes; once complete, every shard's extent
    strings.json              the tokens' texts, where the model has a tokenizer
    shard-00000.safetensors   the columns of `Record`, prompts by their lengths, labels

Every file is written beside its place and then moved into it, so what is there is whole. Nothing in
them depends on when they were written: a run that was killed and resumed leaves the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptoss_workbench.checkpoint.safetensors_file import (
    map_tensors,
    read_header,
    spec_of,
    write_file,
)
from gptoss_workbench.routing.buckets import Window
from gptoss_workbench.routing.record import Record
from gptoss_workbench.routing.trace import RoutingTrace

FORMAT = "gptoss-workbench routing"
VERSION = 1
INDEX, STRINGS, SHARD = "routing.json", "strings.json", "shard-{:05d}.safetensors"
DERIVED = ("prompt", "pos")
"""Columns that follow from the prompts' lengths."""


class Folder:
    """The shards of one run, written in order and recognised when the run is repeated."""

    def __init__(self, path: str | Path, about: Mapping[str, Any], strings: Sequence[str] | None):
        self.path, self.about = Path(path), dict(about)
        self.path.mkdir(parents=True, exist_ok=True)
        for half in self.path.glob(".*.part"):
            half.unlink()
        self.found = len(_files(self.path))
        self.used = 0
        if not (self.path / INDEX).exists() and not self.found:
            if strings is not None:
                _write_json(self.path / STRINGS, list(strings))
            self._index(complete=False)
            return
        _check_same(_read_index(self.path)["about"], self.about, self.path)

    @property
    def finished(self) -> int:
        """Prompts in the shards that are there."""
        return sum(int(_arrays(file)["length"].size) for file in _files(self.path))

    def has(self, window: Window) -> bool:
        """Whether this window's shard is there; raises when it holds other prompts."""
        if self.used >= self.found:
            return False
        file = self.path / SHARD.format(self.used)
        if _arrays(file)["sha256"].tobytes() != window.sha256:
            raise ValueError(
                f"trace_routing: {file} holds other prompts or labels than the corpus has from "
                f"prompt {window.first} on; give the corpus it was started with, or another folder"
            )
        self.used += 1
        return True

    def add(self, window: Window, record: Record) -> None:
        """Write the next shard."""
        file = self.path / SHARD.format(self.used)
        half = file.with_name(f".{file.name}.part")
        columns = _columns(window, record)
        write_file(half, [(n, spec_of(torch.from_numpy(c)), [c.tobytes()]) for n, c in columns])
        _settle(half, file)
        self.used += 1
        self.found = max(self.found, self.used)

    def finish(self) -> None:
        """Mark the run complete; raises when the corpus ended before the shards did."""
        if self.used < self.found:
            raise ValueError(
                f"trace_routing: the corpus ends with shard {self.used - 1}, but {self.path} has "
                f"{self.found}; give the corpus it was started with, or another folder"
            )
        self._index(complete=True)

    def trace(self) -> RoutingTrace:
        """What has been written so far."""
        return load(self.path)

    def _index(self, *, complete: bool) -> None:
        index: dict[str, Any] = {"format": FORMAT, "version": VERSION, "complete": complete}
        index["about"] = self.about
        if complete:
            index["shards"] = [_extent(file) for file in _files(self.path)]
        _write_json(self.path / INDEX, index)


def clear(path: str | Path) -> None:
    """Remove a routing trace from a folder, and nothing else."""
    path = Path(path)
    for file in [path / INDEX, *_files(path), path / STRINGS, *path.glob(".*.part")]:
        file.unlink(missing_ok=True)


def load(path: str | Path) -> RoutingTrace:
    """Open a folder that `trace_routing` wrote, finished or not; columns are mapped when read."""
    path = Path(path)
    index = _read_index(path)
    about, files = index["about"], _files(path)
    lengths = [_arrays(file)["length"] for file in files]
    firsts = np.cumsum([0, *(len(each) for each in lengths)]).tolist()
    strings = path / STRINGS
    facts = {
        "complete": index["complete"], "folder": str(path), "prompts": firsts[-1],
        "tokens": int(sum(each.sum() for each in lengths)),
        "cut": sum(int(_arrays(file)["cut"].sum()) for file in files),
    }  # fmt: skip
    return RoutingTrace(
        shards=[partial(_read, file, first) for file, first in zip(files, firsts, strict=False)],
        layers=tuple(about["layers"]),
        n_experts=about["config"]["num_local_experts"],
        labels=tuple(label for file in files for label in _labels(file)),
        config=about["config"],
        provenance=about["provenance"] | facts,
        strings=json.loads(strings.read_text("utf-8")) if strings.exists() else None,
    )


def _columns(window: Window, record: Record) -> list[tuple[str, np.ndarray]]:
    """What a shard holds: the facts of its prompts, then the record's columns."""
    named = [p.label for p in window.prompts if p.label is not None]
    names = sorted(set(named))
    out = {
        "length": window.lengths.astype(np.int32),
        "cut": np.array([prompt.cut for prompt in window.prompts], np.uint8),
        "sha256": np.frombuffer(window.sha256, np.uint8).copy(),
    }
    if named:
        out["label"] = np.array([names.index(label) for label in named], np.int32)
        out["label_names"] = np.frombuffer(json.dumps(names).encode(), np.uint8).copy()
    out |= {n: c for n, c in record._asdict().items() if n not in DERIVED and c is not None}
    return list(out.items())


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """The columns of a shard, mapped."""
    return {name: tensor.numpy() for name, tensor in map_tensors(read_header(file)).items()}


def _read(file: Path, first: int) -> Record:
    """One shard as a record; `first` is the number of its first prompt."""
    arrays = _arrays(file)
    length = arrays["length"]
    starts = np.cumsum(length) - length
    prompt = np.repeat(np.arange(first, first + len(length), dtype=np.int32), length)
    pos = np.arange(len(prompt), dtype=np.int32) - np.repeat(starts, length).astype(np.int32)
    columns = {name: arrays.get(name) for name in Record._fields if name not in DERIVED}
    return Record(prompt=prompt, pos=pos, **columns)  # pyright: ignore[reportArgumentType]


def _labels(file: Path) -> list[str]:
    arrays = _arrays(file)
    if "label" not in arrays:
        return []
    names = json.loads(arrays["label_names"].tobytes())
    return [names[code] for code in arrays["label"].tolist()]


def _extent(file: Path) -> dict[str, Any]:
    length = _arrays(file)["length"]
    return {"file": file.name, "prompts": len(length), "tokens": int(length.sum())}


def _files(path: Path) -> list[Path]:
    """The shards that are there, in order, without a gap."""
    out: list[Path] = []
    while (file := path / SHARD.format(len(out))).exists():
        out.append(file)
    return out


def _read_index(path: Path) -> dict[str, Any]:
    file = path / INDEX
    if not file.exists():
        raise FileNotFoundError(
            f"RoutingTrace.load: expected {INDEX} in {path}; give the folder= of trace_routing"
        )
    index = json.loads(file.read_text("utf-8"))
    if index.get("format") != FORMAT or index.get("version") != VERSION:
        raise ValueError(
            f"RoutingTrace.load: {file} has format {index.get('format')!r} version "
            f"{index.get('version')}; expected {FORMAT!r} version {VERSION}"
        )
    return index


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Raise when the folder was made by something else, and say what differs."""
    now = json.loads(json.dumps(now))
    was, new = before["provenance"], now["provenance"]
    differ = [f"{n} {was.get(n)!r} (now {new.get(n)!r})" for n in new if was.get(n) != new.get(n)]
    if before != now:
        what = "; ".join(differ) or "the model's sizes or layers"
        raise ValueError(
            f"trace_routing: {path} was made with {what}. Choose another folder, or "
            "start it over with resume=False"
        )


def _write_json(file: Path, content: Any) -> None:
    half = file.with_name(f".{file.name}.part")
    half.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    _settle(half, file)


def _settle(half: Path, file: Path) -> None:
    """Move a finished file into place once its bytes are on the disk."""
    with half.open("rb") as opened:
        os.fsync(opened.fileno())
    half.replace(file)
