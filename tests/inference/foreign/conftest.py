"""Detectors that are not ours: tiny random ones in transformers' official format, and a server that speaks
the protocol of DeepDataSpace's SDK."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers


@pytest.fixture(scope="session")
def foreign_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``foreign_model("owlv2")`` -> a folder as the hub has it: config, weights, processor, tokenizer."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            torch.manual_seed(0)
            save_tokenizer(made[kind], 77 if kind == "omdet-turbo" else 16)
            {"owlv2": save_owl, "owlvit": save_owl, "omdet-turbo": save_omdet}[kind](made[kind], kind)
        return made[kind]

    return make


def save_tokenizer(folder: Path, most_tokens: int) -> None:
    """CLIP's byte-level tokenizer with hardly any words of its own."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    ends = [f"{letter}</w>" for letter in letters]
    words = [*letters, *ends, "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    transformers.CLIPTokenizer(*files, model_max_length=most_tokens).save_pretrained(folder)


WORDS = {"vocab_size": 516, "bos_token_id": 514, "eos_token_id": 515}
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def save_owl(folder: Path, kind: str) -> None:
    text = {**SMALL, **WORDS, "max_position_embeddings": 16}
    vision = {**SMALL, "image_size": 64, "patch_size": 8}
    if kind == "owlv2":
        config = transformers.Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
        model: Any = transformers.Owlv2ForObjectDetection(config)
        processor: Any = transformers.Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    else:
        config = transformers.OwlViTConfig(text_config=text, vision_config=vision, projection_dim=16)
        model = transformers.OwlViTForObjectDetection(config)
        processor = transformers.OwlViTImageProcessorPil(size={"height": 64, "width": 64})
    with torch.no_grad():  # so that patches differ in what they prefer
        for name, parameter in model.named_parameters():
            if name.startswith(("class_head", "box_head")):
                parameter.normal_(std=0.4)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def save_omdet(folder: Path, kind: str) -> None:
    config = transformers.OmDetTurboConfig(
        text_config={
            "model_type": "clip_text_model", **SMALL, **WORDS, "hidden_size": 24,
            "max_position_embeddings": 77,
        },
        backbone_config={
            "model_type": "swin", "image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2], "window_size": 4, "out_indices": [2, 3, 4],
        },
        image_size=64, apply_layernorm_after_vision_backbone=False, text_projection_in_dim=24,
        text_projection_out_dim=24, class_embed_dim=24, task_encoder_hidden_dim=16, num_queries=30,
        encoder_in_channels=[16, 32, 64], encoder_hidden_dim=16, vision_features_channels=[16, 16, 16],
        encoder_dim_feedforward=16, encoder_attention_heads=2, decoder_hidden_dim=16, decoder_num_heads=2,
        decoder_num_layers=1, decoder_dim_feedforward=16,
    )  # fmt: skip
    transformers.OmDetTurboForObjectDetection(config).save_pretrained(folder)
    transformers.DetrImageProcessorPil(size={"height": 64, "width": 64}, do_pad=False).save_pretrained(folder)


@dataclass
class Service:
    """What a test tells the service to answer, and what it was asked."""

    address: str = ""
    objects: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    refusals: list[tuple[int, dict[str, Any] | str]] = field(default_factory=list)
    """(HTTP status, body) to answer the next triggers with, before it works."""
    polls: int = 2
    """How often a task is asked for before it is done."""
    failed: str | None = None
    asked: dict[str, int] = field(default_factory=dict)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """DeepDataSpace's HTTP protocol here; the SDK is sent to it by its own environment variable."""
    told = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told.bodies.append({"path": self.path, **body})
            told.headers.append(dict(self.headers))
            if told.refusals:
                return self.answer(*told.refusals.pop(0))
            uuid = self.headers["Idempotency-Key"]
            return self.answer(200, {"code": 0, "msg": "ok", "data": {"task_uuid": uuid}})

        def do_GET(self) -> None:
            uuid = self.path.rsplit("/", 1)[1]
            told.asked[uuid] = told.asked.get(uuid, 0) + 1
            data: dict[str, Any] = {"task_uuid": uuid, "status": "running"}
            if told.asked[uuid] >= told.polls:
                data = {"task_uuid": uuid, "status": "success", "result": {"objects": told.objects}}
                if told.failed:
                    data = {"task_uuid": uuid, "status": "failed", "error": told.failed}
            self.answer(200, {"code": 0, "msg": "ok", "data": data})

        def answer(self, status: int, body: dict[str, Any] | str) -> None:
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    told.address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("DDS_CLOUDAPI_ENDPOINT", told.address)
    monkeypatch.setenv("DDS_CLOUDAPI_TOKEN", "secret-token")
    yield told
    server.shutdown()
    server.server_close()
