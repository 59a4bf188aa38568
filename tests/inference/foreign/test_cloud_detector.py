"""``api:``: the makers' own SDK against a server on this machine that speaks its protocol."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from groundingml.cli.app import app
from groundingml.inference import Label, PromptError, detect_many, load_detector, source_digest
from groundingml.inference.cloud_detector import (
    CLOUD_MODELS,
    PHRASES_A_CALL,
    CloudDetector,
    CloudError,
    CloudRefused,
)
from groundingml.models import CheckpointError

# Not imported to find out: the SDK would begin to report to its makers, from the tests' own process.
if importlib.util.find_spec("dds_cloudapi_sdk") is None:
    pytest.skip("needs pip install 'groundingml[cloud]'", allow_module_level=True)

CAT = {"category": "cat", "score": 0.9, "bbox": [10.5, 20.0, 30.0, 40.0]}
BUSY = (200, {"code": 202001, "msg": "busy, try again"})


def detector(name: str = "dino-x") -> CloudDetector:
    return CloudDetector(f"api:{name}", allow_cloud=True, backoff_s=0.01)


@pytest.fixture
def image() -> Image.Image:
    return Image.new("RGB", (200, 100), "white")


def sent_image(body: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(body["image"].removeprefix("data:image/jpeg;base64,"))))


@pytest.mark.parametrize(
    ("name", "path", "model"),
    [
        ("grounding-dino-1.5-pro", "/v2/task/grounding_dino/detection", "GroundingDino-1.5-Pro"),
        ("grounding-dino-1.6-pro", "/v2/task/grounding_dino/detection", "GroundingDino-1.6-Pro"),
        ("dino-x", "/v2/task/dinox/detection", "DINO-X-1.0"),
    ],
)
def test_what_is_asked_and_what_comes_back(
    service: Any, image: Image.Image, name: str, path: str, model: str
) -> None:
    service.objects = [
        CAT,
        {"category": "Remote  Control", "score": 0.4, "bbox": [0, 0, 250, 50]},
        {"category": "dog", "score": 0.8, "bbox": [1, 1, 9, 9]},
    ]
    found = detector(name)(image, labels={"pet": "cat", "RC": "remote control"}, threshold=0.3)
    assert found.labels == ["pet", "RC"]  # what was not asked for is left out
    np.testing.assert_allclose(found.boxes_xyxy, [[10.5, 20, 30, 40], [0, 0, 200, 50]], atol=1e-3)
    np.testing.assert_allclose(found.scores, [0.9, 0.4], atol=1e-6)
    body = service.bodies[0]
    assert (body["path"], body["model"]) == (path, model)
    assert body["prompt"] == {"type": "text", "text": "cat.remote control"}
    assert (body["targets"], body["bbox_threshold"]) == (["bbox"], 0.3)
    assert service.headers[0]["Token"] == "secret-token"
    assert (sent_image(body).format, sent_image(body).size) == ("JPEG", (200, 100))


def test_large_images_are_scaled_down_and_boxes_up(service: Any) -> None:
    service.objects = [CAT]
    found = detector()(Image.new("RGB", (3072, 1000)), labels=["cat"])
    assert sent_image(service.bodies[0]).size == (1536, 500)
    np.testing.assert_allclose(found.boxes_xyxy, [[21, 40, 60, 80]], atol=1e-3)


def test_upright_pixels_are_sent_and_nothing_about_them(service: Any, tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(tmp_path / "turned.jpg", exif=exif)
    detector()(tmp_path / "turned.jpg", labels=["cat"])
    assert sent_image(service.bodies[0]).size == (20, 40)
    assert not sent_image(service.bodies[0]).getexif()


def test_thresholds_aliases_negatives_and_dots(service: Any, image: Image.Image) -> None:
    flag, lynx = {**CAT, "category": "u s flag", "score": 0.3}, {**CAT, "category": "lynx", "score": 0.95}
    service.objects = [CAT, flag, lynx]
    cloud = detector()
    labels = [Label("pet", ("cat", "kitten")), Label("flag", ("U.S. flag",), threshold=0.5)]
    assert cloud(image, labels=labels).labels == ["pet"]
    assert service.bodies[0]["prompt"]["text"] == "cat.kitten.u s flag"
    assert cloud(image, labels=[Label("pet", ("cat",), negative_prompts=("lynx",))]).labels == []
    assert cloud(image, caption="a cat on the sofa").labels == ["cat"]
    with pytest.raises(PromptError, match="at most 600 fit"):
        cloud.plan(labels=["cat " * 200])


def test_many_labels_take_several_calls(service: Any, image: Image.Image) -> None:
    service.objects = [{**CAT, "category": "thing 3"}]
    cloud = detector()
    found = cloud(image, labels=[f"thing {number}" for number in range(2 * PHRASES_A_CALL + 1)])
    assert cloud.calls == len(service.bodies) >= 3
    asked = [name for body in service.bodies for name in body["prompt"]["text"].split(".")]
    assert asked == [f"thing {number}" for number in range(2 * PHRASES_A_CALL + 1)]
    assert found.labels == ["thing 3"]


def test_tiles_are_calls_too(service: Any) -> None:
    service.objects = [CAT]
    cloud = detector()
    found = cloud(Image.new("RGB", (200, 100)), labels=["cat"], tile=100)
    assert cloud.calls == 4  # the whole and three tiles
    assert len(found) >= 2


def test_passing_failures_are_tried_again_as_the_same_task(service: Any, image: Image.Image) -> None:
    service.objects = [CAT]
    service.refusals = [(429, "slow down"), BUSY, (503, "<html>"), (200, "no json")]
    cloud = detector()
    assert len(cloud(image, labels=["cat"])) == 1
    assert (len(service.bodies), cloud.calls) == (5, 1)
    assert len({headers["Idempotency-Key"] for headers in service.headers}) == 1


def test_it_gives_up_and_says_what_was_said(service: Any, image: Image.Image) -> None:
    service.refusals = [BUSY] * 5
    with pytest.raises(CloudError, match=r"no answer after 5 tries.*busy, try again"):
        detector()(image, labels=["cat"])
    service.refusals = [(200, {"code": 10003, "msg": "image is broken"})]
    with pytest.raises(CloudError, match="refuses this image: image is broken"):
        detector()(image, labels=["cat"])
    service.failed = "out of memory"
    with pytest.raises(CloudError, match="failed on this image: out of memory"):
        detector()(image, labels=["cat"])


def test_no_connection_is_said(service: Any, image: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDS_CLOUDAPI_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CloudError, match="no answer after 5 tries"):
        detector()(image, labels=["cat"])


def test_a_refused_token_stops_the_run_at_once(service: Any, image: Image.Image) -> None:
    service.refusals = [(200, {"code": 10001, "msg": "token is invalid"})] * 9
    cloud = detector()
    with pytest.raises(CloudRefused, match="token is invalid") as error:
        list(detect_many("api:dino-x", [image] * 5, ["cat"], detector=cloud))
    assert len(service.bodies) == 1
    assert "secret-token" not in str(error.value)


def test_a_failure_is_that_image_s_only(service: Any, image: Image.Image) -> None:
    service.objects = [CAT]
    service.refusals = [(200, {"code": 10003, "msg": "image is broken"})]
    first, second = detect_many("api:dino-x", [image] * 2, ["cat"], detector=detector())
    assert "image is broken" in first.found.reason
    assert second.found.labels == ["cat"]


def test_it_has_to_be_allowed(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"every image would leave this machine.*--allow-cloud"):
        load_detector("api:dino-x")
    monkeypatch.delenv("DDS_CLOUDAPI_TOKEN")
    with pytest.raises(CheckpointError, match="needs the environment variable DDS_CLOUDAPI_TOKEN"):
        load_detector("api:dino-x", allow_cloud=True)
    with pytest.raises(
        CheckpointError, match=r"no cloud model api:dino-y; there are api:grounding-dino-1\.5"
    ):
        load_detector("api:dino-y", allow_cloud=True)
    assert service.bodies == []


def test_it_is_said_in_the_log_without_the_token(service: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        detector()
    assert f"every image is sent to {service.address}" in caplog.text
    assert "counts against your quota" in caplog.text
    assert "secret" not in caplog.text


def test_digests_name_the_model() -> None:
    assert len({source_digest(f"api:{name}") for name in CLOUD_MODELS}) == len(CLOUD_MODELS)


RUN = """
import sys
hosts = []
def watch(event, arguments):
    if event == "socket.getaddrinfo":
        hosts.append(str(arguments[0]))
