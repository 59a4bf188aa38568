"""Reading weight files: what is read, what is refused, and that nothing in a file is ever executed."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from groundingml.models.checkpoints.errors import CheckpointError
from groundingml.models.checkpoints.weights import read_weights, shard_files

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}


def assert_read(file: Path) -> None:
    found = read_weights([file])
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "weights"])
def test_safetensors_by_content(tmp_path, name):
    save_file(WEIGHTS, tmp_path / name)
    assert_read(tmp_path / name)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"model": WEIGHTS},
        {"state_dict": OrderedDict(WEIGHTS), "optimizer": {"lr": 1.0}},
        {"model": {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}},
    ],
    ids=["plain", "model", "state_dict", "module"],
)
def test_torch_files(tmp_path, content, zipped):
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert_read(tmp_path / "x.pth")


@pytest.fixture
def training_framework(monkeypatch):
    """Classes as MMEngine's, importable while a file is written and absent while it is read."""
    module = types.ModuleType("mmengine")
    history = types.ModuleType("mmengine.logging.history_buffer")
    config = types.ModuleType("mmengine.config.config")

    class HistoryBuffer:
        def __init__(self):
            self._log_history = np.array([0.5, 0.25])
            self._count_history = np.array([1, 1])
            self._statistics_methods = OrderedDict(mean=None)

    class ConfigDict(dict):
        pass

    for cls, owner in ((HistoryBuffer, history), (ConfigDict, config)):
        cls.__module__, cls.__qualname__ = owner.__name__, cls.__name__
        setattr(owner, cls.__name__, cls)
    for name, value in (
        ("mmengine", module),
        ("mmengine.logging", types.ModuleType("mmengine.logging")),
        ("mmengine.config", types.ModuleType("mmengine.config")),
        (history.__name__, history),
        (config.__name__, config),
    ):
        monkeypatch.setitem(sys.modules, name, value)
    return types.SimpleNamespace(HistoryBuffer=HistoryBuffer, ConfigDict=ConfigDict, undo=monkeypatch.undo)


def test_what_training_frameworks_store_beside_the_weights_is_skipped(tmp_path, training_framework):
    content = {
        "state_dict": WEIGHTS,
        "meta": {"seed": np.int64(7), "cfg": training_framework.ConfigDict(lr=1e-4), "lr": np.float64(0.1)},
        "message_hub": {"log_scalars": OrderedDict({"train/loss": training_framework.HistoryBuffer()})},
        "args": argparse.Namespace(output=Path("/somewhere")),
    }
    torch.save(content, tmp_path / "epoch_12.pth")
    training_framework.undo()
    assert "mmengine" not in sys.modules
    assert_read(tmp_path / "epoch_12.pth")


class Exploit:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_a_file_that_runs_a_command_is_refused_and_runs_nothing(tmp_path, zipped):
    target = tmp_path / "ran"
    content = {"state_dict": WEIGHTS, "meta": Exploit(os.system, f"touch {target}")}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"posix\.system.*refused"):
        read_weights([tmp_path / "x.pth"])
    assert not target.exists()


def test_a_bare_pickle_is_refused_and_runs_nothing(tmp_path):
    target = tmp_path / "ran"
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"a": Exploit(os.system, f"touch {target}")}, protocol=2))
    with pytest.raises(CheckpointError, match=r"x\.pth"):
        read_weights([tmp_path / "x.pth"])
    assert not target.exists()


def test_a_function_of_a_known_package_is_not_called_either(tmp_path):
    """numpy is a known package, and some of its functions run what they are given."""
    from numpy.testing import runstring

    target = tmp_path / "ran"
    code = f"open({str(target)!r}, 'w')"
    torch.save({"state_dict": WEIGHTS, "meta": Exploit(runstring, code, {})}, tmp_path / "x.pth")
    assert_read(tmp_path / "x.pth")
    assert not target.exists()


def test_builtins_are_not_called(tmp_path):
    torch.save({"state_dict": WEIGHTS, "meta": Exploit(eval, "1 / 0")}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"builtins\.eval"):
        read_weights([tmp_path / "x.pth"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 693997677\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html><body>Not Found</body></html>", "web page"),
        (b"\n<html>", "web page"),
        (b'{"model_type": "grounding-dino"}', "JSON"),
        (bytes(4096), "interrupted download"),
        (pickle.dumps({"a": 1}, protocol=4), "pickle that PyTorch did not write"),
        (b"Entry not found", "neither safetensors nor a PyTorch file"),
    ],
)
@pytest.mark.parametrize("name", ["x.pth", "model.safetensors"])
def test_what_is_no_checkpoint_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}.*{said}"):
        read_weights([tmp_path / name])


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_truncated_files(tmp_path, kind, kept):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    weights = {"a": torch.arange(5000.0), "b": torch.arange(100.0)}
    if kind == "safetensors":
        save_file(weights, whole)
    else:
        torch.save(weights, whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    cut.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointError, match="cut short"):
        read_weights([cut])


@pytest.mark.parametrize(
    ("content", "said"),
    [([1, 2], "holds a list"), ({"a": 1, "b": "x"}, "holds no tensors; its entries are a, b")],
)
def test_torch_files_without_weights(tmp_path, content, said):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=said):
        read_weights([tmp_path / "x.pth"])


def test_shards(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for (key, tensor), name in zip(WEIGHTS.items(), names, strict=True):
        save_file({key: tensor}, tmp_path / name)
    index.write_text(json.dumps({"weight_map": dict(zip(WEIGHTS, names, strict=True))}))
    assert read_weights(shard_files(index)).keys() == WEIGHTS.keys()
    (tmp_path / names[1]).unlink()
    with pytest.raises(CheckpointError, match=f"lacks 1 of 2 shards: {names[1]}"):
        shard_files(index)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not a Hugging Face weight index"),
        ("[]", "not a"),
        ('{"weight_map": {"a": "../x"}}', "outside its folder"),
    ],
)
def test_damaged_index(tmp_path, text, said):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(CheckpointError, match=said):
        shard_files(index)
