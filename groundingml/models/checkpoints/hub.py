"""Models of the Hugging Face hub: from its cache if they are there, else by download."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from groundingml.models.checkpoints.errors import CheckpointError
from groundingml.models.checkpoints.weights import WEIGHT_FILES, weight_files

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DESCRIPTION = ["config.json", "preprocessor_config.json", "tokenizer.json", "vocab.txt"]
# Only what a model needs: repositories may hold the weights several times over. Safetensors first.
_PATTERNS = [[*_DESCRIPTION, name, name.replace(".", "-*."), f"{name}.index.json"] for name in WEIGHT_FILES]
# What transformers needs of its own models beside the weights: every tokenizer has other files.
_TRANSFORMERS = [["*.json", "*.txt", name, name.replace(".", "-*.")] for name in WEIGHT_FILES]


def model_folder(hub_id: str) -> Path:
    """The folder in the hub's cache with the config, the tokenizer and the weights of `hub_id`.

    A complete folder in the cache is used without asking the network, so a machine without one works alike.

    Raises:
        CheckpointError: it is neither in the cache nor can it be fetched; the message says how to.
    """
    return _folder(hub_id, _PATTERNS)


def transformers_folder(hub_id: str) -> Path:
    """`model_folder` with all that transformers reads.

    Raises:
        CheckpointError: as `model_folder`.
    """
    return _folder(hub_id, _TRANSFORMERS)


def _folder(hub_id: str, choices: list[list[str]]) -> Path:
    for patterns in choices:
        cached = _local_snapshot(hub_id, patterns)
        if cached is not None and _is_complete(cached):
            return cached
    for patterns in choices:
        try:
            folder = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=patterns))
        except Exception as error:
            raise _not_fetched(hub_id, f"hf download {hub_id}", error) from error
        if _is_complete(folder):
            return folder
    nothing = FileNotFoundError(
        f"it brought no {' or '.join(WEIGHT_FILES)} "
        f"(of a repository of single files name one: {hub_id}/FILE.pth)"
    )
    raise _not_fetched(hub_id, f"hf download {hub_id}", nothing)


def cached_folder(hub_id: str) -> Path | None:
    """The folder of `hub_id` in the hub's cache, if it is there and complete; the network is not asked."""
    for patterns in _PATTERNS:
        cached = _local_snapshot(hub_id, patterns)
        if cached is not None and _is_complete(cached):
            return cached
    return None


def cached_file(hub_id: str, file: str) -> Path | None:
    """One file of a repository in the hub's cache, if it is there; the network is not asked."""
    cached = _local_snapshot(hub_id, [file])
    return cached / file if cached is not None and (cached / file).is_file() else None


def damaged_files(files: Iterable[Path]) -> list[Path]:
    """Files of the hub's cache whose content is not what the hub has sent.

    The cache names a large file by its SHA-256, as the hub's server gave it; small ones are named otherwise
    and are not checked.
    """
    damaged = []
    for file in files:
        blob = file.resolve()
        if not _SHA256.fullmatch(blob.name):
            continue
        digest = hashlib.sha256()
        with blob.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != blob.name:
            damaged.append(file)
    return damaged


def single_file(hub_id: str, file: str) -> Path:
    """One file of a repository on the hub, from the cache or by download.

    Raises:
        CheckpointError: it is neither in the cache nor can it be fetched.
    """
    # snapshot_download, since hf_hub_download tries for half a minute where there is no network
    cached = cached_file(hub_id, file)
    if cached is not None:
        return cached
    command = f"hf download {hub_id} {file}"
    try:
        folder = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=[file]))
    except Exception as error:
        raise _not_fetched(hub_id, command, error) from error
    if not (folder / file).is_file():
        raise _not_fetched(hub_id, command, FileNotFoundError(f"it brought no {file}"))
    return folder / file


def _local_snapshot(hub_id: str, patterns: list[str]) -> Path | None:
    """What the cache has of `hub_id`, complete or not."""
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=patterns, local_files_only=True))
    except LocalEntryNotFoundError as error:
        partial = getattr(error, "snapshot_path", None)  # newer clients know that some files are absent
        return None if partial is None else Path(partial)
    except HFValidationError as error:
        raise CheckpointError(f"{hub_id!r} cannot be a hub id: {error}") from error


def _is_complete(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file() and bool(weight_files(folder))
    except CheckpointError:  # shards are missing
        return False


def _not_fetched(hub_id: str, command: str, error: Exception) -> CheckpointError:
    """What to do when the hub gave nothing: it knows no such model, wants a login, or cannot be reached."""
    if isinstance(error, GatedRepoError):
        return CheckpointError(
            f"{hub_id} asks for a login: accept its terms on the hub, then `hf auth login` and `{command}`"
        )
    if isinstance(error, RepositoryNotFoundError):
        return CheckpointError(
            f"the hub has no model {hub_id!r}, or it is private; check the name, or `hf auth login`"
        )
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return CheckpointError(
        f"{hub_id} is not in the hub's cache ({constants.HF_HUB_CACHE}) and could not be downloaded: "
        f"{reason.rstrip('.')}. Fetch it on a machine with network by `{command}` and copy the folder "
        f"models--{hub_id.replace('/', '--')} of that cache there, or give the path of a downloaded folder"
    )
