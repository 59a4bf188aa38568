"""The Label Studio backend with models that are not ours, over real HTTP."""

from __future__ import annotations

import functools
import importlib.util
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from typer.testing import CliRunner

from groundingml.cli.app import app as command
from groundingml.inference import source_digest
from groundingml.labelstudio import Settings, create_app

CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image"
  model_score_threshold="0.1"><Label value="Cat"/><Label value="Sofa"/></RectangleLabels></View>"""


@pytest.fixture
def photo_url(photo_dir: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(photo_dir)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/cat.jpg"
    server.shutdown()
    server.server_close()


@contextmanager
def backend(settings: Settings) -> Iterator[httpx.Client]:
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server stopped while starting"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=90, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(20)


def predict(client: httpx.Client, url: str) -> dict[str, Any]:
    task = {"id": 1, "data": {"image": url}, "annotations": [], "predictions": []}
    body = {"tasks": [task], "project": "1.1795417412", "label_config": CONFIG, "params": {"context": None}}
    answer = client.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()["results"][0]
    return result


def settings(model: str, url: str, folder: Path, **changes: Any) -> Settings:
    hosts = (url.split("/")[2],)
    return Settings(model=model, device="cpu", allow_hosts=hosts, data_dir=folder / "data", **changes)


def test_a_model_of_transformers(
    foreign_model: Callable[[str], Path], photo_url: str, tmp_path: Path
) -> None:
    source = f"hf:{foreign_model('owlv2')}"
    with backend(settings(source, photo_url, tmp_path)) as client:
        result = predict(client, photo_url)
        setup = client.post("/setup", json={"project": "1.1", "schema": CONFIG}).json()
    assert result["model_version"] == setup["model_version"]
    assert result["model_version"].startswith(f"{source_digest(source)}-")
    labels = {region["value"]["rectanglelabels"][0] for region in result["result"]}
    assert labels
    assert labels <= {"Cat", "Sofa"}


def test_a_cloud_model(service: Any, photo_url: str, tmp_path: Path) -> None:
    if (
        importlib.util.find_spec("dds_cloudapi_sdk") is None
    ):  # importing it would begin to report to its makers
        pytest.skip("needs groundingml[cloud]")
    service.objects = [{"category": "cat", "score": 0.9, "bbox": [10, 10, 200, 200]}]
    with backend(settings("api:dino-x", photo_url, tmp_path, allow_cloud=True)) as client:
        result = predict(client, photo_url)
    assert [region["value"]["rectanglelabels"] for region in result["result"]] == [["Cat"]]
    assert result["model_version"].startswith(f"{source_digest('api:dino-x')}-")


def test_a_cloud_model_that_is_not_allowed_sends_nothing(
    service: Any, photo_url: str, tmp_path: Path
) -> None:
    with backend(settings("api:dino-x", photo_url, tmp_path)) as client:
        deadline = time.monotonic() + 60
        while client.get("/health").json()["model"] == "loading" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert client.get("/health").json()["model"] == "failed"
    assert service.bodies == []


def test_env_says_that_they_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDS_CLOUDAPI_TOKEN", "secret-token")
    result = CliRunner().invoke(command, ["env", "--json"])
    found = json.loads(result.stdout)["models_not_ours"]
    assert "OWLv2" in found["hf:"]
    assert "DDS_CLOUDAPI_TOKEN set, only with --allow-cloud" in found["api:"]
    assert "secret" not in result.stdout
