from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from groundingml.inference import Detections, Label, Thresholds
from groundingml.learning.fitting import FLOOR, fit_thresholds, thresholds_file
from groundingml.learning.matching import match
from groundingml.learning.measuring import ImageResult, as_json, measure
from groundingml.learning.promotion import PromotionRule, Scores, decide
from groundingml.learning.report import draw_against_truth, write_report
from groundingml.training import Annotations, ImageRecord

Record = Callable[..., ImageRecord]
Found = Callable[..., Detections]
A, B, C = (10, 10, 30, 30), (50, 10, 70, 30), (10, 50, 30, 70)
NEAR_A, FAR = (12, 11, 31, 32), (75, 60, 95, 78)


def test_the_best_score_takes_the_true_box(record: Record, found: Found) -> None:
    image = record([(A, "cat"), (B, "cat"), (C, "dog")])
    matches = match(image, found((NEAR_A, "cat", 0.9), (A, "cat", 0.8), (B, "dog", 0.7), (FAR, "cat", 0.6)))
    assert matches.truth_of.tolist() == [0, -1, -1, -1]
    assert matches.false.tolist() == [False, True, True, True]
    assert matches.missed == (1, 2)
    assert matches.errors == 5


def test_a_crowd_takes_boxes_out_of_the_count(record: Record, found: Found) -> None:
    image = record([], crowds=(((0, 0, 60, 60), "cat"),))
    matches = match(image, found((A, "cat", 0.9), (A, "dog", 0.8), (FAR, "cat", 0.7)))
    assert matches.ignored.tolist() == [True, False, False]
    assert matches.errors == 2
    assert match(record(), found()).errors == 0


class Known:
    """A detector that answers with prepared detections by file name, and notes what it was asked."""

    def __init__(self, answers: dict[str, Detections]) -> None:
        self.answers = answers
        self.asked: list[Label] = []

    def __call__(self, path: Path, labels: list[Label]) -> Detections:
        self.asked = labels
        return self.answers[path.name]


def test_measuring_asks_with_prompts_and_scores_by_label(
    record: Record, found: Found, tmp_path: Path
) -> None:
    images = [record([(A, "cat"), (B, "dog")], "a.png"), record([(C, "cat")], "b.png"), record([], "c.png")]
    answers = {
        "a.png": found((A, "cat", 0.9), (FAR, "dog", 0.8)),
        "b.png": found((C, "cat", 0.7), (FAR, "cat", 0.2)),
        "c.png": found((A, "bird", 0.4)),
    }
    detector: Any = Known(answers)
    asked = [Label("cat", ("kitten",), 0.5), Label("dog"), Label("bird")]
    seen: list[int] = []
    measured = measure(detector, Annotations(images, ["cat", "dog"], []), asked, seen.append)
    assert [label.threshold for label in detector.asked] == [0.0] * 3
    assert detector.asked[0].prompts == ("kitten",)
    assert seen == [1, 2, 3]
    numbers = as_json(measured.evaluation)
    assert numbers["labels"]["cat"] == {"map": 1.0, "map50": 1.0, "boxes": 2}
    assert numbers["labels"]["dog"]["map50"] == 0.0
    assert numbers["map50"] == 0.5
    assert measured.evaluation.curves["cat"][100] == 1.0

    worst = measured.worst(Thresholds(0.3), 5)
    assert [(result.record.path.name, errors) for result, errors in worst] == [("a.png", 2), ("c.png", 1)]
    assert [e for _, e in measured.worst(Thresholds(0.3, {"bird": 0.5, "dog": 0.85}), 5)] == [1]

    written = write_report(measured, Thresholds(0.3), tmp_path / "report")
    assert [path.name for path in written][2:] == ["worst-01-a.jpg", "worst-02-c.jpg"]
    assert all(path.stat().st_size > 500 for path in written[1:])
    assert Image.open(written[1]).size == (825, 572)
    write_report(measured, Thresholds(0.95), tmp_path / "report", worst=1)
    assert len(list((tmp_path / "report").glob("worst-*"))) == 1  # those of before are gone


