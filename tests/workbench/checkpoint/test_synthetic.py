"""Random checkpoints: reproducible, the same in pieces, and sane in size."""

from dataclasses import replace

import pytest
import torch

from gptoss_kernels import mxfp4
from gptoss_workbench.checkpoint import CheckpointError, open_checkpoint, synthetic
from gptoss_workbench.checkpoint.synthetic import TINY, main, random_tensors, write_random
from gptoss_workbench.config import alternating_layers


def test_a_seed_gives_the_same_tensors_and_another_gives_others(tensors):
    again, other = random_tensors(TINY, seed=0), random_tensors(TINY, seed=1)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    assert not any(torch.equal(other[name], tensor) for name, tensor in tensors.items())


def test_a_streamed_checkpoint_holds_the_same_tensors(tensors, tmp_path):
    files = list(write_random(TINY, tmp_path, shard_bytes=150_000))
    assert len(files) > 2
    read = open_checkpoint(tmp_path).tensors()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_a_cut_is_a_prefix_of_the_whole(tensors):
    cut = replace(TINY, num_hidden_layers=2, layer_types=alternating_layers(2))
    assert all(torch.equal(tensors[name], t) for name, t in random_tensors(cut, seed=0).items())


@pytest.mark.parametrize(("gentle", "spread"), [(True, 0.05), (False, 0.2)])
def test_expert_weights_are_spread_as_meant(gentle, spread):
    tensors = random_tensors(TINY, seed=0, gentle=gentle)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    decoded = mxfp4.unpack(tensors[f"{name}_blocks"], tensors[f"{name}_scales"])
    assert decoded.isfinite().all()
    assert spread / 2 < decoded.std() < spread * 2
    assert abs(decoded.mean()) < decoded.std() / 10


def test_every_bias_sink_and_norm_would_be_missed(tensors):
    for name, tensor in tensors.items():
        if name.endswith(("bias", "sinks")):
            assert tensor.float().abs().mean() > 0.05, name
        elif "norm" in name:
            assert (tensor.float() - 1).abs().mean() > 0.05, name


def test_sharp_attention_is_sharper():
    sharp = random_tensors(TINY, seed=0, gentle=False)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert sharp[name].std() > 1.5 * random_tensors(TINY, seed=0)[name].std()


def test_a_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic.shutil, "disk_usage", lambda _: type("", (), {"free": 1000}))
    with pytest.raises(CheckpointError, match=r"takes 0.0 GB, 0.0 GB are free"):
        list(write_random(TINY, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_what_is_asked(tmp_path, capsys, monkeypatch):
    sizes = "--layers 2 --hidden 64 --intermediate 96 --experts 4 --top-k 2 --heads 4 --kv-heads 2"
    arguments = f"synthetic --out {tmp_path} {sizes} --head-dim 16 --vocab 512".split()
    monkeypatch.setattr("sys.argv", arguments)
    main()
    assert "model.safetensors: 0.00 GB" in capsys.readouterr().out
    assert open_checkpoint(tmp_path).config.intermediate_size == 96


def test_the_command_says_what_is_impossible(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", f"synthetic --out {tmp_path} --hidden 50".split())
    with pytest.raises(SystemExit):
        main()
    assert "hidden_size must be a multiple of 32" in capsys.readouterr().err
