"""Check the whole way from a project's task to boxes in it, and say of each step what is wrong and what to
change.

Steps that need something of an earlier one that failed are skipped. What is made on the way, a prediction or
a trial project, is removed again.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import httpx

from groundingml.labelstudio.addresses import FetchError
from groundingml.labelstudio.api_client import ApiError, LabelStudioApi, Refused
from groundingml.labelstudio.backend_checks import BackendChecks
from groundingml.labelstudio.images import ImageFetcher, describe_reference
from groundingml.labelstudio.label_config import LabelConfig, LabelConfigError, parse_label_config
from groundingml.labelstudio.model_pool import ModelPool
from groundingml.labelstudio.predictor import Asked, Predictor
from groundingml.labelstudio.settings import Settings

if TYPE_CHECKING:
    from groundingml.inference import ObjectDetector

Status = Literal["ok", "warn", "fail", "skip"]
TRIAL_VERSION = "groundingml-doctor"
SAMPLE_TASKS = 3
_PREDICT_S = 110.0  # Label Studio itself waits 100 s for a backend
_CREDENTIALS = re.compile(r"//[^/@\s]+@")


@dataclass(frozen=True)
class Finding:
    """What one check found; ``next_step`` says what to change when it is not ok."""

    check: str
    status: Status
    message: str
    next_step: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain values, ready for JSON."""
        return asdict(self)


