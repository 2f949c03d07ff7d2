"""A checkpoint by its hub id, through huggingface-hub's own cache.

"openai/gpt-oss-20b" is the Hugging Face layout at the root of the repository,
"openai/gpt-oss-20b/original" the folder beside it; only the one asked for is downloaded. A complete
checkpoint in the cache is used without asking the hub, so work goes on without a network and does
not change under a branch that moved; `hf download` fetches the newer one. HF_HUB_OFFLINE,
HF_HUB_CACHE and HF_TOKEN act as always.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of whichever HTTP library it uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from gptoss_workbench.checkpoint.errors import CheckpointError
from gptoss_workbench.checkpoint.shards import find_shards

HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?P<original>/original)?")

TEXT_FILES = ["tokenizer*", "special_tokens_map.json", "generation_config.json", "harmony.json"]

ROOT = ["config.json", "model*.safetensors", "*.safetensors.index.json", "*.jinja", *TEXT_FILES]
ORIGINAL = ["original/*.json", "original/*.safetensors", *TEXT_FILES]


def is_hub_id(source: str) -> bool:
    """Whether a source has the form organisation/name or organisation/name/original."""
    return HUB_ID.fullmatch(source) is not None


def download(source: str, *, revision: str | None = None) -> Path:
    """The local folder of a hub id: from the cache, or downloaded into it."""
    match = HUB_ID.fullmatch(source)
    if match is None:
        raise CheckpointError(f"expected a hub id like openai/gpt-oss-20b, got {source!r}")
    repo, original = match["repo"], bool(match["original"])
    cached = _cached(repo, revision, original)
    if cached is not None:
        return cached
    folder = _download(repo, revision, original)
    if not (folder / "config.json").is_file():
        raise CheckpointError(_without_config(repo, revision, original))
    return folder


def _cached(repo: str, revision: str | None, original: bool) -> Path | None:
    """The folder in the cache, if it holds config.json and every shard."""
    try:
        folder = _snapshot(repo, revision, original, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    whole = (folder / "config.json").is_file() and not find_shards(folder)[1]
    return folder if whole else None


def _download(repo: str, revision: str | None, original: bool) -> Path:
    try:
        return _snapshot(repo, revision, original, local_files_only=constants.HF_HUB_OFFLINE)
    except LocalEntryNotFoundError as error:
        raise CheckpointError(_not_cached(repo, revision, original)) from error
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repo} is gated: accept its terms on the hub, then `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(f"the hub has no {repo}{at}, or it is private: {error}") from error
    except (HTTPError, OSError) as error:
        raise CheckpointError(f"{repo} could not be downloaded: {error}") from error


def _snapshot(repo: str, revision: str | None, original: bool, *, local_files_only: bool) -> Path:
    folder = snapshot_download(
        repo,
        revision=revision,
        cache_dir=constants.HF_HUB_CACHE,
        allow_patterns=ORIGINAL if original else ROOT,
        ignore_patterns=None if original else ["*/*"],
        local_files_only=local_files_only,
    )
    return Path(folder, "original") if original else Path(folder)


def _without_config(repo: str, revision: str | None, original: bool) -> str:
    """A cache may hold a tokenizer only; a repository may hold something else altogether."""
    if constants.HF_HUB_OFFLINE:
        return _not_cached(repo, revision, original)
    return (
        f"{repo} holds no {'original/' if original else ''}config.json: it is no gpt-oss checkpoint"
    )


def _not_cached(repo: str, revision: str | None, original: bool) -> str:
    offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "no network reaches the hub"
    wanted = "--include 'original/*'" if original else "--exclude 'original/*' 'metal/*'"
    at = f" --revision {revision}" if revision else ""
    return (
        f"{repo} is not (completely) in the cache {constants.HF_HUB_CACHE} and {offline}; on a "
        f"machine with a network run `hf download {repo}{at} {wanted}` and copy the folder here, "
        "or pass a folder that holds config.json and *.safetensors"
    )
