"""Preparing one batch while another is computed."""

from __future__ import annotations

import threading

import pytest
import torch

from groundingml.inference.preprocessing import ImageBatch
from groundingml.inference.uploads import Uploader, one_ahead


def test_one_ahead_is_map() -> None:
    assert list(one_ahead(lambda number: number * 2, range(5))) == [0, 2, 4, 6, 8]
    assert list(one_ahead(lambda number: number, [])) == []


def test_the_next_is_under_way_while_one_is_used() -> None:
    started = [threading.Event() for _ in range(3)]
    results = one_ahead(lambda number: started[number].set(), range(3))
    next(results)
    assert started[1].wait(10)
    results.close()
    assert not started[2].is_set(), "only one ahead"


def test_an_error_comes_in_its_turn() -> None:
    results = one_ahead(lambda number: 1 // number, [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("groundingml-upload")]


@pytest.mark.parametrize("is_padded", [False, True])
def test_on_a_cpu_nothing_is_copied(is_padded: bool) -> None:
    batch = ImageBatch(torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool), is_padded)
    upload = Uploader(torch.device("cpu"))(batch).wait()
    assert upload.pixel_values is batch.pixel_values
    assert upload.pixel_mask is (batch.pixel_mask if is_padded else None)
