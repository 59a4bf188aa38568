"""COCO annotations: what is read, and how each kind of bad record is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from groundingml.training.readers.coco import DatasetError, read_coco


def good(folder: Path) -> dict[str, Any]:
    """Two 40 x 20 images; the first has a cat and a dog, the second nothing."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 20)).save(folder / name)
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 40, "height": 20},
            {"id": 2, "file_name": "b.png", "width": 40, "height": 20},
        ],
        "annotations": [
            {"id": 11, "image_id": 1, "category_id": 5, "bbox": [4, 2, 10, 8], "iscrowd": 0},
            {"id": 12, "image_id": 1, "category_id": 6, "bbox": [20, 2, 30, 8], "weight": 0.5},
        ],
        "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": " dog "}, {"id": 9, "name": "owl"}],
    }


def test_reads_boxes_names_weights_and_what_is_absent(tmp_path: Path) -> None:
    (tmp_path / "coco.json").write_text(json.dumps(good(tmp_path)))
    read = read_coco(tmp_path / "coco.json", tmp_path)
    assert read.names == ["cat", "dog", "owl"]
    assert read.problems == []
    first, second = read.records
    assert first.boxes_xyxy == ((4, 2, 14, 10), (20, 2, 40, 10))  # the dog sticks out on the right: clipped
    assert first.names == ("cat", "dog")
    assert first.weights == (1.0, 0.5)
    assert first.absent == ("owl",)
    assert second.boxes_xyxy == ()
    assert second.absent == ("cat", "dog", "owl")


def test_crowds_are_kept_apart_and_their_name_is_not_absent(tmp_path: Path) -> None:
    content = good(tmp_path)
    content["annotations"][0]["iscrowd"] = 1
    record = read_coco(content, tmp_path).records[0]
    assert record.names == ("dog",)
    assert record.crowds == (((4.0, 2.0, 14.0, 10.0), "cat"),)
    assert record.absent == ("owl",)


def test_an_image_may_say_itself_what_is_absent(tmp_path: Path) -> None:
    content = good(tmp_path)
    content["images"][1]["neg_category_ids"] = [6]
    assert read_coco(content, tmp_path).records[1].absent == ("dog",)


def test_a_score_is_a_weight_and_pseudo_labels_need_no_size(tmp_path: Path) -> None:
    content = good(tmp_path)
    content["annotations"][0]["score"] = 0.25
    del content["images"][0]["width"]
    del content["images"][0]["height"]
    record = read_coco(content, tmp_path).records[0]
    assert record.weights == (0.25, 0.5)
    assert (record.width, record.height) == (40, 20)


def break_image(content: dict[str, Any], **changes: Any) -> None:
    content["images"][0].update(changes)


