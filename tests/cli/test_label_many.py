"""Images from a manifest, a bucket or a folder into shards: what is written, and going on after an end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from groundingml.cli.app import app

Run = Callable[..., Result]
CONFIG = """<View><Image name="image" value="$photo"/>
<RectangleLabels name="label" toName="image" model_score_threshold="0"><Label value="cat"/></RectangleLabels>
</View>"""


@pytest.fixture
def options(small_model: Path, tmp_path: Path) -> list[str]:
    config = tmp_path / "config.xml"
    config.write_text(CONFIG)
    return ["label", "--label-config", str(config), "--model", str(small_model), "--device", "cpu"]


@pytest.fixture
def label(options: list[str]) -> Run:
    return lambda *arguments: CliRunner().invoke(app, [*options, *map(str, arguments)])


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for part in sorted(folder.glob("part-*")) for line in part.open()]


def test_a_manifest_of_paths_and_urls(label: Run, photos: Path, tmp_path: Path) -> None:
    broken = photos / "broken.jpg"
    broken.write_bytes(b"x")
    urls = [f"file://{photos}/below/coffee.PNG", "photos/cat.jpg", str(broken)]
    manifest = tmp_path / "images.txt"
    manifest.write_text("# some photos\n\n" + "\n".join(urls) + "\n")
    output = tmp_path / "boxes"
    given = ("--manifest", manifest, "--output", output, "--format", "jsonl", "--shard-size", 2)
    result = label(*given)
    assert result.exit_code == 1, result.output
    assert f"{broken}: not an image" in result.stderr
    found = records(output)
    assert [record["image"] for record in found] == urls
    assert [bool(record["error"]) for record in found] == [False, False, True]
    assert all(len(record["boxes_xyxy"]) == len(record["scores"]) > 0 for record in found[:2])
    assert len(list(output.glob("part-*.jsonl"))) == 2

    result = label(*given, "--json")
    assert json.loads(result.stdout)["already_labelled"] == 3, "nothing is done twice"
    manifest.write_text("\n".join(urls[1:]) + "\n")
    result = label(*given)
    assert result.exit_code == 2
    assert "the list of images has changed" in result.stderr
    result = label(*given, "--overwrite")
    assert [record["image"] for record in records(output)] == urls[1:]


@pytest.mark.parametrize("kind", ["coco", "label-studio"])
def test_a_bucket_gives_what_a_folder_gives(label: Run, photos: Path, tmp_path: Path, kind: str) -> None:
    plain, bucket = tmp_path / "plain.json", tmp_path / "bucket.json"
    assert label("--folder", photos, "--output", plain, "--format", kind).exit_code == 0
    result = label("--folder", f"file://{photos}", "--output", bucket, "--format", kind)
    assert result.exit_code == 0, result.output
    expected, found = (json.loads(file.read_text()) for file in (plain, bucket))
    if kind == "coco":
        assert found["annotations"] == expected["annotations"]
        names = [image["file_name"] for image in found["images"]]
        assert names == [f"file://{photos}/{image['file_name']}" for image in expected["images"]]
    else:
        assert [task["data"]["photo"] for task in found] == [
            f"file://{photos}/below/coffee.PNG",
            f"file://{photos}/cat.jpg",
        ]
        values = [
            [[region["value"] for region in task["predictions"][0]["result"]] for task in tasks]
            for tasks in (expected, found)
        ]
        assert values[0] == values[1]
    assert not (tmp_path / "bucket.json.shards").exists()


def test_killed_and_started_again(options: list[str], label: Run, photos: Path, tmp_path: Path) -> None:
    manifest, output = tmp_path / "images.txt", tmp_path / "boxes"
    names = [f"{photos}/cat.jpg", f"{photos}/below/coffee.PNG"] * 60
    manifest.write_text("\n".join(names))
    given = ["--manifest", str(manifest), "--output", str(output), "--format", "jsonl", "--shard-size", "5"]
    command = [sys.executable, "-m", "groundingml.cli", *options, *given, "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(output.glob("part-*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was still at work"
    before = records(output)
    assert 15 <= len(before) < len(names)
    result = label(*given, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["already_labelled"] == len(before)
    assert [record["image"] for record in records(output)] == names, "neither a gap nor a duplicate"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--manifest", "no.txt", "--format", "jsonl", "--output", "x"], "cannot be read"),
        (["--folder", "nothing://x", "--format", "jsonl", "--output", "x"], "Protocol not known"),
        (["--folder", "{photos}/below", "--manifest", "x"], "one of --project, --folder and --manifest"),
        (["--project", "7", "--engine", "ray"], "go with --folder and --manifest"),
        (["--folder", "s3://x", "--format", "coco", "--output", "s3://y"], "one local file"),
    ],
)
def test_wrong_command_lines_are_explained(
    label: Run, given: list[str], said: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = label(*(option.format(photos=photos) for option in given))
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
