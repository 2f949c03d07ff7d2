"""Loading to a device: what is moved is forgotten, one file and one layer at a time."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gptoss_workbench.checkpoint import open_checkpoint
from gptoss_workbench.checkpoint.synthetic import TINY, random_tensors, write_random
from gptoss_workbench.config import alternating_layers
from gptoss_workbench.model import GptOss
from gptoss_workbench.moving import Moving

CONFIG = replace(
    TINY,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=6,
    layer_types=alternating_layers(6),
)
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    list(write_random(CONFIG, tmp_path, shard_bytes=1_000_000))
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    return tmp_path


def test_every_tensor_is_asked_for_once():
    tensors = random_tensors(CONFIG, seed=0)
    moving = Moving(dict(tensors), CPU)
    model = GptOss(CONFIG, moving, backend="triton")
    assert not len(moving) and not list(moving)
    for name, tensor in model.checkpoint_tensors().items():
        assert torch.equal(tensor, tensors[name]), name


def test_a_model_takes_the_same_weights_whichever_way_they_come(tokens):
    tensors = random_tensors(CONFIG, seed=0)
    plain = GptOss(CONFIG, tensors, backend="reference")
    moved = GptOss(CONFIG, Moving(dict(tensors), CPU), backend="reference")
    assert torch.equal(plain(tokens), moved(tokens))


def mapped(folder: Path) -> set[str]:
    """The shards that are mapped now."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines if str(folder) in line}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="/proc tells what is mapped")
def test_a_shard_is_unmapped_with_its_last_tensor(folder):
    counts = []

    class OnDevice(Moving):
        def __getitem__(self, name):
            moved = super().__getitem__(name).clone()
            counts.append(len(mapped(folder)))
            return moved

    GptOss(CONFIG, OnDevice(open_checkpoint(folder).tensors(), CPU), backend="reference")
    assert counts[0] == len(list(folder.glob("*.safetensors"))) and counts[-1] == 0
    assert sorted(counts, reverse=True) == counts and counts[len(counts) // 2] < counts[0]
