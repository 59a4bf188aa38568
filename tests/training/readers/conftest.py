"""Pictures to annotate: `a.png` is 100 x 50, `b.png` 40 x 40."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (100, 50), "gray").save(folder / "a.png")
    Image.new("RGB", (40, 40), "gray").save(folder / "b.png")
    return folder
