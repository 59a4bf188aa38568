from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizerFast

from groundingml.inference import Detections, Detector, ImageError, Label, load_image
from groundingml.inference.preprocessing import preprocess

CENTRE = (0.5, 0.5, 0.2, 0.4)
LEFT_TOP = (0.1, 0.1, 0.1, 0.1)


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (100, 200, 3), dtype=np.uint8))


def test_prepared_answers_become_boxes_in_pixels(
    prepared: Callable[..., Detector], image: Image.Image
) -> None:
    # "[CLS] cat . remote control . [SEP]": cat is token 1, remote control 3 and 4.
    detector = prepared([(CENTRE, {1: 0.8}), (LEFT_TOP, {3: 0.4, 4: 0.6})])
    found = detector(image, labels=["cat", "remote control"])
    assert found.labels == ["cat", "remote control"]
    assert found.scores.tolist() == pytest.approx([0.8, 0.6], abs=1e-6)
    assert found.boxes_xyxy.tolist() == [
        pytest.approx([80, 30, 120, 70]),
        pytest.approx([10, 5, 30, 15], abs=1e-4),
    ]
    assert found.label_ids.tolist() == [0, 1]
    assert found.image_size == (100, 200)
    assert found.label_names == ("cat", "remote control")
    assert (found.boxes_xyxy.dtype, found.scores.dtype, found.label_ids.dtype) == (
        np.float32,
        np.float32,
        np.int64,
    )


@pytest.mark.parametrize(
    ("aggregation", "score", "why"), [("max", 0.6, "the best token"), ("mean", 0.5, "the mean of its tokens")]
)
def test_the_config_chooses_the_aggregate(
    prepared: Callable[..., Detector], image: Image.Image, aggregation: str, score: float, why: str
) -> None:
    detector = prepared([(CENTRE, {3: 0.4, 4: 0.6, 2: 0.99, 0: 0.99})], score_aggregation=aggregation)
    found = detector(image, labels=["cat", "remote control"])
    assert found.labels == ["remote control"]
    assert found.scores.tolist() == pytest.approx([score], abs=1e-6), why


@pytest.mark.parametrize(
    ("threshold", "labels", "expected", "why"),
    [
        (None, ["cat", "dog"], ["cat"], "the model's own threshold, 0.3"),
        (0.1, ["cat", "dog"], ["cat", "dog"], "the caller's"),
        (0.9, ["cat", "dog"], [], "nothing reaches it"),
        (0.9, ["cat", Label("dog", threshold=0.1)], ["dog"], "a label's own wins"),
        (0.1, ["cat", Label("dog", threshold=0.9)], ["cat"], "in both directions"),
    ],
)
def test_thresholds(
    prepared: Callable[..., Detector],
    image: Image.Image,
    threshold: float | None,
    labels: list[str | Label],
    expected: list[str],
    why: str,
) -> None:
    detector = prepared([(CENTRE, {1: 0.8}), (LEFT_TOP, {3: 0.2})])
    assert detector(image, labels=labels, threshold=threshold).labels == expected, why


@pytest.mark.parametrize(
    ("box", "expected", "why"),
    [
        ((0.0, 0.5, 0.2, 0.4), [0, 30, 20, 70], "clipped at the left"),
        ((1.0, 1.0, 0.2, 0.4), [180, 80, 200, 100], "clipped at the right and bottom"),
        ((0.5, 0.5, 3.0, 3.0), [0, 0, 200, 100], "clipped all around"),
        ((0.5, 0.5, 0.0, 0.4), None, "no width"),
        ((0.5, 0.5, 0.2, 0.001), None, "thinner than half a pixel"),
        ((1.5, 0.5, 0.2, 0.4), None, "outside the image"),
        ((float("nan"), 0.5, 0.2, 0.4), None, "not a number"),
    ],
)
def test_boxes_lie_inside_the_image(
    prepared: Callable[..., Detector],
    image: Image.Image,
    box: tuple[float, ...],
    expected: list[float] | None,
    why: str,
) -> None:
    found = prepared([(box, {1: 0.8})])(image, labels=["cat"])
    assert [b.tolist() for b in found.boxes_xyxy] == (
        [] if expected is None else [pytest.approx(expected)]
    ), why


