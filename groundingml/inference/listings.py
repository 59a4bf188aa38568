"""Where many images are: a folder, a bucket (any fsspec URL), or a manifest that names them line by line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

MAX_IMAGE_BYTES = 500_000_000
"""A larger file from elsewhere is refused rather than read into memory."""


class Listed(NamedTuple):
    """An image of a listing: ``name`` in results (relative to a folder), and the path or URL to read."""

    name: str
    location: str


class ListingError(ValueError):
    """A folder, bucket or manifest cannot be read. The message says why and what to do."""


def is_url(location: str) -> bool:
    """Whether this is read through fsspec rather than as a local path."""
    return "://" in location


def list_images(place: str, is_image: Callable[[str], bool]) -> Iterator[Listed]:
    """The images in a local folder or under an fsspec URL like ``s3://bucket/photos``, and below, in order.

    Local names are relative to the folder; those of a bucket are whole URLs. ``is_image`` decides by the
    file's name.

    Raises:
        ListingError: there is no such folder, or its storage cannot be used.
    """
    if not is_url(place):
        root = Path(place).resolve()
        if not root.is_dir():
            raise ListingError(f"{place} is not a folder")
        for file in sorted(root.rglob("*")):
            if is_image(file.name) and file.is_file():
                yield Listed(file.relative_to(root).as_posix(), str(file))
        return
    storage, path = _storage_of(place)
    try:
        files = sorted(storage.find(path))
    except Exception as error:  # each storage has errors of its own
        raise ListingError(f"{place} cannot be listed: {type(error).__name__}: {error}") from error
    for file in files:
        if is_image(file):
            url = storage.unstrip_protocol(file)
            yield Listed(url, url)


def read_manifest(place: str) -> Iterator[Listed]:
    """The images that a text file names, one path or URL a line, read line by line (``.gz`` too).

    Empty lines and those that start with ``#`` are skipped; relative paths start at the manifest's folder.

    Raises:
        ListingError: the manifest cannot be read.
    """
    import fsspec

    folder = None if is_url(place) else Path(place).resolve().parent
    try:
        with fsspec.open(place, "rt", encoding="utf-8-sig", compression="infer") as lines:
            for line in lines:
                name = line.strip()
                if not name or name.startswith("#"):
                    continue
                location = name
                if not is_url(name):
                    if folder is None and not os.path.isabs(name):
                        raise ListingError(f"{place}: {name!r} must be a URL or an absolute path")
                    location = str((folder or Path("/")) / name)
                yield Listed(name, location)
    except ListingError:
        raise
    except Exception as error:  # each storage has errors of its own
        raise ListingError(f"{place} cannot be read: {type(error).__name__}: {error}") from error


def read_remote(url: str) -> bytes:
    """A file's bytes through fsspec.

    Raises:
        OSError: it cannot be read, or is too large.
    """
    try:
        storage, path = _storage_of(url)
        with storage.open(path, "rb") as file:
            content: bytes = file.read(MAX_IMAGE_BYTES + 1)
    except OSError:
        raise
    except Exception as error:  # each storage has errors of its own
        raise OSError(f"{type(error).__name__}: {error}") from error
    if len(content) > MAX_IMAGE_BYTES:
        raise OSError(f"larger than {MAX_IMAGE_BYTES:,} bytes")
    return content


def _storage_of(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        storage, path = url_to_fs(url)
    except ImportError as error:  # such as s3fs, gcsfs or adlfs
        raise ListingError(f"{url} needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise ListingError(f"{url}: {error}") from error
    return storage, path
