"""Many images on a Ray cluster: Ray Data feeds actors that hold one model each.

An actor or a machine that dies is replaced by Ray, and what it had at hand is computed again elsewhere, so
the results are those of a single process. They come back in the order of the images.
"""

from __future__ import annotations

import itertools
import logging
import pickle
import socket
from collections.abc import Generator, Iterable, Iterator
from typing import Any, Literal

from groundingml.inference.bulk_worker import BulkResult, Setup, detect_image, read_image
from groundingml.inference.labels import Labels
from groundingml.inference.object_detector import RunStopped

WINDOW = 200_000
"""Images handed to Ray at once. A list of millions is never in memory as a whole."""
BLOCK = 16
"""Images an actor takes at a time, and loses at most when it dies."""


_CONNECT_S = 10.0


class RayMissing(RuntimeError):
    """Ray is not installed, or its cluster cannot be used."""


class ImageActor:
    """One model, on one core or one GPU of the cluster."""

    def __init__(self, setup: Setup, device: str) -> None:
        import torch

        from groundingml.inference.loading import load_detector

        if device == "cpu":
            torch.set_num_threads(1)
        self._detector = load_detector(setup.source, device, setup.dtype, setup.config, digest=False)
        self._question = setup.question

    def __call__(self, block: dict[str, Any]) -> dict[str, list[bytes]]:
        """Columns ``number`` and ``location`` -> column ``result`` of pickled :class:`BulkResult`."""
        results = []
        for number, location in zip(block["number"], block["location"], strict=True):
            found = detect_image(self._detector, read_image(int(number), str(location)), self._question)
            results.append(pickle.dumps(found._replace(image=None)))
        return {"result": results}


def detect_many_on_ray(
    source: str,
    locations: Iterable[str],
    labels: Labels,
    *,
    workers: int | Literal["auto"] = "auto",
    device: str = "auto",
    dtype: str = "auto",
    address: str | None = None,
    **options: Any,
) -> Generator[BulkResult, None, None]:
    """Boxes on many images, in their order, by the actors of a Ray cluster; as ``detect_many`` otherwise.

    Every machine of the cluster needs groundingml, the model ``source`` and the images at the same names.

    Args:
        locations: paths or fsspec URLs, taken as they are needed.
        workers: actors; auto is one for each GPU of the cluster, or else for each core.
        device: auto takes GPUs where the cluster has some.
        address: of the cluster, as in ``ray.init``; None takes ``RAY_ADDRESS``, a cluster that runs on this
            machine, or starts one here for the time of the run.

    Raises:
        RayMissing: Ray is not installed, or there is no cluster at the address.
        RunStopped: the cluster cannot compute any more.
    """
    ray = _ray()
    begun = not ray.is_initialized()
    if begun:
        from ray.exceptions import RayError

        try:
            _reach(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (RayError, OSError, RuntimeError, ValueError) as error:
            raise RayMissing(f"no Ray cluster at {address or 'RAY_ADDRESS'}: {error}") from error
    try:
        on_gpu = device.startswith("cuda") or (
            device == "auto" and ray.cluster_resources().get("GPU", 0) >= 1
        )
        unit = "GPU" if on_gpu else "CPU"
        count = max(1, int(ray.cluster_resources().get(unit, 1))) if workers == "auto" else workers
        setup = Setup(source, dtype, None, {"labels": labels, **options}, frozenset())
        numbered = enumerate(locations)
        while window := list(itertools.islice(numbered, WINDOW)):
            yield from _window(ray, window, setup, count, "cuda" if on_gpu else "cpu")
    finally:
        if begun:
            ray.shutdown()


def _window(
    ray: Any, window: list[tuple[int, str]], setup: Setup, count: int, device: str
) -> Iterator[BulkResult]:
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    rows = [{"number": number, "location": location} for number, location in window]
    blocks = -(-len(rows) // BLOCK)
    resources = {"num_gpus": 1} if device == "cuda" else {"num_cpus": 1}
    results = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        ImageActor,
        fn_constructor_args=(setup, device),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(count, blocks)),
        **resources,
    )
    try:
        for row in results.iter_rows():
            # Written by our own actors, in a cluster that runs our code anyway.
            yield pickle.loads(row["result"])
    except RayError as error:
        raise RunStopped(f"the Ray cluster stopped: {str(error).strip().splitlines()[-1]}") from error


def _reach(address: str | None) -> None:
    """Ray itself waits minutes for a cluster that is not there."""
    host, _, port = (address or "").rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), _CONNECT_S).close()


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RayMissing(f"--engine ray needs Ray: pip install 'groundingml[ray]' ({error})") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray
