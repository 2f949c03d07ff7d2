"""Hub ids, on a cache laid out as huggingface-hub lays it out, without a network."""

import shutil

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import filter_repo_objects

from gptoss_workbench.checkpoint import CheckpointError, hub, open_checkpoint
from gptoss_workbench.checkpoint.hub import is_hub_id
from gptoss_workbench.checkpoint.synthetic import TINY

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache; any request would go to a closed port."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "hub"


def put(cache, folder, *, repo="org--model", commit=COMMIT, subfolder=""):
    """Store a folder as the snapshot that `main` of a repository points to."""
    root = cache / f"models--{repo}"
    snapshot = root / "snapshots" / commit
    shutil.copytree(folder, snapshot / subfolder, dirs_exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    return snapshot


def test_a_hub_id_is_found_in_the_cache(cache, sharded):
    snapshot = put(cache, sharded)
    checkpoint = open_checkpoint("org/model")
    assert (checkpoint.folder, checkpoint.source) == (snapshot, "org/model")
    assert checkpoint.config == TINY
    assert len(checkpoint.tensors()) == 79


def test_files_linked_into_blobs_are_mapped(cache, hf):
    snapshot = put(cache, hf)
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir()
    for file in list(snapshot.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(blobs / file.name)
    assert len(open_checkpoint("org/model").tensors()) == 79


def test_a_complete_cache_needs_no_request(cache, hf, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    put(cache, hf)
    assert open_checkpoint("org/model").config == TINY


def test_the_original_folder_of_a_repository_is_read(cache, hf, original):
    snapshot = put(cache, hf)
    put(cache, original, subfolder="original")
    checkpoint = open_checkpoint("org/model/original")
    assert (checkpoint.folder, checkpoint.layout) == (snapshot / "original", "original")
    assert open_checkpoint("org/model").layout == "hf"


def test_a_revision_chooses_the_snapshot(cache, hf, original):
    other = "f" * 40
    put(cache, original, commit=other)
    put(cache, hf)
    assert open_checkpoint("org/model", revision=other).layout == "original"
    assert open_checkpoint("org/model").layout == "hf"


def test_not_cached_and_offline_says_how_to_get_it(cache):
    with pytest.raises(CheckpointError) as error:
        open_checkpoint("openai/gpt-oss-20b")
    text = str(error.value)
    assert f"openai/gpt-oss-20b is not (completely) in the cache {cache}" in text
    assert "HF_HUB_OFFLINE is set" in text
    assert "`hf download openai/gpt-oss-20b --exclude 'original/*' 'metal/*'`" in text


def test_not_cached_and_no_network_says_so(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(CheckpointError, match="no network reaches the hub") as error:
        open_checkpoint("openai/gpt-oss-20b/original", revision="main")
    assert "hf download openai/gpt-oss-20b --revision main --include 'original/*'" in str(
        error.value
    )


def test_a_cache_with_only_a_tokenizer_is_not_enough(cache, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "tokenizer.json").write_text("{}")
    put(cache, tmp_path / "text")
    with pytest.raises(CheckpointError, match=r"not \(completely\) in the cache"):
        open_checkpoint("org/model")


REPOSITORY = """
.gitattributes LICENSE README.md USAGE_POLICY chat_template.jinja config.json generation_config.json
metal/model.bin model-00000-of-00002.safetensors model-00001-of-00002.safetensors
model-00002-of-00002.safetensors model.safetensors.index.json special_tokens_map.json
original/config.json original/dtypes.json original/model.safetensors
tokenizer.json tokenizer_config.json
"""


@pytest.mark.parametrize(
    ("source", "here", "elsewhere"),
    [
        ("org/model", "model-00000-of-00002.safetensors", "original/model.safetensors"),
        ("org/model/original", "original/model.safetensors", "model-00000-of-00002.safetensors"),
    ],
)
def test_only_the_layout_asked_for_would_be_downloaded(source, here, elsewhere, monkeypatch):
    asked = {}
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **options: asked.update(options) or "")
    with pytest.raises(CheckpointError):
        open_checkpoint(source)
    patterns = {key: asked[key] for key in ("allow_patterns", "ignore_patterns")}
    files = set(filter_repo_objects(REPOSITORY.split(), **patterns))
    assert {here, "tokenizer.json", "generation_config.json"} < files
    assert not files & {elsewhere, "metal/model.bin", "README.md"}


def test_a_cache_with_a_shard_missing_names_it(cache, sharded):
    snapshot = put(cache, sharded)
    gone = sorted(snapshot.glob("*.safetensors"))[0]
    gone.unlink()
    with pytest.raises(CheckpointError, match=f"shard {gone.name} is missing from {snapshot}"):
        open_checkpoint("org/model")


def test_a_folder_wins_over_a_hub_id_of_the_same_spelling(hf, monkeypatch):
    monkeypatch.chdir(hf.parent.parent)
    assert open_checkpoint(f"{hf.parent.name}/hf").folder.resolve() == hf


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("openai/gpt-oss-20b", True),
        ("openai/gpt-oss-20b/original", True),
        ("gpt-oss-20b", False),
        ("/models/gpt-oss-20b", False),
        ("./gpt-oss/20b", False),
        ("../gpt-oss", False),
        ("~/gpt-oss", False),
        ("a/b/c", False),
    ],
)
def test_what_counts_as_a_hub_id(source, expected):
    assert is_hub_id(source) is expected
