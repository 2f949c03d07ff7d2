"""Opening: each layout gives the same tensors, mapped, and the same fingerprint."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptoss_workbench.checkpoint import open_checkpoint, save_checkpoint
from gptoss_workbench.checkpoint.synthetic import TINY, random_tensors, write_random


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("layout", ["hf", "sharded", "original"])
def test_every_layout_gives_the_same_tensors(layout, tensors, request):
    checkpoint = open_checkpoint(request.getfixturevalue(layout))
    assert_same(checkpoint.tensors(), tensors)
    assert checkpoint.layout == ("original" if layout == "original" else "hf")


def test_nothing_gives_nano():
    checkpoint = open_checkpoint()
    assert checkpoint.source == "gpt-oss-nano"
    assert checkpoint.tokenizer_path is not None
    assert len(checkpoint.tensors()) == 3 + 19 * checkpoint.config.num_hidden_layers


def test_a_folder_in_the_home_directory_and_a_string_are_read(hf, monkeypatch):
    monkeypatch.setenv("HOME", str(hf.parent))
    assert open_checkpoint("~/hf").config == open_checkpoint(str(hf)).config == TINY


def test_a_folder_that_holds_only_original_is_read(original):
    checkpoint = open_checkpoint(original.parent)
    assert (checkpoint.folder, checkpoint.layout) == (original, "original")


def test_original_finds_the_tokenizer_one_folder_up(original):
    assert open_checkpoint(original).tokenizer_path is None
    (original.parent / "tokenizer.json").write_text("{}")
    assert open_checkpoint(original).tokenizer_path == original.parent / "tokenizer.json"


def test_a_checkpoint_without_text_files_opens(hf):
    (hf / "generation_config.json").unlink()
    checkpoint = open_checkpoint(hf)
    assert checkpoint.tokenizer_path is None
    assert checkpoint.generation_config == {}


def test_other_files_in_the_folder_do_no_harm(original):
    save_file({"x": torch.zeros(3)}, original / "adapter.safetensors")
    (original / "dtypes.json").write_text("{}")
    assert open_checkpoint(original).layout == "original"


def test_original_shards_with_two_dashes_and_no_index_are_read(original, tensors):
    stored = load_file(original / "model.safetensors")
    (original / "model.safetensors").unlink()
    names = sorted(stored)
    for i in range(3):
        part = {name: stored[name] for name in names[i::3]}
        save_file(part, original / f"model--{i + 1:05d}-of-00003.safetensors")
    assert_same(open_checkpoint(original).tensors(), tensors)


def test_files_written_by_safetensors_are_read(hf, tensors):
    save_file(tensors, hf / "model.safetensors", metadata={"format": "pt"})
    assert_same(open_checkpoint(hf).tensors(), tensors)


def test_numbered_shards_without_an_index_are_read(sharded, tensors):
    (sharded / "model.safetensors.index.json").unlink()
    assert_same(open_checkpoint(sharded).tensors(), tensors)


def test_shards_numbered_from_zero_are_read(hf, tensors):
    (hf / "model.safetensors").unlink()
    names = sorted(tensors)
    for i in range(3):  # 0, 1, 2 "of 2", as gpt-oss-20b is published
        part = {name: tensors[name] for name in names[i::3]}
        save_file(part, hf / f"model-{i:05d}-of-00002.safetensors")
    assert_same(open_checkpoint(hf).tensors(), tensors)


def test_q_k_and_v_of_original_are_views_of_one_tensor(original):
    tensors = open_checkpoint(original).tensors()
    q, k, v = (tensors[f"model.layers.0.self_attn.{n}_proj.weight"] for n in "qkv")
    assert q.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
    assert k.data_ptr() == q.data_ptr() + q.numel() * 2
    assert v.data_ptr() == k.data_ptr() + k.numel() * 2


def test_writing_to_a_tensor_does_not_write_to_the_file(hf):
    before = (hf / "model.safetensors").read_bytes()
    tensors = open_checkpoint(hf).tensors()
    tensors["model.norm.weight"].zero_()
    assert (hf / "model.safetensors").read_bytes() == before
    assert open_checkpoint(hf).tensors()["model.norm.weight"].abs().sum() > 0


MEASURE = """
import sys
from gptoss_workbench.checkpoint import open_checkpoint

def rss(kind):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024

open_checkpoint(sys.argv[2]).tensors()  # the first call pays for imports and buffers
anonymous, mapped = rss("RssAnon"), rss("RssFile")
checkpoint = open_checkpoint(sys.argv[1])
tensors = checkpoint.tensors()
checkpoint.fingerprint()
total = sum(int(t.view(-1).view(dtype=__import__("torch").uint8).max()) for t in tensors.values())
print(rss("RssAnon") - anonymous, rss("RssFile") - mapped)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_weights_are_mapped_not_copied(tmp_path, hf):
    large = replace(TINY, hidden_size=512, intermediate_size=1024, vocab_size=4096)
    for _ in write_random(large, tmp_path / "large"):
        pass
    size = (tmp_path / "large" / "model.safetensors").stat().st_size
    assert size > 30e6
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "large"), str(hf)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    anonymous, mapped = map(int, out.split())
    assert mapped > 0.95 * size
    assert anonymous < 0.1 * size


def test_the_fingerprint_is_of_the_content_not_of_the_files(hf, sharded, original):
    prints = {open_checkpoint(folder).fingerprint() for folder in (hf, sharded, original)}
    assert len(prints) == 1


def test_the_fingerprint_tells_weights_and_config_apart(hf, tensors, tmp_path, edit_config):
    first = open_checkpoint(hf).fingerprint()
    other = save_checkpoint(random_tensors(TINY, seed=1), tmp_path / "other", config=TINY)
    changed = dict(tensors)
    changed["model.norm.weight"] = tensors["model.norm.weight"].clone()
    changed["model.norm.weight"][0] += 1
    edited = save_checkpoint(changed, tmp_path / "edited", config=TINY)
    edit_config(hf, sliding_window=9)
    prints = {open_checkpoint(folder).fingerprint() for folder in (hf, other, edited)}
    assert len(prints | {first}) == 4


def test_the_spelling_of_a_number_does_not_change_the_fingerprint(hf, edit_config):
    first = open_checkpoint(hf).fingerprint()
    edit_config(hf, swiglu_limit=7, rope_theta=150000)
    assert open_checkpoint(hf).fingerprint() == first


def test_token_ids_do_not_change_the_fingerprint(hf, edit_config):
    first = open_checkpoint(hf).fingerprint()
    edit_config(hf, pad_token_id=7)
    assert open_checkpoint(hf).fingerprint() == first


def test_generation_config_is_read(hf):
    values = {"eos_token_id": [2, 3, 4], "pad_token_id": 1}
    (hf / "generation_config.json").write_text(json.dumps(values))
    assert open_checkpoint(hf).generation_config == values
