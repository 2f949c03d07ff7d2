"""Choosing the next token: greedy, or drawn from a temperature, top-k or nucleus distribution.

Each row draws from its own generator, seeded from `seed` and its number: its text depends not on
its company. Nucleus sampling: Holtzman et al. 2019 (arXiv 1904.09751).
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor


class Sampling(NamedTuple):
    """How the next token is drawn; greedy unless `do_sample`."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    freq_penalty: float = 0.0

    def check(self) -> None:
        """Refuse settings that mean nothing."""
        if self.temperature < 0:
            raise ValueError(f"temperature must be >= 0 (0 is greedy); got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be >= 1; got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1]; got {self.top_p}")


def asked(
    do_sample: bool,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    freq_penalty: float,
) -> Sampling:
    """What a caller's arguments mean; warns of those that do nothing without `do_sample`."""
    sampling = Sampling(do_sample, temperature, top_k, top_p, freq_penalty)
    sampling.check()
    given = {
        "temperature": temperature not in (0, 1),
        "top_k": top_k,
        "top_p": top_p not in (None, 1),
    }
    if not do_sample and (idle := [name for name, value in given.items() if value]):
        warnings.warn(
            f"generate: {', '.join(idle)}= does nothing in greedy decoding; give do_sample=True",
            stacklevel=3,
        )
    return sampling


class Draw:
    """Chooses the next token of every row."""

    def __init__(self, sampling: Sampling, seed: int | None, rows: int):
        self.sampling = sampling
        self.generators = [_generator(seed or 0, row) for row in range(rows)]

    def __call__(self, logits: Tensor, written: list[list[int]]) -> list[int]:
        """One token a row; greedily chosen ones are all that leaves the device."""
        greedy = not self.sampling.do_sample or self.sampling.temperature == 0
        if greedy and not self.sampling.freq_penalty:
            return logits.argmax(-1).tolist()
        logits = logits.float().cpu()
        if self.sampling.freq_penalty:
            logits = logits - self.sampling.freq_penalty * _counts(written, logits.shape[-1])
        if greedy:
            return logits.argmax(-1).tolist()
        chances = _limited(logits / self.sampling.temperature, self.sampling).softmax(-1)
        pairs = zip(chances, self.generators, strict=True)
        return [int(torch.multinomial(row, 1, generator=each)) for row, each in pairs]


def _generator(seed: int, row: int) -> torch.Generator:
    """A stream of its own for every (seed, row) of fewer than a million rows."""
    return torch.Generator().manual_seed((seed * 1_000_003 + row) % (1 << 63))


def _counts(written: list[list[int]], vocab: int) -> Tensor:
    """[row, vocab]: how often each row has written each token."""
    rows = [torch.tensor(row, dtype=torch.long) for row in written]
    return torch.stack([torch.bincount(row, minlength=vocab) for row in rows])


def _limited(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits with everything outside top-k and outside the top-p nucleus at minus infinity."""
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        kept = logits.topk(sampling.top_k, -1)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, kept.indices, kept.values)
    if sampling.top_p is not None:
        ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        outside = torch.zeros_like(logits, dtype=torch.bool)
        outside.scatter_(-1, order, before >= sampling.top_p)
        logits = logits.masked_fill(outside, -torch.inf)
    return logits
