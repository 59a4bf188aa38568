"""Names taught to the embedded model: who answers which phrase; all others are answered as before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from groundingml.inference import Detector
from groundingml.models import load_model, load_tokenizer
from groundingml.models.grounding_dino import GroundingDino
from groundingml.models.grounding_dino.dense_proposals import DenseProposals, only_best_of_overlapping
from groundingml.models.grounding_dino.taught_head import TaughtHead
from groundingml.training.teaching import embed_phrases, teach_names

CAT = Path(__file__).parents[2] / "examples" / "photos" / "cat.jpg"
COFFEE = CAT.with_name("coffee.jpg")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("nano")


@pytest.fixture
def taught(tokenizer) -> GroundingDino:
    """Knows two new names, of which one is like nothing known, and the known name "cup"."""
    torch.manual_seed(0)
    return teach_names(load_model("nano"), tokenizer, ["Platelet", "white blood cell", "cup"]).eval()


def head_of(model: GroundingDino) -> TaughtHead:
    assert isinstance(model.proposals, DenseProposals)
    assert model.proposals.taught is not None
    return model.proposals.taught


def spoil(model: GroundingDino) -> None:
    """Change everything that training a taught head changes."""
    with torch.no_grad():
        for parameter in head_of(model).parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)


def same(one, other) -> bool:
    return (
        list(one.labels) == list(other.labels)
        and (one.scores == other.scores).all()
        and (one.boxes_xyxy == other.boxes_xyxy).all()
    )


def test_what_was_not_taught_is_answered_as_before_bit_for_bit(taught: GroundingDino, tokenizer) -> None:
    before = Detector.from_pretrained("nano", device="cpu")
    spoil(taught)
    after = Detector(taught, tokenizer, device="cpu")
    for photo in (CAT, COFFEE):
        asked = ["cat", "a wooden spoon", "dining table", "animal", "person"]
        assert same(before(photo, labels=asked, threshold=0.01), after(photo, labels=asked, threshold=0.01))
    cups = [found(COFFEE, labels=["cup"], threshold=0.01) for found in (before, after)]
    assert not same(*cups)  # else the head would not be asked at all


def test_a_known_name_begins_with_what_is_known_of_it_and_a_new_one_with_nothing(
    taught: GroundingDino, tokenizer
) -> None:
    before = Detector.from_pretrained("nano", device="cpu")(COFFEE, labels=["cup"])
    after = Detector(taught, tokenizer, device="cpu")(COFFEE, labels=["cup", "platelet"])
    assert set(after.labels) == {"cup"}
    torch.testing.assert_close(
        torch.tensor(after.boxes_xyxy[:1]), torch.tensor(before.boxes_xyxy[:1]), atol=1.0, rtol=0
    )
    assert after.scores[0] == pytest.approx(before.scores[0], abs=0.02)


@pytest.mark.parametrize(
    ("phrase", "meant"),
    [
        ("platelet", "platelet"),
        ("platelets", "platelet"),
        ("White Blood Cell", "white blood cell"),
        ("cup", "cup"),
        ("mug", None),
        ("cat", None),
        ("cell phone", None),
    ],
)
def test_the_nearest_name_decides_who_answers(
    phrase: str, meant: str | None, taught: GroundingDino, tokenizer
) -> None:
    assert isinstance(taught.proposals, DenseProposals)
    vectors = embed_phrases(taught, [phrase], tokenizer)
    is_taught, name, weight = head_of(taught).meaning(vectors[None], taught.proposals.names)
    assert bool(is_taught[0, 0]) == (meant is not None)
    if meant is not None:
        assert taught.config.taught_names[int(name[0, 0])] == meant
        assert weight[0, 0] > 0.9


def test_more_names_leave_those_taught_before_as_they_are(taught: GroundingDino, tokenizer) -> None:
    spoil(taught)
    asked = ["platelet", "cup", "cat"]
    before = Detector(taught, tokenizer, device="cpu")(COFFEE, labels=asked, threshold=0.01)
    more = teach_names(taught, tokenizer, ["red blood cell", "cup"])
    assert more.config.taught_names == ("platelet", "white blood cell", "cup", "red blood cell")
    after = Detector(more, tokenizer, device="cpu")(COFFEE, labels=asked, threshold=0.01)
    assert same(before, after)
    assert teach_names(more, tokenizer, ["PLATELET"]) is more


def test_a_version_folder_gives_the_same_answers(taught: GroundingDino, tokenizer, tmp_path: Path) -> None:
    spoil(taught)
    taught.save_pretrained(tmp_path / "version")
    loaded = load_model(tmp_path / "version")
    assert isinstance(loaded, GroundingDino)
    assert loaded.config == taught.config
    base, kept = load_model("nano").state_dict(), loaded.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in base.items())  # stored twice, never rounded
    head = {name: value for name, value in taught.state_dict().items() if ".taught." in name}
    assert all(torch.equal(kept[name], value.half().float()) for name, value in head.items())
    again = Detector.from_pretrained(str(tmp_path / "version"), device="cpu")
    asked = ["platelet", "cup"]
    one = Detector(taught, tokenizer, device="cpu")(COFFEE, labels=asked)
    torch.testing.assert_close(
        torch.tensor(again(COFFEE, labels=asked).scores), torch.tensor(one.scores), atol=5e-3, rtol=0
    )


def test_of_overlapping_boxes_of_a_name_the_best_is_left() -> None:
    """Two boxes overlap by 0.8; a third is far away. The second name likes another one best."""
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0], [20.0, 0.0, 30.0, 10.0]]])
    scores = torch.tensor([[[0.9, 0.1], [0.8, 0.6], [0.3, 0.2]]])
    left = only_best_of_overlapping(scores, boxes, iou=0.7)
    torch.testing.assert_close(left, torch.tensor([[[0.9, 0.0], [0.0, 0.6], [0.3, 0.2]]]))
    assert torch.equal(only_best_of_overlapping(scores, boxes, iou=0.85), scores)


def test_configs_that_do_not_fit_are_refused(taught: GroundingDino) -> None:
    with pytest.raises(ValueError, match="return_stages"):
        replace(taught.config, backbone=replace(taught.config.backbone, return_stages=False))
