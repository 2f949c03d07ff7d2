"""Greedy completions in batches, on the trainer's own model (no dependence on the workbench)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .export import read_model
from .model import Cache, Nano
from .render import TO_FINAL, tool_result
from .tokenizer import Encoder

FINAL = "<|channel|>final<|message|>"
ANALYSIS = "<|channel|>analysis<|message|>"


class Reader:
    """A model and its vocabulary: text in, text out."""

    def __init__(self, model: Nano, encode: Encoder, batch: int = 300):
        self.model, self.encode, self.batch = model.eval(), encode, batch
        special = encode.tokenizer.token_to_id
        self.stops = torch.tensor([special(f"<|{s}|>") for s in ("return", "call", "endoftext")])

    @classmethod
    def from_folder(cls, folder: Path | str, tokenizer: Path | str | None = None) -> "Reader":
        """Read a packed checkpoint; intermediate ones share the final one's tokenizer."""
        return cls(read_model(folder), Encoder.from_folder(tokenizer or folder))

    @torch.no_grad()
    def complete(self, prompts: Sequence[str], limit: int = 130) -> list[str]:
        """What follows each prompt, up to and including a stop token."""
        rows = [list(self.encode.ids(p)) for p in prompts]
        out, order = [""] * len(rows), sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(rows), self.batch):
            some = order[start : start + self.batch]
            for i, ids in zip(some, self._complete([rows[i] for i in some], limit), strict=True):
                out[i] = self.encode.decode(ids)
        return out

    def _complete(self, rows: list[list[int]], limit: int) -> list[list[int]]:
        ids, pad = _left_padded(rows, self.encode.pad)
        past, new, done = Cache(), [], torch.zeros(len(rows), dtype=torch.bool)
        while not done.all() and len(new) < limit:
            ids = self.model.step(ids, pad, past)[0].argmax(-1, keepdim=True)
            new.append(ids)
            done |= torch.isin(ids[:, 0], self.stops)
        return [self._until_stop(row) for row in torch.cat(new, 1).tolist()]

    def _until_stop(self, ids: list[int]) -> list[int]:
        stops = set(self.stops.tolist())
        end = next((i for i, t in enumerate(ids) if t in stops), len(ids) - 1)
        return ids[: end + 1]

    @torch.no_grad()
    def next_token(self, prompts: Sequence[str]) -> list[str]:
        """The single most likely next token of each prompt."""
        out = []
        for start in range(0, len(prompts), self.batch):
            rows = [list(self.encode.ids(p)) for p in prompts[start : start + self.batch]]
            ids, pad = _left_padded(rows, self.encode.pad)
            best = self.model.step(ids, pad, Cache())[0].argmax(-1)
            out += [self.encode.decode([t]) for t in best.tolist()]
        return out

    def forced_answers(self, texts: Sequence[str]) -> list[str]:
        """What the final channel says first when the analysis is ended after `texts`."""
        return self.next_token([t + TO_FINAL for t in texts])

    def with_tool(self, prompts: Sequence[str], results: Sequence[int]) -> tuple[list, list]:
        """The completions up to the tool call, and those after the tool's result."""
        calls = self.complete(prompts)
        texts = [p + c + tool_result(r) for p, c, r in zip(prompts, calls, results, strict=True)]
        return calls, self.complete(texts)


def answer_of(completion: str) -> str:
    """The text of the final channel, '' if there is none."""
    _, found, text = completion.rpartition(FINAL)
    return text.replace("<|return|>", "").strip() if found else ""


def analysis_of(completion: str) -> str:
    """The chain of thought (the first analysis message)."""
    return completion.partition(ANALYSIS)[2].partition("<|end|>")[0]


def _left_padded(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(r)) + r for r in rows])
    return ids, torch.tensor([longest - len(r) for r in rows])
