"""What annotators do, in a real Label Studio with the backend of `groundingml serve`."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <TextArea name="prompt" toName="image" editable="true" rows="1" maxSubmissions="1" smart="true"
            placeholder="cat . cup"/>
  <RectangleLabels name="label" toName="image" smart="true">
    <Label value="Cat"/>
    <Label value="Person" predicted_values="person,woman"/>
    <Label value="Cup" alias="mug"/>
  </RectangleLabels>
</View>"""
LABELS = {"Cat", "Person", "mug"}


@pytest.fixture
def photos(photo_dir: Path) -> list[Path]:
    return [photo_dir / name for name in ("cat.jpg", "astronaut.jpg", "coffee.jpg")]


@pytest.fixture
def project(label_studio: Any, request: pytest.FixtureRequest) -> int:
    return int(label_studio.create_project(request.node.name[:50], CONFIG))


def check_regions(regions: list[dict[str, Any]]) -> None:
    for region in regions:
        value = region["value"]
        assert (region["from_name"], region["to_name"], region["type"]) == (
            "label",
            "image",
            "rectanglelabels",
        )
        assert set(value["rectanglelabels"]) <= LABELS
        assert all(math.isfinite(value[side]) for side in ("x", "y", "width", "height"))
        assert min(value["x"], value["y"]) >= 0
        assert min(value["width"], value["height"]) > 0
        assert max(value["x"] + value["width"], value["y"] + value["height"]) <= 100 + 1e-9
        assert 0 <= region["score"] <= 1


def labels_of(prediction: dict[str, Any]) -> set[str]:
    return {label for region in prediction["result"] for label in region["value"]["rectanglelabels"]}


