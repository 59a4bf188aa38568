"""VOC's XML files: what is read, and where each bad object is said to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundingml.training.annotations import DatasetError
from groundingml.training.readers import read_annotations, read_voc

BOX = "<bndbox><xmin>10</xmin><ymin>5</ymin><xmax>30.5</xmax><ymax>45</ymax></bndbox>"
CAT = f"<object><name>cat</name>{BOX}</object>"


def write(folder: Path, name: str, objects: str, size: str = "", filename: str = "") -> Path:
    file = folder / f"{name}.xml"
    file.write_text(
        f"<annotation><filename>{filename or name + '.png'}</filename>{size}{objects}</annotation>"
    )
    return file


@pytest.fixture
def folder(tmp_path: Path, pictures: Path) -> Path:
    folder = tmp_path / "Annotations"
    folder.mkdir()
    write(folder, "a", CAT, "<size><width>100</width><height>50</height></size>")
    write(folder, "b", "", filename="elsewhere.jpg")  # the picture of the same name counts
    return folder


def test_boxes_and_what_is_absent(folder: Path, pictures: Path) -> None:
    found = read_annotations(folder, pictures)
    assert found.names == ["cat"]
    first, second = found.records
    assert first.boxes_xyxy == ((10.0, 5.0, 30.5, 45.0),)
    assert (second.path.name, second.boxes_xyxy, second.absent) == ("b.png", (), ("cat",))


def test_pictures_are_looked_for_as_voc_keeps_them(folder: Path, pictures: Path) -> None:
    pictures.rename(pictures.with_name("JPEGImages"))
    assert len(read_voc(folder).records) == 2


@pytest.mark.parametrize(
    ("objects", "size", "said"),
    [
        (CAT + "<object><bndbox/></object>", "", "object 2: has no <name>"),
        (CAT + "<object><name>dog</name></object>", "", "object 2: 'dog' has no <bndbox>"),
        (CAT + CAT.replace("30.5", "10"), "", "object 2: 'bbox' has no area"),
        (CAT + CAT.replace("<xmin>10<", "<xmin>x<"), "", "object 2: 'cat' has no <bndbox> with numbers"),
        (CAT, "<size><width>50</width><height>100</height></size>", "annotated as 50x100, but"),
    ],
)
def test_a_bad_object_is_named_or_left_out(
    objects: str, size: str, said: str, folder: Path, pictures: Path
) -> None:
    file = write(folder, "a", objects, size)
    with pytest.raises(DatasetError) as refused:
        read_voc(folder, pictures)
    (problem,) = refused.value.problems
    assert problem.startswith(str(file))
    assert said in problem
    kept = read_voc(folder, pictures, bad_records="skip")
    assert kept.problems == [problem]
    assert len(kept.records) == (1 if size else 2)


def test_damaged_and_dangerous_files_are_named(folder: Path, pictures: Path) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY x "cat">]><annotation><object><name>&x;</name></object></annotation>'
    (folder / "b.xml").write_text(bomb)
    (folder / "c.xml").write_text("<annotation>")
    (folder / "d.xml").write_text("<html/>")
    found = read_voc(folder, pictures, bad_records="skip")
    assert len(found.records) == 1
    assert [problem.split(": ")[1] for problem in found.problems] == [
        "not valid XML",
        "not valid XML",
        "expected <annotation>, found <html>",
    ]
    with pytest.raises(DatasetError, match="no XML file"):
        read_voc(pictures)
