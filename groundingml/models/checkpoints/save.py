"""Writing a model to a folder, whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from groundingml.models.checkpoints.errors import CheckpointError
from groundingml.models.checkpoints.huggingface import save_huggingface
from groundingml.models.checkpoints.native import save_native
from groundingml.models.checkpoints.plain import save_plain
from groundingml.models.checkpoints.sources import EMBEDDED
from groundingml.models.glip.config import GlipConfig

if TYPE_CHECKING:
    from groundingml.models.glip.network import Glip
    from groundingml.models.grounding_dino.network import GroundingDino

BERT_VOCABULARY = EMBEDDED / "nano" / "tokenizer.json"
_TOKENIZER_CONFIG = {
    "tokenizer_class": "BertTokenizer",
    "do_lower_case": True,
    "model_max_length": 512,
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
    "pad_token": "[PAD]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
}


def save_pretrained(
    model: GroundingDino | Glip,
    folder: str | Path,
    tokenizer: Any = None,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write a model so that `load_model(folder)` gives it back.

    Grounding DINO, MM-Grounding-DINO and LLMDet are written in the Hugging Face layout (config, weights,
    preprocessor, tokenizer), which transformers loads too and which loses nothing; models of the embedded
    kind in our own compact one; GLIP and the Edge architecture, which transformers has no class for, under
    our own names. The files are written beside `folder` and moved when all are complete: a
    crash or a full disk leaves what was there.

    Args:
        model: in any dtype, on any device; the weights keep their dtype.
        folder: made if absent; files of the same names are replaced, others stay.
        extra: names and texts of files to write with it.
        tokenizer: of transformers; by default BERT's uncased vocabulary, which all published models use.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
        ValueError: a Hugging Face family with a config that transformers has no class for.
    """
    folder = Path(folder).expanduser().absolute()
    partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        try:
            _write(model, partial, tokenizer)
            for name, text in (extra or {}).items():
                (partial / name).write_text(text, encoding="utf-8")
            _move(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"could not write the model to {folder}: {error}") from error


def _write(model: GroundingDino | Glip, folder: Path, tokenizer: Any) -> None:
    if isinstance(model.config, GlipConfig) or model.config.family == "edge":
        save_plain(model, folder)
    elif model.config.family == "nano":
        save_native(model, folder)
        return
    else:
        save_huggingface(model, folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    elif model.config.text_config["vocab_size"] >= 30522:
        shutil.copyfile(BERT_VOCABULARY, folder / "tokenizer.json")
        text = json.dumps(_TOKENIZER_CONFIG, indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _move(partial: Path, folder: Path) -> None:
    for file in partial.iterdir():
        shutil.copymode(partial / "config.json", file)  # safetensors makes private files
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    if not folder.exists():
        partial.rename(folder)
        return
    for file in sorted(partial.iterdir()):
        file.replace(folder / file.name)
