"""Reading label configs: what is understood, and that what is not is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundingml.labelstudio.label_config import (
    ConfigLabel,
    LabelConfigError,
    RectangleControl,
    parse_label_config,
)


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


def label_of(attributes: str, control: str = "") -> ConfigLabel:
    xml = wrap(f'<RectangleLabels name="l" toName="image" {control}><Label {attributes}/></RectangleLabels>')
    (label,) = parse_label_config(xml).controls[0].labels
    return label


@pytest.mark.parametrize(
    ("attributes", "prompts", "why"),
    [
        (
            'value="Cat" prompt="fluffy, small cat" predicted_values="cat"',
            ("fluffy, small cat",),
            "prompt first",
        ),
        ('value="Cat" prompt="" predicted_values="cat,kitten"', ("cat", "kitten"), "then predicted_values"),
        ('value="Cat" alias="c"', ("Cat",), "else the name, not the alias"),
    ],
)
def test_what_a_label_is_looked_for_by(attributes: str, prompts: tuple[str, ...], why: str) -> None:
    assert label_of(attributes).prompts == prompts, why


def test_attributes_of_a_label() -> None:
    label = label_of('value="Cat" score_threshold="0.6" negative_prompts="toy cat, statue"')
    assert label.threshold == 0.6
    assert label.negative_prompts == ("toy cat", "statue")
    assert label_of('value="Cat"').threshold is None


def test_a_rectangle_with_labels_beside_it() -> None:
    xml = wrap(
        """<Labels name="what" toName="image"><Label value="Cat"/></Labels>
        <Rectangle name="box" toName="image" smart="true"/>
        <RectangleLabels name="more" toName="image"><Label value="Dog"/></RectangleLabels>
        <Text name="text" value="$text"/>
        <Labels name="words" toName="text"><Label value="Noun"/></Labels>"""
    )
    controls = parse_label_config(xml).controls
    assert [(control.name, control.rectangle) for control in controls] == [("what", "box"), ("more", None)]


@pytest.mark.parametrize(
    ("inner", "controls"),
    [
        (CAT + CAT.replace('"label"', '"b" model_skip="true"'), ["label"]),
        (CAT + CAT.replace('"label"', '"b" model_skip="false"'), ["label", "b"]),
        (
            CAT
            + '<Labels name="w" toName="image"><Label value="x"/></Labels>'
            + '<Rectangle name="r" toName="image" model_skip="true"/>',
            ["label"],
        ),
    ],
)
def test_controls_that_are_skipped(inner: str, controls: list[str]) -> None:
    assert [control.name for control in parse_label_config(wrap(inner)).controls] == controls


def test_a_skipped_text_area_is_no_prompt_box_nor_is_the_one_for_the_threshold() -> None:
    xml = wrap(
        CAT
        + '<TextArea name="a" toName="image" smart="true" model_skip="true"/>'
        + '<TextArea name="box_threshold" toName="image" smart="true"/>'
        + '<TextArea name="c" toName="image" smart="true"/>'
    )
    assert [prompt.name for prompt in parse_label_config(xml).prompts] == ["c"]


def test_shapes_that_cannot_be_predicted_are_named() -> None:
    polygon = '<PolygonLabels name="p" toName="image"><Label value="a"/></PolygonLabels>'
    assert parse_label_config(wrap(CAT + polygon)).unsupported == ('<PolygonLabels name="p">',)


def test_the_label_for_what_matches_no_label() -> None:
    def control(labels: str, unmatched: str) -> RectangleControl:
        tag = f'<RectangleLabels name="l" toName="image" unmatched="{unmatched}">{labels}</RectangleLabels>'
        return parse_label_config(wrap(tag)).controls[0]

    labels = '<Label value="Cat"/><Label value="Other" alias="o"/>'
    found = control(labels, "Other")
    assert found.unmatched == "o", "the name that results hold"
    assert [label.is_searched for label in found.labels] == [True, False]
    found = control(labels.replace('alias="o"', 'prompt="thing"'), "Other")
    assert [label.is_searched for label in found.labels] == [True, True], "it says what it looks like"
    with pytest.raises(
        LabelConfigError, match=r'unmatched="Rest", which is none of its labels \(Cat, Other\)'
    ):
        control(labels, "Rest")


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("", "not well-formed"),
        ("<View>", "not well-formed"),
        ('<!DOCTYPE a [<!ENTITY x "y">]>' + wrap(CAT), "DOCTYPE or entities"),
        ('<!DOCTYPE View SYSTEM "http://127.0.0.1/x.dtd">' + wrap(CAT), "DOCTYPE or entities"),
        (
            wrap('<PolygonLabels name="p" toName="image"><Label value="a"/></PolygonLabels>'),
            r"no <RectangleLabels>, and no <Labels> .* \(it has <PolygonLabels>\)",
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
        (wrap('<Labels name="l" toName="image"><Label value="a"/></Labels>'), r"\(it has <Labels>\)"),
        (
            wrap(CAT.replace('"label"', '"b" model_skip="true"')),
            'model_skip="true" \\(<RectangleLabels name="b">',
        ),
        (
            wrap(CAT.replace('"Cat"', '"Cat" score_threshold="2"')),
            '<Label value="Cat"> has score_threshold="2"',
        ),
        (wrap(CAT.replace('"Cat"', '"Cat" negative_prompts="toy,?"')), "negative_prompts need a letter"),
        (wrap(CAT.replace('"label"', '"label" negative_prompts="?"')), "each of its negative_prompts"),
        (
            wrap(CAT.replace('"label"', '"label" extra_params="x"')),
            'extra_params of <RectangleLabels name="label">',
        ),
        (wrap(CAT.replace(">", ' model_score_threshold="high">', 1)), "must be a number from 0 to 1"),
        (wrap(CAT.replace(">", ' model_score_threshold="1.5">', 1)), "must be a number from 0 to 1"),
        (wrap(CAT.replace(">", ' model_score_threshold="nan">', 1)), "must be a number from 0 to 1"),
    ],
)
def test_refusals_say_what_is_wrong(xml: str, message: str) -> None:
    with pytest.raises(LabelConfigError, match=message):
        parse_label_config(xml)


@pytest.mark.parametrize("name", ["label_config.xml", "label_config_all.xml"])
def test_the_examples_can_be_used(name: str, photo_dir: Path) -> None:
    config = parse_label_config((photo_dir.parent / name).read_text())
    assert [control.name for control in config.controls] == ["label"]
    assert config.unsupported == ()
    assert len(config.prompts) == 1
