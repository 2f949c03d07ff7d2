"""Text to tokens and back, by the `tokenizer.json` of a checkpoint folder.

    tokenizer = Tokenizer.from_folder(path)
    tokenizer.encode("<|start|>user<|message|>Hi<|end|>")
    tokenizer.strings(ids)                        # one display string a token

No token is ever added: gpt-oss uses no BOS. Ids outside the vocabulary (the embedding has more rows
than the tokenizer has tokens) are shown as <|reserved_N|> and never raise.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import threading
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from gptoss_workbench import vocabulary
from gptoss_workbench.vocabulary import byte_characters

if TYPE_CHECKING:
    import tokenizers

STOP_TOKENS = ("<|return|>", "<|call|>", "<|endoftext|>")
"""Where generation stops. <|end|> only closes a message, so it is not among them."""

PAD_TOKEN = "<|endoftext|>"


@runtime_checkable
class Array(Protocol):
    """A tensor or array."""

    def tolist(self) -> Any: ...


Ids = Iterable[int] | Array
"""Token ids in one dimension."""


class Tokenizer:
    """A byte-level BPE tokenizer whose special tokens are known by name.

    Attributes:
        name: the checkpoint folder's name, or "o200k_harmony".
        hash: SHA-256 of tokenizer.json (of the .tiktoken text for the offline vocabulary).
        special: each special token and its id.
        system_template: the system message of `harmony.json`, where the folder has one.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        name: str = "tokenizer",
        hash: str = "",
        system_template: str | None = None,
    ) -> None:
        kind = type(inner.decoder).__name__
        if kind != "ByteLevel":
            raise ValueError(
                f"Tokenizer: expected a byte-level vocabulary (decoder ByteLevel), got {kind}; "
                "gpt-oss checkpoints carry one in tokenizer.json"
            )
        self.inner, self.name, self.hash = inner, name, hash
        self.system_template = system_template
        added = inner.get_added_tokens_decoder()
        self.special = {token.content: i for i, token in sorted(added.items()) if token.special}
        self._bytes = {i: token.content.encode() for i, token in added.items()}
        self._alone: list[str] = []
        self._lock = threading.Lock()

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """Read `tokenizer.json` and, where present, `harmony.json` from a checkpoint folder."""
        import tokenizers

        folder = Path(path)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ValueError(
                f"Tokenizer.from_folder: expected {file.name} in {folder}, found none; copy it "
                "from the released checkpoint, or use Tokenizer.o200k_harmony()"
            )
        raw = file.read_bytes()
        return cls(
            tokenizers.Tokenizer.from_buffer(raw),
            name=folder.resolve().name,
            hash=hashlib.sha256(raw).hexdigest(),
            system_template=_system_template(folder / "harmony.json"),
        )

    @classmethod
    def o200k_harmony(cls) -> Tokenizer:
        """Give the released models' tokenizer without a network; needs the extra `vocab`."""
        return _offline()

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included; the embedding table may have more rows."""
        return self.inner.get_vocab_size(with_added_tokens=True)

    @property
    def pad_id(self) -> int | None:
        """Id of <|endoftext|>, by which gpt-oss pads."""
        return self.id(PAD_TOKEN)

    def encode(self, text: str, *, allow_special: bool = True) -> list[int]:
        """Turn text into ids; with allow_special=False, a "<|start|>" in it stays plain text.

        Lone surrogates, which no UTF-8 text can hold, become U+FFFD.
        """
        if not text.isascii():
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        with self._lock:
            self.inner.encode_special_tokens = not allow_special
            return self.inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Ids) -> str:
        """Turn ids into text: special tokens shown, invalid UTF-8 as U+FFFD."""
        return b"".join(map(self.token_bytes, as_ids(ids))).decode("utf-8", "replace")

    def vocabulary_strings(self, count: int) -> list[str]:
        """Display strings of the first `count` tokens, each by itself; made once, in seconds."""
        known = self._alone
        known += (self.strings([i])[0] for i in range(len(known), count))
        return known[:count]

    def strings(self, ids: Ids) -> list[str]:
        r"""Give one display string a token.

        A character cut over several tokens stands whole on the last of them; the others, and bytes
        that are no UTF-8 at all, are shown as escapes such as \xE2. So joining the strings need not
        give the text; `decode` does.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        out = []
        for i in as_ids(ids):
            raw, waiting = self.token_bytes(i), len(decoder.getstate()[0])
            text = decoder.decode(raw)
            if waiting and text and _is_escape(text[0]):
                text = text[waiting:]  # those bytes are on the earlier tokens already
            held = decoder.getstate()[0][-len(raw) :] if raw else b""
            out.append("".join(map(_escaped, text)) + "".join(f"\\x{b:02X}" for b in held))
        return out

    def pieces(self, ids: Ids) -> list[str]:
        """Give the text each token adds; joined, the pieces are `decode`'s text.

        A character cut over several tokens stands on the last of them, the others add "".
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        special = set(self.special.values())
        out: list[str] = []
        cut = False
        for i in as_ids(ids):
            raw = self._bytes.get(i) or self.token_bytes(i)
            if cut and i in special:
                out[-1] += decoder.decode(b"", final=True)
            out.append(decoder.decode(raw))
            cut = not raw.isascii()
        if out:
            out[-1] += decoder.decode(b"", final=True)
        return out

    def token_bytes(self, id: int) -> bytes:
        """Give a token's bytes; an id without a token gives the bytes of <|reserved_N|>."""
        known = self._bytes.get(id)
        if known is None:
            known = self._bytes[id] = self._look_up(id)
        return known

    def id(self, token: str) -> int | None:
        """Give the id of a token by its exact text (" the", "<|start|>"), None if there is none."""
        if token in self.special:
            return self.special[token]
        shown = "".join(map(byte_characters().__getitem__, token.encode("utf-8", "replace")))
        return self.inner.token_to_id(shown)

    def stop_ids(self, generation_config: dict[str, Any] | None = None) -> tuple[int, ...]:
        """Give the ids at which generation stops: return, call, endoftext, and a config's eos."""
        eos = (generation_config or {}).get("eos_token_id")
        listed = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        named = [self.special[token] for token in STOP_TOKENS if token in self.special]
        return tuple(dict.fromkeys(named + listed))

    def _look_up(self, id: int) -> bytes:
        token = self.inner.id_to_token(id) if 0 <= id < 2**32 else None
        if token is None:
            return f"<|reserved_{id}|>".encode()
        return bytes(map(_byte_of().__getitem__, token))

    def __len__(self) -> int:
        return self.vocab_size

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def __repr__(self) -> str:
        return (
            f"Tokenizer({self.name!r}, vocab_size={self.vocab_size}, "
            f"special={len(self.special)}, hash={self.hash[:8] or None})"
        )


def as_ids(ids: Ids) -> list[int]:
    """Give plain ints from any one-dimensional sequence: list, tuple, array or tensor."""
    plain = isinstance(ids, list | tuple) or not isinstance(ids, Array)  # the protocol is slow
    return [int(i) for i in (ids if plain else ids.tolist())]  # pyright: ignore


@cache
def _offline() -> Tokenizer:
    inner = vocabulary.o200k_harmony()
    return Tokenizer(inner, name="o200k_harmony", hash=vocabulary.TIKTOKEN_SHA256)


@cache
def _byte_of() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(byte_characters())}


def _system_template(file: Path) -> str | None:
    if not file.is_file():
        return None
    system = json.loads(file.read_text(encoding="utf-8")).get("system")
    if not isinstance(system, str):
        raise ValueError(
            f'Tokenizer: expected {file.name} to hold {{"system": text}}, got system={system!r}'
        )
    return system


def _is_escape(character: str) -> bool:
    return 0xDC80 <= ord(character) <= 0xDCFF


def _escaped(character: str) -> str:
    return f"\\x{ord(character) - 0xDC00:02X}" if _is_escape(character) else character
