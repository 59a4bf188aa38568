"""Measures the whole network on a CPU against transformers', and what a user waits for around it.

    python benchmarks/end_to_end.py                   everything, 10 to 15 minutes on a quiet machine
    python benchmarks/end_to_end.py --only start preprocessing
    python benchmarks/end_to_end.py --only network --sizes 480x640 --repetitions 3 --compile

Writes benchmarks/results/end_to_end.json (a section that was not measured keeps its last result) and the
tables in benchmarks/results/end_to_end.md.

network        Grounding DINO tiny with equal random weights, batch 1, a prompt of 25 tokens, from pixels and
               token ids to logits and boxes, the prompt encoded each time. First the outputs are compared,
               with transformers' query selection injected (near-ties otherwise swap queries). "default" is
               glibc's allocator as it is, "kept" with `groundingml.memory.keep_freed_memory` for both.
               --compile adds transformers' model under torch.compile (minutes to compile).
memory         peak memory of a process that loads one model from a file and runs it once at 800x1333.
labels         1,203 labels on one image, in chunks of at most 256 tokens, by `Detector`, against transformers
               run once for each chunk (three chunks are timed, the others cost the same).
preprocessing  a photo's file to normalised pixels, against transformers' Pillow processor; equal pixels.
start          a fresh process until the model is loaded from a safetensors file.

Every number is process CPU time in seconds on one thread, since machines are shared and wall time lies there;
contestants take turns within one process. Reported: the median, lowest and highest. Wall time is kept beside
it. benchmarks/peers.py compares ONNX Runtime, OpenVINO and torch.compile.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from end_to_end_models import LABELS, TOKENS, build_models, label_names, token_ids
from end_to_end_tables import tables

RESULTS = Path(__file__).parent / "results"
PHOTOS = Path(__file__).parent.parent / "examples" / "photos"
SECTIONS = ("network", "memory", "labels", "preprocessing", "start")
SIZES = ("480x640", "800x800", "800x1333")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="HEIGHTxWIDTH")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also transformers under torch.compile; slow")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(run_child(json.loads(arguments.child))))
        return
    file = RESULTS / "end_to_end.json"
    document = json.loads(file.read_text()) if file.exists() else {"sections": {}}
    with tempfile.TemporaryDirectory() as folder:
        start_child({"task": "save", "folder": folder})
        for section in arguments.only:
            print(f"measuring: {section} ...", flush=True)
            rows = measure(section, arguments, folder)
            document["sections"][section] = {"when": now(), "load_average": os.getloadavg()[0], "rows": rows}
            document.update(machine=machine(), versions=versions())
            file.write_text(json.dumps(document, indent=1) + "\n")
            (RESULTS / "end_to_end.md").write_text(tables(document))
            print(json.dumps(rows, indent=1), flush=True)
    print(f"written to {file} and {file.with_suffix('.md')}")


def measure(section: str, arguments: argparse.Namespace, folder: str) -> list[dict[str, Any]]:
    """The rows of a section, each measured in processes of its own."""
    repeat = arguments.repetitions
    if section == "network":
        common = {"task": "network", "repetitions": repeat, "compile": arguments.compile}
        return [
            start_child({**common, "size": size, "allocator": allocator})
            for size in arguments.sizes
            for allocator in ("default", "kept")
        ]
    if section == "memory":
        return [
            start_child(
                {"task": "memory", "contestant": contestant, "allocator": allocator, "folder": folder}
            )
            for contestant, allocator in (
                ("transformers", "default"),
                ("groundingml", "default"),
                ("groundingml", "kept"),
            )
        ]
    if section == "labels":
        return [start_child({"task": "labels", "folder": folder})]
    if section == "preprocessing":
        return [
            start_child({"task": "preprocessing", "image": image, "repetitions": 3 * repeat})
            for image in ("4000x3000", "640x480")
        ]
    rows = []
    for contestant in ("transformers", "groundingml"):
        runs = [
            start_child({"task": "start", "contestant": contestant, "folder": folder}) for _ in range(repeat)
        ]
        rows.append(
            {
                "contestant": contestant,
                **summary([run["cpu_s"] for run in runs], [run["wall_s"] for run in runs]),
            }
        )
    return rows


# What follows runs in child processes.


def start_child(task: dict[str, Any]) -> dict[str, Any]:
    """Run a task in a fresh process on one thread."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(task)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"the task {task} failed, see above")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_child(task: dict[str, Any]) -> dict[str, Any]:
    tasks = {
        "save": run_save, "network": run_network, "memory": run_memory, "labels": run_labels,
        "preprocessing": run_preprocessing, "start": run_start,
    }  # fmt: skip
    if task.get("allocator") == "kept":
        from groundingml.memory import keep_freed_memory

        if not keep_freed_memory():
            raise SystemExit("this C library has no mallopt")
    return tasks[task["task"]](task)


