"""YOLO label files: what is read, and where each bad line is said to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundingml.training.annotations import DatasetError
from groundingml.training.readers import read_annotations, read_yolo


@pytest.fixture
def labels(tmp_path: Path, pictures: Path) -> Path:
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "classes.txt").write_text("cat\nred cup\n\n")
    (folder / "a.txt").write_text("1 0.5 0.5 0.2 0.4\n\n0 0.1 0.2 0.1 0.2 0.75\n")
    return folder


def test_boxes_weights_and_what_is_absent(labels: Path, pictures: Path) -> None:
    found = read_yolo(labels, pictures)
    assert found.names == ["cat", "red cup"]
    first, second = found.records
    assert (first.path, first.width, first.height) == (pictures / "a.png", 100, 50)
    assert first.names == ("red cup", "cat")
    assert first.boxes_xyxy[0] == pytest.approx((40, 15, 60, 35))
    assert first.boxes_xyxy[1] == pytest.approx((5, 5, 15, 15))
    assert first.weights == (1.0, 0.75)
    assert second.boxes_xyxy == ()  # a picture without a label file
    assert second.absent == ("cat", "red cup")


def test_a_data_file_names_classes_and_folders(labels: Path, pictures: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.yaml"
    data.write_text("path: .\ntrain: images\nval: val.txt\nnames: {0: cat, 1: red cup}\n")
    (tmp_path / "val.txt").write_text("images/b.png\n")
    (labels / "b.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.9 0.1 0.9\n")
    assert [record.path.name for record in read_annotations(data).records] == ["a.png", "b.png"]
    (only,) = read_annotations(data, split="val").records
    assert only.boxes_xyxy[0] == pytest.approx((4, 4, 20, 36))  # the box around a polygon


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("cat 0.5 0.5 0.1 0.1", "expected a class number"),
        ("7 0.5 0.5 0.1 0.1", "class 7 has no name: there are 2"),
        ("0 0.5 0.5 0.1", "expected 4 numbers after the class, found 3"),
        ("0 50 25 10 10", "look like pixels"),
        ("0 nan 0.5 0.1 0.1", "look like pixels"),
        ("0 0.5 0.5 0 0.1", "has no area"),
        ("0 0.5 0.5 0.1 0.1 -1", "score must be a number >= 0"),
    ],
)
def test_a_bad_line_is_named_or_left_out(line: str, said: str, labels: Path, pictures: Path) -> None:
    (labels / "a.txt").write_text(f"1 0.5 0.5 0.2 0.4\n{line}\n")
    with pytest.raises(DatasetError) as refused:
        read_yolo(labels, pictures)
    (problem,) = refused.value.problems
    assert problem.startswith(f"{labels / 'a.txt'}:2: ")
    assert said in problem
    kept = read_yolo(labels, pictures, bad_records="skip")
    assert kept.problems == [problem]
    assert kept.records[0].names == ("red cup",)


def test_what_is_missing_is_said(labels: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("train: nowhere\nnames: [cat]\n")
    with pytest.raises(DatasetError, match=r"no such folder or file: .*nowhere"):
        read_yolo(tmp_path / "data.yaml")
    (tmp_path / "data.yaml").write_text("train: [")
    with pytest.raises(DatasetError, match="not valid YAML"):
        read_yolo(tmp_path / "data.yaml")
    (labels / "classes.txt").unlink()
    with pytest.raises(DatasetError, match=r"no classes\.txt"):
        read_yolo(labels, pictures)