def test_boxes_are_in_pixels_of_the_upright_image(prepared: Callable[..., Detector], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: stored 200x100, shown 100x200
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (200, 100)).save(path, exif=exif)
    found = prepared([(CENTRE, {1: 0.8})])(path, labels=["cat"])
    assert found.image_size == (200, 100)
    assert found.boxes_xyxy[0].tolist() == pytest.approx([40, 60, 60, 140], abs=1e-4)


def test_images_of_several_sizes_in_one_call(prepared: Callable[..., Detector], image: Image.Image) -> None:
    tall = image.rotate(90, expand=True)
    detector = prepared([(CENTRE, {1: 0.8})])
    wide_found, tall_found = detector([image, tall], labels=["cat"], batch_size=2)
    assert wide_found.boxes_xyxy[0].tolist() == pytest.approx([80, 30, 120, 70])
    assert tall_found.boxes_xyxy[0].tolist() == pytest.approx([40, 60, 60, 140], abs=1e-4)


@pytest.mark.parametrize(
    ("labels", "answer", "expected", "why"),
    [
        (
            {"pet": ["cat", "dog"]},
            [(CENTRE, {1: 0.5}), (CENTRE, {3: 0.8})],
            [("pet", 0.8)],
            "two aliases, two queries, one object",
        ),
        ({"pet": ["cat", "dog"]}, [(CENTRE, {1: 0.5, 3: 0.8})], [("pet", 0.8)], "two aliases, one query"),
        (
            {"pet": ["cat", "dog"]},
            [(CENTRE, {1: 0.5}), (LEFT_TOP, {3: 0.8})],
            [("pet", 0.8), ("pet", 0.5)],
            "two objects stay two",
        ),
        (
            ["cat"],
            [(CENTRE, {1: 0.8}), (CENTRE, {1: 0.5})],
            [("cat", 0.8), ("cat", 0.5)],
            "no suppression inside one prompt",
        ),
        (
            ["cat", "dog"],
            [(CENTRE, {1: 0.8}), (CENTRE, {3: 0.5})],
            [("cat", 0.8), ("dog", 0.5)],
            "nor between labels",
        ),
        (
            ["Cat", "cat"],
            [(CENTRE, {1: 0.8})],
            [("Cat", 0.8), ("cat", 0.8)],
            "equal prompts score for both names",
        ),
    ],
)
def test_merging_of_aliases(
    prepared: Callable[..., Detector],
    image: Image.Image,
    labels: object,
    answer: list[object],
    expected: list[tuple[str, float]],
    why: str,
) -> None:
    found = prepared(answer)(image, labels=labels)  # type: ignore[call-overload]
    assert list(zip(found.labels, found.scores.tolist(), strict=True)) == [
        (label, pytest.approx(score, abs=1e-6)) for label, score in expected
    ], why


def test_the_caller_chooses_the_overlap_for_merging(
    prepared: Callable[..., Detector], image: Image.Image
) -> None:
    detector = prepared([(CENTRE, {1: 0.5}), ((0.5, 0.5, 0.2, 0.24), {3: 0.8})])  # IoU 0.6
    assert len(detector(image, labels={"pet": ["cat", "dog"]})) == 2
    assert len(detector(image, labels={"pet": ["cat", "dog"]}, merge_iou=0.5)) == 1


TOY = Label("cat", negative_prompts=("toy",))


