from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import groundingml
from groundingml.cli.app import app


@pytest.fixture
def detect(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """detect("photo.jpg", "--labels", "cat") in an empty working directory, with the small model."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(
            app, ["detect", *map(str, arguments), "--model", str(small_model), "--device", "cpu"]
        )

    return run


def test_one_photo_gives_a_table_and_a_picture(detect, photos: Path) -> None:  # type: ignore[no-untyped-def]
    result = detect(photos / "cat.jpg", "--labels", "cat, remote control", "--threshold", "0")
    assert result.exit_code == 0, result.output
    assert "remote control" in result.stdout
    assert "Boxes drawn in cat.detected.jpg" in result.stdout
    assert result.stderr == ""
    with Image.open("cat.detected.jpg") as picture:
        assert picture.size == (120, 80)
    assert os.listdir() == ["cat.detected.jpg"], "no temporary file is left"


def test_json_is_all_there_is_on_stdout(detect, photos: Path) -> None:  # type: ignore[no-untyped-def]
    result = detect(photos, "--labels", "cat, dog", "--threshold", "0", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [image["file"] for image in report["images"]] == [
        str(photos / "below" / "coffee.PNG"),
        str(photos / "cat.jpg"),
    ]
    assert report["labels"] == ["cat", "dog"]
    assert report["threshold"] == 0
    assert len(report["checkpoint"]) == 12
    assert report["errors"] == []
    for image in report["images"]:
        assert image["image_size"] == [80, 120]
        assert len(image["detections"]) == 20
        assert {found["label"] for found in image["detections"]} == {"cat", "dog"}
        assert image["picture"] is None
    assert os.listdir() == [], "pictures only with --output"


def test_json_with_output_saves_pictures_too(detect, photos: Path) -> None:  # type: ignore[no-untyped-def]
    result = detect(photos, "--labels", "cat", "--json", "--output", "drawn")
    pictures = [image["picture"] for image in json.loads(result.stdout)["images"]]
    assert pictures == ["drawn/coffee.detected.jpg", "drawn/cat.detected.jpg"]
    assert all(Path(picture).is_file() for picture in pictures)


def test_workers_give_the_same_report_and_pictures(detect, photos: Path) -> None:  # type: ignore[no-untyped-def]
    (photos / "broken.jpg").write_bytes(b"no image")
    reports = []
    for workers in ("1", "2"):
        question = (photos, "--labels", "cat, dog", "--threshold", "0", "--json", "--output", f"by {workers}")
        result = detect(*question, "--workers", workers)
        assert result.exit_code == 1, "one is broken"
        reports.append(json.loads(result.stdout))
        assert len(os.listdir(f"by {workers}")) == 2
    here, workers_ = reports
    assert here["errors"] == workers_["errors"]
    assert len(here["images"]) == len(workers_["images"]) == 2
    for one, other in zip(here["images"], workers_["images"], strict=True):
        assert (one["file"], len(one["detections"])) == (other["file"], len(other["detections"]))
        # Not for equality: this process may have computed with several threads.
        scores = [[found["score"] for found in each["detections"]] for each in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=2e-5)


def test_a_dead_worker_ends_the_run_and_is_named(  # type: ignore[no-untyped-def]
    detect, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from groundingml import inference

    def dies(*arguments: object, **options: object) -> object:
        yield next(inference.bulk.detect_many(*arguments, **options))  # type: ignore[arg-type]
        raise inference.WorkerError("worker 1 of 2 (process 7) was killed by SIGKILL")

    monkeypatch.setattr(inference, "detect_many", dies)
    result = detect(photos, "--labels", "cat", "--json")
    assert result.exit_code == 1
    assert "stopped after 1 of 2 images" in result.stderr
    assert "worker 1 of 2 (process 7) was killed by SIGKILL" in result.stderr
    report = json.loads(result.stdout)
    assert len(report["images"]) == 1, "what was done is reported"
    assert "SIGKILL" in report["stopped"]


def test_output_file_decides_the_format(detect, photos: Path) -> None:  # type: ignore[no-untyped-def]
    assert detect(photos / "cat.jpg", "--labels", "cat", "-o", "new/boxes.png").exit_code == 0
    with Image.open("new/boxes.png") as picture:
        assert picture.format == "PNG"
    assert Path("new/boxes.png").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_broken_image_does_not_stop_the_others(detect, photos: Path) -> None:  # type: ignore[no-untyped-def]
    (photos / "broken.jpg").write_bytes((photos / "cat.jpg").read_bytes()[:500])
    result = detect(photos, photos / "missing.jpg", photos / "notes.txt", "--labels", "cat", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert len(report["images"]) == 2
    reasons = {Path(error["file"]).name: error["error"] for error in report["errors"]}
    assert set(reasons) == {"broken.jpg", "missing.jpg", "notes.txt"}
    assert "cut short" in reasons["broken.jpg"]
    assert reasons["missing.jpg"] == "no such file"
    assert "not an image" in reasons["notes.txt"]
    assert "3 of 5 images failed" in result.stderr
    assert str(photos / "broken.jpg") in result.stderr


@pytest.mark.parametrize(
    ("arguments", "asked", "why"),
    [
        (["--labels", "cat, remote control"], {"labels": ["cat", "remote control"]}, "commas"),
        (
            ["--labels", "cat . remote control ."],
            {"labels": ["cat", "remote control"]},
            "the original format",
        ),
        (["--labels", " cat ,, U.S. flag,"], {"labels": ["cat", "U.S. flag"]}, "empty parts; dots in a name"),
        (["--caption", "a cat, and a dog."], {"caption": "a cat, and a dog."}, "a sentence as it stands"),
    ],
)
def test_what_is_asked_for(  # type: ignore[no-untyped-def]
    detect, photos: Path, arguments: list[str], asked: dict[str, object], why: str
) -> None:
    report = json.loads(detect(photos / "cat.jpg", *arguments, "--json").stdout)
    assert {key: report[key] for key in ("labels", "caption") if key in report} == asked, why


@pytest.mark.parametrize(
    ("name", "content", "labels"),
    [
        (
            "labels.txt",
            "\ufeffcat\n\n# a comment\n  remote control \ncup, red\n",
            ["cat", "remote control", "cup, red"],
        ),
        ("labels.json", '["cat", "dog"]', ["cat", "dog"]),
        ("labels.json", '{"pet": ["cat", "dog"], "cup": "mug"}', {"pet": ["cat", "dog"], "cup": "mug"}),
    ],
)
def test_labels_file(detect, photos: Path, name: str, content: str, labels: object) -> None:  # type: ignore[no-untyped-def]
    Path(name).write_text(content, encoding="utf-8")
    result = detect(photos / "cat.jpg", "--labels-file", name, "--json", "--threshold", "0")
    report = json.loads(result.stdout)
    assert report["labels"] == labels
    assert {found["label"] for found in report["images"][0]["detections"]} <= set(labels)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["cat.jpg"], 2, "one of --labels, --caption and --labels-file"),
        (["cat.jpg", "--labels", "cat", "--caption", "a cat"], 2, "one of --labels"),
        (["cat.jpg", "--labels", " , . "], 2, "--labels names nothing"),
        (["cat.jpg", "--labels", "🐱"], 2, "no word for '🐱'"),
        (["cat.jpg", "--caption", "..."], 2, "nothing to look for"),
        (["cat.jpg", "--labels-file", "none.txt"], 2, "labels file none.txt cannot be read"),
        (["cat.jpg", "--labels-file", "empty.txt"], 2, "has no labels"),
        (["cat.jpg", "--labels-file", "bad.json"], 2, "is not JSON"),
        (["cat.jpg", "--labels-file", "number.json"], 2, "must hold a list of names"),
        (["missing.jpg", "--labels", "cat"], 1, "no such file: missing.jpg"),
        (["nothing/*.jpg", "--labels", "cat"], 2, "no images found in nothing/*.jpg"),
        (["cat.jpg", "below/coffee.PNG", "--labels", "cat", "-o", "a.jpg"], 2, "name a folder"),
        (["cat.jpg", "--labels", "cat", "--threshold", "35"], 2, "--threshold"),
        (["cat.jpg", "--labels", "cat", "--workers", "0"], 2, "--workers must be auto or a number"),
        (["cat.jpg", "--labels", "cat", "--workers", "most"], 2, "--workers must be auto or a number"),
    ],
)
def test_errors_say_what_to_do(  # type: ignore[no-untyped-def]
    detect, photos: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int, message: str
) -> None:
    monkeypatch.chdir(photos)
    for name, content in {"empty.txt": "# nothing\n", "bad.json": "{", "number.json": "[1]"}.items():
        Path(name).write_text(content)
    result = detect(*arguments)
    assert result.exit_code == status, result.output
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--model", "no/such/folder/x", "x"), ("--device", "tpu9", "unknown device")],
)
def test_models_and_devices_that_are_not_there(photos: Path, option: str, value: str, message: str) -> None:
    result = CliRunner().invoke(app, ["detect", str(photos / "cat.jpg"), "--labels", "cat", option, value])
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.startswith("groundingml: ")


def test_brackets_in_labels_are_no_markup(detect, photos: Path) -> None:  # type: ignore[no-untyped-def]
    result = detect(photos / "cat.jpg", "--labels", "cat [red]", "--threshold", "0")
    assert "cat [red]" in result.stdout


def test_nothing_found_is_said(detect, photos: Path) -> None:  # type: ignore[no-untyped-def]
    result = detect(photos / "cat.jpg", "--labels", "cat", "--threshold", "1")
    assert result.exit_code == 0
    assert "Nothing found; a lower --threshold" in result.stdout


def test_a_picture_that_cannot_be_saved_is_an_error_of_that_image(detect, photos: Path) -> None:  # type: ignore[no-untyped-def]
    Path("taken").write_text("a file where the folder should be")
    result = detect(photos / "cat.jpg", "--labels", "cat", "--output", "taken/x")
    assert result.exit_code == 1
    assert "the picture cannot be saved" in result.stderr


def test_ctrl_c_ends_cleanly(small_model: Path, photos: Path, tmp_path: Path) -> None:
    """A real process, interrupted while it works through many photos."""
    many = tmp_path / "many"
    many.mkdir()
    for number in range(2000):
        os.link(photos / "cat.jpg", many / f"{number:04}.jpg")
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "-m", "groundingml.cli", "detect", str(many), "--labels", "cat", "--json"]
    process = subprocess.Popen(
        [*command, "--model", str(small_model), "--output", "drawn"],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(Path(groundingml.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while (
        not list(work.glob("drawn/*.detected.jpg")) and time.monotonic() < deadline and process.poll() is None
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted after" in err
    report = json.loads(out)
    assert report["interrupted"] is True
    assert 0 < len(report["images"]) < 2000
    drawn = list((work / "drawn").iterdir())
    assert all(path.name.endswith(".detected.jpg") for path in drawn), "no half written picture"
    for path in drawn:
        with Image.open(path) as picture:
            picture.load()


def test_the_embedded_model_finds_the_cat(detect, photo_dir: Path) -> None:  # type: ignore[no-untyped-def]
    """What the README shows first: no model named, nothing fetched."""
    command = [
        "detect",
        str(photo_dir / "cat.jpg"),
        "--labels",
        "cat, remote control",
        "--json",
        "--device",
        "cpu",
    ]
    report = json.loads(CliRunner().invoke(app, command).stdout)
    assert report["model"] == "nano"
    best = report["images"][0]["detections"][0]
    assert best["label"] == "cat"
    left, top, right, bottom = best["box_xyxy"]
    assert right - left > 200, "the cat's face fills most of the 451 x 300 photo"
    assert bottom - top > 200


def test_tiles(detect, photos: Path) -> None:  # type: ignore[no-untyped-def]
    question = (photos / "cat.jpg", "--labels", "cat", "--threshold", "0", "--json")  # 120 x 80 pixels
    whole = json.loads(detect(*question).stdout)
    result = detect(*question, "--tile", "100:20")
    assert result.exit_code == 0, result.output
    tiled = json.loads(result.stdout)
    assert (whole["tile"], tiled["tile"]) == (None, {"size": 100, "overlap": 20})
    found = [report["images"][0]["detections"] for report in (whole, tiled)]
    assert len(found[0]) < len(found[1]), "those of the tiles are added"
    for tile, message in (("big", "looks like 1024 or 1024:256"), ("10", "from 64")):
        result = detect(*question, "--tile", tile)
        assert result.exit_code == 2
        assert message in result.stderr
