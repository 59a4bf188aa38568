"""Which images a command works on, and where its pictures go."""

from __future__ import annotations

import glob
from pathlib import Path, PurePosixPath

SUFFIXES = frozenset(
    ".jpg .jpeg .jfif .png .webp .gif .bmp .tif .tiff .ppm .pgm .jp2 .avif".split()  # noqa: SIM905
)
"""What counts as an image inside a folder. A file named by the user is tried whatever it is called."""

DRAWN = ".detected"
"""Part of the names of pictures with boxes; folders and patterns skip them, so that a second run ignores the
first."""


def find_images(arguments: list[str]) -> list[Path]:
    """Files, the images inside folders (and their subfolders), and those matching patterns; each once, in
    order.

    A file that does not exist is kept, for the one who reads it to say so.
    """
    found: dict[Path, Path] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if _is_input(file))
        elif not path.exists() and glob.has_magic(argument):
            matches = (Path(match) for match in glob.glob(argument, recursive=True))
            files = sorted(file for file in matches if _is_input(file))
        else:
            files = [path]
        for file in files:
            found.setdefault(file.absolute(), file)
    return list(found.values())


def is_image_name(name: str) -> bool:
    """Whether a file of this name inside a folder is an image to work on."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not path.stem.endswith(DRAWN)


def _is_input(file: Path) -> bool:
    return is_image_name(file.name) and file.is_file()


class DrawnNames:
    """Names for pictures with boxes: `photo.jpg` -> `photo.detected.jpg`, never the same name twice in a run.

    Args:
        output: a file for a single image, a folder, or None for the working directory.
        single: whether there is only one image.

    Raises:
        ValueError: a file was given for several images.
    """

    def __init__(self, output: Path | None, single: bool) -> None:
        self._file: Path | None = None
        self._folder = Path()
        self._taken: set[Path] = set()
        if output is None:
            return
        if output.is_dir() or output.suffix.lower() not in SUFFIXES:
            self._folder = output
        elif single:
            self._file = output
        else:
            raise ValueError(f"--output {output} is one file, but there are several images; name a folder")

    def name_for(self, image: Path) -> Path:
        """Where to save the picture for this image."""
        if self._file is not None:
            return self._file
        target = self._folder / f"{image.stem}{DRAWN}.jpg"
        number = 2
        while target in self._taken:
            target = self._folder / f"{image.stem}-{number}{DRAWN}.jpg"
            number += 1
        self._taken.add(target)
        return target
