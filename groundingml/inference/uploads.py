"""Batches on their way to the device: prepared by a thread while the one before is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from groundingml.inference.preprocessing import ImageBatch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Upload:
    """A batch whose copy to a GPU may still be under way.

    pixel_values: (B, 3, H, W); pixel_mask: (B, H, W), or None when nothing is padded.
    """

    pixel_values: Tensor
    pixel_mask: Tensor | None
    copied: torch.cuda.Event | None = None

    def wait(self) -> Upload:
        """Make the current stream (not the caller) wait for the copy."""
        if self.copied is not None:
            stream = torch.cuda.current_stream(self.pixel_values.device)
            stream.wait_event(self.copied)
            for tensor in (self.pixel_values, self.pixel_mask):
                if tensor is not None:
                    tensor.record_stream(stream)  # its memory belongs to the stream that copied
        return self


class Uploader:
    """Copies batches to one device; to a GPU from pinned memory and on a stream of its own, so that the copy
    overlaps with what the GPU computes. May be called from any thread."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: ImageBatch) -> Upload:
        mask = batch.pixel_mask if batch.is_padded else None
        if self._stream is None:
            return Upload(batch.pixel_values, mask)
        with torch.cuda.stream(self._stream):
            values = batch.pixel_values.pin_memory().to(self.device, non_blocking=True)
            on_device = None if mask is None else mask.pin_memory().to(self.device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        return Upload(values, on_device, copied)


def one_ahead(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """``map(function, items)`` whose next result a thread works on while the last one is used.

    What the function raises comes in its turn; nothing runs any more once the iterator is closed.
    """
    with ThreadPoolExecutor(1, "groundingml-upload") as thread:
        pending = None
        for item in items:
            following = thread.submit(function, item)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
