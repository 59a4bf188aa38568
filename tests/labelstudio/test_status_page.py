"""The status page and the metrics over real HTTP, the page in a real browser too."""

from __future__ import annotations

import datetime
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from groundingml.labelstudio import Settings
from groundingml.labelstudio.acceptance_plot import DayOfCorrections, acceptance_plot
from groundingml.store import default_url, open_store, utc_now
from groundingml.store.tables import Annotation, Correction, Job, Run

NASTY = "<script>document.title = 'taken over'</script>"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder of a server that has been used for a while."""
    folder = tmp_path / "used"
    store = open_store(default_url(folder))
    with store.begin() as session:
        session.add(
            Annotation(annotation_id="1", project="1", task="1", state="accepted", result=[], digest="x")
        )
        session.flush()
        for age in range(6):
            for number in range(10):
                session.add(
                    Correction(
                        annotation_id="1",
                        project="1",
                        task="1",
                        region_id=f"{age}-{number}",
                        kind="kept" if number > age else "moved",
                        model_version="new-1" if age < 3 else "old-1",
                        made_at=utc_now() - datetime.timedelta(days=age),
                    )
                )
        session.add(
            Run(project="1", recipe="lora", options={}, trigger="manual", state="done", message=NASTY)
        )
        progress = {"phase": "labelling", "done": 3, "total": 8}
        session.add(
            Job(
                project="1",
                kind="label",
                options={},
                state="running",
                progress=progress,
                owner="another-host 1",  # or the server under test would take it over
                lease_until=utc_now() + datetime.timedelta(hours=1),
            )
        )
    store.close()
    return folder


@pytest.fixture
def backend(
    serve: Callable[..., httpx.Client],
    detector: Any,
    allow: Any,
    data_dir: Path,
    predict_body: Any,
    site: Any,
) -> httpx.Client:
    backend = serve(Settings(allow_hosts=allow, data_dir=data_dir), detector)
    config = predict_body("x")["label_config"]
    assert backend.post("/setup", json={"project": "1.5", "schema": config}).status_code == 200
    backend.put("/projects/1/prompts", json={"control": "prompt", "text": f"red ball . {NASTY}"})
    backend.post("/predict", json=predict_body(f"{site.url}/photos/cat.jpg", f"{site.url}/photos/none.jpg"))
    return backend


def test_it_shows_what_there_is_to_see(backend: httpx.Client) -> None:
    answer = backend.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = answer.text
    for text in (
        "0123456789ab",
        "Cat, canine",
        "red ball",
        "lora",
        "3 of 8",
        "running",
        "status 404",
        "<svg",
    ):
        assert text in page, text
    assert NASTY not in page
    assert "&lt;script&gt;" in page
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    nonce = re.search(r"'nonce-([\w-]+)'", policy)
    assert nonce is not None
    assert f'<style nonce="{nonce[1]}">' in page
    assert nonce[1] not in backend.get("/").text, "a new one for each answer"
    assert not re.search(r"<script|src=|href=\"(?!data:)|url\(|@import", page), "it loads nothing"


@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (1100, "dark"), (360, "light")])
def test_in_a_browser(backend: httpx.Client, width: int, scheme: str, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed (Debian: apt install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    asked: list[str] = []
    said: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(str(backend.base_url))
        assert page.title() == "groundingml: ready"
        assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing sticks out"
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(18, 22, 28)") == (scheme == "dark"), "its style is let through"
        plot = page.locator("svg").bounding_box()
        assert plot is not None
        assert plot["height"] > 80
        assert page.locator("svg circle").count() == 6
        assert page.locator("svg line.takeover").count() == 1
        assert page.locator("section", has_text="Last warnings").locator("li").count() == 1
        browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [str(backend.base_url).rstrip("/") + "/"]


def test_metrics(backend: httpx.Client, predict_body: Any, site: Any) -> None:
    def value(line: str) -> float | None:
        found = re.search(rf"^{re.escape(line)} (\S+)$", backend.get("/metrics").text, re.MULTILINE)
        return None if found is None else float(found[1])

    assert value('groundingml_predictions_total{outcome="done",source="batch"}') == 1
    assert value('groundingml_predictions_total{outcome="failed",source="batch"}') == 1
    assert value('groundingml_predicted_boxes_total{label="Cat"}') == 1
    assert value('groundingml_corrections{kind="kept"}') == 60 - 21
    assert value('groundingml_model_loaded{digest="0123456789ab"}') == 1
    assert value("groundingml_queue_waiting") == 0
    assert value('groundingml_requests_total{path="/predict",status="200"}') == 1
    backend.get("/made/up/by/a/client")
    assert value('groundingml_requests_total{path="(other)",status="404"}') == 1
    backend.post("/predict", json=predict_body(f"{site.url}/photos/cat.jpg"))
    assert value("groundingml_image_features_reused_total") == 1
    assert value('groundingml_request_seconds_count{path="/predict"}') == 2


def test_both_ask_for_the_password(serve: Any, detector: Any) -> None:
    backend = serve(Settings(basic_auth_user="ann", basic_auth_password="secret"), detector)
    for path in ("/", "/metrics", "/projects/1/prompts"):
        assert backend.get(path).status_code == 401
        assert backend.get(path, auth=("ann", "secret")).status_code == 200


def test_a_server_that_was_never_used(serve: Any, detector: Any) -> None:
    page = serve(Settings(), detector).get("/").text
    assert "None has connected yet" in page
    assert "No annotation of predicted boxes" in page
    assert "<svg" not in page


def test_the_plot_adds_up_the_versions_of_a_day() -> None:
    day = datetime.date(2026, 3, 1)
    plot = acceptance_plot([DayOfCorrections(day, 10, 2, "a"), DayOfCorrections(day, 10, 7, "b")])
    assert plot is not None
    assert "9 of 20 boxes kept (45 %)" in plot
    assert plot.count("<circle") == 1
    assert acceptance_plot([DayOfCorrections(day, 0, 0, "a")]) is None
