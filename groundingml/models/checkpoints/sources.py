"""From what a user writes (short name, hub id, folder, file) to files on this machine."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from groundingml.models.checkpoints import hub
from groundingml.models.checkpoints.errors import CheckpointError
from groundingml.models.checkpoints.weights import WEIGHT_FILES, shard_files, weight_files

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
# Models that are one file of a repository.
HUB_FILES = {
    "glip-tiny-a": "GLIPModel/GLIP/glip_a_tiny_o365.pth",
    "glip-tiny-b": "GLIPModel/GLIP/glip_tiny_model_o365.pth",
    "glip-tiny-c": "GLIPModel/GLIP/glip_tiny_model_o365_goldg.pth",
    "glip-tiny": "GLIPModel/GLIP/glip_tiny_model_o365_goldg_cc_sbu.pth",
    "glip-large": "GLIPModel/GLIP/glip_large_model.pth",
}
EMBEDDED_MODELS = ("nano",)

_WEIGHT_SUFFIXES = {".pth", ".pt", ".bin", ".safetensors"}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[\w./-]+\.(?:pth|pt|bin|safetensors))")
_SHARD = re.compile(r"-\d+-of-\d+\.")
# The first published conversion of LLMDet: transformers never read it without patched sources.
_OLD_LLMDET = re.compile(r"fushh7/llmdet_swin_(?P<size>tiny|base|large)_hf")


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
            return _in_folder(hub.model_folder(HUB_IDS[source]), source)
        if source in HUB_FILES:
            return CheckpointFiles(source, (hub.single_file(*HUB_FILES[source].rsplit("/", 1)),))
    path = Path(source).expanduser()
    if path.is_dir():
        return _in_folder(path, str(source))
    if path.is_file():
        return _single_file(path, str(source))
    if isinstance(source, str) and not path.is_absolute():
        hub_file = _HUB_FILE.fullmatch(source)
        try:
            if hub_file:
                return CheckpointFiles(source, (hub.single_file(hub_file["repo"], hub_file["file"]),))
            if _HUB_ID.fullmatch(source) and path.suffix not in _WEIGHT_SUFFIXES:
                return _hub_model(source)
        except CheckpointError as error:
            raise CheckpointError(f"{_nothing_here(source)}, and on the hub: {error}") from error
    raise CheckpointError(_unknown(str(source)))


def _nothing_here(source: str) -> str:
    return f"there is no folder or file {source!r} (looked from {Path.cwd()})"


def _unknown(source: str) -> str:
    if "/" in source or Path(source).suffix in _WEIGHT_SUFFIXES:
        return _nothing_here(source)
    known = [*EMBEDDED_MODELS, *HUB_IDS, *HUB_FILES]
    near = difflib.get_close_matches(source.lower(), known, n=4, cutoff=0.5)
    if near:
        return f"there is no model {source!r}. Did you mean {', '.join(near)}?"
    names = ", ".join(known)
    return f"there is no model {source!r}. Give a path, a hub id (organisation/model) or one of {names}"


def _in_folder(folder: Path, name: str) -> CheckpointFiles:
    config = folder / "config.json"
    weights = weight_files(folder)
    if not weights:
        found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        holds = f"it holds {', '.join(found[:8])}" if found else "it is empty or absent"
        raise CheckpointError(
            f"no weights in {folder}: expected {' or '.join(WEIGHT_FILES)} (or shards with an index), "
            f"or one .pth file; {holds}"
        )
    return CheckpointFiles(name, weights, config if config.is_file() else None, folder)


def _single_file(file: Path, name: str) -> CheckpointFiles:
    """A weight file; one that lies in its Hugging Face folder keeps that folder's config and tokenizer."""
    if file.name.endswith(".index.json"):
        return CheckpointFiles(name, shard_files(file), file.with_name("config.json"), file.parent)
    if _SHARD.search(file.name):
        raise CheckpointError(f"{file} is one of several shards; give the folder {file.parent}")
    config = file.with_name("config.json")
    if file.name in WEIGHT_FILES and config.is_file():
        return CheckpointFiles(name, (file,), config, file.parent)
    return CheckpointFiles(name, (file,))


def _hub_model(hub_id: str) -> CheckpointFiles:
    if old := _OLD_LLMDET.fullmatch(hub_id):
        raise CheckpointError(
            f"{hub_id} is an older layout that no release of transformers reads; use llmdet-{old['size']} "
            f"(iSEE-Laboratory/llmdet_{old['size']}), the same weights"
        )
    return _in_folder(hub.model_folder(hub_id), hub_id)