sys.addaudithook(watch)
from PIL import Image
{how}
import sentry_sdk, time
time.sleep(0.5)  # Sentry sends in a thread of its own
sentry_sdk.flush(5)
print(sorted(set(hosts)))
"""
OURS = """
from groundingml.inference.cloud_detector import CloudDetector, CloudError
cloud = CloudDetector("api:dino-x", allow_cloud=True, backoff_s=0.01)
cloud(Image.new("RGB", (20, 20)), labels=["cat"])
"""
SDK_ALONE = """
from dds_cloudapi_sdk import Client, Config
from dds_cloudapi_sdk.tasks.v2_task import V2Task
Client(Config("secret-token")).run_task(V2Task("/v2/task/dinox/detection", {"model": "DINO-X-1.0"}))
"""


@pytest.mark.parametrize(("how", "reports"), [(OURS, False), (SDK_ALONE, True)], ids=["ours", "SDK alone"])
def test_the_sdk_reports_to_nobody(service: Any, how: str, reports: bool) -> None:
    """All hosts that a whole process looks up; the second run shows that the first would have seen it."""
    service.objects = [CAT]
    command = [sys.executable, "-c", RUN.format(how=how)]
    done = subprocess.run(
        command, env=dict(os.environ), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    hosts = done.stdout.strip().splitlines()[-1]
    assert "127.0.0.1" in hosts
    assert ("sentry" in hosts) == reports
    if not reports:
        assert hosts == "['127.0.0.1']"


def test_this_process_reports_to_nobody_either(service: Any) -> None:
    import sentry_sdk

    CloudDetector("api:dino-x", allow_cloud=True)
    assert not sentry_sdk.get_client().is_active()


def test_detect(service: Any, image: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service.objects = [CAT]
    image.save(tmp_path / "cat.png")
    file = str(tmp_path / "cat.png")
    arguments = ["detect", file, "--labels", "cat, sofa", "--json", "--model", "api:dino-x"]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    assert "--allow-cloud" in refused.stderr
    assert service.bodies == []
    for options, environment in ((["--allow-cloud"], "0"), ([], "1")):
        monkeypatch.setenv("GROUNDINGML_ALLOW_CLOUD", environment)
        result = CliRunner().invoke(app, [*arguments, *options])
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)["images"][0]["detections"]
        assert [detection["label"] for detection in found] == ["cat"]


def test_detect_stops_when_the_quota_is_used_up(service: Any, image: Image.Image, tmp_path: Path) -> None:
    service.refusals = [(200, {"code": 10001, "msg": "insufficient quota"})] * 9
    for number in range(3):
        image.save(tmp_path / f"{number}.png")
    arguments = [
        "detect",
        str(tmp_path),
        "--labels",
        "cat",
        "--model",
        "api:dino-x",
        "--allow-cloud",
        "--json",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "stopped after 0 of 3 images" in result.stderr
    assert "insufficient quota" in result.stderr
    assert len(service.bodies) == 1
