"""Opening a checkpoint: from nothing, a folder or a hub id to config and mapped tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from gptoss_workbench.checkpoint import hub, original_layout, validate
from gptoss_workbench.checkpoint.errors import CheckpointError
from gptoss_workbench.checkpoint.inventory import Inventory, Layout, take_inventory
from gptoss_workbench.checkpoint.safetensors_file import Entry, map_tensors
from gptoss_workbench.checkpoint.shards import read_json
from gptoss_workbench.config import Config

NANO = "gpt-oss-nano"
"""What the embedded model is called."""
RELEASED = ("gpt-oss-20b", "gpt-oss-120b")

WHOLE = 1 << 20
"""Tensors up to this many bytes enter the fingerprint whole."""
PIECES, PIECE = 32, 4096
"""Of larger ones, so many pieces of so many bytes, evenly spaced from first to last byte."""

NOT_CONTENT = ("eos_token_id", "pad_token_id", "max_position_embeddings")
"""Config fields that no activation depends on, and that not every layout can state."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. Headers are read and checked; weights are mapped by `tensors`."""

    config: Config
    folder: Path
    source: str
    """As it was asked for: "gpt-oss-nano", a path or a hub id."""
    layout: Layout
    generation_config: dict[str, Any]
    """generation_config.json, or empty."""
    tokenizer_path: Path | None
    """tokenizer.json, where there is one."""
    inventory: Inventory = field(repr=False)
    """What the files hold."""

    def tensors(self, *, check_scales: bool = True) -> dict[str, Tensor]:
        """Every tensor under its Hugging Face name, memory-mapped.

        Nothing is copied: pages are read when used and shared with other processes. The check for
        NaN scales reads each scale once: 0.6 GB of the 20b, 0.1 s from the page cache and as
        long as the disk takes otherwise.
        """
        tensors = map_tensors(self._entries())
        if check_scales:
            validate.check_scales(tensors, self.config)
        return tensors

    def fingerprint(self) -> str:
        """What the model computes, as a SHA-256 that is the same for each layout and sharding.

        Hashed: the config fields activations depend on, then for each tensor in name order its
        name, dtype, shape and bytes - all bytes up to 1 MiB, of larger tensors 32 evenly spaced
        pieces of 4 KiB. It tells models apart, and most edits; it does not prove that no
        byte differs. The pieces are read, not mapped: a second map of the 20b would take as much
        address space again.
        """
        digest = hashlib.sha256()
        fields = {k: v for k, v in asdict(self.config).items() if k not in NOT_CONTENT}
        digest.update(json.dumps(fields, sort_keys=True).encode())
        with ExitStack() as leaving:
            files = {file: leaving.enter_context(file.open("rb")) for file in self.inventory.files}
            for name, entry in sorted(self._entries().items()):
                digest.update(f"\n{name} {entry}\n".encode())
                for start, size in _sample(entry.nbytes):
                    files[entry.file].seek(entry.start + start)
                    digest.update(files[entry.file].read(size))
        return digest.hexdigest()

    def _entries(self) -> dict[str, Entry]:
        if self.layout == "original":
            return original_layout.as_hf(self.inventory.entries, self.config)
        return self.inventory.entries


def open_checkpoint(source: str | Path | None = None, *, revision: str | None = None) -> Checkpoint:
    """Open gpt-oss-nano, a folder or a hub id, and check it against its config.

    open_checkpoint()                               # gpt-oss-nano, in the package
    open_checkpoint("/models/gpt-oss-20b")          # or its original/ folder
    open_checkpoint("openai/gpt-oss-20b")           # through the hub's cache
    open_checkpoint("openai/gpt-oss-20b/original")  # the other layout

    Every shard's header is read; no weight is. All problems come in one CheckpointError.
    """
    folder, name = resolve(source, revision=revision)
    inventory = take_inventory(folder)
    validate.check(inventory)
    return Checkpoint(
        config=inventory.config,
        folder=folder,
        source=name,
        layout=inventory.layout,
        generation_config=_generation_config(folder),
        tokenizer_path=beside(folder, "tokenizer.json"),
        inventory=inventory,
    )


def resolve(source: str | Path | None, *, revision: str | None = None) -> tuple[Path, str]:
    """The folder that holds config.json, and what to call it."""
    if source is None or (source == NANO and not Path(source).exists()):
        from gptoss_workbench.nano import checkpoint_path

        return Path(checkpoint_path()), NANO
    folder = Path(source).expanduser()
    if not folder.exists() and isinstance(source, str) and hub.is_hub_id(source):
        return hub.download(source, revision=revision), source
    if not folder.is_dir():
        raise CheckpointError(
            f"no checkpoint at {source}: expected a folder with config.json and *.safetensors, "
            f"a hub id like openai/gpt-oss-20b, or nothing for {NANO}{_meant(str(source))}"
        )
    if revision is not None:
        raise CheckpointError(f"revision={revision!r} is for hub ids; {source} is a folder")
    original = folder / "original"
    if not (folder / "config.json").exists() and (original / "config.json").exists():
        folder = original  # as `hf download --include "original/*"` leaves it
    return folder, str(source)


def _meant(source: str) -> str:
    """The hub id of a released model that was named without its organisation."""
    return f'. Did you mean "openai/{source}"?' if source in RELEASED else ""


def beside(folder: Path, name: str) -> Path | None:
    """A text file of the checkpoint; for an `original/` folder it may lie one folder up."""
    places = [folder, folder.parent] if folder.name == "original" else [folder]
    return next((place / name for place in places if (place / name).is_file()), None)


def _generation_config(folder: Path) -> dict[str, Any]:
    file = beside(folder, "generation_config.json")
    return read_json(file) if file else {}


def _sample(nbytes: int) -> Iterator[tuple[int, int]]:
    """Start and size of the pieces of a tensor that enter the fingerprint."""
    if nbytes <= WHOLE:
        yield 0, nbytes
        return
    for i in range(PIECES):
        yield i * (nbytes - PIECE) // (PIECES - 1), PIECE
