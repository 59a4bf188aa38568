"""What is published: the models with short names, the ones that a vendor runs, and others' that load too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from groundingml.models.checkpoints import hub
from groundingml.models.checkpoints.sources import EMBEDDED, EMBEDDED_MODELS, HUB_FILES, HUB_IDS

Place = Literal["here", "vendor"]


@dataclass(frozen=True)
class CatalogEntry:
    """One model that a user can name.

    name: what ``--model`` takes. family: whose architecture. source: hub id, or file of a hub repository;
    None where there is nothing to fetch. parameters_millions: None where the makers do not say. licence: of
    weights and code as the authors publish them. about: what it is good for. coco, lvis_minival: published
    zero-shot AP, None where not found. ours: whether the network is this package's own implementation.
    """

    name: str
    family: str
    source: str | None
    parameters_millions: int | None
    licence: str
    about: str
    coco: float | None = None
    lvis_minival: float | None = None
    ours: bool = True
    runs: Place = "here"


_GOLDG = "Objects365 and GoldG"
_TRAINED_ON = {
    "tiny": f"{_GOLDG}, GRIT, V3Det",
    "tiny-o365v1-goldg": f"{_GOLDG} alone",
    "tiny-o365v1-goldg-grit": f"{_GOLDG}, GRIT",
    "tiny-o365v1-goldg-v3det": f"{_GOLDG}, V3Det: more kinds of things",
    "tiny-o365v1-goldg-grit-v3det": f"{_GOLDG}, GRIT, V3Det",
    "base": "all of the authors' data",
    "base-o365v1-goldg-v3det": f"{_GOLDG}, V3Det",
    "base-all": "all of the authors' data",
    "large": "all of the authors' data; slow on a CPU",
    "large-o365v2-oiv6-goldg": "Objects365 v2, OpenImages v6, GoldG",
    "large-all": "all of the authors' data",
}
_MM_COCO = {"tiny": 50.4, "tiny-o365v1-goldg-grit-v3det": 50.4}
_MM_LVIS = {"tiny": 41.4, "tiny-o365v1-goldg-grit-v3det": 41.4}
_MM_SIZES = {"tiny": 173, "base": 233, "large": 343}

_NANO = CatalogEntry("nano", "Grounding DINO (small)", None, 28, "Apache-2.0", "80 everyday things, offline")
_GROUNDING_DINO = (
    CatalogEntry(
        "grounding-dino-tiny", "Grounding DINO", HUB_IDS["grounding-dino-tiny"], 172, "Apache-2.0",
        "phrases and whole sentences", 48.4, 28.8,
    ),
    CatalogEntry(
        "grounding-dino-base", "Grounding DINO", HUB_IDS["grounding-dino-base"], 232, "Apache-2.0",
        "has seen COCO in training", 56.7,
    ),
)  # fmt: skip
_MM_GROUNDING_DINO = tuple(
    CatalogEntry(
        f"mm-grounding-dino-{variant}", "MM-Grounding-DINO", HUB_IDS[f"mm-grounding-dino-{variant}"],
        _MM_SIZES[variant.partition("-")[0]], "Apache-2.0", about,
        _MM_COCO.get(variant), _MM_LVIS.get(variant),
    )
    for variant, about in _TRAINED_ON.items()
)  # fmt: skip
_LLMDET = tuple(
    CatalogEntry(
        f"llmdet-{size}", "LLMDet", HUB_IDS[f"llmdet-{size}"], millions, "Apache-2.0", about, coco, lvis
    )
    for size, millions, about, coco, lvis in (
        ("tiny", 173, "rare things; a good one to begin with", 55.5, 44.7),
        ("base", 233, "rare things", None, 48.3),
        ("large", 343, "rare things; slow on a CPU", None, 51.1),
    )
)
_GLIP = tuple(
    CatalogEntry(name, "GLIP", HUB_FILES[name], millions, "MIT", about, coco, lvis)
    for name, millions, about, coco, lvis in (
        ("glip-tiny-a", 152, "Objects365 alone, no deep fusion", None, None),
        ("glip-tiny-b", 232, "Objects365 alone", None, None),
        ("glip-tiny-c", 232, _GOLDG, None, None),
        ("glip-tiny", 232, f"{_GOLDG}, CC3M, SBU", 46.6, 26.7),
        ("glip-large", 431, "FourODs, GoldG, Cap24M", 51.4, None),
    )
)
_TERMS = "vendor's terms"
_CLOUD = tuple(
    CatalogEntry(f"api:{name}", family, None, None, _TERMS, about, coco, lvis, ours=False, runs="vendor")
    for name, family, about, coco, lvis in (
        ("grounding-dino-1.5-pro", "Grounding DINO 1.5", "images leave this machine", 54.3, 55.7),
        ("grounding-dino-1.6-pro", "Grounding DINO 1.6", "images leave this machine", 55.4, 57.7),
        ("dino-x", "DINO-X", "images leave this machine", 56.0, 59.8),
    )
)
_FOREIGN = tuple(
    CatalogEntry(f"hf:{hub_id}", family, hub_id, millions, "Apache-2.0", about, ours=False)
    for hub_id, family, millions, about in (
        ("google/owlv2-base-patch16-ensemble", "OWLv2", None, "transformers' own"),
        ("google/owlvit-base-patch32", "OWL-ViT", None, "transformers' own"),
        ("omlab/omdet-turbo-swin-tiny-hf", "OmDet-Turbo", None, "needs timm and torchvision"),
    )
)

CATALOG: tuple[CatalogEntry, ...] = (
    _NANO, *_GROUNDING_DINO, *_MM_GROUNDING_DINO, *_LLMDET, *_GLIP, *_CLOUD, *_FOREIGN,
)  # fmt: skip
"""Every model with a name of its own. Of ``hf:`` any other of the same architectures loads as well."""


def files_of(entry: CatalogEntry) -> tuple[Path, ...]:
    """The files of a model that are on this machine and complete; none where it would have to be fetched."""
    if entry.name in EMBEDDED_MODELS:
        return tuple(sorted((EMBEDDED / entry.name).iterdir()))
    if entry.source is None:
        return ()
    if entry.name in HUB_FILES:
        file = hub.cached_file(*entry.source.rsplit("/", 1))
        return () if file is None else (file,)
    folder = hub.cached_folder(entry.source)
    return () if folder is None else tuple(sorted(file for file in folder.iterdir() if file.is_file()))
