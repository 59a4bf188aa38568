"""Measures many images by `detect_many` (one single-threaded process a core) against one process.

    python benchmarks/bulk.py [--images 48] [--rounds 5] [--model nano] [--out RESULTS.json]

Three contestants find three labels on the same JPEG files, the photos of examples/ in four sizes: `Detector`
called image by image in one process with one thread, the same with a thread for each core, and `detect_many`
with a worker for each core. They take turns, each in fresh processes, round by round; the one with all
threads in every third round only, with a quarter of the images.

A contestant works through a stream of images. The clock runs from the result of the last image to warm up
to that of the last one counted; more follow, so that all workers are busy all that time. Decoding is part of
it, starting is not: that is given as `start_s`, from the call to the first result (loading included; workers
import everything anew, the others have done that before the call). Wall time means little on a machine that
does other work too: see `load_average`. The ratio of images for each second of wall time is taken within a
round; the median of the rounds is reported. CPU seconds for an image stand beside it: they say what workers
cost one another (memory, caches), whatever else runs; that ratio times the cores is what a machine that does
nothing else should come to.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SHORTER_SIDES = (240, 480, 960, 1500)
LABELS = ["person", "cat", "cup"]
CONTESTANTS = ("one thread", "all threads", "workers")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=48, help="counted in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "bulk.json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        contestant, folder = arguments.child
        print(json.dumps(measure(contestant, arguments.model, Path(folder), arguments.images)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder))
        rounds = []
        for number in range(arguments.rounds):
            before = os.getloadavg()[0]
            order = CONTESTANTS if number % 2 else CONTESTANTS[::-1]
            answers = {
                contestant: run_child(contestant, folder, arguments)
                for contestant in order
                if contestant != "all threads" or number % 3 == 0
            }
            rounds.append({"load_average": round(before, 2), **answers})
            print(json.dumps(rounds[-1]), flush=True)
            document = {**about(arguments), **summary(rounds), "rounds": rounds}
            arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps({name: value for name, value in document.items() if name != "rounds"}, indent=1))


def make_photos(folder: Path) -> None:
    """The repository's photos in several sizes, as JPEG files."""
    for photo in sorted((ROOT / "examples" / "photos").glob("*.jpg")):
        with Image.open(photo) as image:
            for side in SHORTER_SIDES:
                scale = side / min(image.size)
                size = (round(image.width * scale), round(image.height * scale))
                image.convert("RGB").resize(size).save(folder / f"{photo.stem}-{side}.jpg", quality=90)


def run_child(contestant: str, folder: str, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", contestant, folder]
    command += ["--model", arguments.model, "--images", str(arguments.images)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    return dict(json.loads(done.stdout))


def measure(contestant: str, model: str, folder: Path, count: int) -> dict[str, float]:
    """Wall and CPU seconds of ``count`` images in the middle of a stream."""
    import torch

    from groundingml.inference import ImageError, detect_many
    from groundingml.inference.processors import usable_cores
    from groundingml.memory import keep_freed_memory

    keep_freed_memory()
    cores = len(usable_cores())
    torch.set_num_threads(1 if contestant == "one thread" else cores)
    stream: Iterator[Path] = itertools.cycle(sorted(folder.iterdir()))
    workers = cores if contestant == "workers" else 1
    warm = 4 * cores
    if contestant == "all threads":
        count = max(1, count // 4)  # on a busy machine its threads wait for one another without end
    called = time.perf_counter()
    results = detect_many(model, stream, LABELS, workers=workers, device="cpu")
    for number, found, *_ in results:
        assert not isinstance(found, ImageError), found
        if number == 0:
            start_s = time.perf_counter() - called
        if number == warm - 1:
            began, cpu = time.perf_counter(), cpu_seconds()
        if number == warm - 1 + count:
            wall_s, cpu_s = time.perf_counter() - began, cpu_seconds() - cpu
            break
    results.close()
    return {
        "images_per_s": round(count / wall_s, 3),
        "cpu_s_per_image": round(cpu_s / count, 4),
        "start_s": round(start_s, 2),
    }


def cpu_seconds() -> float:
    """Of this process and its living children, from /proc."""
    ticks = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if os.getpid() in (int(status.parent.name), int(fields[1])):
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, lowest and highest of the rounds."""

    def spread(values: list[float]) -> dict[str, float]:
        middle = statistics.median(values)
        return {"median": round(middle, 3), "lowest": round(min(values), 3), "highest": round(max(values), 3)}

    def ratio(one: str, other: str) -> dict[str, float]:
        both = [each for each in rounds if one in each and other in each]
        return spread([each[one]["images_per_s"] / each[other]["images_per_s"] for each in both])

    def cpu_ratio(each: dict[str, Any]) -> float:
        return float(each["one thread"]["cpu_s_per_image"] / each["workers"]["cpu_s_per_image"])

    keys = ("images_per_s", "cpu_s_per_image", "start_s")
    return {
        "contestants": {
            name: {key: spread([each[name][key] for each in rounds if name in each]) for key in keys}
            for name in CONTESTANTS
        },
        "images_per_s of workers over one thread": ratio("workers", "one thread"),
        "cpu_s_per_image of one thread over workers": spread([cpu_ratio(each) for each in rounds]),
        "images_per_s of workers over all threads": ratio("workers", "all threads"),
        "images_per_s of all threads over one thread": ratio("all threads", "one thread"),
    }


def about(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was measured, where, when and with what."""
    import torch

    from groundingml.inference.processors import usable_cores

    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
    return {
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
        "machine": {"processor": names[0] if names else platform.machine(), "cores": len(usable_cores())},
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "model": arguments.model,
        "labels": LABELS,
        "images_per_round": arguments.images,
        "photos": f"{len(SHORTER_SIDES)} sizes, shorter side {', '.join(map(str, SHORTER_SIDES))} pixels",
    }


if __name__ == "__main__":
    main()
