"""Prompts that are remembered: from annotations, by hand, over HTTP; and what the next prediction makes of
them."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from groundingml.cli.app import app
from groundingml.labelstudio import Settings
from groundingml.labelstudio.remembered_prompts import RememberedPrompts, learn_prompts
from groundingml.store import Store, default_url, open_store
from groundingml.store.projects import put_project

NOON = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.timezone.utc)


def typed(*texts: str, name: str = "prompt") -> dict[str, Any]:
    return {
        "id": "t", "from_name": name, "to_name": "image", "type": "textarea", "value": {"text": list(texts)}
    }  # fmt: skip


def annotation(*regions: dict[str, Any], hour: int = 12, **more: Any) -> dict[str, Any]:
    return {"result": list(regions), "updated_at": f"2026-03-01T{hour:02}:00:00.5Z", **more}


def learn(store: Store, project: str, *annotations: dict[str, Any]) -> dict[str, str]:
    for one in annotations:
        with store.begin() as session:
            learn_prompts(session, project, one)
    return RememberedPrompts(store).of(project)


def test_the_last_one_submitted_counts(store: Store) -> None:
    assert learn(store, "7", annotation(typed("cat"))) == {"prompt": "cat"}
    assert learn(store, "7", annotation(typed("dog", "red ball", " "), hour=13)) == {"prompt": "red ball"}
    assert learn(store, "7", annotation(typed("late"), hour=9)) == {"prompt": "red ball"}, "an old event"
    assert learn(store, "7", annotation(hour=14)) == {"prompt": "red ball"}, "an annotation without a prompt"
    assert learn(store, "7", annotation(typed("no"), hour=15, was_cancelled=True)) == {"prompt": "red ball"}
    assert RememberedPrompts(store).of("8") == {}


@pytest.mark.parametrize("empty", [[""], ["."], [" ; , "], []])
def test_a_prompt_without_a_word_clears_and_stays_cleared(store: Store, empty: list[str]) -> None:
    learn(store, "7", annotation(typed("cat")), annotation(typed(*empty), hour=13))
    assert RememberedPrompts(store).of("7") == {}
    assert learn(store, "7", annotation(typed("cat"))) == {}, "the first event once more"


def test_comments_are_no_prompts(store: Store, config_xml: str) -> None:
    with store.begin() as session:
        put_project(session, "7", config_xml, None)
    regions = [typed("blurred", name="comment"), typed("0.4", name="box_threshold"), typed("cat")]
    assert learn(store, "7", annotation(*regions)) == {"prompt": "cat"}


@pytest.mark.parametrize("result", [None, "x", [None, 3], [{"type": "textarea"}], [typed(3)]])  # type: ignore[arg-type]
def test_odd_annotations_change_nothing(store: Store, result: Any) -> None:
    learn(store, "7", {"result": result, "updated_at": "never"})
    assert RememberedPrompts(store).of("7") == {}


def test_over_http_the_next_prediction_has_its_boxes(
    serve: Any, detector: Any, allow: Any, site: Any, predict_body: Any, config_xml: str
) -> None:
    backend = serve(Settings(allow_hosts=allow), detector)
    cat = f"{site.url}/photos/cat.jpg"

    def predict() -> tuple[str, list[Any]]:
        item = backend.post("/predict", json=predict_body(cat)).json()["results"][0]
        setup = backend.post("/setup", json={"project": "1.7", "schema": config_xml}).json()
        assert item["model_version"] == setup["model_version"]
        return item["model_version"], [
            region["value"]["rectanglelabels"] or region["meta"]["text"] for region in item["result"]
        ]

    version, found = predict()
    assert found == [["Cat"], ["canine"]]
    put = backend.put("/projects/1/prompts", json={"control": "prompt", "text": "red ball . Cat"})
    assert put.json() == {"project": "1", "prompts": {"prompt": "red ball . Cat"}}
    other, found = predict()
    assert found == [["Cat"], ["red ball"], ["canine"]]
    assert other != version
    assert backend.put("/projects/1/prompts", json={"control": "none", "text": "x"}).status_code == 200
    assert predict()[0] == other, "of a control that the config does not have"
    assert backend.delete("/projects/1/prompts").json()["prompts"] == {}
    assert predict() == (version, [["Cat"], ["canine"]])
    for body in ({}, {"control": "prompt"}, {"control": "", "text": "x"}, {"control": "prompt", "text": 3}):
        assert backend.put("/projects/1/prompts", json=body).status_code == 400


def test_by_command(tmp_path: Path, config_xml: str) -> None:
    with open_store(default_url(tmp_path)) as store, store.begin() as session:
        put_project(session, "7", config_xml.replace('name="prompt"', 'name="ask"'), None)

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["prompts", *arguments, "--data-dir", str(tmp_path)])
        assert done.exit_code == 0, done.output
        return done.output

    assert "no prompt is remembered" in run()
    assert "project 7, ask: cat . cup" in run("--project", "7", "--set", "cat . cup")
    assert '"text": "cat . cup"' in run("--json")
    assert "no prompt is remembered" in run("--project", "8")
    assert "no prompt is remembered" in run("--project", "7", "--clear")
    refused = CliRunner().invoke(app, ["prompts", "--set", "cat", "--data-dir", str(tmp_path)])
    assert refused.exit_code == 2
