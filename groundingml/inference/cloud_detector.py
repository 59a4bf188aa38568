"""Models that their makers run and do not publish: Grounding DINO 1.5 Pro, 1.6 Pro and DINO-X.

``api:grounding-dino-1.5-pro``, ``api:grounding-dino-1.6-pro``, ``api:dino-x``, through the makers' own
``dds-cloudapi-sdk``. Images leave this machine, so it has to be allowed; every call counts against the quota
of the token's owner.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from groundingml.inference.object_detector import RunStopped
from groundingml.inference.phrase_detector import FoundPhrases, PhraseDetector
from groundingml.inference.prompts import PromptError
from groundingml.models.checkpoints.errors import CheckpointError

PREFIX = "api:"
TOKEN_VARIABLE = "DDS_CLOUDAPI_TOKEN"
ALLOW_VARIABLE = "GROUNDINGML_ALLOW_CLOUD"

LONGEST_SIDE = 1536
"""Pixels; a larger image is scaled down before it is sent, as the SDK itself does."""

PHRASES_A_CALL = 80
CHARACTERS_A_CALL = 600
"""What surely fits a text prompt of 256 tokens; more labels take more calls."""

_JPEG_QUALITY = 95
_TRIES = 5
_WAIT_S = 120.0
_REQUEST_TIMEOUT_S = 60
# What the service says when no further image would fare better.
_FINAL = re.compile(
    r"token|auth|permission|forbidden|denied|quota|balance|insufficient|expired|arrears", re.I
)

_log = logging.getLogger(__name__)


class CloudError(RuntimeError):
    """The service gave no answer for one image. The message says what it said, or that it is unreachable."""


class CloudRefused(RunStopped):
    """The service refuses this token: it would refuse every image."""


@dataclass(frozen=True)
class CloudModel:
    """Where the service answers for a model, and what it calls it."""

    api_path: str
    model: str
    default_threshold: float = 0.25
    """That of the makers' examples."""


_GROUNDING_DINO = "/v2/task/grounding_dino/detection"
CLOUD_MODELS = {
    "grounding-dino-1.5-pro": CloudModel(_GROUNDING_DINO, "GroundingDino-1.5-Pro"),
    "grounding-dino-1.6-pro": CloudModel(_GROUNDING_DINO, "GroundingDino-1.6-Pro"),
    "dino-x": CloudModel("/v2/task/dinox/detection", "DINO-X-1.0"),
}