def by_task(predictions: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    tasks: dict[int, list[dict[str, Any]]] = {}
    for prediction in predictions:
        tasks.setdefault(prediction["task"], []).append(prediction)
    return tasks


def test_connecting_and_retrieving_predictions(
    label_studio: Any, backend: Any, project: int, photos: list[Path]
) -> None:
    tasks = label_studio.upload(project, photos)
    connected = label_studio.connect(project, backend.url)
    assert connected["state"] == "CO", connected
    assert len(label_studio.api("GET", f"/api/webhooks/?project={project}")) == 1

    label_studio.retrieve_predictions(project)
    found = by_task(label_studio.predictions(project))
    assert set(found) == set(tasks)
    assert all(len(predictions) == 1 for predictions in found.values())
    version = label_studio.backend(connected["id"])["model_version"]
    for (prediction,) in found.values():
        assert prediction["model_version"] == version
        check_regions(prediction["result"])
    cat, astronaut, coffee = (found[task][0] for task in tasks)
    assert "Cat" in labels_of(cat)
    assert "Person" in labels_of(astronaut)
    assert "mug" in labels_of(coffee), "the alias is the name in results"
    best = max((r for r in cat["result"] if "Cat" in r["value"]["rectanglelabels"]), key=lambda r: r["score"])
    assert (best["original_width"], best["original_height"]) == (451, 300)
    assert best["value"]["width"] * best["value"]["height"] > 2500, "the cat fills most of its photo"

    label_studio.retrieve_predictions(project)
    assert len(label_studio.predictions(project)) == len(tasks), (
        "tasks with a current prediction are not asked again"
    )
    assert label_studio.api("GET", f"/api/ml/{connected['id']}/versions")["versions"][0] == version


def test_opening_a_task_fetches_its_boxes(
    label_studio: Any, backend: Any, project: int, photos: list[Path]
) -> None:
    (task,) = label_studio.upload(project, photos[:1])
    label_studio.connect(project, backend.url)
    opened = label_studio.open_task(task)
    assert "Cat" in labels_of(opened["predictions"][0])


def test_a_changed_label_config_makes_new_predictions(
    label_studio: Any, backend: Any, project: int, photos: list[Path]
) -> None:
    label_studio.upload(project, photos[:1])
    label_studio.connect(project, backend.url)
    label_studio.retrieve_predictions(project)
    changed = CONFIG.replace(
        '<Label value="Person" predicted_values="person,woman"/>', '<Label value="Animal"/>'
    )
    label_studio.api("PATCH", f"/api/projects/{project}/", json={"label_config": changed})
    label_studio.retrieve_predictions(project)
    first, second = label_studio.predictions(project)
    assert first["model_version"] != second["model_version"]
    assert first["model_version"].split("-")[0] == second["model_version"].split("-")[0], (
        "the same checkpoint"
    )


def test_typing_a_prompt(label_studio: Any, backend: Any, project: int, photos: list[Path]) -> None:
    cat, _, coffee = label_studio.upload(project, photos)
    backend_id = label_studio.connect(project, backend.url)["id"]
    item = label_studio.type_prompt(backend_id, cat, "cat")
    check_regions(item["result"])
    assert labels_of(item) == {"Cat"}
    assert item["model_version"] == label_studio.backend(backend_id)["model_version"]
    item = label_studio.type_prompt(backend_id, coffee, "cat . spoon, cup")
    check_regions(item["result"])
    assert "mug" in labels_of(item)
    for region in item["result"]:  # a phrase that is no label of the project comes without one
        assert ("meta" in region) == (region["value"]["rectanglelabels"] == [])
    assert label_studio.type_prompt(backend_id, cat, " . ")["result"] == []


def test_a_broken_task_spoils_no_other(
    label_studio: Any, backend: Any, project: int, photos: list[Path]
) -> None:
    (good,) = label_studio.upload(project, photos[:1])
    label_studio.import_tasks(
        project,
        [
            {"image": "s3://bucket/missing.jpg"},
            {"image": f"{label_studio.url}/api/current-user/whoami"},
            {"image": "/data/upload/1/no-such-file.jpg"},
            {"image": "data:image/png;base64,AAAA"},
        ],
    )
    label_studio.connect(project, backend.url)
    label_studio.retrieve_predictions(project)
    predictions = label_studio.predictions(project)
    assert [prediction["task"] for prediction in predictions] == [good]
    assert label_studio.token not in backend.log()


def test_local_files(label_studio: Any, backend: Any, project: int, photos: list[Path]) -> None:
    folder = label_studio.files / "some photos"
    folder.mkdir()
    shutil.copyfile(photos[0], folder / "a cat.jpg")
    storage = {"project": project, "path": str(folder), "title": "photos", "use_blob_urls": True}
    label_studio.api("POST", "/api/storages/localfiles", json=storage)
    label_studio.import_tasks(project, [{"image": "/data/local-files/?d=some%20photos/a%20cat.jpg"}])
    label_studio.connect(project, backend.url)
    label_studio.retrieve_predictions(project)
    (prediction,) = label_studio.predictions(project)
    assert "Cat" in labels_of(prediction)


def test_basic_auth_and_a_personal_access_token(
    label_studio: Any, start_backend: Callable[..., Any], project: int, photos: list[Path], tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text("long and secret\n")
    token = label_studio.personal_access_token
    backend = start_backend(
        "--basic-auth-user",
        "ann",
        "--basic-auth-pass-file",
        str(password),
        LABEL_STUDIO_URL=label_studio.url,
        LABEL_STUDIO_API_KEY=token,
    )
    label_studio.upload(project, photos[:1])
    connected = label_studio.connect(project, backend.url, "ann", "long and secret")
    assert connected["state"] == "CO", connected
    label_studio.retrieve_predictions(project)
    (prediction,) = label_studio.predictions(project)
    assert "Cat" in labels_of(prediction)
    assert backend.stop() == 0, "SIGTERM is a clean end"
    log = backend.log()
    assert "ML_BLOCK_LOCAL_IP=false SSRF_PROTECTION_ENABLED=false" in log
    assert token not in log
    assert "long and secret" not in log


def playwright_timeout() -> type[Exception]:
    from playwright.sync_api import TimeoutError as PlaywrightTimeout

    return PlaywrightTimeout


def open_in_editor(page: Any, label_studio: Any, project: int, task: int, label: str) -> None:
    """Open a task until its predicted boxes are listed; opened by URL, the editor sometimes misses them."""
    region = page.locator(".lsf-outliner-item, .lsf-tree__node").filter(has_text=label).first
    for _ in range(4):
        page.goto(f"{label_studio.url}/projects/{project}/data?task={task}")
        page.wait_for_selector("canvas", timeout=120_000)
        with contextlib.suppress(playwright_timeout()):
            region.wait_for(timeout=20_000)
            break
    region.wait_for(timeout=1000)
    page.wait_for_timeout(1500)  # boxes fade in


def test_boxes_and_prompts_in_the_editor(
    label_studio: Any, backend: Any, project: int, photos: list[Path], tmp_path: Path
) -> None:
    """The real editor in a browser: predicted boxes, then a prompt typed, its boxes accepted, submitted."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed (Debian: apt install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    _, astronaut, coffee = label_studio.upload(project, photos)
    label_studio.connect(project, backend.url)
    label_studio.retrieve_predictions(project)
    pictures = Path(os.environ.get("GROUNDINGML_E2E_PICTURES", tmp_path))
    pictures.mkdir(parents=True, exist_ok=True)

    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        context = browser.new_context(viewport={"width": 1500, "height": 950})
        own = (label_studio.url, "data:", "blob:")  # nothing outside this machine is asked
        context.route(
            "**/*", lambda route: route.continue_() if route.request.url.startswith(own) else route.abort()
        )
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{label_studio.url}/user/login/")
        page.fill("input[name=email]", label_studio.email)
        page.fill("input[name=password]", label_studio.password)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "/user/login" not in url, timeout=60_000, wait_until="domcontentloaded")

        open_in_editor(page, label_studio, project, astronaut, "Person")
        page.screenshot(path=pictures / "editor.png")

        open_in_editor(page, label_studio, project, coffee, "Cup")
        page.get_by_text("Auto-Annotation").first.click()
        prompt = page.get_by_placeholder("cat . cup").first
        prompt.fill("cup . spoon")
        prompt.press("Enter")
        accept = page.get_by_test_id("bottombar-accept-suggestions-button")
        accept.wait_for(timeout=30_000)
        page.wait_for_timeout(1000)
        page.screenshot(path=pictures / "editor_prompt.png")
        accept.click()
        with page.expect_response(
            lambda answer: "/annotations" in answer.url and answer.request.method == "POST"
        ):
            page.get_by_role("button", name="Submit").first.click()
        browser.close()
    assert errors == []
    assert (pictures / "editor.png").stat().st_size > 50_000

    (annotation,) = label_studio.open_task(coffee)["annotations"]
    origins = {}
    for region in annotation["result"]:
        if region["type"] == "rectanglelabels" and region["value"].get("rectanglelabels") == ["mug"]:
            origins[region["id"]] = region["origin"]
    assert set(origins.values()) == {"prediction", "manual"}, "the retrieved box, and the one of the prompt"
    (predicted,) = (p for p in label_studio.predictions(project) if p["task"] == coffee)
    kept = {region["id"] for region in predicted["result"]} & set(origins)
    assert kept, "region ids survive into annotations"
