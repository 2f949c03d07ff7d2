"""Reading a corpus: any iterable of texts, tokens, messages or rows of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat, zip_longest
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

TOKEN_KEYS = ("tokens", "input_ids")
KEYS = ("text", "messages", *TOKEN_KEYS)


class Prompt(NamedTuple):
    """One prompt as it will be run."""

    tokens: np.ndarray
    """int32"""
    label: str | None
    """Its domain, where the corpus names one."""
    cut: bool
    """Whether its end was left out."""


def read_prompts(
    model: Any, texts: Any, *, labels: Iterable[Any] | None = None, max_tokens: int | None = None
) -> Iterator[Prompt]:
    """Give the prompts of a corpus in order, reading no further than asked.

    An item is a text, a list, array or tensor of tokens, a list of messages, or a mapping with one
    of "text", "tokens" ("input_ids"), "messages" and, where wanted, "label". An empty one keeps its
    number and has no tokens.
    """
    has_label: bool | None = None
    for number, (item, label) in enumerate(_with_labels(texts, labels)):
        if isinstance(item, Mapping):
            label = item.get("label") if label is None else label
        if has_label is not None and has_label != (label is not None):
            without, first = ("no", "one") if label is None else ("a", "none")
            raise ValueError(
                f"trace_routing: prompt {number} has {without} label, prompt 0 has {first}; "
                "give all of them labels or none"
            )
        has_label = label is not None
        tokens = _tokens(model, item, number)
        kept = tokens[:max_tokens]
        _check(model, kept, number)
        yield Prompt(kept, None if label is None else str(label), len(kept) < len(tokens))


def count(texts: Any) -> int | None:
    """Number of prompts, where it is known before reading."""
    return len(_several(texts)) if hasattr(texts, "__len__") else None


def _several(texts: Any) -> Any:
    """One prompt by itself as a corpus of one."""
    one = isinstance(texts, (str, Mapping)) and not hasattr(texts, "column_names")
    flat = isinstance(texts, (Tensor, np.ndarray)) and texts.ndim == 1
    return [texts] if one or flat else texts


def _with_labels(texts: Any, labels: Iterable[Any] | None) -> Iterator[tuple[Any, Any]]:
    texts = _several(texts)
    if labels is None:
        return zip(texts, repeat(None), strict=False)
    if isinstance(labels, str):
        raise ValueError("trace_routing: labels= is one label a prompt, not one text")
    return _paired(texts, labels)


def _paired(texts: Any, labels: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    end = object()
    for number, (text, label) in enumerate(zip_longest(texts, labels, fillvalue=end)):
        if text is end or label is end:
            short, long = ("texts", "labels") if text is end else ("labels", "texts")
            raise ValueError(
                f"trace_routing: {short} end after {number}, {long} go on; give one label a prompt"
            )
        yield text, label


def _tokens(model: Any, item: Any, number: int) -> np.ndarray:
    """An item's tokens, int32."""
    if isinstance(item, Mapping):
        found = next((key for key in KEYS if item.get(key) is not None), None)
        if found is None:
            raise ValueError(
                f"trace_routing: prompt {number} has {', '.join(map(repr, item))}; expected one of "
                f"{', '.join(map(repr, KEYS))}"
            )
        item = item[found]
    if isinstance(item, str):
        item = model.require_tokenizer().encode(item)
    elif isinstance(item, (list, tuple)) and item and isinstance(item[0], Mapping):
        item = model.render(list(item))
    ids = np.asarray(item.cpu() if isinstance(item, Tensor) else item)
    if ids.size == 0:
        return np.zeros(0, np.int32)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"trace_routing: prompt {number} is {type(item).__name__} {list(ids.shape)} of "
            f"{ids.dtype}; expected a text, or tokens in one dimension (one list a prompt)"
        )
    return ids.astype(np.int32)


def _check(model: Any, tokens: np.ndarray, number: int) -> None:
    """Refuse what the model cannot run, by the prompt's number."""
    limit, vocab = model.config.max_position_embeddings, model.config.vocab_size
    if len(tokens) > limit:
        raise ValueError(
            f"trace_routing: prompt {number} has {len(tokens)} tokens, the model knows {limit} "
            "positions; cut long prompts with max_tokens="
        )
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab:
        raise ValueError(
            f"trace_routing: prompt {number} holds tokens {tokens.min()} to {tokens.max()}; the "
            f"vocabulary is 0 to {vocab - 1}"
        )