@pytest.mark.parametrize(
    ("labels", "answer", "expected", "why"),
    [
        ([TOY], [(CENTRE, {1: 0.5}), (CENTRE, {3: 0.8})], [], "the negative prompt fits better"),
        ([TOY], [(CENTRE, {1: 0.8}), (CENTRE, {3: 0.5})], [("cat", 0.8)], "the label fits better"),
        ([TOY], [(CENTRE, {1: 0.5, 3: 0.8})], [], "one query for both"),
        ([TOY], [(CENTRE, {1: 0.5}), (LEFT_TOP, {3: 0.8})], [("cat", 0.5)], "the toy is elsewhere"),
        ([TOY, "dog"], [(CENTRE, {1: 0.5, 3: 0.6}), (CENTRE, {5: 0.8})], [("dog", 0.6)], "only its label"),
        ([Label("cat", threshold=0.1, negative_prompts=("toy",))], [(CENTRE, {1: 0.15, 3: 0.2})], [], "weak"),
        (
            [TOY, "toy"],
            [(CENTRE, {1: 0.5}), (CENTRE, {3: 0.8})],
            [("toy", 0.8)],
            "what is negative for one is a label by itself",
        ),
    ],
)
def test_negative_prompts(
    prepared: Callable[..., Detector],
    image: Image.Image,
    labels: list[str | Label],
    answer: list[object],
    expected: list[tuple[str, float]],
    why: str,
) -> None:
    found = prepared(answer)(image, labels=labels)
    assert list(zip(found.labels, found.scores.tolist(), strict=True)) == [
        (label, pytest.approx(score, abs=1e-6)) for label, score in expected
    ], why
    assert found.label_names == tuple(label if isinstance(label, str) else label.name for label in labels)


def test_merging_across_chunks(prepared: Callable[..., Detector], image: Image.Image) -> None:
    aliases = ["cat", *(f"thing {number}" for number in range(100))]  # too many for one chunk
    detector = prepared([(CENTRE, {1: 0.5}), (LEFT_TOP, {1: 0.4})], [(CENTRE, {1: 0.8})])
    assert len(detector.plan({"pet": aliases}).chunks) == 2
    found = detector(image, labels={"pet": aliases})
    assert found.scores.tolist() == pytest.approx([0.8, 0.4], abs=1e-6)
    # The same answers for two labels, one in each chunk, are all kept.
    found = detector(image, labels=aliases)
    assert found.scores.tolist() == pytest.approx([0.8, 0.5, 0.4], abs=1e-6)
    assert len(set(found.labels)) == 2


def test_the_image_is_encoded_once_whatever_the_number_of_labels(
    detector: Detector, image: Image.Image
) -> None:
    labels = [f"thing {number}" for number in range(1200)]
    found = detector(image, labels=labels, threshold=0.0)
    calls = detector.model.calls  # type: ignore[attr-defined]
    chunks = len(detector.plan(labels).chunks)
    assert chunks == 18
    assert calls == {"image": 1, "text": chunks, "ground": chunks}
    assert len(found) == 300
    assert set(found.labels) <= set(labels)
    assert [labels[number] for number in found.label_ids] == found.labels
    assert (np.diff(found.scores) <= 0).all()


def test_text_is_encoded_once_for_many_images(detector: Detector, image: Image.Image) -> None:
    detector([image] * 3, labels=["cat"])
    detector(image, labels=["Cat"])
    assert detector.model.calls["text"] == 1  # type: ignore[attr-defined]
    detector.clear_cache()
    detector(image, labels=["cat"])
    assert detector.model.calls["text"] == 2  # type: ignore[attr-defined]


def same(left: Detections, right: Detections, tolerance: float = 0.0) -> bool:
    return (
        left.labels == right.labels
        and np.allclose(left.scores, right.scores, atol=tolerance, rtol=0)
        and np.allclose(left.boxes_xyxy, right.boxes_xyxy, atol=tolerance * 1000, rtol=0)
    )


