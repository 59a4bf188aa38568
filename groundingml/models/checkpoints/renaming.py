"""Renaming of parameters by a table that one can read.

A table maps a pattern of the file's names to a pattern of the Hugging Face names. ``{i}``, ``{j}`` stand for
a number, ``{leaf}`` for ``weight`` or ``bias``, and a final ``*`` for the rest of the name:

    "decoder.layers.{i}.norms.0.*": "model.decoder.layers.{i}.self_attn_layer_norm.*"

A target with ``{qkv}`` splits a fused projection (rows of query, key, value) into its three parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

_PLACEHOLDERS = re.compile(r"\{(\w+)\}|\*$")
_QKV = ("query", "key", "value")


@dataclass
class Renamed:
    """Tensors under their new names, and the names that no rule knew."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def rename(weights: Mapping[str, Tensor], table: Mapping[str, str], dropped: Sequence[str] = ()) -> Renamed:
    """Rename ``weights`` by ``table``, leaving out names that match an expression of ``dropped``.

    The first rule that matches wins. Parts of a split tensor are copies, so that no parameters share memory.
    """
    rules = [(_pattern(source), target) for source, target in table.items()]
    drop = [re.compile(pattern) for pattern in dropped]
    result = Renamed()
    for name, tensor in weights.items():
        if any(pattern.fullmatch(name) for pattern in drop):
            continue
        for pattern, target in rules:
            match = pattern.fullmatch(name)
            if match:
                result.weights.update(_renamed(target, match, tensor))
                break
        else:
            result.unknown.append(name)
    return result


def _pattern(source: str) -> re.Pattern[str]:
    parts, end = [], 0
    for placeholder in _PLACEHOLDERS.finditer(source):
        parts.append(re.escape(source[end : placeholder.start()]))
        name = placeholder.group(1)
        if name is None:
            parts.append("(?P<rest>.+)")
        else:
            parts.append(f"(?P<{name}>weight|bias)" if name == "leaf" else f"(?P<{name}>[0-9]+)")
        end = placeholder.end()
    parts.append(re.escape(source[end:]))
    return re.compile("".join(parts))


def _renamed(target: str, match: re.Match[str], tensor: Tensor) -> dict[str, Tensor]:
    values = match.groupdict()
    name = _PLACEHOLDERS.sub(lambda part: values.get(part.group(1) or "rest", part.group(0)), target)
    if "{qkv}" not in name:
        return {name: tensor}
    parts = zip(_QKV, tensor.chunk(3), strict=True)
    return {name.replace("{qkv}", part): rows.clone() for part, rows in parts}
