"""Image files on disk, by the digest of their content, so that an image is not fetched again for every prompt
and every training run.

A file appears whole or not at all, a damaged one is noticed when it is read, and the folder stays within a
limit: the files used longest ago go first. Several processes may share it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import threading
import time
from pathlib import Path

logger = logging.getLogger(__name__)

CACHE_BYTES = 5_000_000_000
_FILL_AFTER_TRIM = 0.9
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ImageCache:
    """A folder of image files and of what they are called. Safe to use from several threads and processes.

    Args:
        folder: made when the first file is kept.
        most_bytes: all files together.
    """

    def __init__(self, folder: Path, most_bytes: int = CACHE_BYTES) -> None:
        self._files = folder / "files"
        self._names = folder / "names"
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._bytes: int | None = None
        self._has_failed = False

    def get(self, name: str, most_age_s: float | None = None) -> bytes | None:
        """The file kept under a name; None when there is none, or it is damaged or older than that."""
        entry = self._names / _hash(name)
        try:
            if most_age_s is not None and time.time() - entry.stat().st_mtime > most_age_s:
                return None
            digest = entry.read_text("ascii")
            if not _DIGEST.fullmatch(digest):
                return None
            file = self._file(digest)
            content = file.read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                file.unlink(missing_ok=True)
                return None
            os.utime(file)  # used now: the last to go
        except (OSError, ValueError):
            return None
        return content

    def put(self, name: str, content: bytes) -> None:
        """Keep a file under a name. A disk that is full or read-only costs the cache, not the image."""
        digest = hashlib.sha256(content).hexdigest()
        file = self._file(digest)
        try:
            if not file.exists():
                _write(file, content)
                self._count(len(content))
            _write(self._names / _hash(name), digest.encode("ascii"))
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                logger.warning("Images cannot be cached (%s); they are fetched each time", error.strerror)

    def _file(self, digest: str) -> Path:
        return self._files / digest[:2] / digest

    def _count(self, added: int) -> None:
        with self._lock:
            if self._bytes is None:
                self._bytes = sum(size for _, size, _ in self._listed())
            else:
                self._bytes += added
            if self._bytes > self._most_bytes:
                self._bytes = self._trim()

    def _trim(self) -> int:
        """Remove the files used longest ago, and names that point nowhere. What is left, in bytes."""
        listed = sorted(self._listed())
        left = sum(size for _, size, _ in listed)
        for _, size, file in listed:
            if left <= _FILL_AFTER_TRIM * self._most_bytes:
                break
            file.unlink(missing_ok=True)
            left -= size
        for entry in self._names.iterdir():
            with contextlib.suppress(OSError, ValueError):
                if not self._file(entry.read_text("ascii")).exists():
                    entry.unlink(missing_ok=True)
        return left

    def _listed(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, file) of all files; half-written ones of a process that died are removed."""
        found = []
        for file in self._files.glob("*/*"):
            with contextlib.suppress(OSError):  # another process removed it
                status = file.stat()
                if _DIGEST.fullmatch(file.name):
                    found.append((status.st_mtime, status.st_size, file))
                elif time.time() - status.st_mtime > 3600:
                    file.unlink()
        return found


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def _write(file: Path, content: bytes) -> None:
    """Write under another name, then rename: readers see the whole file or none."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    unfinished = file.with_name(f".{file.name[:16]}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as output:
            output.write(content)
        os.replace(unfinished, file)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
