"""Reads the weights of a TensorFlow.js graph model (model.json and the shards of bytes that it names)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DTYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "int32": np.int32,
    "uint8": np.uint8,
    "uint16": np.uint16,
}


@dataclass(frozen=True)
class Convolution:
    """One Conv2D node with the bias that is added to it."""

    name: str
    weight: NDArray[np.float32]
    """(out, in, height, width), PyTorch's order."""
    bias: NDArray[np.float32]


def read_weights(manifest: dict[str, Any], folder: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a `weightsManifest` by name; float16 storage is widened to float32."""
    weights: dict[str, NDArray[Any]] = {}
    for group in manifest["weightsManifest"]:
        data = b"".join((folder / path).read_bytes() for path in group["paths"])
        offset = 0
        for entry in group["weights"]:
            quantization = entry.get("quantization")
            if quantization and quantization["dtype"] != "float16":
                raise ValueError(
                    f"{entry['name']} is stored as {quantization['dtype']}; only float16 is known here"
                )
            dtype = np.dtype(_DTYPES["float16" if quantization else entry["dtype"]])
            count = int(np.prod(entry["shape"], dtype=np.int64))
            array = np.frombuffer(data, dtype, count, offset).reshape(entry["shape"])
            weights[entry["name"]] = array.astype(_DTYPES[entry["dtype"]])
            offset += count * dtype.itemsize
        if offset != len(data):
            raise ValueError(f"{group['paths']}: {len(data)} bytes, but the weights listed take {offset}")
    return weights


def read_convolutions(model_json: Path) -> dict[str, Convolution]:
    """The convolutions of a graph by node name (the last part of it), each with its bias.

    A bias is the constant of the `Add` node that takes the convolution's output.
    """
    manifest = json.loads(model_json.read_text())
    weights = read_weights(manifest, model_json.parent)
    nodes = manifest["modelTopology"]["node"]
    biases = {
        node["input"][0]: weights[node["input"][1]]
        for node in nodes
        if node["op"] == "Add" and node["input"][1] in weights
    }
    convolutions = {}
    for node in nodes:
        if node["op"] == "Conv2D":
            name = node["name"].rsplit("/", 1)[-1]
            weight = np.ascontiguousarray(weights[node["input"][1]].transpose(3, 2, 0, 1))
            convolutions[name] = Convolution(name, weight, biases[node["name"]])
    return convolutions
