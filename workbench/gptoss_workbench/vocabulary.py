"""The real o200k_harmony vocabulary without a network, from the extra `gptoss-workbench[vocab]`.

The byte-pair ranks come from the data file of the package quicktok-v1. They are rewritten as
OpenAI's `o200k_base.tiktoken` and used only when that text has the SHA-256 which OpenAI publishes,
so a changed or damaged data file can never pass as the model's vocabulary.

Special tokens are those of the released `tokenizer.json`: 200,019 ids in all, with 200018 as
<|endofprompt|> (openai-harmony calls that one reserved and goes on to 201088).
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import struct
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

TIKTOKEN_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
N_RANKS = 199_998

NAMED_SPECIALS = {
    "<|startoftext|>": 199998,
    "<|endoftext|>": 199999,
    "<|return|>": 200002,
    "<|constrain|>": 200003,
    "<|channel|>": 200005,
    "<|start|>": 200006,
    "<|end|>": 200007,
    "<|message|>": 200008,
    "<|call|>": 200012,
    "<|endofprompt|>": 200018,
}

_WORD = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join(
    [
        f"{_WORD}{_UPPER}*{_LOWER}+{_SUFFIX}",
        f"{_WORD}{_UPPER}+{_LOWER}*{_SUFFIX}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def special_tokens() -> dict[str, int]:
    """Give every special token of the released tokenizer and its id, in id order."""
    named = {id: token for token, id in NAMED_SPECIALS.items()}
    return {named.get(i, f"<|reserved_{i}|>"): i for i in range(N_RANKS, max(named) + 1)}


def ranks() -> dict[bytes, int]:
    """Read the byte-pair ranks from quicktok's data file and check their SHA-256."""
    found = _read_ranks(_data_file().read_bytes())
    got = hashlib.sha256(tiktoken_text(found)).hexdigest()
    if got != TIKTOKEN_SHA256:
        raise ValueError(
            "vocabulary.ranks: the ranks in quicktok's o200k.vocab are not OpenAI's o200k: "
            f"expected SHA-256 {TIKTOKEN_SHA256}, got {got}. "
            "Reinstall the extra: pip install --force-reinstall 'gptoss-workbench[vocab]'"
        )
    return found


def tiktoken_text(ranks: dict[bytes, int]) -> bytes:
    """Write ranks in OpenAI's `.tiktoken` form: base64 of the bytes, a space, the rank."""
    lines = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join(b"%b %d\n" % (base64.b64encode(token), rank) for token, rank in lines)


def write_tiktoken(folder: str | Path) -> Path:
    """Write `o200k_base.tiktoken` into a folder.

    openai-harmony then works offline with the environment variable TIKTOKEN_ENCODINGS_BASE set to
    that folder.
    """
    path = Path(folder) / "o200k_base.tiktoken"
    path.write_bytes(tiktoken_text(ranks()))
    return path


@cache
def o200k_harmony() -> tokenizers.Tokenizer:
    """Build the tokenizer of the released models; a few seconds once, then kept."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    known = ranks()
    shown = byte_characters()
    text = {token: "".join(map(shown.__getitem__, token)) for token in known}
    merges = [(text[left], text[right]) for left, right in _merges(known)]
    vocab = {text[token]: rank for token, rank in known.items()}
    out = Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=False, ignore_merges=True))
    out.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    out.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    out.add_special_tokens([AddedToken(t, normalized=False) for t in special_tokens()])
    return out


@cache
def byte_characters() -> tuple[str, ...]:
    """Give the printable character by which byte-level vocabularies write each of the 256 bytes."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    rest = iter(range(256, 512))
    return tuple(chr(byte if byte in printable else next(rest)) for byte in range(256))


def _merges(known: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Give every pair of tokens that joins to a token, by the rank of what it joins to.

    Taking the first applicable merge of this list is tiktoken's rule: join the two neighbours
    whose union has the lowest rank.
    """
    out: list[tuple[bytes, bytes]] = []
    for token in sorted(known, key=known.__getitem__):
        pairs = [
            (left, right)
            for i in range(1, len(token))
            if (left := token[:i]) in known and (right := token[i:]) in known
        ]
        out += sorted(pairs, key=lambda pair: (known[pair[0]], known[pair[1]]))
    return out


def _read_ranks(raw: bytes) -> dict[bytes, int]:
    """Read quicktok's form: a count, then length, bytes and rank of each token."""
    out, at = {}, 4
    for _ in range(struct.unpack_from("<I", raw)[0]):
        (length,) = struct.unpack_from("<H", raw, at)
        at += 2 + length
        out[raw[at - length : at]] = struct.unpack_from("<I", raw, at)[0]
        at += 4
    return out


def _data_file() -> Path:
    spec = importlib.util.find_spec("quicktok")
    folders = spec.submodule_search_locations if spec else None
    path = Path(next(iter(folders))) / "data" / "o200k.vocab" if folders else None
    if path is None or not path.is_file():
        raise ModuleNotFoundError(
            "vocabulary: the offline o200k_harmony vocabulary needs the data file of quicktok-v1, "
            "which is not installed: pip install 'gptoss-workbench[vocab]', or read a "
            "tokenizer.json with Tokenizer.from_folder"
        )
    return path
