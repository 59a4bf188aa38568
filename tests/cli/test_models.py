"""`groundingml models`: the list, fetching from a server that speaks the hub's protocol, and comparing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from groundingml.cli.app import app
from groundingml.models.catalog import CATALOG
from groundingml.models.checkpoints.huggingface import save_huggingface
from groundingml.models.checkpoints.sources import HUB_FILES, HUB_IDS
from groundingml.models.grounding_dino.config import BERT_BASE, GroundingDinoConfig
from groundingml.models.grounding_dino.network import GroundingDino
from groundingml.models.swin import SwinConfig

TINY = "IDEA-Research/grounding-dino-tiny"
COMMIT = "c" * 40


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in the official layout, as a repository on the hub holds it."""
    torch.manual_seed(0)
    config = GroundingDinoConfig(
        backbone=SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4),
        text_config=BERT_BASE
        | {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
        d_model=32, num_queries=20, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32,
        decoder_ffn_dim=32, fusion_dim=16, fusion_heads=4, text_heads=4, text_ffn_dim=16,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("published")
    save_huggingface(GroundingDino(config), folder)
    (folder / "pytorch_model.bin").write_bytes(b"the same weights once more")
    return folder


@dataclass
class Hub:
    address: str = ""
    sent: list[tuple[str, str | None]] = field(default_factory=list)
    """(file, Range header) of each download."""
    break_after: int | None = None
    """Bytes of the weights after which the connection is cut, once."""
    wrong: bool = False
    """Send other bytes than those whose digest was announced."""


@pytest.fixture
def hub(published: Path) -> Iterator[Hub]:
    """The part of the hub's HTTP protocol that its client needs for one repository."""
    told = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            names = sorted(file.name for file in published.iterdir())
            if path.startswith(f"/api/models/{TINY}/tree/"):
                return self.json([self.entry(name) for name in names])
            if path in (f"/api/models/{TINY}", f"/api/models/{TINY}/revision/main"):
                siblings = [{"rfilename": name} for name in names]
                return self.json(
                    {"id": TINY, "modelId": TINY, "sha": COMMIT, "siblings": siblings, "tags": []}
                )
            name = path.rsplit("/", 1)[-1]
            if path.startswith(f"/{TINY}/resolve/") and name in names:
                return self.file(name)
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def entry(self, name: str) -> dict[str, object]:
            content = (published / name).read_bytes()
            entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
            if name.endswith((".safetensors", ".bin")):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": digest, "sha256": digest, "size": len(content), "pointerSize": 134}
            return entry

        def file(self, name: str) -> None:
            content = (published / name).read_bytes()
            large = name.endswith((".safetensors", ".bin"))
            digest = (hashlib.sha256 if large else hashlib.sha1)(content).hexdigest()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
            if large:
                headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            if self.command == "GET":
                told.sent.append((name, self.headers.get("Range")))
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            status = 200
            if wanted:
                start = int(wanted[1])
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                content, status = content[start:], 206
            if told.wrong and large:
                content = content[:-1] + bytes([content[-1] ^ 1])
            cut = told.break_after if large and self.command == "GET" else None
            if cut is not None:
                told.break_after = None
            self.answer(status, content, headers, cut)

        def json(self, value: object) -> None:
            self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def answer(
            self, status: int, content: bytes, headers: dict[str, str], cut: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[:cut])
            if cut is not None:
                self.close_connection = True

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    told.address = f"http://127.0.0.1:{server.server_address[1]}"
    yield told
    server.shutdown()
    server.server_close()


def command(hub: Hub | None, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As a user runs it: the hub's client reads its environment when it is imported."""
    environment = {
        **os.environ,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    environment.pop("HF_HUB_CACHE", None)
    environment["HF_HUB_OFFLINE"] = "1" if hub is None else "0"
    if hub is not None:
        environment["HF_ENDPOINT"] = hub.address
    return subprocess.run(
        [sys.executable, "-m", "groundingml.cli", "models", *arguments],
        env=environment, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip


def listed(done: subprocess.CompletedProcess[str], name: str) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    return next(row for row in json.loads(done.stdout) if row["name"] == name)


def test_fetch_for_offline_use(hub: Hub, published: Path, tmp_path: Path) -> None:
    done = command(hub, tmp_path, "fetch", "grounding-dino-tiny")
    assert done.returncode == 0, done.stderr
    assert re.search(r"grounding-dino-tiny: [\d.]+ MB in .*, whole, and it loads", done.stdout)
    assert "100%" in done.stderr  # a progress bar
    assert "pytorch_model.bin" not in {name for name, _ in hub.sent}  # the same weights twice
    row = listed(command(None, tmp_path, "--json"), "grounding-dino-tiny")
    assert row["downloaded"]
    weights = Path(str(row["folder"])) / "model.safetensors"
    assert weights.read_bytes() == (published / "model.safetensors").read_bytes()
    # Bytes that changed on the disk are found, and fetched anew.
    blob = weights.resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    damaged = command(hub, tmp_path, "fetch", "grounding-dino-tiny")
    assert damaged.returncode == 1
    assert "model.safetensors was damaged and is removed" in damaged.stderr
    again = command(
        hub, tmp_path, "fetch", "grounding-dino-tiny", "grounding-dino-tiny"
    )  # then without network
    assert again.returncode == 0
    assert weights.read_bytes() == (published / "model.safetensors").read_bytes()


def test_a_cut_download_goes_on_where_it_stopped(hub: Hub, published: Path, tmp_path: Path) -> None:
    hub.break_after = 12_000_000  # the client writes 10 MiB at a time
    done = command(hub, tmp_path, "fetch", "grounding-dino-tiny")
    if done.returncode:  # the client itself may have gone on
        assert "Traceback" not in done.stderr
        done = command(hub, tmp_path, "fetch", "grounding-dino-tiny")
    assert done.returncode == 0, done.stderr
    ranges = [wanted for name, wanted in hub.sent if name == "model.safetensors"]
    assert ranges[0] is None
    assert ranges[-1] == f"bytes={10 * 2**20}-"


def test_what_cannot_be_fetched_is_said(hub: Hub, tmp_path: Path) -> None:
    for name, words in (
        ("api:dino-x", "runs on a server of its makers"),
        ("llmdet-tinny", "Did you mean llmdet-tiny"),
    ):
        result = CliRunner().invoke(app, ["models", "fetch", name])
        assert result.exit_code == 1
        assert words in result.stderr
    done = command(hub, tmp_path, "fetch", "someone/nothing")
    assert done.returncode == 1
    assert "the hub has no model 'someone/nothing'" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_short_name_is_listed() -> None:
    names = [entry.name for entry in CATALOG]
    assert len(names) == len(set(names))
    assert {"nano", *HUB_IDS, *HUB_FILES} == {entry.name for entry in CATALOG if entry.ours}
    assert all(entry.source == {**HUB_IDS, **HUB_FILES}.get(entry.name) for entry in CATALOG if entry.ours)
    page = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text("utf-8")
    assert [name for name in names if f"`{name}`" not in page] == []


def test_the_list(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 0
    assert CliRunner().invoke(app, ["models", "list"]).stdout == result.stdout
    for words in ("llmdet-large", "in the package", "OWLv2 (not ours)", "vendor's server", "Apache-2.0"):
        assert words in result.stdout


def test_compare(small_model: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "side.jpg"
    arguments = [
        "models",
        "compare",
        "nano",
        str(small_model),
        "--images",
        str(photos),
        "--labels",
        "cat, cup",
    ]
    result = CliRunner().invoke(app, [*arguments, "--output", str(output), "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [model["model"] for model in report["models"]] == ["nano", str(small_model)]
    assert all(len(model["images"]) == 2 for model in report["models"])
    assert all(image["seconds"] > 0 for model in report["models"] for image in model["images"])
    with Image.open(output) as picture:
        assert picture.width > 2 * 600
    again = CliRunner().invoke(app, [*arguments, "--output", str(output), "--device", "cpu"])
    assert "seconds a photo" in again.stdout


def test_compare_needs_two_models_and_a_photo(photos: Path) -> None:
    one = CliRunner().invoke(app, ["models", "compare", "nano", "-i", str(photos), "-l", "cat"])
    assert (one.exit_code, "at least two models" in one.stderr) == (2, True)
    none = CliRunner().invoke(app, ["models", "compare", "nano", "nano", "-i", "no/*.jpg", "-l", "cat"])
    assert none.exit_code == 2 or "no such file" in none.stderr
