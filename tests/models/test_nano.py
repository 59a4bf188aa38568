"""The model inside the package: small enough, and it finds what it should on real photos."""

from pathlib import Path

import pytest
import torch

import groundingml
from groundingml.inference import Detector
from groundingml.models import load_model, load_tokenizer
from groundingml.models.grounding_dino import GroundingDino, ImageFeatures, TextFeatures

FOLDER = Path(groundingml.__file__).parent / "embedded" / "nano"


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.from_pretrained("nano", device="cpu")


@pytest.fixture(scope="module")
def model() -> GroundingDino:
    return load_model("nano")


def iou(box: list[float], other: list[float]) -> float:
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    common = max(width, 0.0) * max(height, 0.0)
    area = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return common / (area - common)


def test_the_folder_is_complete_and_small() -> None:
    names = {file.name for file in FOLDER.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "MODEL_CARD.md", "NOTICE"}
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 40e6


@pytest.mark.parametrize(
    ("photo", "label", "truth"),
    [
        ("cat.jpg", "cat", [0, 0, 400, 300]),
        ("cat.jpg", "kitten", [0, 0, 400, 300]),  # a synonym
        ("astronaut.jpg", "person", [0, 0, 370, 512]),
        ("coffee.jpg", "cup", [170, 20, 420, 275]),
    ],
)
def test_it_finds_the_object_of_a_photo(
    detector: Detector, photo_dir: Path, photo: str, label: str, truth: list[float]
) -> None:
    found = detector(photo_dir / photo, labels=[label, "bicycle", "zebra"])
    assert found.labels[0] == label
    assert iou(found.boxes_xyxy[0].tolist(), truth) >= 0.5


def test_it_finds_nothing_by_names_of_what_is_not_there(detector: Detector, photo_dir: Path) -> None:
    assert len(detector(photo_dir / "cat.jpg", labels=["pizza", "rocket", "red blood cell"])) == 0


def test_phrases_of_a_caption_are_told_apart(detector: Detector, photo_dir: Path) -> None:
    found = detector(photo_dir / "coffee.jpg", caption="a coffee cup and an elephant")
    assert "coffee cup" in found.labels
    assert "elephant" not in found.labels


def test_a_phrase_is_scored_the_same_in_any_prompt(model: GroundingDino) -> None:
    tokenizer = load_tokenizer("nano")
    image = model.encode_image(torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        hidden = []
        for prompt in ("remote control .", "cat . a wooden chair . remote control ."):
            encoded = tokenizer(prompt, return_tensors="pt")
            text = model.encode_text(encoded["input_ids"], encoded["attention_mask"])
            hidden.append(text.hidden[0, -4:-2])  # remote, control
            assert torch.isfinite(model.ground(image, text).boxes_cxcywh).all()
    torch.testing.assert_close(hidden[0], hidden[1], atol=1e-5, rtol=0)


def boxes_at_cells(model: GroundingDino, image: ImageFeatures, text: TextFeatures) -> torch.Tensor:
    memory, tokens = model.enhancer(image, text)
    return model.proposals(memory, image.mask, image, tokens, text).boxes_logit.sigmoid()


def test_boxes_do_not_depend_on_padding_beyond_the_edge_effect(model: GroundingDino) -> None:
    """Boxes are relative to the image, not to what it is padded to."""
    tokenizer = load_tokenizer("nano")
    encoded = tokenizer("person . cat .", return_tensors="pt")
    pixels = torch.randn(1, 3, 160, 224, generator=torch.Generator().manual_seed(1))
    padded = torch.zeros(1, 3, 192, 320)
    padded[:, :, :160, :224] = pixels
    mask = torch.zeros(1, 192, 320, dtype=torch.bool)
    mask[:, :160, :224] = True
    with torch.no_grad():
        text = model.encode_text(encoded["input_ids"], encoded["attention_mask"])
        alone = boxes_at_cells(model, model.encode_image(pixels), text)
        beside = boxes_at_cells(model, model.encode_image(padded, mask), text)
        assert torch.isfinite(model.ground(model.encode_image(padded, mask), text).logits[..., 1]).all()
    rows, columns = 160 // 8, 224 // 8
    inner = alone[0, : rows * columns].view(rows, columns, 4)[4:12, 4:16]
    same = beside[0, : 24 * 40].view(24, 40, 4)[4:12, 4:16]
    torch.testing.assert_close(inner, same, atol=5e-2, rtol=0)
    torch.testing.assert_close(inner[..., :2].mean(), same[..., :2].mean(), atol=1e-2, rtol=0)
