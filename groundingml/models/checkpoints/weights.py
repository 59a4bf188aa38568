"""Reading weight files without ever executing what is in them, and without a second copy in memory.

``.safetensors`` files are mapped into memory. PyTorch files (``.pth``, ``.pt``, ``.bin``) are pickles: they
are read with ``torch.load(weights_only=True)``, which builds tensors and containers only. Training frameworks
put more beside the weights (MMEngine: message hub, history buffers, numpy scalars; the original repository:
argparse options). What such known packages name is replaced by a placeholder that does nothing and keeps
nothing; a file that names anything else is refused.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from groundingml.models.checkpoints.errors import CheckpointError, listed

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # in a Hugging Face folder; shards have an index

# Packages whose objects training frameworks store beside the weights. Their code never runs: see _Discarded.
_KNOWN_PACKAGES = {
    "addict", "argparse", "collections", "datetime", "easydict", "fairscale", "fvcore", "maskrcnn_benchmark",
    "mmcv", "mmdet", "mmengine", "numpy", "omegaconf", "pathlib", "util", "yacs",
}  # fmt: skip
# Of those, classes that pickle fills like a dict.
_KNOWN_DICTS = {"AttrDict", "CfgNode", "ConfigDict", "Dict", "EasyDict"}
_WEIGHT_KEYS = ("state_dict", "model")  # where MMDetection and the original repository put the weights
_DAMAGED = "it is damaged or was cut short: fetch it again"
_REFUSED = (
    "which could run code of its author: refused. If you trust it, load it with its own software and save "
    "its state dict as safetensors"
)
# What torch raises on bytes that are not what they seem.
_UNREADABLE = (
    RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    struct.error,
)  # fmt: skip
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80\x02"


def read_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """All parameters of one checkpoint, in one file or in shards, on the CPU, under the file's names.

    Raises:
        CheckpointError: a file that is no checkpoint, truncated, or that needs more than tensors to be read.
    """
    weights: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in _read_file(file).items():
            if name in weights:
                raise CheckpointError(f"{name} is in more than one of {listed(f.name for f in files)}")
            weights[name] = tensor
    return weights


def shard_files(index: Path) -> tuple[Path, ...]:
    """The files that a Hugging Face index (``model.safetensors.index.json``) names, in order of name.

    Raises:
        CheckpointError: an index that cannot be read, or shards that are missing.
    """
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a Hugging Face weight index: {error!r}") from error
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{index} names files outside its folder: {listed(outside)}")
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise CheckpointError(f"{index.parent} lacks {len(absent)} of {len(names)} shards: {listed(absent)}")
    return tuple(index.parent / name for name in names)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weight file of a folder, or its shards; empty if there is none.

    Raises:
        CheckpointError: several files of other names, one of which has to be named; or missing shards.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return (folder / name,)
        if (folder / f"{name}.index.json").is_file():
            return shard_files(folder / f"{name}.index.json")
    endings = (".pth", ".pt", ".safetensors")
    others = sorted(file for file in folder.glob("*") if file.suffix in endings and file.is_file())
    if len(others) > 1:
        names = listed(file.name for file in others)
        raise CheckpointError(f"{folder} holds several checkpoints, name one: {names}")
    return tuple(others)


def _read_file(file: Path) -> dict[str, Tensor]:
    with file.open("rb") as stream:
        head = stream.read(512)
    if head[:2] == _PICKLE or head[:4] == _ZIP:
        return _read_torch(file, zipped=head[:4] == _ZIP)
    if head[8:9] == b"{":  # a safetensors file: eight bytes of length, then JSON
        return _read_safetensors(file)
    raise CheckpointError(f"{file} is no checkpoint: {_what_it_is(head)}")


def _what_it_is(head: bytes) -> str:
    text = head.lstrip().lower()
    if not head:
        return "it is empty"
    if text.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer, not the file itself: run `git lfs pull` there, or use `hf download`"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page saved under that name; download the file itself (use `hf download`)"
    if text.startswith(b"{"):
        return "it is JSON; give the folder, or the weight file beside it"
    if head.startswith(b"\x80"):
        return "it is a Python pickle that PyTorch did not write, which could run code of its author"
    if not head.strip(b"\0"):
        return "it begins with zeros only, as after an interrupted download; fetch it again"
    return "it is neither safetensors nor a PyTorch file; it may be damaged or of another kind"


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(file)  # mapped: pages are read when they are used
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} cannot be read as safetensors ({_first_line(error)}); {_DAMAGED}"
        ) from error
    return weights


class _Discarded:
    """Stands in for an object of a training framework: takes any arguments and any state, keeps nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Discarded:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _read_torch(file: Path, zipped: bool) -> dict[str, Tensor]:
    stand_ins = _stand_ins(file) if zipped else []
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{file} needs {_named_global(error)} to be read, {_REFUSED}") from error
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{file} cannot be read as a PyTorch file ({_first_line(error)}); {_DAMAGED}"
        ) from error
    return _state_dict(file, content)


def _stand_ins(file: Path) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Placeholders for the classes and functions that the file's pickle names and torch does not allow."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except (*_UNREADABLE, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{file} cannot be read as a PyTorch file ({_first_line(error)}); {_DAMAGED}"
        ) from error
    foreign = sorted(name for name in names if name.partition(".")[0] not in _KNOWN_PACKAGES)
    if foreign:
        raise CheckpointError(f"{file} needs {listed(foreign)} to be read, {_REFUSED}")
    return [(OrderedDict if name.rpartition(".")[2] in _KNOWN_DICTS else _Discarded, name) for name in names]


def _state_dict(file: Path, content: object) -> dict[str, Tensor]:
    for key in _WEIGHT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not names and tensors")
    weights = {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    if not weights:
        raise CheckpointError(f"{file} holds no tensors; its entries are {listed(map(str, content))}")
    if all(name.startswith("module.") for name in weights):  # saved from (Distributed)DataParallel
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    return weights


def _named_global(error: pickle.UnpicklingError) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    return named.group(1) if named else "more than tensors"


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