class CloudDetector(PhraseDetector):
    """A model behind DeepDataSpace's HTTP service.

    The token is read from the environment variable DDS_CLOUDAPI_TOKEN and from nowhere else. A call that
    fails for a passing reason (no connection, a busy server, too many requests) is tried five times, waiting
    longer each time. The SDK's error reporting, which would send the token and every failure to a third
    server, is kept off.

    Args:
        source: "api:" and a name of ``CLOUD_MODELS``.
        allow_cloud: that images may leave this machine.
        backoff_s: the first wait before another try; it doubles.
    """

    def __init__(self, source: str, *, allow_cloud: bool = False, backoff_s: float = 1.0) -> None:
        """Raises CheckpointError (a ValueError): unknown name, not allowed, no token, no SDK."""
        name = source.removeprefix(PREFIX)
        model = _known(name)
        if not allow_cloud:
            raise CheckpointError(
                f"{PREFIX}{name} runs on a server of its makers: every image would leave this machine. Say "
                f"that it may with --allow-cloud (or {ALLOW_VARIABLE}=1)"
            )
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        if not token:
            raise CheckpointError(
                f"{PREFIX}{name} needs the environment variable {TOKEN_VARIABLE}: a token of your account at "
                "https://cloud.deepdataspace.com"
            )
        super().__init__(
            f"{PREFIX}{name}", cloud_digest(source), model.default_threshold, torch.device("cpu")
        )
        self._model = model
        self._backoff_s = backoff_s
        self._sdk = _import_sdk(backoff_s)
        self._config = self._sdk.Config(token)
        self.calls = 0
        """Calls that the service has accepted from this detector, each of which it counts."""
        self._unknown: set[str] = set()
        _log.warning(
            "%s: every image is sent to %s; each image (each tile, each %d labels) is one call that counts "
            "against your quota there", self.name, self._config.endpoint, PHRASES_A_CALL,
        )  # fmt: skip

    def check_phrase(self, phrase: str) -> None:
        """Raises PromptError for a phrase longer than a whole call may be."""
        if len(phrase) > CHARACTERS_A_CALL:
            raise PromptError(
                f"the prompt {phrase[:40]!r}... has {len(phrase)} characters, at most {CHARACTERS_A_CALL} fit"
            )

    def find(self, image: Image.Image, phrases: Sequence[str], threshold: float) -> FoundPhrases:
        """See `PhraseDetector.find`.

        Raises:
            CloudError: no answer for this image.
            CloudRefused: no image will get one.
        """
        upload, scale = _encode(image, self._sdk)
        boxes: list[list[float]] = []
        scores: list[float] = []
        numbers: list[int] = []
        for group in _groups(phrases):
            sent = {_as_prompt(phrases[number]): number for number in reversed(group)}
            for thing in self._ask(upload, list(reversed(sent)), threshold):
                number = sent.get(_as_prompt(str(thing.get("category", ""))))
                if number is None:
                    self._say_unknown(str(thing.get("category")))
                    continue
                boxes.append([float(value) / scale for value in thing["bbox"]])
                scores.append(float(thing["score"]))
                numbers.append(number)
        return FoundPhrases(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor(scores, dtype=torch.float32),
            torch.tensor(numbers, dtype=torch.long),
        )

    def _ask(self, upload: str, prompts: list[str], threshold: float) -> list[dict[str, Any]]:
        """One call: the objects of one image, as the service describes them."""
        task = self._sdk.V2Task(
            api_path=self._model.api_path,
            api_body={
                "model": self._model.model,
                "image": upload,
                "prompt": {"type": "text", "text": ".".join(prompts)},
                "targets": ["bbox"],
                "bbox_threshold": threshold,
                "iou_threshold": 0.8,
            },
        )
        task.set_request_timeout(_REQUEST_TIMEOUT_S)
        client = self._sdk.Client(self._config)
        # Not client.run_task: it tags its telemetry with the token, and waits without end.
        self._try(lambda: client.trigger_task(task))
        self.calls += 1
        self._wait(client, task)
        objects = (task.result or {}).get("objects")
        if not isinstance(objects, list):
            raise CloudError(f"{self.name}: an answer without objects: {str(task.result)[:200]}")
        return objects

    def _wait(self, client: Any, task: Any) -> None:
        done = (self._sdk.TaskStatus.Success, self._sdk.TaskStatus.Failed)
        deadline, pause = time.monotonic() + _WAIT_S, min(0.2, self._backoff_s)
        while True:
            self._try(lambda: client.check_task(task))
            if task.status in done:
                break
            if time.monotonic() > deadline:
                raise CloudError(f"{self.name}: no result within {_WAIT_S:.0f} s (task {task.task_uuid})")
            time.sleep(pause)
            pause = min(2.0, 1.5 * pause)
        if task.status == self._sdk.TaskStatus.Failed:
            raise CloudError(f"{self.name}: the service failed on this image: {task.error}")

    def _try(self, step: Callable[[], object]) -> None:
        """Run one request; the same task keeps its idempotency key, so that no try is counted twice."""
        for number in range(_TRIES):
            failure = self._failure(step)
            if failure is None:
                return
            if number + 1 == _TRIES:
                said = f"no answer after {_TRIES} tries: {_shown(failure)}"
                raise CloudError(f"{self.name}: {said}") from failure
            wait = self._backoff_s * 2**number
            _log.warning("%s: %s; trying again in %.0f s", self.name, _shown(failure), wait)
            time.sleep(wait)

    def _failure(self, step: Callable[[], object]) -> BaseException | None:
        """Run one request once: None, or why another try may do."""
        try:
            step()
        except self._sdk.Passing as error:
            return error
        except (RuntimeError, KeyError, TypeError) as error:  # the SDK's own, or an answer of another shape
            said = _shown(error).rpartition("error: ")[2]
            if isinstance(error, RuntimeError) and _FINAL.search(said):
                raise CloudRefused(f"{self.name}: the service refuses: {said}") from error
            raise CloudError(f"{self.name}: the service refuses this image: {said}") from error
        return None

    def _say_unknown(self, category: str) -> None:
        if category not in self._unknown:
            self._unknown.add(category)
            _log.warning("%s: left out boxes of %r, which was not asked for", self.name, category)


