"""`groundingml train --data`: a real run with the embedded model, its refusals, Ctrl-C and --resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner, Result

from groundingml.cli.app import app

DEADLINE_S = 300


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five pictures of a red square each, in COCO format."""
    folder = tmp_path / "data"
    folder.mkdir()
    images, annotations = [], []
    for number in range(1, 6):
        picture = Image.new("RGB", (96, 96), "gray")
        ImageDraw.Draw(picture).rectangle((10 * number, 20, 10 * number + 30, 50), fill="red")
        picture.save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 96})
        box = [10 * number, 20, 31, 31]
        annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": box})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "red square"}],
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return folder


def train(data: Path, *arguments: str) -> Result:
    told = ["train", "--data", str(data / "coco.json"), "--images", str(data), "--device", "cpu"]
    return CliRunner().invoke(app, [*told, *arguments])


def test_a_run_writes_a_model_that_detect_takes_and_no_other_run_destroys(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "trained"
    done = train(data, "--output", str(output), "--steps", "2", "--val", "0.4", "--seed", "3")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{output}\n"
    assert "images with" in done.stderr
    assert "to measure on" in done.stderr
    assert "mAP50" in done.stderr
    assert f'groundingml detect photo.jpg --labels "red square" --model {output}' in done.stderr
    assert json.loads((output / "config.json").read_text())["taught_names"] == ["red square"]

    found = CliRunner().invoke(
        app, ["detect", str(data / "1.png"), "--labels", "red square", "--model", str(output), "--json"]
    )
    assert found.exit_code == 0, found.output
    again = train(data, "--output", str(output), "--steps", "2")
    assert again.exit_code == 2
    assert "holds a model already: name another --output, or --overwrite" in again.stderr


def spoil(data: Path) -> None:
    content = json.loads((data / "coco.json").read_text())
    content["annotations"][1]["bbox"] = [1, 2, 0, 4]
    (data / "coco.json").write_text(json.dumps(content))


def test_bad_records_are_named_and_refused_or_skipped(data: Path, tmp_path: Path) -> None:
    spoil(data)
    refused = train(data, "--output", str(tmp_path / "trained"))
    assert refused.exit_code == 1
    assert "annotations[1] (id 2): 'bbox' has no area" in refused.stderr
    assert "With --bad-records skip the rest is used." in refused.stderr
    skipped = train(data, "--output", str(tmp_path / "trained"), "--steps", "1", "--bad-records", "skip")
    assert skipped.exit_code == 0, skipped.output
    assert "left out annotations[1] (id 2)" in skipped.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--val", "1.5"], "a share of the images lies between 0 and 1"),
        (["--val", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--val", "{data}"], "5 validation images are trained on too"),
        (["--model", "nanno"], "Did you mean nano?"),
        (["--output", "{data}"], "is a file; name a folder"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], said: str, data: Path, tmp_path: Path) -> None:
    filled = [argument.format(data=data / "coco.json") for argument in arguments]
    output = [] if "--output" in filled else ["--output", str(tmp_path / "trained")]
    refused = train(data, *filled, *output)
    assert refused.exit_code in (1, 2)
    assert said in refused.stderr
    assert not (tmp_path / "trained").exists()


def test_ctrl_c_saves_and_resume_goes_on(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "trained"
    command = [
        sys.executable, "-m", "groundingml.cli", "train", "--device", "cpu", "--epochs", "12",
        "--data", str(data / "coco.json"), "--images", str(data), "--output", str(output),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + DEADLINE_S
    while not (output / "checkpoints" / "last.pt").is_file():
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    told = running.communicate(timeout=DEADLINE_S)[1]
    assert running.returncode == 130, told
    assert "the same command with --resume goes on from there" in told
    assert not (output / "config.json").exists()

    anew = train(data, "--output", str(output), "--epochs", "12")
    assert anew.exit_code == 2
    assert "--resume goes on with it, --overwrite begins anew" in anew.stderr
    other = train(data, "--output", str(output), "--epochs", "12", "--batch-size", "1", "--resume")
    assert other.exit_code == 1
    assert "batch_size was 2, is 1" in other.stderr
    resumed = train(data, "--output", str(output), "--epochs", "12", "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert (output / "config.json").is_file()
    assert not (output / "checkpoints").exists()
