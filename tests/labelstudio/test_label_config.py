"""Reading label configs: what is understood, and that what is not is refused by name."""

from __future__ import annotations

import pytest

from groundingml.labelstudio.label_config import LabelConfigError, parse_label_config


def wrap(inner: str, image: str = '<Image name="image" value="$image"/>') -> str:
    return f"<View>{image}{inner}</View>"


CAT = '<RectangleLabels name="label" toName="image"><Label value="Cat"/></RectangleLabels>'


def test_labels_aliases_and_threshold(config_xml: str) -> None:
    config = parse_label_config(config_xml)
    (control,) = config.controls
    assert (control.name, control.image.name, control.image.key) == ("label", "image", "image")
    assert control.threshold == 0.25
    assert [(label.name, label.value, label.prompts) for label in control.labels] == [
        ("Cat", "Cat", ("cat", "kitten")),
        ("canine", "Dog", ("dog", "puppy")),  # the alias replaces the name in results
    ]
    assert [(prompt.name, prompt.image.name) for prompt in config.prompts] == [("prompt", "image")]


def test_a_label_without_predicted_values_is_looked_for_by_its_name() -> None:
    label = '<Label value="remote control" alias="rc"/>'
    config = parse_label_config(wrap(f'<RectangleLabels name="l" toName="image">{label}</RectangleLabels>'))
    (label,) = config.controls[0].labels
    assert (label.name, label.prompts) == ("rc", ("remote control",))
    assert config.controls[0].threshold is None


@pytest.mark.parametrize(
    ("values", "prompts"),
    [
        (" cat , fluffy   cat,,cat ", ("cat", "fluffy cat")),
        (" , ", ("Cat",)),
        ("", ("Cat",)),
    ],
)
def test_predicted_values_are_split_at_commas(values: str, prompts: tuple[str, ...]) -> None:
    label = f'<Label value="Cat" predicted_values="{values}"/>'
    xml = wrap(f'<RectangleLabels name="l" toName="image">{label}</RectangleLabels>')
    assert parse_label_config(xml).controls[0].labels[0].prompts == prompts


def test_nested_views_and_an_xml_declaration() -> None:
    control = '<RectangleLabels name="l" toName="image"><View><Label value="Кот"/></View></RectangleLabels>'
    config = parse_label_config('<?xml version="1.0" encoding="utf-8"?>\n' + wrap(f"<View>{control}</View>"))
    assert config.controls[0].labels[0].name == "Кот"


def test_several_controls_and_images() -> None:
    xml = """<View>
      <Image name="left" value="$l"/><Image name="right" value="$r"/>
      <RectangleLabels name="a" toName="left"><Label value="Cat"/></RectangleLabels>
      <RectangleLabels name="b" toName="right"><Label value="Dog"/></RectangleLabels>
      <RectangleLabels name="c" toName="left"><Label value="Fox"/></RectangleLabels>
    </View>"""
    config = parse_label_config(xml)
    assert [(image.name, image.key) for image in config.images] == [("left", "l"), ("right", "r")]
    assert [control.name for control in config.controls_of(config.images[0])] == ["a", "c"]


def test_other_controls_may_stand_beside_the_rectangles() -> None:
    xml = wrap(CAT + '<Choices name="ok" toName="image"><Choice value="yes"/></Choices>')
    assert [control.name for control in parse_label_config(xml).controls] == ["label"]


def test_labels_that_come_with_the_task() -> None:
    config = parse_label_config(wrap('<RectangleLabels name="l" toName="image" value="$names"/>'))
    (control,) = config.controls
    data = {"names": [{"value": "cat"}, "dog", {"value": "red  fox", "alias": "fox"}]}
    assert [(label.name, label.prompts) for label in control.labels_of(data)] == [
        ("cat", ("cat",)),
        ("dog", ("dog",)),
        ("fox", ("red fox",)),
    ]
    with pytest.raises(LabelConfigError, match='no list "names"'):
        control.labels_of({"image": "x"})
    with pytest.raises(LabelConfigError, match='entry of the task\'s "names"'):
        control.labels_of({"names": [{"colour": "red"}]})


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("", "not well-formed"),
        ("<View>", "not well-formed"),
        ('<!DOCTYPE a [<!ENTITY x "y">]>' + wrap(CAT), "DOCTYPE or entities"),
        ('<!DOCTYPE View SYSTEM "http://127.0.0.1/x.dtd">' + wrap(CAT), "DOCTYPE or entities"),
        (
            wrap('<PolygonLabels name="p" toName="image"><Label value="a"/></PolygonLabels>'),
            r"no <RectangleLabels> control \(it has <PolygonLabels>\)",
        ),
        (wrap(""), "it has no control at all"),
        (wrap(CAT, image='<Video name="image" value="$v"/>'), "points at a <Video>"),
        (wrap(CAT, image=""), "points at nothing in this config"),
        (wrap(CAT, image='<Image name="image" valueList="$images"/>'), "one field of the task"),
        (wrap(CAT, image='<Image name="image" value="http://x/${id}.jpg"/>'), "one field of the task"),
        (wrap('<RectangleLabels name="l" toName="image"/>'), "has no labels"),
        (wrap('<RectangleLabels name="l" toName="image"><Label/></RectangleLabels>'), 'no value="..."'),
        (
            wrap('<RectangleLabels toName="image"><Label value="a"/></RectangleLabels>'),
            "<RectangleLabels> .* no name",
        ),
        (
            wrap('<RectangleLabels name="l" toName="image"><Label value="?"/></RectangleLabels>'),
            "cannot be looked for",
        ),
        (wrap(CAT + CAT), "share one name: label"),
        (wrap(CAT.replace(">", ' model_score_threshold="high">', 1)), "must be a number from 0 to 1"),
        (wrap(CAT.replace(">", ' model_score_threshold="1.5">', 1)), "must be a number from 0 to 1"),
        (wrap(CAT.replace(">", ' model_score_threshold="nan">', 1)), "must be a number from 0 to 1"),
    ],
)
def test_refusals_say_what_is_wrong(xml: str, message: str) -> None:
    with pytest.raises(LabelConfigError, match=message):
        parse_label_config(xml)
