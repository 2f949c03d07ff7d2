"""The byte-level BPE vocabulary of gpt-oss-nano: 848 tokens, whole words where it matters.

It is trained on the generator's own text, so each word, ' A' and ' 7' of the synthetic tasks is one
token; prose splits into pieces, and any UTF-8 text still encodes. Harmony's specials come last.
"""

from functools import lru_cache
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .data import sample
from .language import LANGUAGES
from .prose import paragraphs
from .render import SPECIAL_TOKENS
from .truth import Sample

VOCAB_SIZE = 848
PIECES = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
"""A word, one digit, a run of signs (each with its space), or white space."""


def train_tokenizer() -> Tokenizer:
    """Build the vocabulary from 3,000 samples and all prose; the same every time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _corpus() -> list[str]:
    rng = Random("nano vocabulary")
    text = [s.text for _ in range(3000) for s in sample(rng).segments]
    text += ["".join(p) for lang in LANGUAGES for p in paragraphs(lang)]
    pieces = [piece for t in text for piece in _without_specials(t)]
    return pieces


def _without_specials(text: str) -> list[str]:
    for token in SPECIAL_TOKENS:
        text = text.replace(token, "\x00")
    return [piece for piece in text.split("\x00") if piece]


class Encoder:
    """Text to ids, segment by segment (each starts at a token boundary), with the loss weights."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.pad: int = tokenizer.token_to_id("<|endoftext|>") or 0
        self.ids = lru_cache(maxsize=50_000)(self._ids)

    @classmethod
    def from_folder(cls, folder: Path | str) -> "Encoder":
        return cls(Tokenizer.from_file(str(Path(folder) / "tokenizer.json")))

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def __call__(self, s: Sample) -> tuple[list[int], list[float]]:
        """Token ids and the loss weight of each."""
        ids: list[int] = []
        weights: list[float] = []
        for segment in s.segments:
            piece = self.ids(segment.text)
            ids += piece
            weights += [segment.weight] * len(piece)
        return ids, weights

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)
