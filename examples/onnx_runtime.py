"""From a photo to boxes with an exported model and ONNX Runtime, without PyTorch.

groundingml export onnx --output nano.onnx
pip install onnxruntime tokenizers pillow numpy
python examples/onnx_runtime.py nano.onnx photo.jpg "cat, remote control"
"""

from __future__ import annotations

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer


def prepare(image: Image.Image, about: dict[str, str]) -> np.ndarray:
    """An upright RGB image -> (1, 3, H, W): resized to the model's size, normalised."""
    shortest, longest = json.loads(about["image_size"])
    scale = min(shortest / min(image.size), longest / max(image.size))
    size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32) / 255
    pixels = (pixels - json.loads(about["image_mean"])) / json.loads(about["image_std"])
    return pixels.transpose(2, 0, 1)[None].astype(np.float32)


def ask(labels: list[str], tokenizer: Tokenizer) -> tuple[np.ndarray, list[list[int]]]:
    """Labels -> token ids (1, T) of "[CLS] cat . remote control . [SEP]", and each label's own positions."""
    ids, positions = [tokenizer.token_to_id("[CLS]")], []
    for label in labels:
        tokens = tokenizer.encode(label, add_special_tokens=False).ids
        positions.append(list(range(len(ids), len(ids) + len(tokens))))
        ids += [*tokens, tokenizer.token_to_id(".")]
    return np.array([[*ids, tokenizer.token_to_id("[SEP]")]]), positions


def detect(file: str, photo: str, labels: list[str], threshold: float | None = None) -> list[dict]:
    """Boxes in pixels of the upright photo, the best first."""
    onnxruntime.set_default_logger_severity(3)  # it warns of shapes that are right
    session = onnxruntime.InferenceSession(file)
    about = session.get_modelmeta().custom_metadata_map
    tokenizer = Tokenizer.from_str(about["tokenizer"])
    tokenizer.no_padding()
    tokenizer.no_truncation()
    image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
    input_ids, positions = ask(labels, tokenizer)
    if input_ids.shape[1] > int(about["max_text_len"]):
        raise ValueError(f"{len(labels)} labels are too many for one prompt: ask in parts")
    inputs = {
        "pixel_values": prepare(image, about),
        "input_ids": input_ids,
        "attention_mask": np.ones_like(input_ids),
    }
    logits, boxes, _ = session.run(None, inputs)
    probabilities = 1 / (1 + np.exp(-logits[0]))
    together = np.max if about["score_aggregation"] == "max" else np.mean
    threshold = float(about["default_threshold"]) if threshold is None else threshold
    found = []
    for label, places in zip(labels, positions, strict=True):
        scores = together(probabilities[:, places], axis=1)
        for query in np.flatnonzero(scores >= threshold):
            x, y, w, h = boxes[0, query]
            corners = np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, 1)
            box = corners * np.tile(image.size, 2)
            found.append({"label": label, "score": float(scores[query]), "box_xyxy": box.round(1).tolist()})
    return sorted(found, key=lambda one: -one["score"])


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    for detection in detect(sys.argv[1], sys.argv[2], [name.strip() for name in sys.argv[3].split(",")]):
        print(f"{detection['score']:.2f}  {detection['label']:<20}", *detection["box_xyxy"])
