"""What of CUDA graphs does not need a GPU: buckets, padding, memory of one's own, the bound, the fallback.

The recorder here repeats the call and refills its first outputs, as a graph's replay does.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertTokenizerFast

from groundingml.inference import Detector
from groundingml.inference.cuda_graphs import TOKENS, CudaGraphs, _map, _tensors, bucket, pad_text
from groundingml.models.glip import Glip
from groundingml.models.grounding_dino.network import GroundingDino

CPU = torch.device("cpu")


class Recorder:
    """Counts recordings and replays; fails on demand."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0
        self.error: Exception | None = None

    def __call__(self, call: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        if self.error is not None:
            raise self.error
        self.recorded += 1
        outputs = _map(call(), lambda tensor: tensor.clone())

        def replay() -> None:
            self.replayed += 1
            for place, tensor in zip(_tensors(outputs), _tensors(call()), strict=True):
                place.copy_(tensor)

        for tensor in _tensors(outputs):  # a recorded graph has computed nothing yet
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
        return replay, outputs


@pytest.fixture
def image() -> Image.Image:
    noise = torch.randint(0, 255, (60, 90, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def graphs(detector: Detector, recorder: Recorder) -> CudaGraphs:
    assert isinstance(detector.model, GroundingDino)
    return CudaGraphs(detector.model, CPU, most=3, recorder=recorder)


@pytest.fixture
def replaying(detector: Detector, tokenizer: BertTokenizerFast, graphs: CudaGraphs) -> Detector:
    """The detector, running from what the recorder records."""
    found = Detector(copy.copy(detector.model), tokenizer, device="cpu")
    found._graphs = graphs
    return found


def pixels(count: int, size: tuple[int, int] = (64, 80), seed: int = 0) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def text_of(detector: Detector, words: str) -> Any:
    (chunk,) = detector.plan(words.split()).chunks
    with torch.inference_mode():
        return detector._encode_text(chunk)


def close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    for one, other in zip(_tensors(ours), _tensors(theirs), strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("size", "found"), [(1, 16), (16, 16), (17, 32), (256, 256), (300, 300)])
def test_bucket(size: int, found: int) -> None:
    assert bucket(size, TOKENS) == found


@torch.inference_mode()
def test_padded_text_changes_nothing(detector: Detector) -> None:
    features = detector.model.encode_image(pixels(2))
    text = text_of(detector, "cat dog")
    padded = pad_text(text, 32)
    assert padded.tokens.shape[1] == 32
    close(detector.model.ground(features, padded), detector.model.ground(features, text))


@torch.inference_mode()
@pytest.mark.parametrize("count", [1, 3, 5])
def test_replays_equal_the_network(
    detector: Detector, graphs: CudaGraphs, recorder: Recorder, count: int
) -> None:
    """First eager, then recorded, then replayed with other images and words of other lengths."""
    for seed, words in enumerate(("cat dog", "bird", "remote control cat")):
        image, text = pixels(count, seed=seed), text_of(detector, words)
        features = graphs.encode_image(image, None)
        close(features, detector.model.encode_image(image))
        close(graphs.ground(features, text), detector.model.ground(features, text))
    assert (recorder.recorded, recorder.replayed) == (2, 4)


@torch.inference_mode()
def test_results_own_their_memory(graphs: CudaGraphs) -> None:
    kept = [graphs.encode_image(pixels(1, seed=seed), None).tokens for seed in range(4)]
    again = graphs.encode_image(pixels(1, seed=1), None).tokens
    assert not torch.equal(kept[1], kept[2])
    close(kept[1], again)
    assert len({tensor.untyped_storage().data_ptr() for tensor in kept}) == 4


@torch.inference_mode()
def test_a_padded_image_has_a_graph_of_its_own(detector: Detector, graphs: CudaGraphs) -> None:
    mask = torch.ones(1, 64, 80, dtype=torch.bool)
    mask[:, :, 60:] = False
    for _ in range(3):
        graphs.encode_image(pixels(1), None)
        close(graphs.encode_image(pixels(1), mask), detector.model.encode_image(pixels(1), mask))
    assert len(graphs) == 2


@torch.inference_mode()
def test_the_number_of_graphs_is_bounded(graphs: CudaGraphs, recorder: Recorder) -> None:
    for width in (32, 48, 64, 80, 96):
        for _ in range(2):
            graphs.encode_image(pixels(1, (64, width)), None)
    assert (len(graphs), recorder.recorded) == (3, 5)
    graphs.encode_image(pixels(1, (64, 96)), None)
    assert recorder.recorded == 5, "the last used are kept"
    graphs.clear()
    assert len(graphs) == 0


@torch.inference_mode()
def test_what_cannot_be_recorded_runs_without(
    detector: Detector, graphs: CudaGraphs, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nand more")
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            close(graphs.encode_image(pixels(1), None), detector.model.encode_image(pixels(1)))
    assert len(caplog.records) == 1, "said once"
    assert "CUDA out of memory. Tried to allocate 1 GiB" in caplog.text
    assert list(graphs.failures.values()) == ["CUDA out of memory. Tried to allocate 1 GiB"]


def test_a_detector_with_graphs_finds_the_same(
    detector: Detector, replaying: Detector, recorder: Recorder, image: Image.Image
) -> None:
    images = [image, image.rotate(180), image.resize((90, 60)), image]
    for labels in (["cat"], ["cat", "remote control"]):
        expected = detector(images, labels=labels, threshold=0.0, batch_size=2)
        for _ in range(3):
            found = replaying(images, labels=labels, threshold=0.0, batch_size=2)
            for ours, theirs in zip(found, expected, strict=True):
                assert len(ours) == len(theirs)
                assert abs(ours.scores - theirs.scores).max() < 1e-5
    assert recorder.replayed > 0


def test_without_a_gpu_it_says_why_and_goes_on(
    detector: Detector, tokenizer: BertTokenizerFast, image: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        eager = Detector(detector.model, tokenizer, device="cpu", cuda_graphs=True)
    assert "CUDA graphs need a GPU, and the device is cpu" in caplog.text
    found, expected = eager(image, labels=["cat"], threshold=0), detector(image, labels=["cat"], threshold=0)
    assert (found.scores == expected.scores).all()


def test_other_networks_are_refused_with_the_reason() -> None:
    reason = CudaGraphs.unsupported(object.__new__(Glip), torch.device("cuda"))
    assert reason is not None
    assert "Glip" in reason


class HostTraffic(TorchDispatchMode):
    """Notes ops that copy numbers from the host or read them back: on a GPU they stall, and no graph can
    record them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("lift_fresh", "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
@pytest.mark.parametrize("source", ["small", "nano"])
def test_the_network_has_no_traffic_with_the_host(detector: Detector, source: str) -> None:
    used = detector if source == "small" else Detector.from_pretrained("nano", device="cpu", digest=False)
    text, size = text_of(used, "cat dog"), (64, 96)
    with HostTraffic() as traffic:
        used.model.ground(used.model.encode_image(pixels(1, size)), text)
    allowed = ["is_nonzero", "_local_scalar_dense"]  # "is the mask all true", which is not asked on a GPU
    assert [name for name in traffic.found if name not in allowed] == []
    with HostTraffic() as traffic:
        torch.tensor([1.0])
    assert traffic.found, "the check sees such an op"


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_geometry_in_float32(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Reference points, centres and the refinement of boxes; what is 16-bit is value and features."""
    from groundingml.models.grounding_dino import decoder, heads
    from groundingml.models.grounding_dino.attention import DeformableAttention
    from groundingml.ops import ms_deform_attn_from_offsets

    seen: dict[str, set[torch.dtype]] = {"references": set(), "value": set(), "refined": set()}
    inverse = decoder.inverse_sigmoid

    def sampled(value: Tensor, shapes: Any, references: Tensor, *rest: Tensor) -> Tensor:
        seen["references"].add(references.dtype)
        seen["value"].add(value.dtype)
        return ms_deform_attn_from_offsets(value, shapes, references, *rest)

    def refined(x: Tensor, eps: float) -> Tensor:
        seen["refined"].add(x.dtype)
        return inverse(x, eps)

    for module in detector.model.modules():
        if isinstance(module, DeformableAttention):
            monkeypatch.setattr(module, "sample", sampled)
    monkeypatch.setattr(decoder, "inverse_sigmoid", refined)
    monkeypatch.setattr(heads, "inverse_sigmoid", refined)
    text = text_of(detector, "cat dog")
    expected = detector.model.ground(detector.model.encode_image(pixels(1)), text)
    for dtypes in seen.values():
        dtypes.clear()
    with torch.autocast("cpu", dtype):
        output = detector.model.ground(detector.model.encode_image(pixels(1)), text, expected.topk_indices)
    assert seen == {"references": {torch.float32}, "value": {dtype}, "refined": {torch.float32}}
    assert output.boxes_cxcywh.dtype == torch.float32
    assert (output.boxes_cxcywh - expected.boxes_cxcywh).abs().max() < 0.02
