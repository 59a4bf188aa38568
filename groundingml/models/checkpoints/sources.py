"""From what a user writes (short name, hub id, folder, file) to files on this machine."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from groundingml.models.checkpoints.errors import CheckpointError, listed
from groundingml.models.checkpoints.weights import shard_files

EMBEDDED = Path(__file__).resolve().parents[2] / "embedded"

_MM = "openmmlab-community/mm_grounding_dino"
HUB_IDS = {
    "grounding-dino-tiny": "IDEA-Research/grounding-dino-tiny",
    "grounding-dino-base": "IDEA-Research/grounding-dino-base",
    "mm-grounding-dino-tiny": f"{_MM}_tiny_o365v1_goldg_grit_v3det",
    "mm-grounding-dino-tiny-o365v1-goldg": f"{_MM}_tiny_o365v1_goldg",
    "mm-grounding-dino-tiny-o365v1-goldg-grit": f"{_MM}_tiny_o365v1_goldg_grit",
    "mm-grounding-dino-tiny-o365v1-goldg-v3det": f"{_MM}_tiny_o365v1_goldg_v3det",
    "mm-grounding-dino-tiny-o365v1-goldg-grit-v3det": f"{_MM}_tiny_o365v1_goldg_grit_v3det",
    "mm-grounding-dino-base": f"{_MM}_base_all",
    "mm-grounding-dino-base-o365v1-goldg-v3det": f"{_MM}_base_o365v1_goldg_v3det",
    "mm-grounding-dino-base-all": f"{_MM}_base_all",
    "mm-grounding-dino-large": f"{_MM}_large_all",
    "mm-grounding-dino-large-o365v2-oiv6-goldg": f"{_MM}_large_o365v2_oiv6_goldg",
    "mm-grounding-dino-large-all": f"{_MM}_large_all",
    "llmdet-tiny": "iSEE-Laboratory/llmdet_tiny",
    "llmdet-base": "iSEE-Laboratory/llmdet_base",
    "llmdet-large": "iSEE-Laboratory/llmdet_large",
}
EMBEDDED_MODELS = ("nano",)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[\w./-]+\.(?:pth|pt|bin|safetensors))")
# The first published conversion of LLMDet: transformers never read it without patched sources.
_OLD_LLMDET = re.compile(r"fushh7/llmdet_swin_(?P<size>tiny|base|large)_hf")

_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_TORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_DESCRIPTION = ("config.json", "preprocessor_config.json", "tokenizer.json", "vocab.txt")


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint on disk: its weight files (one, or shards), its config and its tokenizer's folder."""

    name: str  # as the user wrote it
    weights: tuple[Path, ...]
    config: Path | None = None
    folder: Path | None = None  # None for a single file that belongs to no Hugging Face folder


