"""Sixteen clients at once: is every request answered, does /health stay quick, does memory stay flat?

A real `groundingml serve` gets prompts and batches for changing pictures from as many clients as asked for,
while another one asks for /health every 50 ms and the server's memory is read from /proc. Loopback only.

    python benchmarks/load.py --seconds 60 --clients 16
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageEnhance

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """<View><Image name="image" value="$image"/>
  <TextArea name="prompt" toName="image" smart="true"/>
  <RectangleLabels name="label" toName="image"><Label value="Cat"/><Label value="Cup"/></RectangleLabels>
</View>"""
PROMPTS = ("cat", "cup . spoon", "person", "table", "cat . dog . cup")
WARM_UP = 0.2
"""The first part of the time: caches fill, memory is not compared."""


@dataclass
class Seen:
    """What came of the load."""

    answered: int = 0
    refused: int = 0
    errors: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    health_seconds: list[float] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)


class Server:
    """A `groundingml serve` in a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "groundingml.cli", "serve", "--port", str(port)]
        with (folder / "serve.log").open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--data-dir", str(folder / "data"), *options], stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + 120
        while True:
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).json()["model"] == "ready":
                    return
            except httpx.HTTPError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "serve.log").read_text()[-3000:])
            time.sleep(0.1)

    def memory(self) -> int:
        """Resident bytes of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> int:
        """End it as an operator does; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def pictures(count: int) -> list[str]:
    """The repository's photos in several brightnesses, as data: URIs."""
    photos = sorted((ROOT / "examples" / "photos").glob("*.jpg"))[:4]
    found = []
    for number in range(count):
        image = Image.open(photos[number % len(photos)]).convert("RGB")
        image.thumbnail((640, 640))
        file = io.BytesIO()
        ImageEnhance.Brightness(image).enhance(0.7 + 0.6 * number / count).save(file, "JPEG", quality=85)
        found.append(f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}")
    return found


def body(images: list[str], number: int) -> dict[str, Any]:
    """What Label Studio sends: two of three times for a prompt in the editor, else a batch of three tasks."""
    is_prompt = number % 3 != 0
    tasks = [
        {"id": number, "data": {"image": images[(number * 7 + place) % len(images)]}, "drafts": []}
        for place in range(1 if is_prompt else 3)
    ]
    if not is_prompt:
        for task in tasks:
            del task["drafts"]
    typed = {"id": "x", "from_name": "prompt", "to_name": "image", "type": "textarea"}
    region = {**typed, "value": {"text": [PROMPTS[number % len(PROMPTS)]]}}
    context = {"result": [region]} if is_prompt else None
    return {"tasks": tasks, "project": "1.1", "label_config": CONFIG, "params": {"context": context}}


def put_load(server: Server, clients: int, seconds: float, images: list[str]) -> Seen:
    """Ask for ``seconds``; what came of it."""
    seen, lock, started = Seen(), threading.Lock(), time.monotonic()
    end = started + seconds

    def ask(client: int) -> None:
        with httpx.Client(base_url=server.url, timeout=120, trust_env=False) as http:
            number = client
            while time.monotonic() < end:
                asked = time.monotonic()
                try:
                    answer = http.post("/predict", json=body(images, number))
                    failed = _what_failed(answer)
                except httpx.HTTPError as error:
                    answer, failed = None, f"{type(error).__name__}: {error}"
                with lock:
                    if failed:
                        seen.errors.append(failed)
                    elif answer is not None and answer.status_code == 503:
                        seen.refused += 1
                    else:
                        seen.answered += 1
                        seen.seconds.append(time.monotonic() - asked)
                number += clients

    def watch() -> None:
        with httpx.Client(base_url=server.url, timeout=10, trust_env=False) as http:
            while time.monotonic() < end:
                asked = time.monotonic()
                answer = http.get("/health")
                with lock:
                    seen.health_seconds.append(time.monotonic() - asked)
                    seen.memory.append((time.monotonic() - started, server.memory()))
                    if answer.status_code != 200:
                        seen.errors.append(f"/health answered {answer.status_code}")
                time.sleep(0.05)

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(clients)]
    threads.append(threading.Thread(target=watch))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def _what_failed(answer: httpx.Response) -> str:
    if answer.status_code == 503 and answer.headers.get("retry-after"):
        return ""
    if answer.status_code != 200:
        return f"status {answer.status_code}: {answer.text[:200]}"
    bad = [item for item in answer.json()["results"] if "result" not in item]
    return json.dumps(bad[0])[:300] if bad else ""


def report(seen: Seen, seconds: float) -> dict[str, Any]:
    """The figures of a run."""
    warm = [memory for at, memory in seen.memory if at >= WARM_UP * seconds]
    half = len(warm) // 2
    first, second = max(warm[:half], default=0), max(warm[half:], default=0)
    return {
        "answered": seen.answered,
        "refused_with_retry_after": seen.refused,
        "errors": len(seen.errors),
        "first_errors": seen.errors[:3],
        "requests_per_second": round(seen.answered / seconds, 2),
        "predict_p50_ms": _percentile(seen.seconds, 50),
        "predict_p99_ms": _percentile(seen.seconds, 99),
        "health_requests": len(seen.health_seconds),
        "health_p50_ms": _percentile(seen.health_seconds, 50),
        "health_p99_ms": _percentile(seen.health_seconds, 99),
        "health_max_ms": _percentile(seen.health_seconds, 100),
        "memory_first_half_mb": round(first / 1e6, 1),
        "memory_second_half_mb": round(second / 1e6, 1),
    }


def section(found: dict[str, Any]) -> str:
    """The result as a part of benchmarks/README.md."""
    rows = {
        "requests answered": found["answered"],
        "errors": found["errors"],
        "`/health`, median": f"{found['health_p50_ms']} ms",
        "`/health`, 99th percentile": f"{found['health_p99_ms']} ms",
        "most memory, first half (after warming up)": f"{found['memory_first_half_mb']} MB",
        "most memory, second half": f"{found['memory_second_half_mb']} MB",
        "exit code after SIGTERM": found["exit_code_after_sigterm"],
    }
    return "\n".join(
        [
            "## The server under load",
            "",
            f"`benchmarks/load.py`: {found['clients']} clients for {found['seconds']:.0f} s, two of three "
            "requests a prompt for one picture,",
            f"one a batch of three; {found['model']}; {found['machine']}, load average "
            f"{found['load_average_at_end']:.1f} at the end (of other work too).",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows.items()),
            "",
        ]
    )


def _percentile(seconds: list[float], percent: float) -> float | None:
    if not seconds:
        return None
    ordered = sorted(seconds)
    return round(1000 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))], 1)


def main() -> None:
    """Run and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "load.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), "--model", arguments.model)
        try:
            seen = put_load(server, arguments.clients, arguments.seconds, pictures(arguments.pictures))
        finally:
            exit_code = server.stop()
    found = {
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average_at_end": os.getloadavg()[0],
        "model": arguments.model,
        "clients": arguments.clients,
        "seconds": arguments.seconds,
        **report(seen, arguments.seconds),
        "exit_code_after_sigterm": exit_code,
    }
    arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    if seen.errors:
        sys.exit(1)


if __name__ == "__main__":
    main()