def cloud_digest(source: str) -> str:
    """12 hex digits for a model's name: what the makers change behind it, nobody here can see.

    Raises:
        CheckpointError: an unknown name.
    """
    model = _known(source.removeprefix(PREFIX))
    return hashlib.sha256(f"{model.api_path} {model.model}".encode()).hexdigest()[:12]


def _known(name: str) -> CloudModel:
    if name not in CLOUD_MODELS:
        known = ", ".join(PREFIX + one for one in CLOUD_MODELS)
        raise CheckpointError(f"there is no cloud model {PREFIX}{name}; there are {known}")
    return CLOUD_MODELS[name]


@dataclass(frozen=True)
class _Sdk:
    """The parts of dds-cloudapi-sdk that are used. ``Passing``: the errors after which another try may do."""

    Client: Any
    Config: Any
    TaskStatus: Any
    V2Task: Any
    image_to_base64: Any
    Passing: tuple[type[BaseException], ...]


def _import_sdk(backoff_s: float) -> _Sdk:
    """The SDK, with its telemetry off.

    When it is imported, it begins to report to its makers' Sentry server, with personal data, unless a Sentry
    client is active already. So an active one that sends nothing is put in place while it is imported.

    Raises:
        CheckpointError: it, or something that it needs, is not installed.
    """
    try:
        import sentry_sdk

        scope = sentry_sdk.get_global_scope()
        before = scope.client
        silence = not sentry_sdk.get_client().is_active()
        if silence:
            sentry_sdk.init(dsn="", default_integrations=False, auto_enabling_integrations=False)
        try:
            import dds_cloudapi_sdk as sdk
            from dds_cloudapi_sdk.image_resizer import image_to_base64
            from dds_cloudapi_sdk.tasks import base
            from dds_cloudapi_sdk.tasks.v2_task import V2Task
        finally:
            if silence:
                scope.set_client(before)
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry
    except ImportError as error:
        hint = "pip install 'groundingml[cloud]'"
        if "libGL" in str(error):
            hint = "pip install opencv-python-headless, or install libGL (Debian, Ubuntu: apt install libgl1)"
        raise CheckpointError(
            f"cloud models need dds-cloudapi-sdk, which does not import ({error}): {hint}"
        ) from error
    # The SDK reads no HTTP status, in which a server says that it is busy, and when to come back.
    patient = Retry(
        total=_TRIES - 1, connect=0, read=0, backoff_factor=backoff_s, allowed_methods=None,
        status_forcelist=(429, 500, 502, 503, 504), respect_retry_after_header=True,
    )  # fmt: skip
    for scheme in ("http://", "https://"):
        base.http_session.mount(scheme, HTTPAdapter(max_retries=patient))
    passing = (base.Retry, requests.exceptions.RequestException)
    return _Sdk(sdk.Client, sdk.Config, sdk.TaskStatus, V2Task, image_to_base64, passing)


def _encode(image: Image.Image, sdk: _Sdk) -> tuple[str, float]:
    """(data URL of a JPEG no larger than the service works on, factor of its size to the image's)."""
    scale = min(1.0, LONGEST_SIDE / max(image.size))
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in image.size)
        image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_JPEG_QUALITY)
    return str(sdk.image_to_base64(stream)), scale


def _as_prompt(phrase: str) -> str:
    """A phrase as it is sent and as an answer is compared: dots separate phrases, case does not matter."""
    return " ".join(phrase.replace(".", " ").lower().split())


def _groups(phrases: Sequence[str]) -> Iterator[list[int]]:
    """The numbers of the phrases, as many together as one call takes."""
    group: list[int] = []
    characters = 0
    for number, phrase in enumerate(phrases):
        if group and (len(group) == PHRASES_A_CALL or characters + len(phrase) + 1 > CHARACTERS_A_CALL):
            yield group
            group, characters = [], 0
        group.append(number)
        characters += len(phrase) + 1
    if group:
        yield group


def _shown(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