def test_a_picture_shows_what_is_missed_and_wrong(record: Record, found: Found) -> None:
    result = ImageResult(record([(A, "cat"), (B, "cat")]), found((A, "cat", 0.9), (FAR, "cat", 0.8)))
    sheet = draw_against_truth(result, Thresholds(0.3))
    assert sheet.size == (2 * 640 + 10, 512 + 30)
    scale = 6.4
    assert sheet.getpixel((round(B[0] * scale) + 2, 30 + round(25 * scale))) == (230, 126, 0)
    assert sheet.getpixel((650 + round(A[0] * scale) + 1, 30 + round(25 * scale))) == (34, 139, 34)
    assert sheet.getpixel((650 + round(FAR[0] * scale) + 2, 30 + round(75 * scale))) == (208, 28, 28)


def test_boxes_of_a_name_that_is_not_asked_are_refused(record: Record) -> None:
    annotations = Annotations([record([(A, "cat")])], ["cat"], [])
    detector: Any = Known({})
    with pytest.raises(ValueError, match="boxes of cat, which are not asked for"):
        measure(detector, annotations, [Label("dog")])


def scored(
    record: Record, found: Found, right: list[float], wrong: list[float], missed: int = 0
) -> list[ImageResult]:
    """One image for each found or missed box of "cat"."""
    results = [ImageResult(record([(A, "cat")]), found((A, "cat", score))) for score in right]
    results += [ImageResult(record(), found((A, "cat", score))) for score in wrong]
    return results + [ImageResult(record([(A, "cat")]), found()) for _ in range(missed)]


def test_the_threshold_parts_right_from_wrong(record: Record, found: Found) -> None:
    right = [0.5 + 0.01 * i for i in range(40)]
    fitted = fit_thresholds(scored(record, found, right, [0.1 + 0.005 * i for i in range(40)]), 0.35)["cat"]
    assert 0.3 < fitted.threshold < 0.5
    assert fitted.f1 == fitted.precision == fitted.recall == 1.0
    assert fitted.examples == 40


def test_fewer_examples_stay_nearer_to_the_models_own(record: Record, found: Found) -> None:
    many = fit_thresholds(scored(record, found, [0.9] * 60, [0.7] * 60), 0.3)["cat"].threshold
    few = fit_thresholds(scored(record, found, [0.9] * 4, [0.7] * 4), 0.3)["cat"].threshold
    assert 0.7 < many < 0.9
    assert 0.3 < few < 0.65
    assert fit_thresholds(scored(record, found, [0.9, 0.8], []), 0.3) == {}  # too few to say anything


def test_a_threshold_never_falls_below_the_floor(record: Record, found: Found) -> None:
    low = fit_thresholds(scored(record, found, [0.01] * 200, []), 0.3)["cat"]
    assert low.threshold == FLOOR
    assert low.recall == 0.0
    nothing = fit_thresholds(scored(record, found, [], [], missed=8), 0.3)["cat"]
    assert (nothing.threshold, nothing.f1) == (0.3, 0.0)


def test_equal_scores_are_not_told_apart(record: Record, found: Found) -> None:
    fitted = fit_thresholds(scored(record, found, [0.5] * 10, [0.5] * 10), 0.5)["cat"]
    assert fitted.precision == 0.5
    assert thresholds_file({"cat": fitted}, 0.5)["labels"]["cat"]["threshold"] == fitted.threshold


@pytest.mark.parametrize(
    ("before", "after", "promote", "words"),
    [
        (Scores(0.1, 0.5), Scores(0.6, 0.45), True, "promoted: held-out mAP50 0.100 -> 0.600; retention 0.5"),
        (Scores(0.1, None), Scores(0.6, None), True, "no retention set was measured"),
        (Scores(0.6, 0.5), Scores(0.605, 0.5), False, "rises too little (needed: +0.01)"),
        (Scores(0.6, 0.5), Scores(0.6, 0.5), False, "does not rise"),
        (Scores(0.6, 0.5), Scores(0.4, 0.5), False, "0.600 -> 0.400 falls"),
        (Scores(0.1, 0.5), Scores(0.6, 0.3), False, "0.500 -> 0.300: 40% is forgotten (allowed: 20%)"),
        (Scores(0.6, 0.5), Scores(0.5, 0.3), False, "falls (needed: +0.01); retention"),
    ],
)
def test_only_the_better_is_promoted(before: Scores, after: Scores, promote: bool, words: str) -> None:
    decision = decide(before, after, PromotionRule())
    assert decision.promote is promote
    assert words in decision.reason


def test_a_rule_of_zero_still_needs_a_gain() -> None:
    assert not decide(Scores(0.5, None), Scores(0.5, None), PromotionRule(least_gain=0)).promote
    with pytest.raises(ValueError, match="least_gain"):
        PromotionRule(least_gain=2)