def test_equals_the_networks_own_forward(
    detector: Detector, image: Image.Image, tokenizer: BertTokenizerFast
) -> None:
    """The path of the detector against the plain call of the network on the tokenizer's own ids."""
    found = detector(image, labels=["cat", "dog"], threshold=0.0)
    config = detector.config
    batch = preprocess([image], config.image_size, config.image_mean, config.image_std)
    encoded = tokenizer("cat . dog .", return_tensors="pt", padding=False)
    with torch.inference_mode():
        output = detector.model(
            batch.pixel_values, batch.pixel_mask, encoded["input_ids"], encoded["attention_mask"]
        )
    probabilities = output.logits[0].sigmoid()
    expected = torch.cat([probabilities[:, 1], probabilities[:, 3]]).sort(descending=True).values
    assert len(expected) == len(found) == 60
    assert np.allclose(found.scores, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "kind", ["path", "string", "bytes", "PIL", "array", "float array", "tensor", "float tensor"]
)
def test_all_kinds_of_images_give_the_same_boxes(detector: Detector, photo_dir: Path, kind: str) -> None:
    path = photo_dir / "coffee.jpg"
    pixels = np.asarray(load_image(path))
    source = {
        "path": path,
        "string": str(path),
        "bytes": path.read_bytes(),
        "PIL": Image.open(path),
        "array": pixels,
        "float array": pixels.astype(np.float32) / 255,
        "tensor": torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        "float tensor": torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255,
    }[kind]
    expected = detector(load_image(path), labels=["cup"], threshold=0.0)
    assert len(expected) == 30
    assert same(detector(source, labels=["cup"], threshold=0.0), expected)  # type: ignore[call-overload]


def test_batches_equal_single_images(detector: Detector, image: Image.Image) -> None:
    images = [image, image.rotate(90, expand=True), image.rotate(180), image.resize((123, 77))]
    singles = [detector(one, labels=["cat", "dog"], threshold=0.0) for one in images]
    detector.model.calls["image"] = 0  # type: ignore[attr-defined]
    detector(images, labels=["cat"], batch_size=4)
    assert detector.model.calls["image"] == 3, "the two of equal size are computed together"  # type: ignore[attr-defined]
    for batch_size in (1, 2, 3, 8):
        batch = detector(images, labels=["cat", "dog"], threshold=0.0, batch_size=batch_size)
        assert all(same(a, b, 1e-4) for a, b in zip(singles, batch, strict=True))
    assert all(
        same(a, b)
        for a, b in zip(singles, detector(iter(images), labels=["cat", "dog"], threshold=0.0), strict=True)  # type: ignore[call-overload]
    )
    stacked = np.stack([np.asarray(image)] * 2)
    assert len(detector(stacked, labels=["cat"])) == 2  # type: ignore[call-overload]
    assert detector([], labels=["cat"]) == []


def test_captions_are_grounded_phrase_by_phrase(
    prepared: Callable[..., Detector], image: Image.Image
) -> None:
    # "[CLS] a woman holds a blow dry ##er , wearing protective go ##ggles . [SEP]"
    detector = prepared(
        [(CENTRE, {2: 0.8, 3: 0.99}), (LEFT_TOP, {5: 0.4, 7: 0.7}), (CENTRE, {12: 0.5, 9: 0.99})]
    )
    found = detector(image, caption="a woman holds a blow dryer, wearing protective goggles")
    assert found.labels == ["woman", "blow dryer", "protective goggles"]
    assert found.scores.tolist() == pytest.approx([0.8, 0.7, 0.5], abs=1e-6)
    assert found.label_names == ("woman", "blow dryer", "protective goggles")