def resolve(source: str | Path) -> CheckpointFiles:
    """Find the files of ``source``.

    A string is, in this order: a short name (``nano``, ``llmdet-tiny``), a path that exists, a file on
    the hub (``organisation/model/file.pth``), a hub id (``organisation/model``). A Path, or a string like
    ``./nano``, is always a path. The hub's cache is used first, without asking the network; run
    ``hf download ID`` to refresh it.

    Raises:
        CheckpointError: nothing there; the message lists near matches, or says how to fetch the model.
    """
    if isinstance(source, str):
        if source in EMBEDDED_MODELS:
            return _in_folder(EMBEDDED / source, source)
        if source in HUB_IDS:
            return _on_hub(HUB_IDS[source], source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _in_folder(path, str(source))
    if path.is_file():
        return _single_file(path, str(source))
    if isinstance(source, str):
        if hub_file := _HUB_FILE.fullmatch(source):
            return _file_on_hub(hub_file["repo"], hub_file["file"], source)
        if _HUB_ID.fullmatch(source) and path.suffix not in {".pth", ".pt", ".bin", ".safetensors"}:
            return _on_hub(source, source)
    raise CheckpointError(_unknown(str(source)))


def _unknown(source: str) -> str:
    known = [*EMBEDDED_MODELS, *HUB_IDS]
    near = difflib.get_close_matches(source.lower(), known, n=4, cutoff=0.5)
    if near:
        return f"there is no model, folder or file {source!r}. Did you mean {', '.join(near)}?"
    return (
        f"there is no model, folder or file {source!r}. Give a path, a hub id (organisation/model) or one of "
        f"{', '.join(known)}"
    )


def _in_folder(folder: Path, name: str) -> CheckpointFiles:
    config = folder / "config.json"
    weights = _weight_files(folder)
    if not weights:
        found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        holds = f"it holds {', '.join(found[:8])}" if found else "it is empty or absent"
        raise CheckpointError(
            f"no weights in {folder}: expected {_SAFETENSORS[0]} or {_TORCH[0]} (or shards with an index), "
            f"or one .pth file; {holds}"
        )
    return CheckpointFiles(name, weights, config if config.is_file() else None, folder)


def _weight_files(folder: Path) -> tuple[Path, ...]:
    for single, index in (_SAFETENSORS, _TORCH):
        if (folder / single).is_file():
            return (folder / single,)
        if (folder / index).is_file():
            return shard_files(folder / index)
    others = [p for pattern in ("*.pth", "*.pt", "*.safetensors") for p in sorted(folder.glob(pattern))]
    if len(others) > 1:
        raise CheckpointError(
            f"{folder} holds several checkpoints, name one: {listed(p.name for p in others)}"
        )
    return tuple(others)


def _single_file(file: Path, name: str) -> CheckpointFiles:
    """A weight file; one that lies in its Hugging Face folder keeps that folder's config and tokenizer."""
    if file.name.endswith(".index.json"):
        return CheckpointFiles(name, shard_files(file), file.with_name("config.json"), file.parent)
    config = file.with_name("config.json")
    if file.name in (_SAFETENSORS[0], _TORCH[0]) and config.is_file():
        return CheckpointFiles(name, (file,), config, file.parent)
    return CheckpointFiles(name, (file,))


def _on_hub(hub_id: str, name: str) -> CheckpointFiles:
    if old := _OLD_LLMDET.fullmatch(hub_id):
        raise CheckpointError(
            f"{hub_id} is an older layout that no release of transformers reads; use llmdet-{old['size']} "
            f"(iSEE-Laboratory/llmdet_{old['size']}), the same weights"
        )
    for weights in (_SAFETENSORS, _TORCH):
        shards = [weights[0].replace(".", "-*.")]
        folder = _snapshot(hub_id, [*_DESCRIPTION, *weights, *shards])
        if any((folder / file).exists() for file in weights):
            return _in_folder(folder, name)
    raise CheckpointError(
        f"{hub_id} on the hub has none of {', '.join((*_SAFETENSORS, *_TORCH))}; of a repository of single "
        f"files name one: {hub_id}/FILE.pth"
    )


def _snapshot(hub_id: str, patterns: list[str]) -> Path:
    """The folder of the hub's cache that holds ``patterns`` of ``hub_id``, downloaded if it is not there."""
    cached = _cached_snapshot(hub_id, patterns)
    if cached is not None:
        return cached
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:
        raise _not_fetched(hub_id, f"hf download {hub_id}", error) from error


def _cached_snapshot(hub_id: str, patterns: list[str]) -> Path | None:
    try:
        found = huggingface_hub.snapshot_download(hub_id, allow_patterns=patterns, local_files_only=True)
        folder = Path(found)
    except LocalEntryNotFoundError as error:
        partial = getattr(error, "snapshot_path", None)  # newer clients know that some files are absent
        if partial is None:
            return None
        folder = Path(partial)
    except HFValidationError as error:
        raise CheckpointError(f"{hub_id!r} cannot be a hub id: {error}") from error
    try:
        complete = (folder / "config.json").is_file() and bool(_weight_files(folder))
    except CheckpointError:  # a part of the shards
        return None
    return folder if complete else None


def _file_on_hub(repo: str, file: str, name: str) -> CheckpointFiles:
    try:
        cached = huggingface_hub.hf_hub_download(repo, file, local_files_only=True)
        return CheckpointFiles(name, (Path(cached),))
    except LocalEntryNotFoundError:
        pass  # not in the cache: ask the hub
    try:
        return CheckpointFiles(name, (Path(huggingface_hub.hf_hub_download(repo, file)),))
    except Exception as error:
        raise _not_fetched(repo, f"hf download {repo} {file}", error) from error


def _not_fetched(hub_id: str, command: str, error: Exception) -> CheckpointError:
    """What to do when the hub gave nothing: it knows no such model, wants a login, or cannot be reached."""
    if isinstance(error, GatedRepoError):
        return CheckpointError(
            f"{hub_id} asks for a login: accept its terms on the hub, then `hf auth login` and `{command}`"
        )
    if isinstance(error, RepositoryNotFoundError):
        return CheckpointError(f"the hub has no model {hub_id!r}, or it is private. {_unknown(hub_id)}")
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return CheckpointError(f"{hub_id} on the hub has no such file ({command})")
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    cache = huggingface_hub.constants.HF_HUB_CACHE
    return CheckpointError(
        f"{hub_id} is not in the hub's cache ({cache}) and could not be downloaded: {reason.rstrip('.')}. "
        f"Fetch it on a machine with network by `{command}` and copy that cache's folder "
        f"models--{hub_id.replace('/', '--')} there, or give the path of a downloaded folder"
    )
