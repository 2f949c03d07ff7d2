"""A checkpoint described from its headers, complete or not."""

import json

import pytest

from gptoss_workbench.checkpoint import CheckpointError, checkpoint_info, hf_layout
from gptoss_workbench.checkpoint.synthetic import TINY
from gptoss_workbench.config import GPT_OSS_20B, GPT_OSS_120B

PUBLISHED = {
    "20b": (1_158_266_880, 1_274_406_912, 282_240, 4_425_216, 9_555_148_800, 597_196_800),
    "120b": (1_158_266_880, 1_911_610_368, 420_480, 26_551_296, 57_330_892_800, 3_583_180_800),
}


@pytest.mark.parametrize(("name", "config"), [("20b", GPT_OSS_20B), ("120b", GPT_OSS_120B)])
def test_bytes_by_part_are_the_published_ones(name, config):
    sizes = dict.fromkeys(hf_layout.PARTS, 0)
    for tensor, spec in hf_layout.expected(config).items():
        sizes[hf_layout.part(tensor)] += spec.nbytes
    parts = ("embed", "attention", "norms", "router", "blocks", "scales")
    assert tuple(sizes[part] for part in parts) == PUBLISHED[name]
    assert sizes["unembed"] == sizes["embed"]
    total, count = (13_761_264_768, 459) if name == "20b" else (65_248_815_744, 687)
    assert (sum(sizes.values()), len(hf_layout.expected(config))) == (total, count)


@pytest.mark.parametrize("layout", ["hf", "sharded", "original"])
def test_each_layout_holds_the_same_bytes(layout, tensors, request):
    info = checkpoint_info(request.getfixturevalue(layout))
    assert info.complete
    assert info.total_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert info.part_bytes["scales"] == info.part_bytes["blocks"] // 16
    assert info.n_tensors == 3 + 4 * (15 if layout == "original" else 19)
    assert (info.n_params, info.n_active_params) == (TINY.n_params, TINY.n_active_params)


def test_the_table_says_what_one_wants_to_know(sharded):
    info = checkpoint_info(sharded)
    text = str(info)
    assert text == repr(info)
    assert "complete" in text
    assert "none: takes token ids, not text" in text
    assert "8 experts a layer, 2 a token" in text
    assert "window 8" in text
    assert "716,416, of them active 251,520" in text


def test_an_incomplete_checkpoint_is_described_with_what_is_wrong(sharded):
    gone = sorted(sharded.glob("*.safetensors"))[0]
    gone.unlink()
    info = checkpoint_info(sharded)
    assert not info.complete
    assert gone.name not in info.shards
    assert f"not loadable: shard {gone.name} is missing" in str(info)


def test_every_problem_is_listed(hf, edit_config):
    edit_config(hf, quantization_config=None, sliding_window=9, head_dim=32)
    info = checkpoint_info(hf)
    assert "no quantization_config" in info.problems[0]
    assert len(info.problems) > 5
    assert all(problem in str(info) for problem in info.problems)


def test_it_goes_into_json(hf):
    (hf / "tokenizer.json").write_text("{}")
    info = json.loads(json.dumps(checkpoint_info(hf).to_dict()))
    assert info["tokenizer"] is True
    assert info["config"]["hidden_size"] == 64
    assert info["complete"] is True


def test_nano_is_described_without_a_path():
    info = checkpoint_info()
    assert (info.source, info.complete, info.tokenizer) == ("gpt-oss-nano", True, True)


def test_what_is_no_checkpoint_raises(tmp_path):
    with pytest.raises(CheckpointError, match="holds no config"):
        checkpoint_info(tmp_path)
