"""What a checkpoint holds, from headers alone: a 13 GB folder is described in milliseconds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptoss_hooks.memory import in_words
from gptoss_workbench.checkpoint import hf_layout, original_layout, validate
from gptoss_workbench.checkpoint.inventory import Inventory, Layout, take_inventory
from gptoss_workbench.checkpoint.memory import kv_bytes_per_token, memory_needed
from gptoss_workbench.checkpoint.open import beside, resolve
from gptoss_workbench.config import Config

CONTEXT = 4096
"""Tokens that the memory is stated for."""


@dataclass(frozen=True, repr=False)
class CheckpointInfo:
    """One checkpoint, described."""

    source: str
    folder: Path
    layout: Layout
    config: Config
    n_tensors: int
    part_bytes: dict[str, int]
    """Bytes of the tensors present, by part of the model."""
    n_params: int
    n_active_params: int
    shards: tuple[str, ...]
    """Files present."""
    problems: tuple[str, ...]
    """Why it cannot be loaded; empty for a complete checkpoint. NaN scales are not looked for."""
    tokenizer: bool
    """Whether tokenizer.json is there, so that the model takes text."""
    memory: dict[str, int]
    """Bytes to run `memory_context` tokens in bfloat16, by part, and the total."""
    memory_context: int
    """4096 tokens, or the whole context where that is shorter."""
    kv_bytes_per_token: int
    """While every layer keeps the token; sliding layers drop it after their window."""

    @property
    def complete(self) -> bool:
        return not self.problems

    @property
    def total_bytes(self) -> int:
        return sum(self.part_bytes.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        fields = {k: v for k, v in vars(self).items() if k != "config"}
        plain = fields | {"folder": str(self.folder), "config": asdict(self.config)}
        return plain | {"complete": self.complete, "total_bytes": self.total_bytes}

    def __repr__(self) -> str:
        rows = _rows(self)
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value}".rstrip() for label, value in rows)


def checkpoint_info(
    path: str | Path | None = None, *, revision: str | None = None
) -> CheckpointInfo:
    """Describe gpt-oss-nano, a folder or a hub id, complete or not.

    print(checkpoint_info("/models/gpt-oss-20b"))

    A folder without a readable gpt-oss config.json raises; anything else that is wrong is listed.
    """
    folder, source = resolve(path, revision=revision)
    inventory = take_inventory(folder)
    config = inventory.config
    context = min(CONTEXT, config.max_position_embeddings)
    return CheckpointInfo(
        source=source,
        folder=folder,
        layout=inventory.layout,
        config=config,
        n_tensors=len(inventory.entries),
        part_bytes=_part_bytes(inventory),
        n_params=config.n_params,
        n_active_params=config.n_active_params,
        shards=tuple(file.name for file in inventory.files),
        problems=tuple(validate.problems(inventory)),
        tokenizer=beside(folder, "tokenizer.json") is not None,
        memory=memory_needed(config, context=context),
        memory_context=context,
        kv_bytes_per_token=kv_bytes_per_token(config),
    )


def _part_bytes(inventory: Inventory) -> dict[str, int]:
    """Bytes by part of the tensors that are there under a known name."""
    names = {name: name for name in hf_layout.expected(inventory.config)}
    if inventory.layout == "original":
        names = original_layout.first_names(inventory.config)
    sizes = dict.fromkeys(hf_layout.PARTS, 0)
    for stored, name in names.items():
        if stored in inventory.entries:
            sizes[hf_layout.part(name)] += inventory.entries[stored].nbytes
    return sizes


def _rows(info: CheckpointInfo) -> list[tuple[str, str]]:
    config = info.config
    heads = f"{config.num_attention_heads} query, {config.num_key_value_heads} key-value heads"
    experts = f"{config.num_local_experts} experts a layer, {config.num_experts_per_tok} a token"
    rows = [
        ("checkpoint", info.source),
        ("layout", f"{info.layout}, {len(info.shards)} file(s), {info.n_tensors} tensors"),
        ("state", "complete" if info.complete else f"not loadable: {info.problems[0]}"),
        ("tokenizer", "present" if info.tokenizer else "none: takes token ids, not text"),
        ("parameters", f"{info.n_params:,}, of them active {info.n_active_params:,}"),
        ("shape", f"{config.num_hidden_layers} layers of width {config.hidden_size}"),
        ("attention", f"{heads} of {config.head_dim}, window {config.sliding_window}"),
        ("experts", f"{experts}, {config.intermediate_size} neurons each"),
        ("context", f"{config.max_position_embeddings:,} tokens"),
        ("", ""),
    ]
    rows += [(f"  {part}", f"{size:>17,} B") for part, size in info.part_bytes.items()]
    needed = in_words(info.memory["total"])
    rows += [
        ("  all", f"{info.total_bytes:>17,} B"),
        ("", ""),
        ("memory to run", f"about {needed} at {info.memory_context} tokens in bfloat16"),
        ("KV cache", f"{info.kv_bytes_per_token:,} B a token"),
    ]
    return rows + [("problem", problem) for problem in info.problems[1:]]
