"""Checkpoint files are whole or absent, and run no code when read."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from groundingml.training.checkpoint import CheckpointError, read_checkpoint, write_checkpoint


def test_round_trip_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "run" / "last.pt"
    write_checkpoint(
        path, {"model": {"w": torch.arange(3)}, "best": float("-inf"), "history": [{"map50": 0.5}]}
    )
    write_checkpoint(path, {"model": {"w": torch.arange(3) + 1}, "step": 7})
    state = read_checkpoint(path)
    assert state["model"]["w"].tolist() == [1, 2, 3]
    assert state["step"] == 7
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_keeps_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    write_checkpoint(path, {"step": 1})

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write_checkpoint(path, {"step": 2})
    assert read_checkpoint(path)["step"] == 1
    assert list(tmp_path.iterdir()) == [path]


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("created-by-a-checkpoint",)


def test_a_file_with_code_in_it_is_refused_without_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "model": _Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"evil\.pt is damaged or no checkpoint"):
        read_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "created-by-a-checkpoint").exists()


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps({"format": 1}, protocol=2)[:8]])
def test_damaged_files_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.pt is damaged"):
        read_checkpoint(tmp_path / "last.pt")


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "none.pt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match="has checkpoint format None; this version reads 2"):
        read_checkpoint(tmp_path / "foreign.pt")
