"""Renders what benchmarks/end_to_end.py measured."""

from __future__ import annotations

from typing import Any

Rows = list[dict[str, Any]]


def tables(document: dict[str, Any]) -> str:
    """Markdown of all sections that were measured."""
    machine, versions = document["machine"], document["versions"]
    lines = [
        "# End to end on a CPU",
        "",
        ", ".join([machine["processor"], f"{machine['processors']} processors", machine["vector_units"]])
        + f", {machine['libc']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items()),
        "",
        "One thread, process CPU time: median (lowest to highest). Written by `benchmarks/end_to_end.py`.",
    ]
    renderers = {
        "network": ("The network", network), "memory": ("Peak memory at 800x1333", memory),
        "labels": ("Many labels on one image", labels), "preprocessing": ("Preprocessing", preprocessing),
        "start": ("From a cold start to a loaded model", start),
    }  # fmt: skip
    for name, (title, renderer) in renderers.items():
        if name in document["sections"]:
            section = document["sections"][name]
            when = f"{section['when']}, load average {section['load_average']:.1f}"
            lines += ["", f"## {title}", "", *renderer(section["rows"]), "", when]
    return "\n".join(lines) + "\n"


def network(rows: Rows) -> list[str]:
    lines = [
        "| image | allocator | | CPU s | wall s | x transformers | logits, boxes differ by |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for name, times in row["times"].items():
            ratio = row["times"]["transformers"]["cpu_s"] / times["cpu_s"]
            off = row["largest_difference"]
            same = (
                f"{off['logits']:.0e} of {off['of_logits_up_to']:.0f}, {off['boxes']:.0e}"
                if name == "groundingml"
                else ""
            )
            cells = (
                row["size"],
                row["allocator"],
                name,
                spread(times),
                f"{times['wall_s']:.2f}",
                f"{ratio:.2f}",
            )
            lines.append(f"| {' | '.join(cells)} | {same} |")
    found = {(row["size"], row["allocator"]): row["times"] for row in rows}
    for size in dict.fromkeys(row["size"] for row in rows):
        if (size, "default") in found and (size, "kept") in found:
            ratio = (
                found[size, "default"]["transformers"]["cpu_s"] / found[size, "kept"]["groundingml"]["cpu_s"]
            )
            lines += [
                "",
                f"{size}, as shipped (only our commands keep freed memory): **{ratio:.2f}x**.",
            ]
    return lines


def memory(rows: Rows) -> list[str]:
    lines = ["| | allocator | MiB |", "|---|---|---|"]
    return lines + [f"| {row['contestant']} | {row['allocator']} | {row['peak_mib']:.0f} |" for row in rows]


def labels(rows: Rows) -> list[str]:
    lines = []
    for row in rows:
        chunk = ", ".join(f"{seconds:.1f}" for seconds in row["transformers_chunk_s"])
        lines += [
            f"{row['labels']} labels in {row['chunks']} chunks at {row['size']}: {row['first_s']:.1f} s, "
            f"{row['again_s']:.1f} s with the text known; transformers, once for each chunk: "
            f"{row['transformers_s']:.1f} s ({chunk} s a chunk). Ours costs **{row['ratio']:.2f}** of it. "
            f"Five labels: {row['five_labels_s']:.2f} s."
        ]
    return lines


def preprocessing(rows: Rows) -> list[str]:
    lines = ["| JPEG | | CPU ms | x transformers |", "|---|---|---|---|"]
    for row in rows:
        for name, times in row["times"].items():
            ratio = row["times"]["transformers"]["cpu_s"] / times["cpu_s"]
            shown = "" if name == "decoding alone" else f"{ratio:.2f}"
            lines.append(f"| {row['image']} | {name} | {spread(times, 1000)} | {shown} |")
    return lines


def start(rows: Rows) -> list[str]:
    lines = ["| | CPU s | wall s |", "|---|---|---|"]
    return lines + [f"| {row['contestant']} | {spread(row)} | {row['wall_s']:.2f} |" for row in rows]


def spread(times: dict[str, Any], factor: float = 1) -> str:
    digits = 1 if factor > 1 else 2
    median, low, high = (times[key] * factor for key in ("cpu_s", "lowest", "highest"))
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
