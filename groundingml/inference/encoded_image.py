"""An image as a detector keeps it between two questions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class EncodedImage:
    """What a detector made of one image, without any prompt. Belongs to the detector that made it.

    size: (height, width) of the upright image. features: of the network, with B = 1.
    """

    size: tuple[int, int]
    features: Any

    @property
    def nbytes(self) -> int:
        """Memory that its tensors take, on whichever device."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in _tensors(self.features)
        }
        return sum(storages.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value):
        for one in fields(value):
            yield from _tensors(getattr(value, one.name))
