"""Which format a file or folder has."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundingml.training.annotations import DatasetError
from groundingml.training.readers import detect_format, read_annotations


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", "{}", "coco"),
        ("a.json", "[]", "label-studio"),
        ("data.yaml", "", "yolo"),
        ("a.xml", "", "voc"),
        ("labels/classes.txt", "", "yolo"),
        ("xmls/a.xml", "", "voc"),
    ],
)
def test_told_from_the_file(name: str, content: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    assert detect_format(file.parent if "/" in name else file) == expected


def test_what_is_none_of_them_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="neither XML files"):
        detect_format(tmp_path)
    with pytest.raises(ValueError, match="no format 'csv'; choose one of coco"):
        read_annotations(tmp_path, kind="csv")
