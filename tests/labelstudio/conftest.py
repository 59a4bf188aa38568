"""A detector that finds what the test says, web sites really served, and the backend behind real HTTP."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from groundingml.inference import Detections, Detector, Label, Thresholds
from groundingml.labelstudio import Settings, create_app

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <TextArea name="prompt" toName="image" editable="true" rows="1" maxSubmissions="1" smart="true"/>
  <RectangleLabels name="label" toName="image" smart="true" model_score_threshold="0.25">
    <Label value="Cat" predicted_values="cat,kitten"/>
    <Label value="Dog" predicted_values="dog,puppy" alias="canine"/>
  </RectangleLabels>
</View>"""


@dataclass
class Encoded:
    """The known detector's way to keep an image between two questions."""

    image: Image.Image
    nbytes: int = 1000


class KnownDetector:
    """Finds a prompt where ``found`` says: fractions (x0, y0, x1, y1) of the image, and a score."""

    name = "known"
    device = "cpu"

    def __init__(
        self, found: dict[str, tuple[tuple[float, float, float, float], float]], digest: str = "0123456789ab"
    ):
        self.found = found
        self.checkpoint_digest = digest
        self.default_threshold = 0.3
        self.thresholds = Thresholds(0.3)
        self.asked: list[list[Label]] = []
        self.sizes: list[tuple[int, int]] = []
        self.options: list[dict[str, Any]] = []
        self.encoded = 0
        self.batches: list[int] = []
        self.before: Callable[[Image.Image], None] = lambda image: None

    def encode(self, image: Image.Image) -> Encoded:
        self.encoded += 1
        return Encoded(image)

    def detect_encoded(self, encoded: Encoded, labels: Sequence[Label], **options: Any) -> Detections:
        return self._detect(encoded.image, labels, **options)

    def __call__(self, images: Any, labels: Sequence[Label], **options: Any) -> Any:
        if isinstance(images, Image.Image):
            return self._detect(images, labels, **options)
        self.batches.append(len(images))
        options.pop("batch_size")
        return [self._detect(image, labels, **options) for image in images]

    def _detect(self, image: Image.Image, labels: Sequence[Label], **options: Any) -> Detections:
        self.asked.append(list(labels))
        self.options.append(options)
        self.sizes.append(image.size)
        self.before(image)
        rows = [
            (box, score, label.name, number)
            for number, label in enumerate(labels)
            for box, score in [self.found[prompt] for prompt in label.prompts if prompt in self.found]
            if not score < (self.default_threshold if label.threshold is None else label.threshold)
        ]
        scale = np.array([image.width, image.height] * 2, dtype=np.float32)
        return Detections(
            boxes_xyxy=np.array([row[0] for row in rows], dtype=np.float32).reshape(-1, 4) * scale,
            scores=np.array([row[1] for row in rows], dtype=np.float32),
            labels=[row[2] for row in rows],
            label_ids=np.array([row[3] for row in rows], dtype=np.int64),
            image_size=(image.height, image.width),
        )


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the data of whoever runs it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data-home"))


@pytest.fixture
def detector() -> KnownDetector:
    return KnownDetector(
        {
            "cat": ((0.1, 0.2, 0.5, 0.8), 0.9),
            "puppy": ((0.5, 0.5, 0.75, 1.0), 0.4),
            "red ball": ((0.0, 0.0, 0.1, 0.1), 0.6),
        }
    )


@dataclass
class Site:
    """A web server on a free port. ``pages``: path with query -> (status, headers, body) or a function."""

    port: int
    pages: dict[str, Any] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, path: str, body: bytes, status: int = 200, **headers: str) -> None:
        self.pages[path] = (status, {name.replace("_", "-"): value for name, value in headers.items()}, body)

    def tokens(self) -> list[str]:
        return [headers["authorization"] for _, _, headers, _ in self.requests if "authorization" in headers]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *args: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.site.requests.append((self.command, self.path, headers, body))
        page = self.site.pages.get(self.path, (404, {}, b"no such page"))
        if callable(page):
            page = page(self, headers, body)
            if page is None:  # it wrote by itself
                self.close_connection = True
                return
        status, headers, content = page
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    do_POST = do_GET


@pytest.fixture
def new_site() -> Iterator[Callable[[], Site]]:
    """A function that starts one more web site."""
    servers: list[ThreadingHTTPServer] = []

    def start() -> Site:
        handler = type("Handler", (_Handler,), {})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        handler.site = Site(server.server_address[1])
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return handler.site

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def site(new_site: Callable[[], Site], photo_dir: Path) -> Site:
    """A web site with the repository's photos under /photos/."""
    site = new_site()
    for photo in photo_dir.glob("*.jpg"):
        site.add(f"/photos/{photo.name}", photo.read_bytes(), content_type="image/jpeg")
    return site


@pytest.fixture
def pictures(site: Site) -> Callable[[int], list[str]]:
    """A function that puts so many different pictures on the site; their URLs."""

    def add(count: int) -> list[str]:
        for number in range(count):
            file = io.BytesIO()
            Image.new("RGB", (40 + number, 30), (number, 90, 200)).save(file, "PNG")
            site.add(f"/{number}.png", file.getvalue(), content_type="image/png")
        return [f"{site.url}/{number}.png" for number in range(count)]

    return add


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., httpx.Client]]:
    """A function that serves the backend on a free port, and returns a client of it."""
    running: list[tuple[uvicorn.Server, threading.Thread, httpx.Client]] = []

    def start(settings: Settings, detector: Detector | KnownDetector | None) -> httpx.Client:
        if settings.data_dir is None:
            settings = replace(settings, data_dir=tmp_path / "data")
        server = uvicorn.Server(uvicorn.Config(create_app(settings, detector), port=0, log_config=None))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server stopped while starting"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
        running.append((server, thread, client))
        return client

    yield start
    for server, thread, client in running:
        client.close()
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def config_xml() -> str:
    return CONFIG


@pytest.fixture
def allow(site: Site) -> tuple[str, ...]:
    """``Settings.allow_hosts`` with which the test site, on a loopback address, may be read."""
    return (f"127.0.0.1:{site.port}",)


@pytest.fixture
def predict_body(config_xml: str) -> Callable[..., dict[str, Any]]:
    """A function that builds a /predict body as Label Studio 1.23.2 sends it for a batch."""

    def build(*images: str, config: str = config_xml, context: Any = None, **extra: Any) -> dict[str, Any]:
        tasks = [
            {
                "id": i,
                "data": {"image": image},
                "meta": {},
                "project": 1,
                "annotations": [],
                "predictions": [],
                **extra,
            }
            for i, image in enumerate(images, start=1)
        ]
        return {
            "tasks": tasks,
            "project": "1.1795417412",
            "label_config": config,
            "params": {"login": None, "password": None, "context": context},
        }

    return build
