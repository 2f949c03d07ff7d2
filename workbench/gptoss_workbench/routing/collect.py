"""Routing a corpus: every token's expert choice, kept with what the token is.

    routing = trace_routing(model, texts, folder="runs/german")
    routing.where(channel="analysis").to_pandas()

The corpus is read as it streams by, a window of prompts at a time; in a window prompts of like
length run together. Nothing beyond the last block's residual is computed. A window becomes a shard,
in corpus order, and memory holds one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptoss_workbench.provenance import of_model
from gptoss_workbench.routing import shards
from gptoss_workbench.routing.buckets import Padded, Window, batches, padded, windows
from gptoss_workbench.routing.capture import KEEP, Capture
from gptoss_workbench.routing.prompts import count, read_prompts
from gptoss_workbench.routing.record import Record
from gptoss_workbench.routing.span_codes import Labeller, SpanCodes, unlabelled
from gptoss_workbench.routing.trace import RoutingTrace


@dataclass(frozen=True)
class Options:
    """What decides the bytes of a routing trace, besides model and corpus."""

    layers: tuple[int, ...]
    keep: tuple[str, ...]
    batch_tokens: int
    shard_tokens: int
    max_tokens: int | None


def trace_routing(
    model: Any,
    texts: Any,
    *,
    folder: str | Path | None = None,
    labels: Iterable[Any] | None = None,
    batch_tokens: int = 4096,
    keep: Sequence[str] = ("margins",),
    layers: Sequence[int] | None = None,
    edits: Sequence[Any] = (),
    max_tokens: int | None = None,
    resume: bool = True,
    progress: bool = True,
    shard_tokens: int = 32_768,
) -> RoutingTrace:
    """Run a corpus and keep every router's choice, with role, channel and sentence of each token.

    Args:
        texts: an iterable of texts, token lists, message lists, or mappings with "text", "tokens"
            or "messages" and perhaps "label"; read once, as it comes.
        folder: where to write shards; None keeps everything in memory.
        labels: the domain of each prompt.
        batch_tokens: places that run at once, pads included.
        keep: of "logits", "margins", "norms", "peaks"; experts and weights always.
        layers: blocks to record; None is all.
        edits: interventions in force while it runs.
        max_tokens: cut longer prompts at their end; how many is said.
        resume: go on with what a folder holds; False starts it over.
        shard_tokens: tokens a shard, which is also what a kill can lose.

    An interrupt keeps the finished shards: rerun to go on, or read them (`RoutingTrace.load`; in
    memory: `model.last_trace`).
    """
    options = _options(model, layers, keep, batch_tokens, shard_tokens, max_tokens)
    about = {
        "layers": list(options.layers),
        "config": json.loads(json.dumps(asdict(model.config))),
        "provenance": provenance(model, options, edits),
    }
    if folder is not None and not resume:
        shards.clear(folder)
    strings = vocabulary_strings(model)
    store = _Memory(about, strings) if folder is None else shards.Folder(folder, about, strings)
    prompts = read_prompts(model, texts, labels=labels, max_tokens=max_tokens)
    route = _Router(model, options)
    with model.edited(*edits), _bar(count(texts), store.finished, progress) as bar:
        if store.finished:  # those prompts may hold the tokens that an edit means
            model.idle.update(dict.fromkeys(map(id, edits)))
        try:
            for window in windows(prompts, shard_tokens):
                if not store.has(window):
                    store.add(window, route(window, bar))
            store.finish()
        except KeyboardInterrupt as interrupt:
            model.last_trace = store.trace()
            where = f"in {folder}; rerun to go on" if folder else "at model.last_trace"
            interrupt.add_note(f"{model.last_trace.n_prompts} prompts are kept {where}")
            raise
    return store.trace()


def _options(
    model: Any,
    layers: Sequence[int] | None,
    keep: Sequence[str],
    batch_tokens: int,
    shard_tokens: int,
    max_tokens: int | None,
) -> Options:
    """Check the options and put them into one form."""
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    if unknown := set(keep) - set(KEEP):
        raise ValueError(f"trace_routing: keep= is among {', '.join(KEEP)}; got {sorted(unknown)}")
    count = len(model.blocks)
    chosen = tuple(range(count)) if layers is None else tuple(int(i) for i in layers)
    if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= i < count for i in chosen):
        raise ValueError(f"trace_routing: layers are distinct, 0 to {count - 1}; got {layers}")
    for name, value in (("batch_tokens", batch_tokens), ("shard_tokens", shard_tokens)):
        if value < 1:
            raise ValueError(f"trace_routing: {name} is at least 1; got {value}")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"trace_routing: max_tokens is at least 1 or None; got {max_tokens}")
    order = tuple(name for name in KEEP if name in keep)
    return Options(tuple(sorted(chosen)), order, batch_tokens, shard_tokens, max_tokens)


class _Router:
    """Runs windows: batches of like length, put together again in corpus order."""

    def __init__(self, model: Any, options: Options):
        self.model, self.options = model, options
        self.capture = Capture(options.layers, model.config.num_local_experts, options.keep)
        tokenizer = getattr(model, "tokenizer", None)
        self.labeller = None if tokenizer is None else Labeller(tokenizer)

    def __call__(self, window: Window, bar: Any) -> Record:
        columns: dict[str, np.ndarray] = {}
        total = int(window.lengths.sum())
        with torch.no_grad(), self.model.recording(self.capture.names, self.capture.keep):
            for rows in batches(window.lengths, self.options.batch_tokens):
                batch = padded(window, rows, self.model.pad_id)
                for name, values in self._run(batch).items():
                    if name not in columns:
                        columns[name] = np.empty((total, *values.shape[1:]), values.dtype)
                    columns[name][batch.places] = values
                _advance(bar, len(rows), len(batch.places))
        _advance(bar, int((window.lengths == 0).sum()), 0)
        return self._record(window, columns or self._nothing())

    def _run(self, batch: Padded) -> dict[str, np.ndarray]:
        device = self.model.cfg.device
        tokens, mask = (torch.from_numpy(each).to(device) for each in (batch.tokens, batch.mask))
        self.capture.start(mask)
        self.model(tokens, attention_mask=mask, return_type=None)
        return self.capture.finish()

    def _record(self, window: Window, columns: dict[str, np.ndarray]) -> Record:
        lengths = window.lengths
        starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        number = np.arange(window.first, window.first + len(lengths), dtype=np.int32)
        return Record(
            prompt=np.repeat(number, lengths),
            pos=(np.arange(len(starts)) - starts).astype(np.int32),
            token=window.tokens,
            **self._labels(window)._asdict(),
            **columns,  # pyright: ignore[reportArgumentType]
        )

    def _labels(self, window: Window) -> SpanCodes:
        label = self.labeller
        if label is None:
            return unlabelled(int(window.lengths.sum()))
        return label(window.tokens, window.lengths)

    def _nothing(self) -> dict[str, np.ndarray]:
        """The columns of a window that holds no token."""
        config, layers = self.model.config, len(self.options.layers)
        slots = (0, layers, config.num_experts_per_tok)
        shapes = {"logits": (0, layers, config.num_local_experts), "margins": (0, layers)}
        ids = np.int8 if config.num_local_experts <= 127 else np.int16
        columns = {"experts": np.empty(slots, ids), "weights": np.empty(slots, np.float16)}
        for name in self.options.keep:
            dtype = np.float16 if name in shapes else np.float32
            columns[name] = np.empty(shapes.get(name, slots), dtype)
        return columns


class _Memory:
    """The shards of one run, kept in memory; what `shards.Folder` does on disk."""

    finished = 0

    def __init__(self, about: dict[str, Any], strings: list[str] | None):
        self.about, self.strings, self.complete = about, strings, False
        self.records: list[Record] = []
        self.prompts = self.cut = 0
        self.labels: list[str] = []

    def has(self, window: Window) -> bool:
        return False

    def add(self, window: Window, record: Record) -> None:
        self.records.append(record)
        self.prompts += len(window.prompts)
        self.cut += sum(prompt.cut for prompt in window.prompts)
        self.labels += [prompt.label for prompt in window.prompts if prompt.label is not None]

    def finish(self) -> None:
        self.complete = True

    def trace(self) -> RoutingTrace:
        tokens = sum(len(record.token) for record in self.records)
        facts = {"prompts": self.prompts, "tokens": tokens, "cut": self.cut}
        facts["complete"] = self.complete
        return RoutingTrace(
            shards=[_given(record) for record in self.records],
            layers=tuple(self.about["layers"]),
            n_experts=self.about["config"]["num_local_experts"],
            labels=tuple(self.labels),
            config=self.about["config"],
            provenance=self.about["provenance"] | facts,
            strings=self.strings,
        )


def _given(record: Record):
    return lambda: record


def provenance(model: Any, options: Options, edits: Sequence[Any]) -> dict[str, Any]:
    """What made a routing trace, without times, so that equal runs say the same."""
    tokenizer, about = getattr(model, "tokenizer", None), of_model(model)
    about["edits"] += [repr(edit) for edit in edits]
    about["versions"].pop("python")
    return about | {
        "routers": routers_sha256(model),
        "tokenizer": None if tokenizer is None else tokenizer.hash,
        **json.loads(json.dumps(asdict(options))),
    }


def routers_sha256(model: Any) -> str:
    """A hash of every router, which tells models apart that carry no fingerprint."""
    digest = hashlib.sha256()
    for block in model.blocks:
        for tensor in (block.mlp.router.weight, block.mlp.router.bias):
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def vocabulary_strings(model: Any) -> list[str] | None:
    """Text of every token of the vocabulary; None without a tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    return None if tokenizer is None else tokenizer.vocabulary_strings(model.config.vocab_size)


def _bar(total: int | None, done: int, progress: bool) -> Any:
    """A progress bar over prompts, with time left where the corpus has a length."""
    from tqdm.auto import tqdm

    bar = tqdm(total=total, initial=done, unit="prompt", desc="routing", disable=not progress)
    bar.tokens, bar.since = 0, time.monotonic()  # pyright: ignore[reportAttributeAccessIssue]
    return bar


def _advance(bar: Any, prompts: int, tokens: int) -> None:
    bar.tokens += tokens
    seconds = time.monotonic() - bar.since
    bar.set_postfix_str(f"{bar.tokens / max(seconds, 1e-9):,.0f} tokens/s", refresh=False)
    bar.update(prompts)
