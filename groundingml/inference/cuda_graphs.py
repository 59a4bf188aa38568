"""The network replayed from CUDA graphs, for a GPU that is faster than Python can start its kernels.

A graph holds for one shape of input, so inputs are brought to buckets: images of a batch are filled up to 1,
2, 4, 8 or 16 (with copies of the last), a prompt's tokens to 16, 32, 64, 128 or 256 (masked). Neither changes
what the network makes of an image. Padding the image itself would, since the network's norms see it, so the
image's size is its own bucket: photos of one camera share a graph, a folder of crops does not gain.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields, is_dataclass, replace
from threading import Lock
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from groundingml.models.grounding_dino.network import GroundingDino
from groundingml.models.grounding_dino.outputs import GroundingDinoOutput, ImageFeatures, TextFeatures

logger = logging.getLogger(__name__)

BATCHES = (1, 2, 4, 8, 16)
TOKENS = (16, 32, 64, 128, 256)
MOST_GRAPHS = 16
"""Each keeps its inputs, outputs and intermediate results: about 0.5 GB for an 800x1333 image."""

Call: TypeAlias = Callable[[], Any]
Recorder: TypeAlias = Callable[[Call], tuple[Call, Any]]
"""Records a call of fixed inputs; returns what repeats it, and its outputs, which the repetition refills."""


def bucket(size: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds ``size``; ``size`` itself beyond the largest."""
    return next((each for each in buckets if each >= size), size)


