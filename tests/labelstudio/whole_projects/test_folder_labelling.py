"""Labelling a folder into import files: whole, resumable, nothing lost to a broken image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from groundingml import inference
from groundingml.cli.files import find_images
from groundingml.inference import load_image
from groundingml.labelstudio.folder_labelling import FolderWork, config_for_labels, label_folder
from groundingml.labelstudio.label_config import LabelConfigError, parse_label_config
from groundingml.labelstudio.versions import model_version


class ReadsFiles:
    """The known detector of the other tests takes images only; the real one takes paths too."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, file: Path, labels: Any, **options: Any) -> Any:
        return self.inner(load_image(file), labels=labels, **options)


@pytest.fixture
def reader(detector: Any) -> Any:
    return ReadsFiles(detector)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my photos"
    (folder / "below").mkdir(parents=True)
    for number, name in enumerate(["a b.png", "below/c#.png", "d.png"]):
        Image.new("RGB", (100 + number, 50)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture
def work(folder: Path, tmp_path: Path, config_xml: str) -> Callable[..., FolderWork]:
    def make(format: Any = "label-studio", config: str = config_xml) -> FolderWork:
        files = find_images([str(folder)])
        prefix = "/data/local-files/?d=my%20photos/"
        output = tmp_path / "out.json"
        return FolderWork(folder, files, parse_label_config(config), output, format, prefix)

    return make


def test_an_import_file(work: Any, detector: Any, reader: Any) -> None:
    report = label_folder(reader, work())
    assert (report.labelled, report.boxes) == (3, {"Cat": 3, "canine": 3})
    assert [name for name, _ in report.failed] == ["broken.jpg"]
    tasks = json.loads(work().output.read_text())
    assert [task["data"]["image"] for task in tasks] == [
        "/data/local-files/?d=my%20photos/a%20b.png",
        "/data/local-files/?d=my%20photos/below/c%23.png",
        "/data/local-files/?d=my%20photos/d.png",
    ]
    (prediction,) = tasks[0]["predictions"]
    assert prediction["model_version"] == model_version(detector.checkpoint_digest, work().config)
    region = prediction["result"][0]
    assert (region["original_width"], region["original_height"]) == (100, 50)
    assert region["value"]["rectanglelabels"] == ["Cat"]
    sides = [region["value"][side] for side in ("x", "y", "width", "height")]
    assert sides == pytest.approx([10, 20, 40, 60], abs=1e-3)
    assert not work().journal.exists()


def test_coco(work: Any, reader: Any) -> None:
    label_folder(reader, work("coco"))
    coco = json.loads(work().output.read_text())
    assert [image["file_name"] for image in coco["images"]] == ["a b.png", "below/c#.png", "d.png"]
    assert coco["images"][2] == {"id": 3, "file_name": "d.png", "width": 102, "height": 50}
    assert coco["categories"] == [{"id": 1, "name": "Cat"}, {"id": 2, "name": "canine"}]
    first = coco["annotations"][0]
    assert first["bbox"] == pytest.approx([10, 10, 40, 30], abs=0.01)
    assert first["area"] == pytest.approx(1200, abs=1)
    assert {key: first[key] for key in ("id", "image_id", "category_id", "iscrowd")} == {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "iscrowd": 0,
    }
    assert [entry["id"] for entry in coco["annotations"]] == [1, 2, 3, 4, 5, 6]


def test_a_stopped_run_goes_on(work: Any, detector: Any, reader: Any, folder: Path) -> None:
    answers = iter([False, True])
    report = label_folder(reader, work(), is_stopped=lambda: next(answers))
    assert (report.interrupted, report.labelled, report.left) == (True, 1, 3)
    assert not work().output.exists()
    journal = work().journal
    with journal.open("ab") as stream:
        stream.write(b'{"file": "d.png", "of": [1, 2], "wid')  # as a kill in the middle of a line leaves it
    detector.sizes.clear()
    answers = iter([False, True])
    label_folder(reader, work(), is_stopped=lambda: next(answers))
    report = label_folder(reader, work())
    assert report.already + report.labelled == 3
    assert detector.sizes == [(101, 50), (102, 50)], "each image once over all runs"
    assert len(json.loads(work().output.read_text())) == 3
    assert not journal.exists()


def test_a_dead_worker_stops_the_run_which_goes_on_later(
    work: Any, detector: Any, reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*arguments: Any, **options: Any) -> Any:
        yield next(inference.bulk.detect_many(*arguments, **options))
        raise inference.WorkerError("worker 1 of 2 (process 7) was killed by SIGKILL")

    with monkeypatch.context() as patch:
        patch.setattr(inference, "detect_many", dies)
        report = label_folder(reader, work())
    assert report.stopped == "worker 1 of 2 (process 7) was killed by SIGKILL"
    assert (report.interrupted, report.labelled, report.left) == (False, 1, 3)
    assert not work().output.exists()
    detector.sizes.clear()
    report = label_folder(reader, work())
    assert (report.stopped, report.already, len(detector.sizes)) == (None, 1, 2)
    assert work().output.exists()


@pytest.mark.parametrize("change", ["image", "model"])
def test_what_changed_is_labelled_anew(
    work: Any, detector: Any, reader: Any, folder: Path, change: str
) -> None:
    answers = iter([False, False, False, True])
    label_folder(reader, work(), is_stopped=lambda: next(answers))
    detector.sizes.clear()
    if change == "image":
        Image.new("RGB", (333, 50)).save(folder / "a b.png")
    else:
        detector.checkpoint_digest = "another"
    label_folder(reader, work())
    expected = [(333, 50)] if change == "image" else [(100, 50), (101, 50)]
    assert detector.sizes == [*expected, (102, 50)]


def test_a_config_that_does_not_fit_a_folder(work: Any, reader: Any) -> None:
    config = work().config
    xml = config_for_labels(["cat"]).replace('toName="image"', 'toName="image" value="$labels"')
    with pytest.raises(LabelConfigError, match=r"\$labels"):
        label_folder(reader, work(config=xml))
    assert config.images


def test_labels_become_a_config() -> None:
    config = parse_label_config(config_for_labels(['a "big" <cat> & dog', "cup", "cup"]))
    assert [label.name for label in config.controls[0].labels] == ['a "big" <cat> & dog', "cup"]
