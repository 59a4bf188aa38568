from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from groundingml.inference import Detector
from groundingml.learning.versions import (
    VersionError,
    VersionFolder,
    drafting,
    open_version,
    process_lives,
    remove_version,
    sweep,
    to_prune,
)
from groundingml.models import checkpoint_digest, load_model, load_tokenizer
from groundingml.models.checkpoints.save import save_pretrained
from groundingml.models.grounding_dino import GroundingDino

FORMAT_9 = '{"format": 9, "files": {}, "digest": ""}'
THRESHOLDS = {"default": 0.3, "labels": {"cat": {"threshold": 0.0}}}


@pytest.fixture
def version(tmp_path: Path, tiny_model: GroundingDino) -> VersionFolder:
    with drafting(tmp_path / "versions" / "7" / "run-1") as draft:
        save_pretrained(tiny_model, draft.path)
        draft.write("thresholds.json", THRESHOLDS)
        draft.write("metrics.json", {"holdout": {"map50": 0.5}})
        draft.write("provenance.json", {"run": 1, "parent": None, "corrections": 60})
        return draft.finish()


def test_a_version_loads_as_a_detector_with_its_thresholds(
    version: VersionFolder, tiny_model: GroundingDino
) -> None:
    assert open_version(version.path) == version
    detector = Detector.from_pretrained(version.path, device="cpu")
    assert detector.checkpoint_digest == version.digest == checkpoint_digest(version.path)
    assert detector.thresholds.of("cat") == 0.0
    image = Image.effect_noise((120, 90), 80).convert("RGB")
    ours = detector(image, labels=["cat", "dog"], threshold=0.0)
    original = Detector(tiny_model, load_tokenizer("nano"), device="cpu")
    expected = original(image, labels=["cat", "dog"], threshold=0.0)
    assert np.array_equal(ours.boxes_xyxy, expected.boxes_xyxy)
    assert np.array_equal(ours.scores, expected.scores)
    assert version.read("provenance.json")["corrections"] == 60


def test_transformers_loads_a_version_and_computes_the_same(version: VersionFolder) -> None:
    from transformers import AutoTokenizer, GroundingDinoForObjectDetection

    theirs, report = GroundingDinoForObjectDetection.from_pretrained(
        version.path, output_loading_info=True, attn_implementation={"text_config": "sdpa"}
    )
    # "shared_..." are their names for weights that are stored once.
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]
    tokenizer = AutoTokenizer.from_pretrained(version.path)
    text = tokenizer("cat. remote control.", return_tensors="pt")
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    ours = load_model(version.path)
    assert isinstance(ours, GroundingDino)
    with torch.no_grad():
        expected = theirs.eval()(pixel_values=pixels, **text)
        output = ours(pixels, None, text["input_ids"], text["attention_mask"])
    width = text["input_ids"].shape[1]
    assert torch.allclose(output.logits[..., :width], expected.logits[..., :width], atol=1e-3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda path: os.truncate(path / "model.safetensors", 5000), "is not as it was written"),
        (lambda path: (path / "thresholds.json").write_text("{}"), "is not as it was written"),
        (lambda path: (path / "manifest.json").unlink(), "never written to its end"),
        (lambda path: (path / "manifest.json").write_text("[]"), "is damaged"),
        (lambda path: (path / "manifest.json").write_text(FORMAT_9), "format 9"),
        (shutil.rmtree, "there is no version folder"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_not_a_version(version: VersionFolder, damage: object, message: str) -> None:
    damage(version.path)  # type: ignore[operator]
    with pytest.raises(VersionError, match=message):
        open_version(version.path)


def test_a_failed_draft_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "7" / "run-1"
    with pytest.raises(TypeError), drafting(target) as draft:
        draft.write("metrics.json", {"not JSON": object()})
    assert list(tmp_path.rglob("*")) == [target.parent]


def test_a_folder_that_a_killed_run_left_is_replaced(
    version: VersionFolder, tiny_model: GroundingDino
) -> None:
    with drafting(version.path) as draft:
        save_pretrained(tiny_model, draft.path)
        again = draft.finish()
    assert open_version(version.path) == again
    assert not (version.path / "thresholds.json").exists()
    assert again.digest != version.digest


def test_a_killed_writer_leaves_only_what_is_swept(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from groundingml.learning.versions import drafting\n"
        "with drafting(Path(sys.argv[1])) as draft:\n"
        "    draft.write('metrics.json', {}); print('written', flush=True); time.sleep(60)"
    )
    target = tmp_path / "7" / "run-1"
    writer = subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "written\n"
    assert sweep(tmp_path) == []  # it lives
    writer.send_signal(signal.SIGKILL)
    writer.wait(30)
    assert not target.exists()
    (removed,) = sweep(tmp_path)
    assert list(target.parent.iterdir()) == []
    assert ".partial-" in removed.name


def test_another_hosts_writer_is_given_a_day(tmp_path: Path) -> None:
    partial = tmp_path / "7" / ".partial-elsewhere-1-abcd"
    partial.mkdir(parents=True)
    assert sweep(tmp_path) == []
    old = time.time() - 25 * 3600
    os.utime(partial, (old, old))
    assert sweep(tmp_path) == [partial]


def test_removing_a_version(version: VersionFolder) -> None:
    remove_version(version.path)
    assert list(version.path.parent.iterdir()) == []
    remove_version(version.path)  # again, as after a crash


@pytest.mark.parametrize(
    ("parents", "serving", "keep", "pruned"),
    [
        ({1: None, 2: 1, 3: 2}, 3, 5, []),
        ({1: None, 2: 1, 3: 2}, 3, 1, [1]),  # 3 serves, 2 is what a rollback returns to
        (dict.fromkeys(range(1, 8)), 1, 2, [5, 4, 3, 2]),  # the serving one is old, the rest were rejected
        ({1: None, 2: 1, 3: 1, 4: 1}, 2, 1, [3]),
        ({1: None, 2: None}, None, 1, [1]),
    ],
)
def test_what_may_go(
    parents: dict[int, int | None], serving: int | None, keep: int, pruned: list[int]
) -> None:
    assert to_prune(sorted(parents, reverse=True), parents, serving, keep) == pruned


def test_processes() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    while process_lives(child.pid):  # until it has ended, a zombie still
        time.sleep(0.01)
    child.wait()
    assert not process_lives(child.pid)
    assert process_lives(os.getpid())
    assert process_lives(1)
