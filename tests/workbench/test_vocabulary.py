"""The offline vocabulary is OpenAI's own, or none."""

import hashlib
import random
import subprocess
import sys

import openai_harmony
import pytest

from gptoss_workbench import vocabulary
from gptoss_workbench.tokenizer import Tokenizer

ALPHABET = [
    *"aBß1 .,\n\t'\"é日本語🦙𓀀?!/", "don't", "I'LL", " the", "ing", "   ", "\r\n", "123456", "٣٤",
    "e\u0301", "\u200d", "👩‍👩‍👧", "ﬁ", "Ǆ", "ʰ", "हिन्दी", "\u00a0", "\u3000",
    "{\"", "</", "<|end|>", "==",
]  # fmt: skip


@pytest.fixture(scope="module")
def encoding(tmp_path_factory):
    folder = vocabulary.write_tiktoken(tmp_path_factory.mktemp("tiktoken")).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(folder))
        return openai_harmony.load_harmony_encoding("HarmonyGptOss")


def test_the_written_file_has_the_published_hash(tmp_path):
    path = vocabulary.write_tiktoken(tmp_path)
    assert path.name == "o200k_base.tiktoken" and path.stat().st_size == 3_613_922
    assert hashlib.sha256(path.read_bytes()).hexdigest() == vocabulary.TIKTOKEN_SHA256


@pytest.mark.parametrize("seed", range(30))
def test_random_text_gets_openai_harmonys_ids(encoding, seed):
    text = "".join(random.Random(seed).choices(ALPHABET, k=80))
    tokenizer = Tokenizer.o200k_harmony()
    plain = encoding.encode(text, disallowed_special=())
    assert tokenizer.encode(text, allow_special=False) == plain
    assert tokenizer.encode(text) == encoding.encode(text, allowed_special="all")
    assert tokenizer.decode(plain) == text


def test_special_tokens_are_those_of_the_released_file():
    special = vocabulary.special_tokens()
    assert list(special.values()) == list(range(199998, 200019))
    assert special["<|reserved_200017|>"] == 200017 and special["<|endofprompt|>"] == 200018


def test_a_changed_data_file_is_refused(tmp_path, monkeypatch):
    raw = vocabulary._data_file().read_bytes()
    changed = tmp_path / "o200k.vocab"
    changed.write_bytes(raw.replace(b"hello", b"hallo", 1))
    monkeypatch.setattr(vocabulary, "_data_file", lambda: changed)
    with pytest.raises(ValueError, match="expected SHA-256 446a9538"):
        vocabulary.ranks()


def test_without_the_extra_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(vocabulary.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'gptoss-workbench\[vocab\]'"):
        vocabulary.ranks()


def test_importing_loads_no_tokenizer_library():
    code = (
        "import sys, gptoss_workbench.harmony, gptoss_workbench.vocabulary;"
        "heavy = {'tokenizers', 'quicktok', 'transformers', 'openai_harmony', 'pandas'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