def test_a_phrase_that_occurs_twice_is_one_label(
    prepared: Callable[..., Detector], image: Image.Image
) -> None:
    # "[CLS] a cat and another cat . [SEP]"
    detector = prepared([(CENTRE, {2: 0.4, 5: 0.8}), (LEFT_TOP, {2: 0.6})])
    found = detector(image, caption="a cat and another cat")
    assert list(zip(found.labels, found.label_ids.tolist(), strict=True)) == [("cat", 0), ("cat", 0)]
    assert found.scores.tolist() == pytest.approx([0.8, 0.6], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either labels=.* or caption=.*, got neither"),
        ({"labels": ["cat"], "caption": "a cat"}, "got both"),
        ({"labels": []}, "no labels"),
        ({"labels": "cat"}, "must be a list"),
        ({"caption": ""}, "nothing to look for"),
        ({"caption": ["a cat"]}, "must be one string"),
        ({"labels": ["cat"], "threshold": 35}, "threshold must lie in 0..1, got 35"),
        ({"labels": ["cat"], "threshold": float("nan")}, "threshold must lie in 0..1"),
        ({"labels": ["cat"], "merge_iou": 7}, "merge_iou must lie in 0..1, got 7"),
        ({"labels": ["cat"], "batch_size": -1}, "batch_size must be at least 1"),
        ({"labels": ["cat"], "batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_questions_that_make_no_sense(
    detector: Detector, image: Image.Image, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        detector(image, **arguments)  # type: ignore[call-overload]


def test_an_unreadable_image_is_named(detector: Detector) -> None:
    with pytest.raises(ImageError, match=r"missing\.jpg: no such file"):
        detector("missing.jpg", labels=["cat"])


@pytest.mark.parametrize(
    ("device", "message"),
    [("tpu9", "unknown device"), ("meta", "not supported"), ("cuda:99", "no usable GPU|there are")],
)
def test_devices_that_are_not_there(
    detector: Detector, tokenizer: BertTokenizerFast, device: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Detector(detector.model, tokenizer, device=device)


def test_precision(detector: Detector, tokenizer: BertTokenizerFast, image: Image.Image) -> None:
    exact = detector(image, labels=["cat"], threshold=0.0)
    rough = Detector(detector.model, tokenizer, device="cpu", dtype="bfloat16")(
        image, labels=["cat"], threshold=0.0
    )
    assert rough.boxes_xyxy.dtype == np.float32
    assert len(rough) == len(exact)
    assert not same(exact, rough)
    with pytest.raises(ValueError, match="unknown dtype 'int8': use auto, float32"):
        Detector(detector.model, tokenizer, device="cpu", dtype="int8")


def test_threads_share_a_detector(detector: Detector, image: Image.Image) -> None:
    questions = [[f"thing {number}", "cat"] for number in range(6)]
    expected = [detector(image, labels=labels, threshold=0.0) for labels in questions]
    detector.clear_cache()
    results: dict[int, Detections] = {}

    def ask(number: int) -> None:
        results[number] = detector(image, labels=questions[number], threshold=0.0)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(expected[number], results[number], 1e-5) for number in range(6))


def test_the_detector_says_what_it_is(detector: Detector) -> None:
    assert repr(detector) == "Detector('small', device='cpu', digest='000000000000')"
    assert detector.default_threshold == 0.3
    assert not detector.model.training


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("auto", 2e-3), ("bfloat16", 0.1), ("float16", 0.1)])
def test_a_gpu_gives_the_same_scores(
    detector: Detector, tokenizer: BertTokenizerFast, image: Image.Image, dtype: str, tolerance: float
) -> None:
    labels = {"pet": ["cat", "dog"], **{f"thing {number}": f"thing {number}" for number in range(100)}}
    images = [image, image.rotate(180), image.resize((123, 77))]
    expected = detector(images, labels=labels, threshold=0.0)
    on_gpu = Detector(copy.deepcopy(detector.model), tokenizer, device="cuda", dtype=dtype)
    for ours, theirs in zip(on_gpu(images, labels=labels, threshold=0.0), expected, strict=True):
        assert len(ours) == len(theirs) == 300
        assert np.abs(ours.scores - theirs.scores).max() < tolerance
