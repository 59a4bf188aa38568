"""Results of very many images as files of some thousand records each, so that a run of days can be killed and
go on: JSON lines or Parquet, in a folder or a bucket.

A record is ``{"image", "width", "height", "boxes_xyxy", "scores", "labels", "error"}``: boxes in pixels of
the upright image; ``error`` is null, or says why there are none and the rest is empty.
"""

from __future__ import annotations

import io
import json
import posixpath
from collections.abc import Iterator
from typing import Any, Literal

ShardFormat = Literal["jsonl", "parquet"]
RUN_FILE = "run.json"


class ShardError(ValueError):
    """The output cannot be used for this run. The message says why and what to do."""


class Shards:
    """The numbered files of one run, and ``run.json``, which says what they are results of."""

    def __init__(self, folder: str, kind: ShardFormat) -> None:
        """``folder`` is a path or an fsspec URL; it is made when it is missing.

        Raises:
            ShardError: it cannot be used.
        """
        from fsspec.core import url_to_fs

        self.folder = folder
        self._kind = kind
        if kind == "parquet":
            _pyarrow()
        try:
            self._storage, self._root = url_to_fs(folder)
            self._storage.makedirs(self._root, exist_ok=True)
        except (ImportError, ValueError, OSError) as error:
            raise ShardError(f"{folder} cannot be written to: {error}") from error

    def begin(self, run: dict[str, Any], *, overwrite: bool) -> None:
        """Go on with the run that is there, or begin one.

        Raises:
            ShardError: the folder holds another run.
        """
        if overwrite:
            for file in [*self._parts(), self._path(RUN_FILE)]:
                if self._storage.exists(file):
                    self._storage.rm(file)
        if self._storage.exists(self._path(RUN_FILE)):
            with self._storage.open(self._path(RUN_FILE), "rt") as stream:
                if json.load(stream) != run:
                    raise ShardError(
                        f"{self.folder} holds results of another model, question or list of images; name "
                        "another --output, or add --overwrite to delete them"
                    )
        elif self._parts():
            raise ShardError(f"{self.folder} holds parts of something else; name another --output")
        else:
            self._write(RUN_FILE, json.dumps(run, indent=1).encode())

    def append(self, records: list[dict[str, Any]]) -> None:
        """Write one more file, whole or not at all."""
        number = len(self._parts())
        name = f"part-{number:06}.{self._kind}"
        if self._kind == "jsonl":
            lines = (json.dumps(record, ensure_ascii=False) for record in records)
            self._write(name, "".join(f"{line}\n" for line in lines).encode())
        else:
            pyarrow, parquet = _pyarrow()
            content = io.BytesIO()
            parquet.write_table(pyarrow.Table.from_pylist(records, schema=_schema(pyarrow)), content)
            self._write(name, content.getvalue())

    def records(self) -> Iterator[dict[str, Any]]:
        """All that is written, in the order of the images."""
        for file in self._parts():
            with self._storage.open(file, "rb") as stream:
                if self._kind == "jsonl":
                    for line in stream:
                        yield json.loads(line)
                else:
                    _, parquet = _pyarrow()
                    yield from parquet.read_table(stream).to_pylist()

    def remove(self) -> None:
        """Delete the files, and the folder if nothing else is in it."""
        self._storage.rm(self._root, recursive=True)

    def _parts(self) -> list[str]:
        pattern = self._path(f"part-*.{self._kind}")
        return sorted(str(file) for file in self._storage.glob(pattern))

    def _path(self, name: str) -> str:
        return posixpath.join(self._root, name)

    def _write(self, name: str, content: bytes) -> None:
        # A local file appears by its renaming; an object in a bucket appears when its upload is complete.
        hidden = self._path(f".{name}.tmp")
        with self._storage.open(hidden, "wb") as stream:
            stream.write(content)
        self._storage.mv(hidden, self._path(name))


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ShardError("Parquet needs pyarrow: pip install 'groundingml[ray]'") from error
    return pyarrow, pyarrow.parquet


def _schema(pyarrow: Any) -> Any:
    return pyarrow.schema(
        [
            ("image", pyarrow.string()),
            ("width", pyarrow.int32()),
            ("height", pyarrow.int32()),
            ("boxes_xyxy", pyarrow.list_(pyarrow.list_(pyarrow.float64()))),
            ("scores", pyarrow.list_(pyarrow.float64())),
            ("labels", pyarrow.list_(pyarrow.string())),
            ("error", pyarrow.string()),
        ]
    )