def run_save(task: dict[str, Any]) -> dict[str, Any]:
    _, ours = build_models()
    ours.save_pretrained(task["folder"])
    return {}


def run_network(task: dict[str, Any]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    theirs, ours = build_models()
    height, width = map(int, task["size"].split("x"))
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, height, width, generator=generator)
    ids = token_ids(generator)
    everything = torch.ones(1, height, width, dtype=torch.long)
    mask = torch.ones_like(ids)
    contestants: dict[str, Callable[[], Any]] = {
        "transformers": lambda: theirs(
            pixel_values=pixels, pixel_mask=everything, input_ids=ids, attention_mask=mask
        ),
        "groundingml": lambda: ours(pixels, everything, ids, mask),
    }
    with torch.inference_mode():
        expected = contestants["transformers"]()
        topk = expected.enc_outputs_class.amax(-1).topk(ours.config.num_queries).indices
        found = ours(pixels, everything, ids, mask, topk_indices=topk)
        logits = (found.logits[..., :TOKENS] - expected.logits[..., :TOKENS]).abs().max().item()
        boxes = (found.boxes_cxcywh - expected.pred_boxes).abs().max().item()
        largest = expected.logits[..., :TOKENS].abs().max().item()
        assert logits < 1e-3, f"logits differ by {logits}"
        assert boxes < 1e-5, f"boxes differ by {boxes}"
    # as both are used: transformers' examples say no_grad, our Detector works in inference mode
    with torch.no_grad():
        if task["compile"]:
            compiled = torch.compile(theirs)
            contestants["transformers compiled"] = lambda: compiled(
                pixel_values=pixels, pixel_mask=everything, input_ids=ids, attention_mask=mask
            )
        times = take_turns(contestants, task["repetitions"])
    return {
        "size": task["size"],
        "allocator": task["allocator"],
        "largest_difference": {"logits": logits, "of_logits_up_to": largest, "boxes": boxes},
        "times": times,
    }


def run_memory(task: dict[str, Any]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    pixels = torch.randn(1, 3, 800, 1333)
    ids = token_ids(torch.Generator().manual_seed(1))
    with torch.inference_mode():
        if task["contestant"] == "transformers":
            from transformers import GroundingDinoForObjectDetection

            GroundingDinoForObjectDetection.from_pretrained(task["folder"]).eval()(
                pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids)
            )
        else:
            from groundingml.models import load_model

            load_model(task["folder"])(pixels, None, ids)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"contestant": task["contestant"], "allocator": task["allocator"], "peak_mib": peak}


