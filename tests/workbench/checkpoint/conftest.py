"""Small checkpoints on disk, fresh for each test that damages one."""

import json

import pytest

from gptoss_workbench.checkpoint import save_checkpoint
from gptoss_workbench.checkpoint.synthetic import TINY, random_tensors, write_original


@pytest.fixture(scope="session")
def tensors():
    """A tiny random model's tensors under their Hugging Face names."""
    return random_tensors(TINY, seed=0)


@pytest.fixture
def hf(tensors, tmp_path):
    """A checkpoint in one file."""
    return save_checkpoint(tensors, tmp_path / "hf", config=TINY)


@pytest.fixture
def sharded(tensors, tmp_path):
    """A checkpoint in several files with an index."""
    return save_checkpoint(tensors, tmp_path / "sharded", config=TINY, shard_bytes=200_000)


@pytest.fixture
def original(tensors, tmp_path):
    """OpenAI's layout in one file."""
    write_original(tensors, TINY, tmp_path / "original")
    return tmp_path / "original"


@pytest.fixture
def edit_config():
    """Change keys of a folder's config.json; None removes one."""

    def edit(folder, **changes):
        file = folder / "config.json"
        raw = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))

    return edit
