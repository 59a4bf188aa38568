"""Measures the Edge architecture against Grounding DINO tiny on this CPU: one image, two labels, end to end.

    python benchmarks/edge.py            writes benchmarks/results/edge.json
    python benchmarks/edge.py --quick    fewer repetitions, nothing written

Both have random weights, which change no time, and look at the same picture of 640x640 pixels: it is
prepared, the network runs, boxes are chosen; what BERT says of the prompt is cached, as in serving. The two
take turns within one run, in a process that keeps freed memory as our commands do; what is compared is
process CPU time on one thread, the median, and half the range between the quartiles.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ops import processor
from PIL import Image

from groundingml import Detector
from groundingml.memory import keep_freed_memory
from groundingml.models import load_tokenizer
from groundingml.models.grounding_dino import GroundingDino, GroundingDinoConfig

RESULTS = Path(__file__).parent / "results" / "edge.json"
SIDE = 640
LABELS = ["cat", "remote control"]


def measure(calls: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of CPU time of each call of each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repetitions + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn:  # the first is for warming up
                times[name].append(time.process_time() - start)
    return times


def calls() -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    image = Image.effect_noise((SIDE, SIDE), 60).convert("RGB")
    tiny = replace(GroundingDinoConfig.grounding_dino_tiny(), image_size=(SIDE, SIDE))
    tokenizer = load_tokenizer("nano")
    found: dict[str, Callable[[], object]] = {}
    for name, config in (("Grounding DINO tiny", tiny), ("Edge", GroundingDinoConfig.edge())):
        detector = Detector(GroundingDino(config), tokenizer, device="cpu")
        image_features = torch.zeros(1, 3, SIDE, SIDE)
        backbone = detector.model.backbone

        def whole(detector: Detector = detector) -> object:
            return detector(image, labels=LABELS)

        def only_backbone(backbone: torch.nn.Module = backbone, x: torch.Tensor = image_features) -> object:
            with torch.inference_mode():
                return backbone(x)

        found[name] = whole
        found[f"{name}: its backbone"] = only_backbone
    return found


def section(document: dict[str, Any]) -> str:
    """What benchmarks/README.md says about it."""
    rows = {row["contestant"]: row for row in document["rows"]}
    ratio = rows["Grounding DINO tiny"]["cpu_s"] / rows["Edge"]["cpu_s"]
    lines = [
        "## The Edge architecture on a CPU",
        f"`benchmarks/edge.py`. One picture of {SIDE}x{SIDE}, two labels, random weights, float32, one "
        "thread, process CPU time; from a picture to boxes, in a process that keeps freed memory as our "
        "commands do.",
        f"{document['machine']['processor']}; torch {document['torch']}; {document['date']}",
        f"**Edge is {ratio:.1f} times faster than Grounding DINO tiny.**",
        "| | CPU time |\n|---|---|",
    ]
    for name, row in rows.items():
        lines[-1] += f"\n| {name} | {row['cpu_s']:.2f} s +- {row['cpu_spread_s']:.2f} |"
    return "\n\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repetitions, nothing written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = []
    for name, times in measure(calls(), 3 if options.quick else 9).items():
        low, median, high = statistics.quantiles(times, n=4)
        rows.append({"contestant": name, "cpu_s": median, "cpu_spread_s": (high - low) / 2})
        print(f"{name:34} {median:6.3f} s")
    document = {
        "machine": {"processor": processor(), "load_average": os.getloadavg()},
        "torch": torch.__version__,
        "date": str(datetime.date.today()),
        "rows": rows,
    }
    print(section(document))
    if not options.quick:
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
