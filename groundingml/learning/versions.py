"""Version folders: a trained model with its thresholds, numbers and history, complete or not there at all.

    versions/7/run-12/  config.json, model.safetensors, ...  what loaders read
                        thresholds.json                      the least score of each label
                        metrics.json, provenance.json        for people, and for rollback
                        manifest.json                        the SHA-256 of every other file

A folder is written under a name that nothing loads, flushed to the disk, and renamed: a crash leaves the old
state. Half-written folders are removed by `sweep`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
METRICS = "metrics.json"
PROVENANCE = "provenance.json"
_FORMAT = 1
_PARTIAL = ".partial-"
_ABANDONED_S = 24 * 3600.0


class VersionError(ValueError):
    """A version folder that is incomplete, damaged or not there. The message says what is wrong with which
    file."""


@dataclass(frozen=True)
class VersionFolder:
    """A complete version on disk. digest: what its `checkpoint_digest` is, part of Label Studio's
    model_version."""

    path: Path
    digest: str
    files: Mapping[str, str]

    def read(self, name: str) -> dict[str, Any]:
        """One of its JSON files."""
        content: dict[str, Any] = json.loads((self.path / name).read_text("utf-8"))
        return content


class Draft:
    """A version being written; files go into ``path``, and `finish` makes it a version."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self._target = target
        self.finished: VersionFolder | None = None

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Add a JSON file."""
        text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True)
        (self.path / name).write_text(text + "\n", encoding="utf-8")

    def finish(self) -> VersionFolder:
        """Flush everything, add the manifest, and rename. A folder of that name, left by a run that was
        killed before it was noted, is replaced."""
        from groundingml.models import checkpoint_digest

        digest = checkpoint_digest(self.path)
        files = {file.name: _sha256(file) for file in sorted(self.path.iterdir())}
        self.write(MANIFEST, {"format": _FORMAT, "digest": digest, "files": files})
        for file in self.path.iterdir():
            _flush(file)
        _flush(self.path)
        if self._target.exists():
            shutil.rmtree(self._target)
        self.path.rename(self._target)
        _flush(self._target.parent)
        self.finished = VersionFolder(self._target, digest, files)
        return self.finished


@contextlib.contextmanager
def drafting(target: Path) -> Iterator[Draft]:
    """Write a new version folder. What is not finished when the context ends is removed.

    >>> with drafting(root / "7" / "12") as draft:
    ...     save_pretrained(model, draft.path)
    ...     draft.write("thresholds.json", thresholds)
    ...     version = draft.finish()
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f"{_PARTIAL}{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    partial.mkdir()
    try:
        yield Draft(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # renamed by then, if it was finished


def open_version(path: Path) -> VersionFolder:
    """A version folder whose every file is as it was written.

    Raises:
        VersionError: no such folder, no manifest (it was never finished), or a file that is missing, added in
            place of another, cut short or changed.
    """
    if not path.is_dir():
        raise VersionError(
            f"there is no version folder {path}; it may have been removed as one of the oldest"
        )
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        files, digest = dict(manifest["files"]), str(manifest["digest"])
        known = manifest["format"]
    except FileNotFoundError as error:
        raise VersionError(f"{path} has no {MANIFEST}: it was never written to its end") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VersionError(f"{path / MANIFEST} is damaged: {error!r}") from error
    if known != _FORMAT:
        raise VersionError(f"{path} is of format {known!r}; this release reads {_FORMAT}")
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise VersionError(f"{file} is missing")
        if _sha256(file) != expected:
            raise VersionError(f"{file} is not as it was written: its SHA-256 is not that of {MANIFEST}")
    return VersionFolder(path, digest, files)


def sweep(root: Path) -> list[Path]:
    """Remove what crashed writers left under ``root`` (the folder of all projects' versions); what was
    removed.

    A partial folder is another process's work while that process lives on this host, or, on another host, for
    a day.
    """
    removed = []
    for partial in root.glob(f"*/{_PARTIAL}*"):
        host, _, rest = partial.name.removeprefix(_PARTIAL).rpartition("-")[0].rpartition("-")
        if host == socket.gethostname() and rest.isdigit():
            abandoned = not process_lives(int(rest))
        else:
            abandoned = time.time() - partial.stat().st_mtime > _ABANDONED_S
        if abandoned:
            shutil.rmtree(partial, ignore_errors=True)
            removed.append(partial)
    return removed


def remove_version(path: Path) -> None:
    """Delete a version folder so that a crash in between leaves a partial folder and not a damaged
    version."""
    if path.is_dir():
        doomed = path.with_name(f"{_PARTIAL}{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def to_prune(
    newest_first: Iterable[int], parents: Mapping[int, int | None], serving: int | None, keep: int
) -> list[int]:
    """The versions whose folders may go: all but the newest ``keep``, the serving one, and the ``keep``
    before it that a rollback would return to.

    parents: version -> the one it was trained from, None for the base model.
    """
    needed: set[int] = set()
    step = serving
    while step is not None and step not in needed and len(needed) <= keep:
        needed.add(step)
        step = parents.get(step)
    return [version for version in list(newest_first)[keep:] if version not in needed]


def process_lives(pid: int) -> bool:
    """Whether there is a process of this number on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
