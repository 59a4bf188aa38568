"""CUDA graphs and overlapping uploads on a GPU: the same answers as without, from every stream and thread."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizerFast

from groundingml.inference import Detections, Detector
from groundingml.inference.preprocessing import preprocess
from groundingml.inference.uploads import Uploader

pytestmark = pytest.mark.gpu

LABELS = ["cat", "remote control"]


def photos(count: int, size: tuple[int, int] = (90, 60)) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    shape = (size[1], size[0], 3)
    return [Image.fromarray(generator.integers(0, 255, shape, dtype=np.uint8)) for _ in range(count)]


def on_gpu(detector: Detector, tokenizer: BertTokenizerFast, **options: Any) -> Detector:
    return Detector(copy.deepcopy(detector.model), tokenizer, device="cuda", **options)


def assert_same(found: Detections, expected: Detections, tolerance: float = 1e-4) -> None:
    assert len(found) == len(expected)
    assert np.abs(found.scores - expected.scores).max() < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [("auto", 1e-4), ("bfloat16", 2e-2), ("float16", 5e-3)])
def test_replays_equal_eager(
    detector: Detector, tokenizer: BertTokenizerFast, dtype: str, tolerance: float
) -> None:
    eager, graphs = (on_gpu(detector, tokenizer, dtype=dtype, cuda_graphs=wanted) for wanted in (False, True))
    for image in photos(4):
        assert_same(
            graphs(image, labels=LABELS, threshold=0), eager(image, labels=LABELS, threshold=0), tolerance
        )
    assert graphs._graphs is not None
    assert graphs._graphs.failures == {}
    assert len(graphs._graphs) == 2, "one for the image, one for the question"


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("size", [(90, 60), (61, 113), (33, 200)])
def test_odd_shapes_and_batches(
    detector: Detector, tokenizer: BertTokenizerFast, size: tuple[int, int], count: int
) -> None:
    images = photos(3 * count, size)
    eager, graphs = (on_gpu(detector, tokenizer, cuda_graphs=wanted) for wanted in (False, True))
    options: dict[str, Any] = {"labels": LABELS, "threshold": 0, "batch_size": count}
    for found, expected in zip(graphs(images, **options), eager(images, **options), strict=True):
        assert_same(found, expected)
    assert graphs._graphs is not None
    assert graphs._graphs.failures == {}


def test_the_embedded_model_runs_from_graphs() -> None:
    eager = Detector.from_pretrained("nano", device="cuda")
    graphs = Detector.from_pretrained("nano", device="cuda", cuda_graphs=True)
    for image in photos(3, (320, 240)):
        assert_same(graphs(image, labels=LABELS, threshold=0), eager(image, labels=LABELS, threshold=0), 1e-3)
    assert graphs._graphs is not None
    assert graphs._graphs.failures == {}
    assert len(graphs._graphs) == 2


def test_replays_are_bit_identical(detector: Detector, tokenizer: BertTokenizerFast) -> None:
    graphs = on_gpu(detector, tokenizer, cuda_graphs=True)
    (image,) = photos(1)
    for _ in range(2):
        graphs(image, labels=LABELS, threshold=0)
    first, second = (graphs(image, labels=LABELS, threshold=0) for _ in range(2))
    assert (first.scores == second.scores).all()
    assert (first.boxes_xyxy == second.boxes_xyxy).all()


def test_threads_with_streams_of_their_own(detector: Detector, tokenizer: BertTokenizerFast) -> None:
    """They share the graphs' memory: a replay must not overtake another's copies."""
    graphs = on_gpu(detector, tokenizer, cuda_graphs=True)
    images = photos(4)
    expected = [on_gpu(detector, tokenizer)(image, labels=LABELS, threshold=0) for image in images]
    found: dict[int, list[Detections]] = {number: [] for number in range(4)}

    def work(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(8):
                found[number].append(graphs(images[number], labels=LABELS, threshold=0))

    threads = [threading.Thread(target=work, args=(number,)) for number in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, results in found.items():
        assert len(results) == 8
        for result in results:
            assert_same(result, expected[number])


def test_uploads_arrive_before_they_are_read() -> None:
    """Also where the copy's stream is far behind, and memory is used again at once."""
    upload = Uploader(torch.device("cuda"))
    for image in photos(8, (500, 400)):
        batch = preprocess([image], (400, 500), (0.5,) * 3, (0.5,) * 3)
        assert upload._stream is not None
        with torch.cuda.stream(upload._stream):
            torch.cuda._sleep(10_000_000)
        pixels = upload(batch).wait().pixel_values
        total = pixels.double().sum()
        del pixels
        assert total.item() == pytest.approx(batch.pixel_values.double().sum().item(), rel=1e-9)


def test_compiles_without_graph_breaks(detector: Detector) -> None:
    model = copy.deepcopy(detector.model).cuda()
    pixels = torch.randn(1, 3, 64, 80, device="cuda")
    ids = torch.tensor([[101, 4937, 1012, 102]], device="cuda")
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        found, expected = compiled(pixels, None, ids), model(pixels, None, ids)
    torch.testing.assert_close(found.boxes_cxcywh, expected.boxes_cxcywh, atol=1e-3, rtol=0)