class Diagnosis:
    """One examination of a Label Studio, a project in it and the backend it is connected to."""

    def __init__(
        self,
        api: LabelStudioApi,
        settings: Settings,
        project: int | None,
        backend_url: str | None,
        load_detector: Callable[[], ObjectDetector],
    ) -> None:
        """``load_detector`` is called only when there is no connected backend to ask for a prediction."""
        self._api = api
        self._settings = settings
        self._project = project
        self._backends = BackendChecks(api, project, backend_url)
        self._load_detector = load_detector
        self._fetcher = ImageFetcher(settings)
        self._about: dict[str, Any] = {}
        self._config: LabelConfig | None = None
        self._sample: dict[str, Any] | None = None
        """A task whose images can be read."""

    def run(self) -> Iterator[Finding]:
        """All findings, each as soon as it is known."""
        for name, check in (
            ("Label Studio", self._label_studio),
            ("token", self._token),
            ("project", self._find_project),
            ("backend", self._backend),
            ("webhook", self._webhook),
            ("images", self._images),
            ("label config", self._label_config),
            ("prediction", self._prediction),
            ("stored and read back", self._storing),
            ("webhook delivery", self._delivery),
        ):
            try:
                status, message, next_step = check()
            except ApiError as error:
                status, message, next_step = "fail", str(error), "see Label Studio's log"
            yield Finding(name, status, _CREDENTIALS.sub("//", message), next_step)
            if status == "fail" and name in ("Label Studio", "token"):
                return

    def _label_studio(self) -> tuple[Status, str, str]:
        url = self._api.url
        try:
            answer = httpx.get(f"{url}/health", timeout=10, trust_env=False)
            is_up = answer.status_code == 200 and answer.json().get("status") == "UP"
        except httpx.HTTPError as error:
            return (
                "fail",
                f"{url} cannot be reached from here ({type(error).__name__})",
                "start Label Studio, and check the host and port of --url",
            )
        except (ValueError, AttributeError):
            is_up = False
        if not is_up:
            return "fail", f"{url} answers, but not as Label Studio does", "check the address of --url"
        return "ok", f"{url} answers", ""

    def _token(self) -> tuple[Status, str, str]:
        kind = self._api.token_kind
        create = "create a personal access token under Account & Settings and give it as --api-key"
        if kind == "none":
            return "fail", "no API key is given", create
        try:
            user = self._api.get("/api/current-user/whoami")
        except Refused as error:
            if error.status != 401:
                raise
            if kind == "personal":
                return "fail", "the personal access token is revoked, expired or of another server", create
            return (
                "fail",
                "the legacy token is wrong, or legacy tokens are switched off (as they are by default)",
                f"{create}, or allow legacy tokens under Organization, Access Token Settings",
            )
        release = self._api.get("/api/version").get("release", "unknown")
        return "ok", f"{kind} token of {user.get('email')}; Label Studio {release}", ""

    def _find_project(self) -> tuple[Status, str, str]:
        if self._project is None:
            return "skip", "no project is given", "add --project NUMBER to check the rest"
        try:
            self._about = self._api.project(self._project)
        except Refused as error:
            if error.status not in (403, 404):
                raise
            message = f"there is no project {self._project}, or this user may not see it"
            return "fail", message, "the number is in the project's address: /projects/NUMBER/data"
        with contextlib.suppress(LabelConfigError):  # said further down, where label configs are checked
            self._config = parse_label_config(self._about["label_config"])
        return "ok", f'"{self._about["title"]}", {self._about.get("task_number", 0)} tasks', ""

    def _backend(self) -> tuple[Status, str, str]:
        if self._project is not None and not self._about:
            return "skip", "needs the project", ""
        return self._backends.connection(self._about.get("label_config"))

    def _webhook(self) -> tuple[Status, str, str]:
        return self._backends.webhook()

    def _images(self) -> tuple[Status, str, str]:
        if not self._about or self._project is None:
            return "skip", "needs the project", ""
        tasks, _ = self._api.tasks(self._project, (), SAMPLE_TASKS)
        if not tasks:
            return "warn", "the project has no tasks", "import some images"
        said = []
        for task in tasks:
            keys = [image.key for image in self._config.images] if self._config else list(task["data"])[:1]
            for key in keys:
                reference = task["data"].get(key)
                started = time.monotonic()
                try:
                    image = self._fetcher.fetch(reference, task["id"])
                except FetchError as error:
                    return "fail", f"task {task['id']}: {error}", _image_remedy(str(error))
                took = time.monotonic() - started
                said.append(f"{describe_reference(reference)} {image.width}x{image.height} in {took:.2f} s")
            self._sample = self._sample or task
        return "ok", "; ".join(said), ""

    def _label_config(self) -> tuple[Status, str, str]:
        if not self._about:
            return "skip", "needs the project", ""
        try:
            config = parse_label_config(self._about["label_config"], self._backends.extra_params)
        except LabelConfigError as error:
            return "fail", str(error), "change it under Settings, Labeling Interface"
        labels = [label.name for control in config.controls for label in control.labels]
        taken = [f"those of each task's {c.labels_key}" for c in config.controls if c.labels_key]
        return "ok", f"{len(labels)} labels: {', '.join([*labels[:20], *taken])}", ""

    def _prediction(self) -> tuple[Status, str, str]:
        if self._sample is None or self._config is None:
            return "skip", "needs a readable task and a label config", ""
        started = time.monotonic()
        backend = self._backends.connected
        if backend is not None:
            item = self._ask_backend(int(backend["id"]))
            by = "the backend"
        else:
            item = self._predict_here()
            by = f"the model {self._settings.model} on this machine"
        if "result" not in item:
            reason = str(item.get("error") or "it gave no result")
            return "fail", f"{by} could not predict: {reason}", _image_remedy(reason)
        self._sample = {**self._sample, "item": item}
        return "ok", f"{len(item['result'])} boxes by {by} in {time.monotonic() - started:.1f} s", ""

    def _ask_backend(self, backend: int) -> dict[str, Any]:
        """Have Label Studio ask the backend for a task, as "Send test request" does; it chooses the task."""
        path = f"/api/ml/{backend}/predict/test"
        try:
            answer = self._api.request(
                "POST", path, params={"random": "true"}, patient=False, timeout_s=_PREDICT_S
            )
        except ApiError as error:
            return {"error": f"{error}; the backend's log says why"}
        items = answer.get("response")
        if not isinstance(items, list) or not items or not isinstance(items[0], dict):
            return {"error": answer.get("error_message") or "the backend's log says why"}
        self._sample = answer["task"]
        return dict(items[0])

    def _predict_here(self) -> dict[str, Any]:
        pool = ModelPool(self._settings.model, self._settings.device, self._load_detector())
        predictor = Predictor(self._settings, pool)
        config = self._config
        assert config is not None

        async def predict() -> dict[str, Any]:
            model = await pool.ready(0)
            asked = Asked(str(self._project), config, model, TRIAL_VERSION, time.monotonic() + _PREDICT_S)
            return (await predictor.predict_tasks([self._sample], asked))[0]

        try:
            return asyncio.run(predict())
        finally:
            predictor.close()

    def _storing(self) -> tuple[Status, str, str]:
        """Store the prediction under a version of its own, read it, remove it."""
        if self._sample is None or "item" not in self._sample or self._project is None:
            return "skip", "needs a prediction", ""
        task, item = int(self._sample["id"]), self._sample["item"]
        wanted = {"task": task, **item, "model_version": TRIAL_VERSION}
        try:
            created = self._api.import_predictions(self._project, [wanted])
        finally:
            found = self._trials_in(task)
            for prediction in found:
                self._api.delete_prediction(prediction["id"])
        if created != 1 or not found:
            return (
                "fail",
                "Label Studio dropped the prediction without saying so",
                "its labels and names have to be those of the label config; connect the backend again",
            )
        if _ids(found[-1]["result"]) != _ids(item["result"]):
            return "fail", "what came back is not what was stored", "see Label Studio's log"
        if self._trials_in(task):
            return "warn", f"the trial prediction of task {task} could not be removed", "remove it by hand"
        return "ok", f"{len(item['result'])} boxes stored in task {task}, read back, removed", ""

    def _trials_in(self, task: int) -> list[dict[str, Any]]:
        return [p for p in self._api.predictions_of(task) if p["model_version"] == TRIAL_VERSION]

    def _delivery(self) -> tuple[Status, str, str]:
        return self._backends.delivery()


def _ids(regions: list[dict[str, Any]]) -> list[str]:
    return [region["id"] for region in regions]


def _image_remedy(reason: str) -> str:
    if "--allow-host" in reason:
        return "give that --allow-host to groundingml serve, label and doctor"
    if "LABEL_STUDIO" in reason or "API key" in reason:
        return "start groundingml serve with LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY, as given here"
    if "status 404" in reason or "status 500" in reason:
        return "the file is not where the task says; import it again, or sync its storage"
    return "correct the task's data, or make the image readable for groundingml; the reason is on the left"
