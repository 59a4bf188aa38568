"""How long Label Studio waits for the answer to a webhook, while the machine has nothing else to do and while
a training run works beside the server.

    python benchmarks/webhooks.py --data FOLDER [--seconds 60] [--store URL] [--out RESULTS.json]

FOLDER holds `bccd/` (train.json and images/), which is trained on. Eight annotators submit at once, each
again half a second after the answer, which is far more than people do. The training process is stopped and
continued every five seconds, so that both conditions see the same machine. Every event is acknowledged only
once it is on the disk; at the end all of them must have had their effect.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from groundingml.learning.process import NICENESS, default_threads
from groundingml.store import default_url, open_store
from groundingml.store.inbox import waiting_events
from groundingml.store.tables import Annotation

ROOT = Path(__file__).resolve().parents[1]
ANNOTATORS = 8
PAUSE_S = 0.5
TURN_S = 5.0
CONFIG = (
    '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">'
    '<Label value="RBC"/><Label value="WBC"/></RectangleLabels></View>'
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--store", help="a database instead of SQLite")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "webhooks.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = args.store or default_url(folder)
        port = free_port()
        server = start(
            "serve", "--port", port, "--data-dir", folder, "--store", url, log=folder / "serve.log"
        )
        trainer: subprocess.Popen[bytes] | None = None
        try:
            wait_until_ready(port)
            trainer = start_training(args.data / "bccd", folder)
            before = cpu_seconds(server.pid)
            waits, acknowledged = measure(port, trainer, args.seconds)
            assert trainer.poll() is None, f"the training ended early:\n{(folder / 'train.log').read_text()}"
            done = processed(url)
            spent = cpu_seconds(server.pid) - before
        finally:
            for process in (trainer, server):
                if process is not None and process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
    assert done == acknowledged, f"{acknowledged} annotations acknowledged, {done} in the database"
    rows = {name: summary(found) for name, found in waits.items()}
    document = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "processors": os.cpu_count(),
            "load_average": os.getloadavg(),
            "python": platform.python_version(),
        },
        "database": url.partition(":")[0],
        "annotators": ANNOTATORS,
        "annotations": done,
        "cpu_ms": round(1000 * spent / done, 2),
        "rows": rows,
    }
    args.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(section(document))


def measure(
    port: int, trainer: subprocess.Popen[bytes], seconds: float
) -> tuple[dict[str, list[float]], int]:
    """Milliseconds from request to answer, by what the machine did meanwhile, and how many annotations were
    acknowledged."""
    waits: dict[str, list[float]] = {"alone": [], "training": []}
    state = {"now": "alone"}
    over = threading.Event()
    acknowledged: set[int] = set()
    lock = threading.Lock()

    def annotate(annotator: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        number = annotator
        while not over.is_set():
            number += ANNOTATORS
            body = json.dumps(event(number)).encode()
            before, began = state["now"], time.perf_counter()
            connection.request("POST", "/webhook", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            took = 1000 * (time.perf_counter() - began)
            assert answer.status == 200, answer.status
            with lock:
                acknowledged.add(number)
                if before == state["now"] and before in waits:
                    waits[before].append(took)
            time.sleep(PAUSE_S)

    threads = [threading.Thread(target=annotate, args=(number,)) for number in range(ANNOTATORS)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, number in (("alone", signal.SIGSTOP), ("training", signal.SIGCONT)):
            state["now"] = "changing"
            os.killpg(trainer.pid, number)
            time.sleep(0.3)
            state["now"] = name
            time.sleep(TURN_S)
    over.set()
    for thread in threads:
        thread.join()
    return waits, len(acknowledged)


def event(number: int) -> dict[str, Any]:
    """An annotation of ten boxes, with all that Label Studio sends along."""
    regions = [
        {
            "id": f"{number}-{region}",
            "from_name": "label",
            "to_name": "image",
            "type": "rectanglelabels",
            "origin": "manual",
            "original_width": 640,
            "original_height": 480,
            "image_rotation": 0,
            "value": {
                "x": 9 * region,
                "y": 10,
                "width": 8,
                "height": 30,
                "rotation": 0,
                "rectanglelabels": ["RBC"],
            },
        }
        for region in range(10)
    ]
    times = dict.fromkeys(("created_at", "updated_at"), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    about = {
        "id": number,
        "task": number,
        "result": regions,
        "was_cancelled": False,
        "lead_time": 9.5,
        **times,
    }
    project = {
        "id": 7,
        "title": "cells",
        "label_config": CONFIG,
        "token": "x" * 40,
        "description": "x" * 1500,
    }
    task = {"id": number, "data": {"image": f"/data/upload/7/{number}.jpg"}}
    return {"action": "ANNOTATION_CREATED", "annotation": about, "project": project, "task": task}


def start(*words: object, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "groundingml.cli", *map(str, words)],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def start_training(data: Path, folder: Path) -> subprocess.Popen[bytes]:
    """A training run as the server starts it, with its priority and threads, that takes long enough."""
    command = [
        "nice",
        "-n",
        str(NICENESS),
        sys.executable,
        "-m",
        "groundingml.cli",
        "train",
        "--data",
        str(data / "train.json"),
    ]
    command += ["--images", str(data / "images"), "--output", str(folder / "trained"), "--steps", "100000"]
    with (folder / "train.log").open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": str(default_threads())},
        )
    time.sleep(20)  # until it trains
    return process


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if json.loads(connection.getresponse().read())["model"] == "ready":
                return
        except OSError:
            pass
        time.sleep(0.25)
    raise SystemExit("the server did not get ready")


def processed(url: str) -> int:
    """How many annotations are in the database once all events are processed."""
    deadline = time.monotonic() + 120
    with open_store(url) as store:
        while time.monotonic() < deadline:
            with store.read() as session:
                if waiting_events(session) == 0:
                    return session.scalars(select(func.count()).select_from(Annotation)).one()
            time.sleep(0.2)
    raise SystemExit("the events were not processed within two minutes")


def summary(found: list[float]) -> dict[str, float]:
    ordered = sorted(found)
    return {
        "events": len(ordered),
        "median_ms": round(statistics.median(ordered), 2),
        "p95_ms": round(ordered[int(0.95 * len(ordered))], 2),
        "p99_ms": round(ordered[int(0.99 * len(ordered))], 2),
        "most_ms": round(ordered[-1], 2),
    }


def section(document: dict[str, Any]) -> str:
    """The part of benchmarks/README.md about it."""
    machine = document["machine"]
    what = {"alone": "nothing", "training": "a training run"}
    columns = ("median_ms", "p95_ms", "p99_ms", "most_ms")
    rows = [
        f"| {what[name]} | {row['events']:,} | " + " | ".join(str(row[column]) for column in columns) + " |"
        for name, row in document["rows"].items()
    ]
    lines = [
        "## Webhooks: how long an annotator's submit is held",
        f"`benchmarks/webhooks.py`: {document['annotators']} annotators, {document['annotations']:,} "
        f"annotations of ten boxes into {document['database']}. Each is on the disk before it is answered; "
        f"at the end all had had their effect. Each took the server {document['cpu_ms']:.1f} ms of CPU time. "
        "Wall time in milliseconds; Label Studio gives up after 1000.",
        f"{machine['processors']} processors, load average {machine['load_average'][0]:.1f} at the end; "
        f"{document['date'][:10]}",
        "\n".join(
            ["| meanwhile | events | median | 95 % | 99 % | longest |", "|---|---|---|---|---|---|", *rows]
        ),
    ]
    return "\n\n".join(lines)


if __name__ == "__main__":
    main()
