"""Saving: what is written loads here and in transformers, or nothing is written."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from gptoss_kernels import mxfp4
from gptoss_workbench.checkpoint import CheckpointError, open_checkpoint, save_checkpoint
from gptoss_workbench.checkpoint import save as save_module
from gptoss_workbench.checkpoint.synthetic import TINY


class Model:
    """Anything with a config and tensors can be saved."""

    def __init__(self, tensors):
        self.config, self._tensors = TINY, tensors

    def checkpoint_tensors(self):
        return self._tensors


def test_a_model_saved_and_opened_is_the_same(tensors, tmp_path):
    folder = save_checkpoint(Model(tensors), tmp_path / "new" / "model")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config == TINY
    assert all(torch.equal(t, tensors[name]) for name, t in checkpoint.tensors().items())


def test_shards_are_indexed_and_none_is_larger_than_asked(tensors, tmp_path):
    folder = save_checkpoint(tensors, tmp_path / "m", config=TINY, shard_bytes=100_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 5
    for file in files:
        with safe_open(file, "pt") as f:
            assert f.metadata() == {"format": "pt"}
            held = [f.get_tensor(name) for name in f.keys()]  # noqa: SIM118
        assert sum(t.nbytes for t in held) <= 100_000 or len(held) == 1


def test_data_begins_at_a_multiple_of_64_bytes(hf):
    header = int.from_bytes((hf / "model.safetensors").read_bytes()[:8], "little")
    assert (8 + header) % 64 == 0


def test_transformers_loads_it_and_decodes_the_same_experts(tensors, sharded):
    from transformers import GptOssForCausalLM, Mxfp4Config

    model, info = GptOssForCausalLM.from_pretrained(
        sharded,
        quantization_config=Mxfp4Config(dequantize=True),
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs = model.state_dict()
    for name, tensor in tensors.items():
        if name.endswith("_blocks"):
            weight = name.removesuffix("_blocks")
            decoded = mxfp4.unpack(tensor, tensors[f"{weight}_scales"], torch.float32)
            assert torch.equal(theirs[weight], decoded.transpose(1, 2)), weight
        elif not name.endswith("_scales"):
            assert torch.equal(theirs[name], tensor.float()), name


def test_transformers_reads_the_saved_rope(hf):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(hf)
    assert config.rope_parameters["rope_theta"] == TINY.rope_theta
    assert config.rope_parameters["truncate"] is False
    assert config.layer_types == list(TINY.layer_types)


def test_transformers_reads_plain_rope_as_plain(tensors, tmp_path):
    from transformers import AutoConfig

    plain = replace(TINY, rope_scaling=None)
    folder = save_checkpoint(tensors, tmp_path / "plain", config=plain)
    assert AutoConfig.from_pretrained(folder).rope_parameters["rope_type"] == "default"
    assert open_checkpoint(folder).config == plain


def test_text_files_go_along(hf, tensors, tmp_path):
    (hf / "tokenizer.json").write_text('{"version": "1.0"}')
    (hf / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    (hf / "notes.txt").write_text("not ours")
    for source in (hf, str(hf), open_checkpoint(hf)):
        folder = save_checkpoint(
            tensors, tmp_path / "copy", config=TINY, tokenizer_files_from=source
        )
        names = {file.name for file in folder.iterdir()}
        assert names == {
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
        }
        assert open_checkpoint(folder).generation_config == {"eos_token_id": [2, 3]}
        shutil.rmtree(folder)


def test_strided_tensors_are_written_in_order(tensors, tmp_path):
    changed = dict(tensors)
    name = "model.layers.0.self_attn.q_proj.weight"
    changed[name] = tensors[name].T.contiguous().T
    assert not changed[name].is_contiguous()
    folder = save_checkpoint(changed, tmp_path / "strided", config=TINY)
    assert torch.equal(open_checkpoint(folder).tensors()[name], tensors[name])


def test_wrong_tensors_are_refused_before_anything_is_written(tensors, tmp_path):
    wrong = dict(tensors)
    wrong["model.norm.weight"] = wrong["model.norm.weight"].float()
    del wrong["lm_head.weight"]
    with pytest.raises(CheckpointError, match="cannot write these tensors") as error:
        save_checkpoint(wrong, tmp_path / "m", config=TINY)
    assert "tensor lm_head.weight is missing" in str(error.value)
    assert "model.norm.weight: expected dtype BF16, got F32" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_dtype_no_file_can_hold_is_named(tensors, tmp_path):
    wrong = tensors | {"model.norm.weight": torch.ones(64, dtype=torch.complex64)}
    with pytest.raises(CheckpointError, match=r"expected dtype BF16, got torch\.complex64"):
        save_checkpoint(wrong, tmp_path / "m", config=TINY)


def test_nan_scales_are_refused(tensors, tmp_path):
    name = "model.layers.0.mlp.experts.gate_up_proj_scales"
    wrong = tensors | {name: torch.full_like(tensors[name], 255)}
    with pytest.raises(CheckpointError, match="scale byte 255"):
        save_checkpoint(wrong, tmp_path / "m", config=TINY)


def test_a_folder_with_files_is_not_overwritten(hf, tensors):
    before = (hf / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(CheckpointError, match="exists and is not an empty folder"):
        save_checkpoint(tensors, hf, config=TINY)
    assert (hf / "model.safetensors").stat().st_mtime_ns == before


def test_an_empty_folder_is_filled(tensors, tmp_path):
    (tmp_path / "empty").mkdir()
    assert open_checkpoint(save_checkpoint(tensors, tmp_path / "empty", config=TINY)).config == TINY


def test_a_save_that_fails_leaves_nothing(tensors, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(save_module, "write_index", fail)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(tensors, tmp_path / "m", config=TINY)
    assert list(tmp_path.iterdir()) == []


def test_tensors_need_a_config_and_a_model_brings_its_own(tensors, tmp_path):
    with pytest.raises(CheckpointError, match="tensors need config="):
        save_checkpoint(tensors, tmp_path / "m")
    with pytest.raises(CheckpointError, match="differs from the model's own"):
        save_checkpoint(Model(tensors), tmp_path / "m", config=replace(TINY, sliding_window=9))


def test_text_files_from_nowhere_raise(tensors, tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer_files_from=.* is not a folder"):
        save_checkpoint(tensors, tmp_path / "m", config=TINY, tokenizer_files_from=tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
