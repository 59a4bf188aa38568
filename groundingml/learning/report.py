"""Pictures of a measurement: precision-recall curves, and the images where most is wrong."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from groundingml.inference import Thresholds, load_image
from groundingml.inference.drawing import label_color
from groundingml.learning.matching import match
from groundingml.learning.measuring import ImageResult, Measurement, as_json

WORST_IMAGES = 12
_PANEL = 640  # pixels of the longer side of each of the two pictures
_RIGHT, _FALSE, _MISSED = (34, 139, 34), (208, 28, 28), (230, 126, 0)


def write_report(
    measurement: Measurement, thresholds: Thresholds, folder: Path, worst: int = WORST_IMAGES
) -> list[Path]:
    """Write metrics.json, precision_recall.png and worst-NN-NAME.jpg into ``folder``; what was written.

    Raises:
        ImportError: matplotlib is missing. OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("worst-*.jpg"):  # of an earlier measurement
        old.unlink()
    numbers = folder / "metrics.json"
    numbers.write_text(
        json.dumps(as_json(measurement.evaluation), indent=2, ensure_ascii=False) + "\n", "utf-8"
    )
    written = [numbers, _draw_curves(measurement, folder / "precision_recall.png")]
    for number, (result, _) in enumerate(measurement.worst(thresholds, worst), start=1):
        path = folder / f"worst-{number:02}-{result.record.path.stem}.jpg"
        draw_against_truth(result, thresholds).save(path, quality=88)
        written.append(path)
    return written


def draw_against_truth(result: ImageResult, thresholds: Thresholds) -> Image.Image:
    """Two pictures side by side: what is there, and what was found.

    Left: true boxes in their labels' colours, missed ones orange and thick. Right: right boxes green, wrong
    ones red and thick.
    """
    image = load_image(result.record.path)
    scale = _PANEL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.LANCZOS)
    shown = result.shown(thresholds)
    matches = match(result.record, shown)

    left, right = small.copy(), small.copy()
    for number, (box, name) in enumerate(zip(result.record.boxes_xyxy, result.record.names, strict=True)):
        missed = number in matches.missed
        _draw_box(left, box, scale, name, _MISSED if missed else label_color(name), 4 if missed else 2)
    for number in reversed(range(len(shown))):
        false = bool(matches.false[number])
        text = f"{shown.labels[number]} {shown.scores[number]:.2f}"
        _draw_box(
            right,
            shown.boxes_xyxy[number].tolist(),
            scale,
            text,
            _FALSE if false else _RIGHT,
            4 if false else 2,
        )

    header = 30
    sheet = Image.new("RGB", (2 * size[0] + 10, size[1] + header), "white")
    sheet.paste(left, (0, header))
    sheet.paste(right, (size[0] + 10, header))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    truth = f"truth: {len(result.record.names)} boxes, {len(matches.missed)} missed (orange)"
    found = f"found: {len(shown)} boxes, {int(matches.false.sum())} wrong (red)"
    pen.text((4, 6), truth, fill="black", font=font)
    pen.text((size[0] + 14, 6), found, fill="black", font=font)
    return sheet


def _draw_box(
    image: Image.Image,
    box: tuple[float, ...] | list[float],
    scale: float,
    text: str,
    color: tuple[int, int, int],
    width: int,
) -> None:
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    x0, y0, x1, y1 = (round(edge * scale) for edge in box)
    pen.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=color, width=width)
    area = pen.textbbox((x0 + width + 1, y0 + width), text, font=font)
    pen.rectangle((area[0] - 1, area[1] - 1, area[2] + 1, area[3] + 1), fill=color)
    pen.text((x0 + width + 1, y0 + width), text, fill="white", font=font)


def _draw_curves(measurement: Measurement, path: Path) -> Path:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the curves are drawn by matplotlib: pip install 'groundingml[train]'") from error
    figure = Figure(figsize=(7.5, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    evaluation = measurement.evaluation
    recalls = [step / 100 for step in range(101)]
    # The ten labels with most boxes by name, the others thin and grey: a legend of eighty says nothing.
    by_boxes = sorted(evaluation.labels, key=lambda name: -evaluation.labels[name].boxes)
    for place, name in enumerate(by_boxes):
        curve, score = evaluation.curves[name], evaluation.labels[name]
        if place < 10:
            label = f"{name}: {score.ap50:.2f} ({score.boxes} boxes)"
            axes.plot(recalls, curve, linewidth=2, label=label)
        else:
            axes.plot(recalls, curve, linewidth=0.6, color="0.75", zorder=1)
    axes.set(xlabel="recall", ylabel="precision at IoU 0.50", xlim=(0, 1.01), ylim=(0, 1.02))
    axes.set_title(f"mAP50 {evaluation.map50:.3f}, mAP {evaluation.map:.3f} on {evaluation.images} images")
    axes.grid(alpha=0.3)
    axes.legend(title="label: AP50", fontsize=9, loc="best")
    figure.savefig(path, dpi=110)
    return path
