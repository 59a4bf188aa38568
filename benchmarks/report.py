"""Writes benchmarks/README.md and its plots from what the other scripts left in benchmarks/results/.

python benchmarks/report.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cores
import deform_conv
import edge
import embedded_model
import end_to_end_tables
import learning
import load
import matplotlib
import ops
import peers
import webhooks

matplotlib.use("Agg")
from matplotlib import pyplot

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
Document = dict[str, Any]

INTRODUCTION = """# What was measured

Written by `benchmarks/report.py` from `benchmarks/results/`; do not edit. `make bench` measures speed again
on your machine, `make quality` the models.

Machines are shared and their clocks vary, so claims are **ratios**: the contestants take turns within one
run, and what counts is the process CPU time, medians with their spread. Wall time stands beside it.
"""


def main() -> None:
    sections: dict[str, Callable[[Document], str]] = {
        "ops.json": op,
        "deform_conv.json": deform_conv.section,
        "end_to_end.json": end_to_end,
        "peers.json": other_runtimes,
        "edge.json": edge.section,
        "bulk.json": bulk,
        "cores.json": cores.section,
        "embedded_model.json": nano,
        "learning.json": taught,
        "load.json": load.section,
        "webhooks.json": webhooks.section,
    }
    parts = [INTRODUCTION]
    for name, render in sections.items():
        path = RESULTS / name
        if path.is_file():
            parts.append(render(json.loads(path.read_text("utf-8"))))
    gpu = RESULTS / "gpu.md"
    parts.append(
        gpu.read_text("utf-8")
        if gpu.is_file()
        else "## On a GPU\n\nNot measured yet. `bash benchmarks/gpu.sh` builds, tests and measures on a "
        "machine with one, without network, and leaves its table here."
    )
    parts.append(missed())
    (FOLDER / "README.md").write_text("\n\n".join(part.strip() for part in parts) + "\n", "utf-8")
    print(f"written: {FOLDER / 'README.md'}")


def missed() -> str:
    """What this project wants to reach on a CPU and does not, and why."""
    lines = []
    peer, runs = "ONNX Runtime", json.loads((RESULTS / "peers.json").read_text("utf-8"))["rows"]
    for size, row in runs.items():
        seconds = {name: times["cpu_s"] for name, times in row["times"].items()}
        if peer in seconds and (ratio := seconds[peer] / seconds[peers.OURS]) < 2.2:
            lines.append(
                f"- 2.2 times as fast as {peer}: {ratio:.2f} at {size}. It runs this export "
                f"{seconds[peers.EAGER] / seconds[peer]:.2f} times as fast as the eager model runs, and "
                f"{row['matrix_products']['cpu_s'] / seconds[peers.OURS]:.0%} of our time are matrix "
                "products at the speed of the processor."
            )
    rows = [ops.Row(**row) for row in json.loads((RESULTS / "ops.json").read_text("utf-8"))["rows"]]
    best = next(row.contestant for row in rows if row.contestant.startswith("groundingml"))
    walls = {(row.shape, row.batch, row.mode, row.threads): row for row in rows if row.contestant == best}
    for (shape, batch, mode, threads), row in walls.items():
        if threads == 2 and (factor := walls[shape, batch, mode, 1].wall_ms / row.wall_ms) < 1.8:
            lines.append(
                f"- 1.8 times as fast on two cores as on one: {factor:.2f} for the op's {shape} at batch "
                f"{batch}, {mode}. Part of it is memory that the system zeroes, and memory gains little from "
                "a second core."
            )
    return "\n".join(["## Aims that are missed", "", *(lines or ["None on this machine."])])


def op(document: Document) -> str:
    """The op: how many times faster than each peer, as bars, and the whole table."""
    rows = [ops.Row(**row) for row in document["rows"]]
    plot_op(rows)
    machine = document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    one_thread = [row for row in rows if row.threads == 1]
    more = [row for row in rows if row.threads > 1]
    parts = [
        "## The op: multi-scale deformable attention on a CPU",
        "`benchmarks/ops.py`. Shapes of Grounding DINO at 800x1333: the encoder has 22,223 queries, "
        "the decoder 900; 8 heads of 32 channels, 4 levels, 4 points, float32.",
        f"{machine['processor']}, {machine['processors']} processors, load average "
        f"{machine['load_average'][0]:.1f}; {versions}; {document['date'][:10]}",
        "![times faster than the peers](results/ops.png)",
        ops.table(one_thread, lambda row: row.cpu_ms, "One thread, process CPU time"),
    ]
    if more:
        parts.append(ops.table(more, lambda row: row.wall_ms, "All threads, wall time"))
        parts += [
            f"### {more[0].threads} threads against one, by the clock",
            ops.scaling(rows),
            "Cores share the memory, which brings to all of them little more than to one "
            "([below](#what-more-cores-can-bring)). That shows where much new memory is handed out and "
            "zeroed by the system within the call, such as the output of the encoder at batch 2.",
        ]
    return "\n\n".join(parts)


def plot_op(rows: list[ops.Row]) -> None:
    """Times faster than each peer at batch 1 on one thread, a bar for each instruction set."""
    cases = [(shape, mode) for shape in ("encoder", "decoder") for mode in ("forward", "forward+backward")]
    chosen = [row for row in rows if row.batch == 1 and row.threads == 1]
    ours = list(dict.fromkeys(row.contestant for row in chosen if row.contestant.startswith("groundingml")))
    figure, axes = pyplot.subplots(1, len(ops.PEERS), figsize=(13, 3.6))
    for axis, peer in zip(axes, ops.PEERS, strict=True):
        for number, contestant in enumerate(ours):
            times = {(row.shape, row.mode, row.contestant): row.cpu_ms for row in chosen}
            ratios = [times.get((*case, peer), 0) / times[(*case, contestant)] for case in cases]
            places = [index + (number - (len(ours) - 1) / 2) * 0.21 for index in range(len(cases))]
            bars = axis.bar(places, ratios, width=0.2, label=contestant)
            axis.bar_label(bars, fmt="%.1f", fontsize=7)
        axis.set_xticks(range(len(cases)), [f"{shape}\n{mode}" for shape, mode in cases], fontsize=8)
        axis.set_title(f"times faster than {peer}", fontsize=10)
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, "ops.png")


def end_to_end(document: Document) -> str:
    """The whole network, memory, preprocessing, start, many labels."""
    plot_network(document["sections"].get("network", {}).get("rows", []))
    text = end_to_end_tables.tables(document).replace("\n## ", "\n### ").removeprefix("# ")
    title, _, rest = text.partition("\n")
    picture = "![seconds of CPU time for an image](results/end_to_end.png)"
    return f"## {title}\n\n`benchmarks/end_to_end.py`, Grounding DINO tiny, batch 1.\n\n{picture}\n{rest}"


def plot_network(rows: list[Document]) -> None:
    """CPU seconds for an image, by size and allocator."""
    if not rows:
        return
    figure, axis = pyplot.subplots(figsize=(7.5, 3.4))
    names = list(dict.fromkeys(name for row in rows for name in row["times"]))
    for number, name in enumerate(names):
        seconds = [row["times"].get(name, {}).get("cpu_s", 0) for row in rows]
        places = [index + (number - (len(names) - 1) / 2) * 0.8 / len(names) for index in range(len(rows))]
        bars = axis.bar(places, seconds, width=0.75 / len(names), label=name)
        axis.bar_label(bars, fmt="%.1f", fontsize=8)
    axis.set_xticks(
        range(len(rows)), [f"{row['size']}\n{row['allocator']} allocator" for row in rows], fontsize=8
    )
    axis.set_ylabel("CPU seconds for an image")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    save(figure, "end_to_end.png")


def other_runtimes(document: Document) -> str:
    """The network against OpenVINO, ONNX Runtime and torch.compile."""
    rows = document["rows"]
    sizes = [size for size in peers.SIZES if size in rows]
    names = list(peers.PEERS.values())
    figure, axis = pyplot.subplots(figsize=(7.5, 3))
    for number, name in enumerate(names):
        places, ratios = [], []
        for index, size in enumerate(sizes):
            if name in rows[size]["times"]:
                places.append(index + (number - (len(names) - 1) / 2) * 0.27)
                times = rows[size]["times"]
                ratios.append(times[name]["cpu_s"] / times[peers.OURS]["cpu_s"])
        bars = axis.bar(places, ratios, width=0.25, label=name, color=f"C{number}")
        axis.bar_label(bars, fmt="%.2f", fontsize=8)
    axis.set_xticks(range(len(sizes)), sizes, fontsize=8)
    axis.set_ylabel("times faster than the peer")
    axis.axhline(1, color="grey", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, "peers.png")
    machine = document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    when = "; ".join(f"{size} {rows[size]['when']}, load {rows[size]['load_average']}" for size in sizes)
    return "\n\n".join(
        [
            "## Against other ways to run transformers' network",
            "`benchmarks/peers.py`, Grounding DINO tiny, batch 1, float32, one thread, process CPU time: "
            "median (lowest to highest). The peers' export to ONNX had to be patched "
            "(`benchmarks/peer_exports.py` says where); before anything was timed, the outputs of every peer "
            "were compared with transformers' own, made to choose the same queries, and differ by what the "
            "table says. A peer that computes something else at a size is left out there (ONNX Runtime runs "
            "the same file). torch.compile is given the queries that the network chooses without it.",
            f"{machine['processor']}, {machine['vector_units']}; {versions}; {when}",
            "![times faster than other runtimes](results/peers.png)",
            peers.table(document),
            "What bounds the ratios: ours cannot be more times faster than a peer's time is of the matrix "
            "products of the linear layers alone, which every way of running the network has to compute. "
            "Here they are oneDNN's:",
            peers.floor(document),
        ]
    )


def bulk(document: Document) -> str:
    """Many images: one process against a worker for each core."""
    machine, versions = document["machine"], document["versions"]
    lines = [
        "| | images a second | CPU s for an image | start, s |",
        "|---|---|---|---|",
    ]
    for name, figures in document["contestants"].items():
        cells = (middle(figures[key]) for key in ("images_per_s", "cpu_s_per_image", "start_s"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    wall = middle(document["images_per_s of workers over one thread"])
    cpu = middle(document["cpu_s_per_image of one thread over workers"])
    return "\n\n".join(
        [
            "## Many images",
            f"`benchmarks/bulk.py`, {document['model']}, {len(document['labels'])} labels, decoding "
            "included; median (lowest to highest).",
            f"{machine['processor']}, {machine['cores']} cores, load average {document['load_average']}; "
            f"python {versions['python']}, torch {versions['torch']}; {document['when']}",
            "\n".join(lines),
            f"Workers give **{wall}** times the images of one thread by the clock. By CPU time, which other "
            f"programs disturb less, an image costs one thread {cpu} of what it costs a worker.",
        ]
    )


def middle(figure: dict[str, float]) -> str:
    """Median and range."""
    return f"{figure['median']:g} ({figure['lowest']:g} to {figure['highest']:g})"


def nano(document: Document) -> str:
    """The embedded model's accuracy."""
    return "\n\n".join(
        [
            "## The embedded model",
            "`benchmarks/embedded_model.py` on 128 photos of COCO train2017, all names of a set asked at "
            "once, no suppression beyond the model's own. Its backbone was trained on COCO train2017, so "
            "these are **no zero-shot numbers**; the project's own training never saw these photos. The "
            "[model card](../groundingml/embedded/nano/MODEL_CARD.md) says what it knows and what "
            "it does not.",
            f"{document['device']}; checkpoint {document['digest']}",
            embedded_model.table(document),
        ]
    )


