"""``hf:``: OWL-ViT, OWLv2 and OmDet-Turbo give what transformers itself gives, under the labels asked for."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from groundingml.cli.app import app
from groundingml.inference import Label, PromptError, detect_many, load_detector, source_digest
from groundingml.inference.transformers_detector import TransformersDetector, suppress
from groundingml.models import CheckpointError

KINDS = ("owlv2", "owlvit", "omdet-turbo")
LABELS = ["cat", "remote control", "sofa"]
Models = Callable[[str], Path]


@pytest.fixture
def image(photo_dir: Path) -> Image.Image:
    return Image.open(photo_dir / "cat.jpg").convert("RGB").resize((120, 80))


def official_owl(folder: Path, image: Image.Image, threshold: float) -> dict[str, torch.Tensor]:
    """As the model cards of OWL-ViT and OWLv2 do it."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(folder)
    inputs = processor(text=[LABELS], images=image, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    return processor.post_process_grounded_object_detection(
        outputs, threshold=threshold, target_sizes=torch.tensor([image.size[::-1]]), text_labels=[LABELS]
    )[0]


def plain_batched_nms(boxes, scores, classes, iou):  # type: ignore[no-untyped-def]
    """torchvision's, which does not run beside a PyTorch of another build: one box after the other."""
    kept: list[int] = []
    for one in scores.argsort(descending=True, stable=True).tolist():
        for other in kept:
            low = torch.maximum(boxes[one, :2], boxes[other, :2])
            high = torch.minimum(boxes[one, 2:], boxes[other, 2:])
            shared = (high - low).clamp(min=0).prod()
            areas = [(boxes[n, 2:] - boxes[n, :2]).prod() for n in (one, other)]
            if classes[one] == classes[other] and shared / (sum(areas) - shared) > iou:
                break
        else:
            kept.append(one)
    return torch.tensor(kept, dtype=torch.long)


def official_omdet(
    folder: Path, image: Image.Image, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> dict[str, torch.Tensor]:
    """What OmDetTurboProcessor does, which itself wants torchvision for non-maximum suppression."""
    processing = importlib.import_module("transformers.models.omdet_turbo.processing_omdet_turbo")
    monkeypatch.setattr(processing, "batched_nms", plain_batched_nms, raising=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(folder)
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(images=image, return_tensors="pt")
    options = {"padding": "max_length", "truncation": True, "max_length": 77, "return_tensors": "pt"}
    classes = tokenizer(LABELS, **options)
    task = tokenizer([f"Detect {', '.join(LABELS)}."], **options)
    with torch.no_grad():
        outputs = model(
            pixel_values=pixels["pixel_values"],
            classes_input_ids=classes["input_ids"], classes_attention_mask=classes["attention_mask"],
            tasks_input_ids=task["input_ids"], tasks_attention_mask=task["attention_mask"],
            classes_structure=torch.tensor([len(LABELS)]),
        )  # fmt: skip
    scores, labels = processing.compute_score(outputs.decoder_class_logits)
    coordinates, size = outputs.decoder_coord_logits[0], image.size[::-1]
    boxes, kept, numbers = processing._post_process_boxes_for_image(
        coordinates, scores[0], labels, torch.tensor(len(LABELS)), size, threshold, 0.5
    )
    return {"boxes": boxes, "scores": kept, "labels": numbers}


@pytest.mark.parametrize("kind", KINDS)
def test_as_transformers_itself(
    foreign_model: Models, kind: str, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, threshold = foreign_model(kind), 0.2
    official = (
        official_omdet(folder, image, threshold, monkeypatch)
        if kind == "omdet-turbo"
        else official_owl(folder, image, threshold)
    )
    boxes = official["boxes"].numpy().clip(0, [120, 80, 120, 80])
    scores = official["scores"].numpy()
    visible = (boxes[:, 2:] - boxes[:, :2] >= 0.5).all(1)  # what lies beside the image is no detection
    order = np.argsort(-scores[visible], kind="stable")
    found = load_detector(f"hf:{folder}", "cpu")(image, labels=LABELS, threshold=threshold)
    assert len(found) > 1
    np.testing.assert_allclose(found.scores, scores[visible][order], atol=1e-5)
    np.testing.assert_allclose(found.boxes_xyxy, boxes[visible][order], atol=1e-2)
    assert found.labels == [LABELS[n] for n in official["labels"].numpy()[visible][order]]


@pytest.mark.parametrize("kind", KINDS)
def test_aliases_captions_tiles_and_thresholds(foreign_model: Models, kind: str, image: Image.Image) -> None:
    detector = load_detector(f"hf:{foreign_model(kind)}", "cpu")
    aliases = detector(image, labels={"pet": ["cat", "dog"]}, threshold=0.0)
    assert len(aliases) > 0
    assert set(aliases.labels) == {"pet"}
    assert set(detector(image, caption="a cat on the sofa", threshold=0.0).labels) <= {"cat", "sofa"}
    several = detector([image, image], labels=["cat"], threshold=0.0)
    assert len(several) == 2
    assert np.array_equal(several[0].boxes_xyxy, several[1].boxes_xyxy)
    encoded = detector.encode(image)
    assert encoded.nbytes == 120 * 80 * 3
    assert np.array_equal(
        detector.detect_encoded(encoded, ["cat"], threshold=0.0).boxes_xyxy, several[0].boxes_xyxy
    )
    tiled = detector(image, labels=["cat"], threshold=0.0, tile=64)
    assert tiled.image_size == (80, 120)
    assert len(tiled) > 0
    assert len(detector(image, labels=[Label("cat", threshold=1.0)], threshold=0.0)) == 0


def test_any_number_of_labels_is_one_question(
    foreign_model: Models, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = load_detector(f"hf:{foreign_model('owlv2')}", "cpu")
    names = [f"thing {number}" for number in range(300)]
    at_once = detector(image, labels=names, threshold=0.0)
    monkeypatch.setattr("groundingml.inference.transformers_detector._MOST_AT_ONCE", 70)
    in_parts = detector(image, labels=names, threshold=0.0)
    assert at_once.labels == in_parts.labels
    np.testing.assert_allclose(at_once.scores, in_parts.scores, atol=1e-6)


def test_a_prompt_that_is_too_long_is_refused_before_any_image(foreign_model: Models) -> None:
    detector = load_detector(f"hf:{foreign_model('owlv2')}", "cpu")
    with pytest.raises(PromptError, match=r"tokens, hf:.* reads at most 16"):
        detector.plan(labels=["a thing with a name of very many letters"])


def test_what_it_cannot_load_is_said(foreign_model: Models, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "grounding-dino"}))
    with pytest.raises(CheckpointError, match="an implementation of: leave out 'hf:'"):
        load_detector(f"hf:{tmp_path}", "cpu")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match=r"is a bert.*owlvit, owlv2, omdet-turbo are supported"):
        load_detector(f"hf:{tmp_path}", "cpu")
    damaged = tmp_path / "damaged"
    shutil.copytree(foreign_model("owlv2"), damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        load_detector(f"hf:{damaged}", "cpu")
    shutil.copy(foreign_model("owlv2") / "model.safetensors", weights)
    parameters = load_file(weights)
    del parameters["class_head.dense0.weight"]
    save_file(parameters, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks parameters of owlv2: class_head\.dense0\.weight"):
        load_detector(f"hf:{damaged}", "cpu")
    with pytest.raises(CheckpointError, match=r"someone/owl.*not in the hub's cache"):
        load_detector("hf:someone/owl", "cpu")


def test_it_is_named_by_its_weights(foreign_model: Models) -> None:
    source = f"hf:{foreign_model('owlv2')}"
    detector = load_detector(source, "cpu")
    assert isinstance(detector, TransformersDetector)
    assert (detector.name, detector.checkpoint_digest) == (source, source_digest(source))
    assert source_digest(source) != source_digest(f"hf:{foreign_model('owlvit')}")


def test_workers_load_it_too(foreign_model: Models, image: Image.Image) -> None:
    source = f"hf:{foreign_model('owlvit')}"
    alone = load_detector(source, "cpu")(image, labels=LABELS, threshold=0.0)
    for result in detect_many(source, [np.array(image)] * 3, LABELS, threshold=0.0, workers=2, device="cpu"):
        assert result.found.labels == alone.labels


@pytest.mark.parametrize("kind", KINDS)
def test_detect(foreign_model: Models, kind: str, image: Image.Image, tmp_path: Path) -> None:
    image.save(tmp_path / "cat.png")
    arguments = ["detect", str(tmp_path / "cat.png"), "--labels", "cat, sofa", "--threshold", "0", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--model", f"hf:{foreign_model(kind)}", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {found["label"] for found in report["images"][0]["detections"]} <= {"cat", "sofa"}
    assert report["model"].startswith("hf:")


def test_label_a_folder(foreign_model: Models, image: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image.save(tmp_path / "in" / "cat.png")
    output = tmp_path / "tasks.json"
    arguments = ["label", "--folder", str(tmp_path / "in"), "--labels", "cat, sofa", "--output", str(output)]
    source = f"hf:{foreign_model('owlv2')}"
    result = CliRunner().invoke(app, [*arguments, "--model", source, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    prediction = json.loads(output.read_text())[0]["predictions"][0]
    assert prediction["model_version"].startswith(source_digest(source))
    assert prediction["result"]


def test_suppression_keeps_the_best_of_each_class() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [1, 0, 11, 10], [50, 50, 60, 60]]).float()
    assert suppress(boxes, torch.tensor([0, 0, 1, 0]), 0.5).tolist() == [True, False, True, True]
