from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from groundingml.cli.app import app


@pytest.fixture
def data(tmp_path: Path, photo_dir: Path) -> Path:
    """One photo with a true box, one with what is not there."""
    for name in ("coffee.jpg", "cat.jpg"):
        shutil.copyfile(photo_dir / name, tmp_path / name)
    content = {
        "images": [{"id": 1, "file_name": "coffee.jpg"}, {"id": 2, "file_name": "cat.jpg"}],
        "categories": [{"id": 1, "name": "mug"}, {"id": 2, "name": "violin"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [150, 60, 330, 270]},
            {"id": 2, "image_id": 2, "category_id": 2, "bbox": [5, 5, 40, 40]},
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    return tmp_path


def run(data: Path, *options: str) -> Result:
    return CliRunner().invoke(
        app, ["evaluate", "--data", str(data / "coco.json"), "--images", str(data), *options]
    )


def test_numbers_by_label_and_a_report(data: Path) -> None:
    (data / "prompts.json").write_text('{"mug": ["cup", "mug"]}')
    result = run(data, "--json", "--prompts", str(data / "prompts.json"), "--report", str(data / "report"))
    assert result.exit_code == 0, result.output
    numbers: dict[str, Any] = json.loads(result.stdout)
    assert numbers["labels"]["mug"]["map50"] == 1.0
    assert numbers["labels"]["violin"]["boxes"] == 1
    assert numbers["labels"]["violin"]["map50"] < 0.1
    assert numbers["map50"] == pytest.approx(0.5, abs=0.05)
    assert (numbers["images"], numbers["model"], len(numbers["digest"])) == (2, "nano", 12)
    names = {path.name for path in (data / "report").iterdir()}
    assert {"metrics.json", "precision_recall.png"} < names
    assert any(name.endswith("-cat.jpg") for name in names)


def test_a_table(data: Path) -> None:
    result = run(data, "--limit", "1")
    assert result.exit_code == 0, result.output
    assert "mean over labels" in result.output
    assert "violin" not in result.output


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda data: (data / "cat.jpg").unlink(), [], "images[1] (id 2): no such file"),
        (lambda data: (data / "coco.json").unlink(), [], "cannot be read"),
        (lambda data: (data / "coco.json").write_text("{"), [], "not valid JSON"),
        (lambda data: (data / "p.json").write_text('{"a": "b"}'), ["--prompts", "p.json"], "labels are mug"),
        (lambda data: None, ["--model", "nanno"], "Did you mean nano?"),
        (lambda data: (data / "report").write_text(""), ["--report", "report"], "the report cannot be"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(data: Path, change: Any, options: list[str], words: str) -> None:
    change(data)
    at = [str(data / option) if option in ("p.json", "report") else option for option in options]
    result = run(data, "--limit", "1", *at)
    assert result.exit_code in (1, 2)
    assert words in " ".join(result.output.split())


def test_bad_records_can_be_left_out(data: Path) -> None:
    (data / "cat.jpg").unlink()
    result = run(data, "--json", "--skip-bad-records")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"] == 1