def run_labels(task: dict[str, Any]) -> dict[str, Any]:
    import torch
    from PIL import Image
    from transformers import GroundingDinoForObjectDetection

    from groundingml import Detector
    from groundingml.inference.preprocessing import preprocess

    torch.set_num_threads(1)
    detector = Detector.from_pretrained(task["folder"], device="cpu")
    photo = Image.open(PHOTOS / "astronaut.jpg").convert("RGB").resize((640, 480))
    object.__setattr__(detector.config, "image_size", (480, 640))
    names = label_names()
    plan = detector.plan(names)
    first = timed(lambda: detector(photo, labels=names))
    again = timed(lambda: detector(photo, labels=names))
    one = timed(lambda: detector(photo, labels=names[:5]))

    theirs = GroundingDinoForObjectDetection.from_pretrained(task["folder"]).eval()
    config = detector.config
    pixels = preprocess([photo], config.image_size, config.image_mean, config.image_std).pixel_values
    chunks = []
    with torch.no_grad():
        for chunk in plan.chunks[:3]:
            ids = torch.tensor([chunk.input_ids])
            inputs = {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            chunks.append(timed(lambda inputs=inputs: theirs(**inputs))["cpu_s"])
    peer = statistics.median(chunks) * len(plan.chunks)
    return {
        "labels": LABELS, "chunks": len(plan.chunks), "size": "480x640",
        "first_s": first["cpu_s"], "again_s": again["cpu_s"], "five_labels_s": one["cpu_s"],
        "transformers_chunk_s": chunks, "transformers_s": peer, "ratio": first["cpu_s"] / peer,
    }  # fmt: skip


def run_preprocessing(task: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import torch
    from PIL import Image
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
        GroundingDinoImageProcessorPil,
    )

    from groundingml.inference import load_image
    from groundingml.inference.preprocessing import preprocess
    from groundingml.models.grounding_dino import GroundingDinoConfig

    torch.set_num_threads(1)
    width, height = map(int, task["image"].split("x"))
    photo = Image.open(PHOTOS / "coffee.jpg").convert("RGB").resize((width, height))
    # Enlarged, it would decode faster than any photo: give it the grain of a camera's.
    grain = np.random.default_rng(0).normal(0, 6, (height, width, 1))
    photo = Image.fromarray((np.asarray(photo) + grain).clip(0, 255).astype(np.uint8))
    encoded = io.BytesIO()
    photo.save(encoded, "JPEG", quality=90)
    data = encoded.getvalue()
    config = GroundingDinoConfig.grounding_dino_tiny()
    processor = GroundingDinoImageProcessorPil()
    contestants: dict[str, Callable[[], Any]] = {
        "transformers": lambda: processor(Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt"),
        "groundingml": lambda: preprocess(
            [load_image(data)], config.image_size, config.image_mean, config.image_std
        ),
        "decoding alone": lambda: Image.open(io.BytesIO(data)).load(),
    }
    expected, found = contestants["transformers"]().pixel_values, contestants["groundingml"]().pixel_values
    difference = (expected - found).abs().max().item()
    assert difference < 2e-6, f"pixels differ by {difference}"
    return {
        "image": task["image"],
        "largest_difference": difference,
        "times": take_turns(contestants, task["repetitions"]),
    }


def run_start(task: dict[str, Any]) -> dict[str, Any]:
    wall = time.perf_counter()
    if task["contestant"] == "transformers":
        from transformers import AutoModelForZeroShotObjectDetection, AutoTokenizer

        AutoTokenizer.from_pretrained(task["folder"])
        AutoModelForZeroShotObjectDetection.from_pretrained(task["folder"]).eval()
    else:
        from groundingml import Detector

        Detector.from_pretrained(task["folder"], device="cpu")
    # The interpreter's own start is in the CPU time and not in the wall time.
    return {"cpu_s": time.process_time(), "wall_s": time.perf_counter() - wall}


def timed(function: Callable[[], Any]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}


def take_turns(contestants: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, dict[str, Any]]:
    """Each contestant's times; a first round is not counted."""
    times: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for turn in range(repetitions + 1):
        for name, function in contestants.items():
            result = timed(function)
            if turn:
                times[name].append(result)
    return {
        name: summary([time["cpu_s"] for time in runs], [time["wall_s"] for time in runs])
        for name, runs in times.items()
    }


def summary(cpu: list[float], wall: list[float]) -> dict[str, Any]:
    return {
        "cpu_s": statistics.median(cpu), "lowest": min(cpu), "highest": max(cpu),
        "wall_s": statistics.median(wall), "repetitions": len(cpu),
    }  # fmt: skip


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes")


def machine() -> dict[str, Any]:
    import torch

    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": names[0] if names else platform.processor(),
        "processors": len(os.sched_getaffinity(0)),
        "vector_units": torch.backends.cpu.get_cpu_capability(),
        "libc": " ".join(platform.libc_ver()),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    return found | {name: metadata.version(name) for name in ("torch", "transformers", "pillow")}


if __name__ == "__main__":
    main()
