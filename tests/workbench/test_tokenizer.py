"""Text to tokens and back."""

import hashlib
import json
import pickle
import random
from pathlib import Path

import pytest

import gptoss_workbench
from gptoss_workbench.tokenizer import Tokenizer

NANO = Path(gptoss_workbench.__file__).parent / "nano" / "checkpoint"
ALPHABET = [
    *"aB1 .\n\t'é日🦙𓀀ß?",
    "don't",
    " the",
    "<|start|>",
    "<|",
    "٣",
    "\u0301",
    "\u200d",
    "\r\n",
]
MARKERS = ("start", "end", "message", "channel", "constrain", "return", "call", "endoftext")


@pytest.fixture(scope="module")
def real():
    return Tokenizer.o200k_harmony()


@pytest.fixture(scope="module")
def nano():
    return Tokenizer.from_folder(NANO)


@pytest.fixture(params=["real", "nano"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def soup(seed):
    return "".join(random.Random(seed).choices(ALPHABET, k=40))


@pytest.mark.parametrize("seed", range(30))
def test_decoding_undoes_encoding(tokenizer, seed):
    text = soup(seed)
    for special in (True, False):
        ids = tokenizer.encode(text, allow_special=special)
        assert tokenizer.decode(ids) == text == "".join(tokenizer.pieces(ids))
        assert len(tokenizer.strings(ids)) == len(ids)


@pytest.mark.parametrize("seed", range(30))
def test_decoding_equals_the_tokenizers_library(tokenizer, seed):
    rng = random.Random(seed)
    ids = [rng.randrange(tokenizer.vocab_size) for _ in range(30)]
    assert tokenizer.decode(ids) == tokenizer.inner.decode(ids, skip_special_tokens=False)


def test_special_tokens_in_text_are_control_tokens_only_if_allowed(tokenizer):
    start = tokenizer.special["<|start|>"]
    assert tokenizer.encode("<|start|>user")[0] == start
    assert start not in tokenizer.encode("<|start|>user", allow_special=False)
    assert tokenizer.encode("<|start|>user")[0] == start


def test_the_harmony_markers_have_the_released_ids(real):
    names = ("return", "constrain", "channel", "start", "end", "message", "call")
    ids = [200002, 200003, 200005, 200006, 200007, 200008, 200012]
    assert [real.id(f"<|{name}|>") for name in names] == ids
    assert (real.vocab_size, real.pad_id, real.id("<|endofprompt|>")) == (200019, 199999, 200018)
    words = {"system": 17360, "assistant": 173781, "analysis": 35644, "final": 17196}
    assert {word: real.id(word) for word in words} == words
    assert real.encode("commentary") == [12606, 815] and real.id("commentary") is None


def test_the_tokens_own_id_is_found(tokenizer):
    for id in (5, 70, *tokenizer.encode(" the answer?"), tokenizer.pad_id):
        assert tokenizer.id(tokenizer.decode([id])) == id
    assert tokenizer.id("no such token") is None


def test_ids_without_a_token_are_shown_as_reserved(tokenizer):
    assert tokenizer.decode([201087, -1]) == "<|reserved_201087|><|reserved_-1|>"
    assert tokenizer.strings([10**12]) == ["<|reserved_1000000000000|>"]


def test_a_character_cut_over_tokens_stands_on_the_last(real):
    ids = real.encode("𓀀!")
    assert real.strings(ids) == ["\\xF0", "\\x93", "\\x80", "𓀀", "!"]
    assert real.pieces(ids) == ["", "", "", "𓀀", "!"]
    assert real.strings(ids[:2] + ids[4:]) == ["\\xF0", "\\x93", "!"]
    assert real.strings(ids[1:4]) == ["\\x93", "\\x80", "\\x80"]
    assert real.pieces(ids[:2]) == ["", "�"]


def test_a_broken_character_is_no_part_of_the_next_marker(real):
    end = real.special["<|end|>"]
    ids = [*real.encode("𓀀")[:2], end]
    assert real.pieces(ids) == ["", "�", "<|end|>"]
    assert real.decode(ids) == "�<|end|>"


def test_stop_ids_are_looked_up_by_name(tokenizer):
    named = [tokenizer.special[f"<|{name}|>"] for name in ("return", "call", "endoftext")]
    assert tokenizer.stop_ids() == tuple(named)
    assert tokenizer.stop_ids({"eos_token_id": [named[0], 7]}) == (*named, 7)
    assert tokenizer.stop_ids({"eos_token_id": 7}) == (*named, 7)
    assert tokenizer.stop_ids({"eos_token_id": None}) == tuple(named)
    assert tokenizer.special["<|end|>"] not in tokenizer.stop_ids()


def test_lone_surrogates_become_replacement_characters(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_the_nano_checkpoint_knows_harmony(nano):
    assert all(nano.id(f"<|{name}|>") is not None for name in MARKERS)
    assert nano.hash == hashlib.sha256((NANO / "tokenizer.json").read_bytes()).hexdigest()
    assert nano.hash[:8] in repr(nano) and nano.name == "checkpoint"


def test_a_tokenizer_travels_to_other_processes(nano):
    there = pickle.loads(pickle.dumps(nano))
    assert there.encode("<|start|>2+2") == nano.encode("<|start|>2+2")
    assert (there.hash, there.special) == (nano.hash, nano.special)


def test_a_folder_may_bring_its_system_message(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((NANO / "tokenizer.json").read_bytes())
    assert Tokenizer.from_folder(tmp_path).system_template is None
    (tmp_path / "harmony.json").write_text(json.dumps({"system": "Reasoning: {effort}"}))
    assert Tokenizer.from_folder(tmp_path).system_template == "Reasoning: {effort}"
    (tmp_path / "harmony.json").write_text("{}")
    with pytest.raises(ValueError, match=r"harmony\.json"):
        Tokenizer.from_folder(tmp_path)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match="o200k_harmony"):
        Tokenizer.from_folder(tmp_path)


def test_a_vocabulary_that_is_not_byte_level_is_refused():
    import tokenizers

    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(ValueError, match="byte-level"):
        Tokenizer(inner)


def test_strings_of_the_vocabulary_are_those_of_its_tokens_and_made_once(nano, monkeypatch):
    tokenizer = nano
    wanted = [tokenizer.strings([i])[0] for i in range(40)]
    assert tokenizer.vocabulary_strings(40) == wanted
    monkeypatch.setattr(type(tokenizer), "strings", lambda *_: pytest.fail("made again"))
    assert tokenizer.vocabulary_strings(30) == wanted[:30]