def break_box(content: dict[str, Any], **changes: Any) -> None:
    content["annotations"][1].update(changes)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda c: break_box(c, bbox=[1, 2, 3]), "annotations[1] (id 12): 'bbox' must be four numbers"),
        (lambda c: break_box(c, bbox=[1, 2, None, 4]), "annotations[1] (id 12): 'bbox' must be four numbers"),
        (lambda c: break_box(c, bbox=[1, 2, float("nan"), 4]), "(id 12): 'bbox' must be four numbers"),
        (lambda c: break_box(c, bbox=[5, 2, -3, 4]), "annotations[1] (id 12): 'bbox' has no area"),
        (lambda c: break_box(c, bbox=[50, 2, 3, 4]), "lies outside its 40x20 image"),
        (lambda c: break_box(c, weight=-1), "(id 12): its weight must be a number >= 0, found -1"),
        (lambda c: break_box(c, image_id=77), "(id 12): image_id 77 is not among the images"),
        (lambda c: break_box(c, category_id="5"), "(id 12): category_id '5' is not among the categories"),
        (lambda c: c["annotations"][1].pop("category_id"), "annotations[1] (id 12): has no 'category_id'"),
        (lambda c: c["annotations"].insert(1, "text"), "annotations[1]: expected an object, found 'text'"),
        (lambda c: break_image(c, file_name="lost.png"), "images[0] (id 1): no such file"),
        (lambda c: c["images"][0].pop("file_name"), "images[0] (id 1): has no 'file_name'"),
        (lambda c: break_image(c, width=41), "images[0] (id 1): annotated as 41x20, but "),
        (lambda c: break_image(c, id=2), "images[1] (id 2): an earlier one has the same id"),
        (lambda c: break_image(c, neg_category_ids=[4]), "'neg_category_ids' must be a list of ids"),
        (lambda c: c["categories"][2].update(name=" "), "categories[2] (id 9): has no 'name'"),
        (lambda c: c["categories"][2].pop("id"), "categories[2]: has no 'id'"),
    ],
)  # fmt: skip
def test_a_bad_record_is_named_with_its_place(spoil: Any, said: str, tmp_path: Path) -> None:
    content = good(tmp_path)
    spoil(content)
    with pytest.raises(DatasetError) as refused:
        read_coco(content, tmp_path)
    assert said in str(refused.value)
    skipped = read_coco(content, tmp_path, bad_records="skip")
    assert any(said in problem for problem in skipped.problems)
    assert skipped.records  # the rest is still of use


def test_a_damaged_image_file_is_a_bad_record_and_its_boxes_are_not_listed_again(tmp_path: Path) -> None:
    content = good(tmp_path)
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(DatasetError) as refused:
        read_coco(content, tmp_path)
    assert len(refused.value.problems) == 1
    assert "images[0] (id 1)" in refused.value.problems[0]
    assert "a.png" in refused.value.problems[0]


def test_a_picture_cut_short_is_found_when_images_are_decoded(tmp_path: Path) -> None:
    content = good(tmp_path)
    Image.effect_noise((40, 20), 50).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-200])
    content["images"][0]["file_name"] = "a.jpg"
    assert len(read_coco(content, tmp_path).records) == 2  # its header is whole
    with pytest.raises(DatasetError, match=r"images\[0\] \(id 1\): .*a\.jpg: damaged or cut short"):
        read_coco(content, tmp_path, decode_images=True)


def test_an_image_lying_on_its_side_counts_upright(tmp_path: Path) -> None:
    content = good(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 40)).save(tmp_path / "a.png", exif=exif)
    record = read_coco(content, tmp_path).records[0]
    assert (record.width, record.height) == (40, 20)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"images": [}', "not valid JSON: Expecting value at line 1, column 13"),
        ("[1, 2]", "expected a JSON object, found a list"),
        ('{"images": []}', "no list 'annotations': this is not a COCO detection file"),
    ],
)
def test_a_file_that_is_not_coco_is_refused_in_either_mode(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "coco.json").write_text(text)
    with pytest.raises(DatasetError) as refused:
        read_coco(tmp_path / "coco.json", tmp_path, bad_records="skip")
    assert said in str(refused.value)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"coco\.json.*No such file"):
        read_coco(tmp_path / "coco.json", tmp_path)


def test_many_problems_are_counted_and_the_first_shown(tmp_path: Path) -> None:
    content = good(tmp_path)
    content["annotations"] = [{"id": i, "image_id": 1, "category_id": 5, "bbox": []} for i in range(50)]
    with pytest.raises(DatasetError) as refused:
        read_coco(content, tmp_path)
    assert "50 bad records" in str(refused.value)
    assert "and 30 more" in str(refused.value)


def test_real_annotations_are_read_whole(shared_data: Path) -> None:
    folder = shared_data / "data" / "bccd"
    read = read_coco(folder / "train.json", folder / "images", bad_records="skip")
    assert len(read.records) == 205
    assert sum(len(record.names) for record in read.records) == 2804 - len(read.problems)
    assert len(read.problems) < 30
    assert set(read.names) == {"red blood cell", "white blood cell", "platelet"}