class CudaGraphs:
    """`encode_image` and `ground` of a Grounding DINO, from graphs where there are any.

    A graph is recorded when its shapes come for the second time: recording takes as long as a few ordinary
    calls. At most ``most`` are kept, those used last. Where recording fails, the shapes run as they would
    without graphs, and the log says why, once. May be called from several threads and streams; calls take
    turns.
    """

    def __init__(
        self,
        model: GroundingDino,
        device: torch.device,
        most: int = MOST_GRAPHS,
        recorder: Recorder | None = None,
    ) -> None:
        self.model = model
        self.most = most
        self.failures: dict[Hashable, str] = {}
        self._record = recorder or CudaRecorder(device)
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._lock = Lock()
        self._free: torch.cuda.Event | None = torch.cuda.Event() if device.type == "cuda" else None

    @staticmethod
    def unsupported(model: Any, device: torch.device) -> str | None:
        """Why this model cannot run from graphs on this device; None if it can."""
        if device.type != "cuda":
            return f"CUDA graphs need a GPU, and the device is {device}"
        if not isinstance(model, GroundingDino):
            return f"only Grounding DINO networks run from CUDA graphs, and this is a {type(model).__name__}"
        return None

    def __len__(self) -> int:
        return len(self._graphs)

    def clear(self) -> None:
        """Forget all graphs, for when weights were replaced (a change in place they see)."""
        with self._lock:
            self._graphs.clear()
            self._seen.clear()
            self.failures.clear()

    def encode_image(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> ImageFeatures:
        """`GroundingDino.encode_image`; the features own their memory."""
        count = pixel_values.shape[0]
        size = bucket(count, BATCHES)
        inputs = (
            _repeat_last(pixel_values, size),
            None if pixel_mask is None else _repeat_last(pixel_mask, size),
        )
        features: ImageFeatures = self._run("encode_image", inputs, self.model.encode_image)
        return _first_rows(features, count, size)

    def ground(self, image: ImageFeatures, text: TextFeatures) -> GroundingDinoOutput:
        """`GroundingDino.ground` of B images and one prompt; the outputs own their memory."""
        count = image.batch_size
        size = bucket(count, BATCHES)
        padded = _map(image, lambda tensor: _repeat_last(tensor, size))
        tokens = text.tokens.shape[1]
        longest = self.model.config.max_text_len
        text = pad_text(text, min(bucket(tokens, TOKENS), max(longest, tokens)))
        output: GroundingDinoOutput = self._run("ground", (padded, text), self.model.ground)
        return _first_rows(output, count, size)

    def _run(self, name: str, inputs: tuple[Any, ...], function: Callable[..., Any]) -> Any:
        key = (name, _signature(inputs), _precision())
        with self._lock:
            graph = self._graphs.get(key)
            if graph is None:
                if not self._is_due(key):
                    return function(*inputs)
                graph = self._capture(key, inputs, function)
                if graph is None:
                    return function(*inputs)
            self._graphs.move_to_end(key)
            if self._free is None:
                return graph.run(inputs)
            # The graph's memory is the same for every stream: wait until the last one is done with it.
            stream = torch.cuda.current_stream()
            stream.wait_event(self._free)
            result = graph.run(inputs)
            self._free.record(stream)
            return result

    def _is_due(self, key: Hashable) -> bool:
        if key in self.failures:
            return False
        if key in self._seen:
            return True
        self._seen[key] = None
        while len(self._seen) > 8 * self.most:
            self._seen.popitem(last=False)
        return False

    def _capture(self, key: Hashable, inputs: tuple[Any, ...], function: Callable[..., Any]) -> _Graph | None:
        while len(self._graphs) >= self.most:
            self._graphs.popitem(last=False)
        try:
            self._graphs[key] = _Graph(inputs, function, self._record)
        except RuntimeError as error:  # also torch.OutOfMemoryError
            self.failures[key] = str(error).splitlines()[0]
            logger.warning("no CUDA graph for %s, which runs without: %s", key, self.failures[key])
            return None
        return self._graphs[key]


class CudaRecorder:
    """Records calls into CUDA graphs that share one pool of memory, which is safe as calls take turns and
    outputs are copied out."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, call: Call) -> tuple[Call, Any]:
        # Casts that autocast keeps for later would lie in memory that a graph does not own.
        kept = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            stream = torch.cuda.Stream(self.device)
            stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(stream):  # libraries choose their algorithms before, not while recording
                for _ in range(2):
                    call()
            torch.cuda.current_stream(self.device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, stream=stream):
                outputs = call()
        finally:
            torch.set_autocast_cache_enabled(kept)
        return graph.replay, outputs


class _Graph:
    """One recorded call, and the memory that it reads and writes."""

    def __init__(self, inputs: tuple[Any, ...], function: Callable[..., Any], record: Recorder) -> None:
        self._inputs = _map(inputs, lambda tensor: tensor.clone(memory_format=torch.contiguous_format))
        self._replay, self._outputs = record(lambda: function(*self._inputs))

    def run(self, inputs: tuple[Any, ...]) -> Any:
        for place, tensor in zip(_tensors(self._inputs), _tensors(inputs), strict=True):
            place.copy_(tensor, non_blocking=True)
        self._replay()
        return _map(self._outputs, lambda tensor: tensor.clone())


def pad_text(text: TextFeatures, tokens: int) -> TextFeatures:
    """A prompt's features with masked tokens at the end, ``tokens`` in all. They see only themselves."""
    more = tokens - text.tokens.shape[1]
    if more == 0:
        return text
    block_mask = F.pad(text.block_mask, (0, more, 0, more))
    block_mask.diagonal(dim1=1, dim2=2)[:, -more:] = True
    return TextFeatures(
        tokens=F.pad(text.tokens, (0, 0, 0, more)),
        mask=F.pad(text.mask, (0, more)),
        block_mask=block_mask,
        positions=F.pad(text.positions, (0, 0, 0, more)),
        hidden=F.pad(text.hidden, (0, 0, 0, more)),
    )


def _repeat_last(tensor: Tensor, rows: int) -> Tensor:
    """(B, ...) -> (rows, ...), filled up with the last sample."""
    missing = rows - tensor.shape[0]
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing else tensor


def _first_rows(value: Any, count: int, size: int) -> Any:
    return value if count == size else _map(value, lambda tensor: tensor[:count])


def _signature(value: Any) -> Hashable:
    """What has to be equal for a graph to serve: shapes and types of tensors, and everything else."""
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype)
    if isinstance(value, list | tuple):
        return tuple(_signature(part) for part in value)
    if is_dataclass(value):
        return tuple(_signature(getattr(value, field.name)) for field in fields(value))
    result: Hashable = value
    return result


def _precision() -> torch.dtype | None:
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A copy with every tensor inside replaced by the function of it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(_map(part, function) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: _map(getattr(value, one.name), function) for one in fields(value)})
    return value


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _map(value, note)
    return found