def taught(document: Document) -> str:
    """What corrections teach: the table, and the curve over the number of images."""
    rows = document["rows"]
    figure, axis = pyplot.subplots(figsize=(7.5, 3.8))
    images = [row["images"] for row in rows]
    for name in rows[0]["test"]["labels"]:
        values = [row["test"]["labels"][name]["map50"] for row in rows]
        axis.plot(images, values, linewidth=1, alpha=0.7, label=name)
    mean = [row["test"]["map50"] for row in rows]
    axis.plot(images, mean, "o-", linewidth=2.5, color="black", label="mean over labels")
    everyday = [row["everyday"]["map50"] for row in rows]
    axis.plot(images, everyday, "--", color="grey", label="everyday photos, 80 other names")
    axis.set(xlabel="corrected images", ylabel="mAP50", xticks=images, ylim=(0, 1))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="lower right", ncols=2)
    save(figure, "learning.png")
    return "\n\n".join(
        [
            "## What corrections teach",
            "`benchmarks/learning.py`: blood cells under a microscope, for which the model has no words, "
            f"learned from so many corrected images; measured on the {document['test_images']} official test "
            f"images of BCCD, and on {document['everyday_images']} photos of COCO for what is forgotten. "
            "Each row begins with the base model.",
            "![mAP50 against the number of corrected images](results/learning.png)",
            learning.table(document),
            f"Recipe `{document['recipe']}`; {document['device']}, load average {document['load_average']}; "
            f"{document['when']}",
        ]
    )


def save(figure: Any, name: str) -> None:
    figure.tight_layout()
    figure.savefig(RESULTS / name, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
