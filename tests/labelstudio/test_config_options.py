"""Options of a project: `extra_params` on controls and on the connection."""

from __future__ import annotations

from typing import Any

import pytest

from groundingml.inference import Tiling
from groundingml.labelstudio.config_options import Options, parse_extra_params
from groundingml.labelstudio.label_config import LabelConfigError, parse_label_config


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (None, Options()),
        ("", Options()),
        ("  ", Options()),
        ({}, Options()),
        ("null", Options()),
        ('{"threshold": 0.3}', Options(threshold=0.3)),
        ({"threshold": 1, "merge_iou": None}, Options(threshold=1.0)),
        ({"negative_prompts": "toy, doll"}, Options(negative_prompts=("toy", "doll"))),
        ({"negative_prompts": ["toy, small"]}, Options(negative_prompts=("toy, small",))),
        ({"tile": 1024}, Options(tile=Tiling(1024, 256))),
        ({"tile": {"size": 1024, "overlap": 100}}, Options(tile=Tiling(1024, 100))),
        ({"merge_iou": 0.5, "task_score": "min"}, Options(merge_iou=0.5, task_score="min")),
    ],
)
def test_extra_params(given: Any, options: Options) -> None:
    assert parse_extra_params(given, "it") == options


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "it must be JSON"),
        ("[]", "it must be a JSON object"),
        (3, "it must be a JSON object"),
        ({"treshold": 0.3}, 'it: "treshold" is unknown; there are threshold, negative_prompts'),
        ({"threshold": "0.3"}, "must be a number from 0 to 1"),
        ({"threshold": True}, "must be a number from 0 to 1"),
        ('{"threshold": NaN}', "must be a number from 0 to 1"),
        ({"merge_iou": 7}, '"merge_iou" must be a number'),
        ({"negative_prompts": ["?"]}, "must be a list of texts"),
        ({"negative_prompts": {"a": 1}}, "must be a list of texts"),
        ({"tile": "1024"}, '"tile" must be a size in pixels'),
        ({"tile": 10}, "from 64, got 10"),
        ({"tile": True}, "must be a size in pixels"),
        ({"tile": {"overlap": 100}}, "must be a size in pixels"),
        ({"tile": {"size": 1024, "overlap": 1000}}, "from 0 to 512, got 1000"),
        ({"tile": {"size": 1024, "step": 1000}}, "must be a size in pixels"),
        ({"task_score": "max"}, "must be one of mean, min, uncertainty"),
        ({"task_score": ["min"]}, "must be one of mean, min, uncertainty"),
    ],
)
def test_what_makes_no_sense_is_named(given: Any, message: str) -> None:
    with pytest.raises(LabelConfigError, match=message):
        parse_extra_params(given, "it")


def config(*controls: str) -> str:
    tags = "".join(
        f"<RectangleLabels name='c{number}' toName='i' {attributes}><Label value='Cat'/></RectangleLabels>"
        for number, attributes in enumerate(controls)
    )
    return f"<View><Image name='i' value='$image'/>{tags}</View>"


@pytest.mark.parametrize(
    ("attributes", "connection", "threshold", "why"),
    [
        ("", {"threshold": 0.1}, 0.1, "the connection gives the default"),
        ("extra_params='{\"threshold\": 0.2}'", {"threshold": 0.1}, 0.2, "a control's own come first"),
        ("extra_params='{\"threshold\": 0.2}' model_score_threshold='0.4'", None, 0.4, "the attribute wins"),
        ("extra_params='{\"threshold\": 0}'", {"threshold": 0.1}, 0.0, "0 is a threshold"),
    ],
)
def test_whose_threshold_counts(attributes: str, connection: Any, threshold: float, why: str) -> None:
    assert parse_label_config(config(attributes), connection).controls[0].threshold == threshold, why


def test_negative_prompts_of_a_control_join_those_of_its_options() -> None:
    attributes = 'negative_prompts=\'toy\' extra_params=\'{"negative_prompts": ["doll", "toy"]}\''
    first, second = parse_label_config(config(attributes, ""), {"negative_prompts": "statue"}).controls
    assert first.negative_prompts == ("toy", "doll")
    assert second.negative_prompts == ("statue",)


def test_options_of_the_whole_config_may_stand_on_any_control() -> None:
    one = 'extra_params=\'{"task_score": "min"}\''
    assert parse_label_config(config("", one)).options == Options(task_score="min")
    assert parse_label_config(config(one, one)).options.task_score == "min"
    both = parse_label_config(config("", one), {"task_score": "mean", "merge_iou": 0.4}).options
    assert both == Options(task_score="min", merge_iou=0.4)
    other = 'extra_params=\'{"task_score": "uncertainty"}\''
    with pytest.raises(LabelConfigError, match='Two controls disagree about "task_score"'):
        parse_label_config(config(one, other))
