"""The backend over real HTTP while it is busy: predicting, loading its model, or not able to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

import groundingml.inference
import groundingml.models
from groundingml.labelstudio import Settings

Serve = Callable[..., httpx.Client]
Body = Callable[..., dict[str, Any]]
CAT_TYPED = {
    "result": [
        {"id": "x", "from_name": "prompt", "to_name": "image", "type": "textarea", "value": {"text": ["cat"]}}
    ]
}


@pytest.fixture
def backend(serve: Serve, detector: Any, allow: tuple[str, ...]) -> httpx.Client:
    return serve(Settings(allow_hosts=allow), detector)


@pytest.fixture
def cat(site: Any) -> str:
    return f"{site.url}/photos/cat.jpg"


def test_health_and_setup_answer_at_once_while_predicting(
    backend: httpx.Client, predict_body: Body, detector: Any, config_xml: str, pictures: Any
) -> None:
    running, finish = threading.Event(), threading.Event()

    def hold(image: Any) -> None:
        running.set()
        assert finish.wait(30)

    detector.before = hold
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(backend.post, "/predict", json=predict_body(*pictures(20)))
        try:
            assert running.wait(20)
            seconds = []
            for _ in range(30):
                started = time.perf_counter()
                assert backend.get("/health").status_code == 200
                assert backend.post("/setup", json={"schema": config_xml}).status_code == 200
                seconds.append(time.perf_counter() - started)
        finally:
            finish.set()
        assert len(batch.result().json()["results"]) == 20
    assert sorted(seconds)[15] < 0.1
    assert max(seconds) < 0.8, "Label Studio gives /health one second"


def test_a_prompt_does_not_wait_for_a_whole_batch(
    backend: httpx.Client, cat: str, predict_body: Body, detector: Any, pictures: Any
) -> None:
    detector.before = lambda image: time.sleep(0.05)
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(backend.post, "/predict", json=predict_body(*pictures(40)))
        while len(detector.asked) < 3:
            time.sleep(0.01)
        begun = len(detector.asked)
        assert backend.post("/predict", json=predict_body(cat, context=CAT_TYPED)).json()["results"][0][
            "result"
        ]
        batch.result()
    asked_by_prompt = next(i for i, labels in enumerate(detector.asked) if len(labels) == 1)
    assert asked_by_prompt - begun <= 2, "it comes after the running image, not after all that are waiting"


def test_what_is_not_done_in_time_is_left_out(
    serve: Serve, predict_body: Body, detector: Any, allow: tuple[str, ...], pictures: Any
) -> None:
    backend = serve(Settings(allow_hosts=allow, predict_budget_s=0.8, one_by_one_limit_s=0), detector)
    detector.before = lambda image: time.sleep(0.2)
    started = time.monotonic()
    items = backend.post("/predict", json=predict_body(*pictures(30))).json()["results"]
    assert time.monotonic() - started < 2
    done = sum("result" in item for item in items)
    assert len(items) == 30
    assert 1 <= done <= 5
    assert "no time left" in items[-1]["error"]


def test_nothing_more_is_begun_when_nobody_waits(
    backend: httpx.Client, predict_body: Body, detector: Any, pictures: Any
) -> None:
    detector.before = lambda image: time.sleep(0.1)
    with pytest.raises(httpx.ReadTimeout):
        backend.post("/predict", json=predict_body(*pictures(50)), timeout=0.5)
    time.sleep(0.8)
    begun = len(detector.asked)
    time.sleep(0.5)
    assert len(detector.asked) == begun < 20


@pytest.fixture
def slow_model(monkeypatch: pytest.MonkeyPatch, detector: Any) -> Iterator[threading.Event]:
    """The model hashes and loads once the event is set."""
    finish = threading.Event()

    def load(*args: object, **kwargs: object) -> Any:
        assert finish.wait(30)
        return detector

    monkeypatch.setattr(groundingml.models, "checkpoint_digest", lambda source: detector.checkpoint_digest)
    monkeypatch.setattr(groundingml.inference.Detector, "from_pretrained", load)
    yield finish
    finish.set()


def test_while_the_model_loads(
    serve: Serve, slow_model: threading.Event, cat: str, predict_body: Body, allow: Any, config_xml: str
) -> None:
    backend = serve(Settings(allow_hosts=allow, load_wait_s=0.3), None)
    started = time.monotonic()
    assert backend.get("/health").json() == {
        "status": "UP",
        "model_class": "GroundingDino",
        "model": "loading",
    }
    version = backend.post("/setup", json={"schema": config_xml}).json()["model_version"]
    assert time.monotonic() - started < 0.5
    answer = backend.post("/predict", json=predict_body(cat))
    assert (answer.status_code, answer.json()) == (
        503,
        {"error": "The model is still loading; try again in a moment."},
    )
    assert int(answer.headers["retry-after"]) > 0
    threading.Timer(0.1, slow_model.set).start()
    answer = backend.post("/predict", json=predict_body(cat))  # waits, since it is ready soon enough
    assert answer.status_code == 200
    assert answer.json()["results"][0]["model_version"] == version
    assert backend.get("/health").json()["model"] == "ready"


def test_a_model_that_cannot_be_loaded(
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    predict_body: Body,
    caplog: pytest.LogCaptureFixture,
    config_xml: str,
) -> None:
    def fail(source: str) -> str:
        raise FileNotFoundError("/home/ann/secret/model.pth")

    monkeypatch.setattr(groundingml.models, "checkpoint_digest", fail)
    backend = serve(Settings(model="/home/ann/secret/model.pth"), None)
    while backend.get("/health").json()["model"] == "loading":
        time.sleep(0.01)
    assert backend.get("/health").json()["model"] == "failed"
    for answer in (
        backend.post("/setup", json={"schema": config_xml}),
        backend.post("/predict", json=predict_body("http://x/y.jpg")),
    ):
        assert answer.status_code == 503
        assert "secret" not in answer.text
    assert "could not be loaded" in caplog.text
