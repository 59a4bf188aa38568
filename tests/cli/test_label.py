from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from groundingml.cli.app import app

Run = Callable[..., Result]


@pytest.fixture
def label(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in ("LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> Result:
        options = ["--model", str(small_model), "--device", "cpu"]
        return CliRunner().invoke(app, ["label", *map(str, arguments), *options])

    return run


CONFIG = """<View><Image name="image" value="$photo"/>
<RectangleLabels name="label" toName="image" model_score_threshold="0"><Label value="cat"/></RectangleLabels>
</View>"""


def test_a_folder_becomes_tasks(label: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "config.xml").write_text(CONFIG)
    (photos / "broken.jpg").write_bytes(b"x")
    output = tmp_path / "tasks.json"
    options = ("--folder", photos, "--label-config", tmp_path / "config.xml", "--output", output)
    result = label(*options)
    assert result.exit_code == 1, result.output
    assert "2 of 3 images labelled" in result.stdout
    assert "broken.jpg: " in result.stderr
    assert "1 images failed" in result.stderr
    tasks = json.loads(output.read_text())
    assert [task["data"] for task in tasks] == [
        {"photo": "/data/local-files/?d=photos/below/coffee.PNG"},
        {"photo": "/data/local-files/?d=photos/cat.jpg"},
    ]
    assert all(task["predictions"][0]["result"] for task in tasks)

    assert label(*options).exit_code == 2, "a result is not replaced unasked"
    (photos / "broken.jpg").unlink()
    result = label(*options, "--overwrite", "--format", "coco", "--json")
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    coco = json.loads(output.read_text())
    assert report["boxes"] == {"cat": len(coco["annotations"])}
    assert report["labelled"] == len(coco["images"]) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "one of --project, --folder and --manifest"),
        (["--project", "7"], "access token"),
        (["--project", "7", "--labels", "cat"], "go with --folder"),
        (
            ["--project", "7", "--url", "localhost:8080", "--api-key", "k"],
            "must look like http://localhost:8080",
        ),
        (["--project", "7", "--url", "http://x", "--api-key", "k", "--filter", "id ~ 3"], "no filter"),
        (["--folder", "."], "--labels and --label-config"),
        (["--folder", ".", "--labels", "cat"], "--output"),
        (["--folder", "nowhere", "--labels", "cat", "--output", "x.json"], "not a folder"),
        (["--folder", ".", "--labels", "cat", "--output", "x.json"], "no images found"),
        (["--folder", "{photos}", "--labels", " , ", "--output", "x.json"], "names nothing"),
        (["--folder", "{photos}", "--label-config", "no.xml", "--output", "x.json"], "cannot be read"),
    ],
)
def test_wrong_command_lines_are_explained(
    label: Run, options: list[str], said: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    result = label(*(option.format(photos=photos) for option in options))
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert result.stdout == ""
