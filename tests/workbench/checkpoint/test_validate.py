"""What is wrong with a checkpoint comes as one message that names it and says what to do."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptoss_workbench.checkpoint import CheckpointError, open_checkpoint, validate
from gptoss_workbench.checkpoint.synthetic import TINY

SCALES = "model.layers.2.mlp.experts.down_proj_scales"


def damage(folder, **changes):
    """Rewrite the weights with tensors replaced, or removed where None."""
    file = folder / "model.safetensors"
    tensors = {**load_file(file), **{k: v for k, v in changes.items()}}
    save_file({k: v for k, v in tensors.items() if v is not None}, file)


def message(source):
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(source).tensors()
    return str(error.value)


def test_a_missing_shard_is_named(sharded):
    files = sorted(sharded.glob("*.safetensors"))
    files[1].unlink()
    text = message(sharded)
    assert f"shard {files[1].name} is missing from {sharded}; download or copy it again" in text
    assert text.count("\n") == 1


def test_a_missing_shard_of_a_numbered_series_without_index_is_named(sharded):
    (sharded / "model.safetensors.index.json").unlink()
    files = sorted(sharded.glob("*.safetensors"))
    files[-1].unlink()
    assert f"shard {files[-1].name} is missing" in message(sharded)


def test_a_truncated_shard_is_named_with_both_sizes(hf):
    file = hf / "model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as f:
        f.truncate(size - 1000)
    text = message(hf)
    assert f"{file} is truncated: its header promises {size:,} bytes" in text
    assert f"the file has {size - 1000:,}; download or copy it again" in text


def test_a_folder_without_weights_says_what_was_looked_for(hf):
    (hf / "model.safetensors").unlink()
    assert "no weights in" in message(hf)
    assert "expected model.safetensors, or model-*.safetensors with" in message(hf)


def test_a_folder_without_config_says_so(hf):
    (hf / "config.json").unlink()
    assert f"{hf} holds no config.json" in message(hf)


def test_a_broken_config_is_named(hf):
    (hf / "config.json").write_text("{")
    assert f"{hf / 'config.json'} cannot be read as JSON" in message(hf)
    (hf / "config.json").write_text("[]")
    assert "expected a JSON object, got list" in message(hf)


def test_a_wrong_shape_gives_both_shapes(hf):
    damage(hf, **{"model.layers.1.self_attn.sinks": torch.zeros(4, dtype=torch.bfloat16)})
    expected = "tensor model.layers.1.self_attn.sinks: expected shape [8] from config.json, got [4]"
    assert expected in message(hf)


def test_a_transposed_down_proj_is_noticed(hf):
    wrong = torch.zeros(8, 96, 2, 16, dtype=torch.uint8)
    damage(hf, **{"model.layers.0.mlp.experts.down_proj_blocks": wrong})
    assert "expected shape [8, 64, 3, 16] from config.json, got [8, 96, 2, 16]" in message(hf)


def test_a_wrong_dtype_gives_both_dtypes(hf):
    damage(hf, **{"model.norm.weight": torch.ones(64, dtype=torch.float16)})
    assert "tensor model.norm.weight: expected dtype BF16, got F16" in message(hf)


def test_missing_and_unknown_tensors_are_named(hf):
    damage(hf, **{"lm_head.weight": None, "lm_head.bias": torch.zeros(256)})
    text = message(hf)
    assert "tensor lm_head.weight is missing" in text
    assert "tensor lm_head.bias is not part of gpt-oss" in text


def test_many_problems_come_in_one_message_that_counts_them(hf, edit_config):
    edit_config(hf, hidden_size=128)
    text = message(hf)
    assert text.startswith(f"cannot use {hf}:")
    assert text.count("\n  - ") == 6
    assert "more" in text.splitlines()[-1]


def test_packed_weights_without_quantization_config_raise(hf, edit_config):
    edit_config(hf, quantization_config=None)
    text = message(hf)
    assert "config.json has no quantization_config although the experts are packed" in text
    assert '"quant_method": "mxfp4"' in text


def test_another_quantization_raises(hf, edit_config):
    edit_config(hf, quantization_config={"quant_method": "gptq"})
    assert "quant_method is 'gptq': expected 'mxfp4'" in message(hf)


def test_a_dequantised_repack_is_recognised(hf, edit_config):
    edit_config(hf, quantization_config=None)
    experts = "model.layers.0.mlp.experts."
    damage(
        hf,
        **{
            experts + "gate_up_proj": torch.zeros(8, 64, 192, dtype=torch.bfloat16),
            experts + "gate_up_proj_blocks": None,
            experts + "gate_up_proj_scales": None,
        },
    )
    text = message(hf)
    assert "the experts are not packed: this is a repack" in text
    assert "use the MXFP4 original, e.g. openai/gpt-oss-20b" in text


def test_an_unsupported_model_type_is_named(hf, edit_config):
    edit_config(hf, model_type="llama")
    assert f"{hf / 'config.json'}: unsupported model type 'llama'" in message(hf)


@pytest.mark.parametrize("chunk", [validate.SCAN_CHUNK, 100])
def test_scale_byte_255_is_found_and_placed(hf, tensors, chunk, monkeypatch):
    monkeypatch.setattr(validate, "SCAN_CHUNK", chunk)
    scales = tensors[SCALES].clone()
    scales[5, 7, 2] = 255
    damage(hf, **{SCALES: scales})
    place = "scale byte 255 (NaN in MXFP4) at expert 5, row 7, group 2"
    assert f"tensor {SCALES}: {place}" in message(hf)
    assert open_checkpoint(hf).tensors(check_scales=False)[SCALES][5, 7, 2] == 255


def test_scale_bytes_0_and_254_are_numbers(hf, tensors):
    scales = tensors[SCALES].clone()
    scales[0, 0, 0], scales[0, 0, 1] = 0, 254
    damage(hf, **{SCALES: scales})
    assert open_checkpoint(hf).tensors()[SCALES][0, 0, 1] == 254


class OnGpu(torch.Tensor):
    """As a tensor on a GPU: numpy sees it only once it is on the CPU."""

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def numpy(self):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def test_scales_of_a_model_on_a_gpu_are_checked_too(tensors):
    """As when it is saved."""
    moved = {name: tensor.clone().as_subclass(OnGpu) for name, tensor in tensors.items()}
    validate.check_scales(moved, TINY)
    moved[SCALES][5, 7, 2] = 255
    with pytest.raises(CheckpointError, match="scale byte 255"):
        validate.check_scales(moved, TINY)


def test_original_is_checked_under_its_own_names(original):
    file = original / "model.safetensors"
    stored = load_file(file)
    stored["block.3.attn.qkv.weight"] = stored["block.3.attn.qkv.weight"][:-1].clone()
    del stored["block.0.mlp.gate.bias"]
    save_file(stored, file)
    text = message(original)
    assert "tensor block.3.attn.qkv.weight: expected shape [192, 64]" in text
    assert "tensor block.0.mlp.gate.bias is missing" in text


def test_a_tensor_in_two_shards_is_named(sharded):
    first = sorted(sharded.glob("*.safetensors"))[0]
    tensors = load_file(first) | {"model.norm.weight": torch.ones(64, dtype=torch.bfloat16)}
    save_file(tensors, first)
    assert "model.norm.weight is in model-00001-of-" in message(sharded)


def test_an_index_without_a_weight_map_is_named(sharded):
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}}))
    assert f"{index} has no weight_map" in message(sharded)


def test_a_git_lfs_pointer_is_recognised(hf):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (hf / "model.safetensors").write_text(pointer)
    assert "is a git-lfs pointer, not weights; run `git lfs pull`" in message(hf)


def test_a_path_that_is_not_there_says_what_is_accepted(tmp_path):
    text = message(tmp_path / "nowhere")
    assert f"no checkpoint at {tmp_path / 'nowhere'}: expected a folder with config.json" in text
    assert "a hub id like openai/gpt-oss-20b" in text
    assert "no checkpoint at gpt-oss-20b" in message("gpt-oss-20b")


def test_a_revision_is_for_hub_ids(hf):
    with pytest.raises(CheckpointError, match="revision='main' is for hub ids"):
        open_checkpoint(hf, revision="main")


def test_expected_tensors_hold_every_problem_free_checkpoint(hf):
    assert validate.problems(open_checkpoint(hf).inventory) == []
    assert len(open_checkpoint(hf).inventory.entries) == 3 + 19 * TINY.num_hidden_layers
