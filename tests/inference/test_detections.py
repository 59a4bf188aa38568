from __future__ import annotations

import builtins
import json

import numpy as np
import pytest

from groundingml.inference import Detections


@pytest.fixture
def found() -> Detections:
    return Detections(
        boxes_xyxy=np.array([[10, 20, 30, 60], [0.123456, 0, 5, 5], [1, 1, 2, 2]], np.float32),
        scores=np.array([0.9, 0.5, 0.25], np.float32),
        labels=["cat", "dog", "cat"],
        label_ids=np.array([0, 2, 0]),
        image_size=(100, 200),
        label_names=("cat", "cow", "dog"),
    )


@pytest.mark.parametrize(
    ("selection", "labels", "why"),
    [
        (0, ["cat"], "one index still gives Detections"),
        (-1, ["cat"], "from the end"),
        (slice(1, None), ["dog", "cat"], "a slice"),
        ([2, 1], ["cat", "dog"], "a list of indices, in its order"),
        (np.array([True, False, True]), ["cat", "cat"], "a mask"),
        (np.array([], dtype=int), [], "nothing"),
    ],
)
def test_selection(found: Detections, selection: object, labels: list[str], why: str) -> None:
    some = found[selection]  # type: ignore[index]
    assert some.labels == labels, why
    assert len(some) == len(some.boxes_xyxy) == len(some.scores) == len(some.label_ids) == len(labels)
    assert some.image_size == found.image_size
    assert some.label_names == found.label_names


def test_selection_keeps_rows_together(found: Detections) -> None:
    second = found[1]
    assert second.boxes_xyxy[0].tolist() == pytest.approx([0.123456, 0, 5, 5])
    assert second.scores.tolist() == [0.5]
    assert second.label_ids.tolist() == [2]
    with pytest.raises(IndexError):
        found[3]


def test_above_includes_the_threshold(found: Detections) -> None:
    assert found.above(0.5).labels == ["cat", "dog"]
    assert len(found.above(0.95)) == 0


def test_to_dict_is_json(found: Detections) -> None:
    assert json.loads(json.dumps(found.to_dict())) == {
        "image_size": [100, 200],
        "detections": [
            {"label": "cat", "label_id": 0, "score": 0.9, "box_xyxy": [10, 20, 30, 60]},
            {"label": "dog", "label_id": 2, "score": 0.5, "box_xyxy": [0.12, 0, 5, 5]},
            {"label": "cat", "label_id": 0, "score": 0.25, "box_xyxy": [1, 1, 2, 2]},
        ],
    }


def test_to_coco(found: Detections) -> None:
    records = found.to_coco(image_id=7)
    assert records[1] == {"image_id": 7, "category_id": 2, "bbox": [0.12, 0, 4.88, 5], "score": 0.5}
    assert [record["category_id"] for record in records] == [0, 2, 0]
    json.dumps(records)
    assert [r["category_id"] for r in found.to_coco(7, {"cat": 17, "dog": 18})] == [17, 18, 17]
    with pytest.raises(KeyError, match="dog"):
        found.to_coco(7, {"cat": 17})


def test_to_supervision(found: Detections) -> None:
    supervision = pytest.importorskip("supervision")
    theirs = found.to_supervision()
    assert isinstance(theirs, supervision.Detections)
    assert np.array_equal(theirs.xyxy, found.boxes_xyxy)
    assert np.array_equal(theirs.confidence, found.scores)
    assert theirs.class_id.tolist() == [0, 2, 0]
    assert theirs["class_name"].tolist() == ["cat", "dog", "cat"]
    assert len(found[[]].to_supervision()) == 0


def test_without_supervision_the_error_says_what_to_install(
    found: Detections, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name == "supervision":
            raise ImportError("No module named 'supervision'")
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'groundingml\[supervision\]'"):
        found.to_supervision()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 labels, but .* \(\(1, 4\), "):
        Detections(np.zeros((1, 4)), np.zeros(2), ["a", "b"], np.zeros(2, int), (1, 1))  # type: ignore[arg-type]


def test_a_part_of_an_image(found: Detections) -> None:
    moved = found.moved((7, 3), (500, 400))
    assert moved.boxes_xyxy[0].tolist() == [17, 23, 37, 63]
    assert moved.boxes_xyxy.dtype == np.float32
    assert (moved.image_size, moved.labels, moved.label_names) == (
        (500, 400),
        found.labels,
        found.label_names,
    )
    assert found.boxes_xyxy[0].tolist() == [10, 20, 30, 60], "the original stays"
