"""The backend under `label-studio-ml start` 1.0.9, with a real Label Studio."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from groundingml.store import default_url, open_store
from groundingml.store.tables import Annotation, Correction

CONFIG = (Path(__file__).resolve().parents[2] / "examples" / "label_config.xml").read_text()
READY_S = 120
CAPTURED_S = 60


def test_the_editor_batches_and_corrections(
    label_studio: Any, sdk_backend: Any, photo_dir: Path, tmp_path: Path
) -> None:
    project = label_studio.create_project("under label-studio-ml", CONFIG)
    tasks = label_studio.upload(project, [photo_dir / "cat.jpg", photo_dir / "coffee.jpg"])
    connection = label_studio.connect(project, sdk_backend.url)
    deadline = time.monotonic() + READY_S
    while not (version := label_studio.backend(connection["id"])["model_version"]):
        assert time.monotonic() < deadline, sdk_backend.log()
        time.sleep(1)
    assert version != "INITIAL", (
        "label-studio-ml's own name would make all tasks be predicted again and again"
    )

    label_studio.retrieve_predictions(project)
    stored = label_studio.predictions(project)
    assert {prediction["task"] for prediction in stored} == set(tasks), sdk_backend.log()
    assert {prediction["model_version"] for prediction in stored} == {version}
    found = {
        label for item in stored for region in item["result"] for label in region["value"]["rectanglelabels"]
    }
    assert {"Cat", "Cup"} <= found

    # Shown when the task is opened, without being predicted again.
    opened = label_studio.open_task(tasks[0])
    assert [prediction["model_version"] for prediction in opened["predictions"]] == [version]
    assert len(label_studio.predictions(project)) == 2

    typed = label_studio.type_prompt(connection["id"], tasks[0], "cat . sofa")
    assert "Cat" in {label for region in typed["result"] for label in region["value"]["rectanglelabels"]}

    accepted = next(prediction for prediction in stored if prediction["task"] == tasks[0])
    label_studio.api(
        "POST",
        f"/api/tasks/{tasks[0]}/annotations/",
        json={"result": accepted["result"], "parent_prediction": accepted["id"], "lead_time": 3.0},
    )
    deadline = time.monotonic() + CAPTURED_S
    with open_store(default_url(tmp_path / "data")) as store:
        while time.monotonic() < deadline:
            with store.read() as session:
                if session.scalar(select(func.count()).select_from(Annotation)):
                    break
            time.sleep(0.5)
        with store.read() as session:
            kinds = set(session.scalars(select(Correction.kind)))
    assert kinds == {"kept"}, sdk_backend.log()


@pytest.mark.parametrize("sdk_backend", ["personal"], indirect=True)
def test_projects_do_not_get_each_others_labels(label_studio: Any, sdk_backend: Any, photo_dir: Path) -> None:
    """label-studio-ml 1.0.9 holds one object for all projects, made for the one that was set up last."""
    config = """<View><Image name="image" value="$image"/>
      <TextArea name="prompt" toName="image" editable="true" smart="true"/>
      <RectangleLabels name="label" toName="image" smart="true"><Label value="{}"/></RectangleLabels>
    </View>"""
    first = label_studio.create_project("the first", config.format("cat"))
    second = label_studio.create_project("the second", config.format("animal"))
    (task,) = label_studio.upload(first, [photo_dir / "cat.jpg"])
    label_studio.upload(second, [photo_dir / "cat.jpg"])
    connection = label_studio.connect(first, sdk_backend.url)
    label_studio.connect(second, sdk_backend.url)
    typed = label_studio.type_prompt(connection["id"], task, "cat")
    assert [region["value"]["rectanglelabels"] for region in typed["result"]] == [["cat"]]
