"""The one error of loading checkpoints, and the sentence that says which parameters do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

SHOWN = 8  # names listed of each kind; the rest is a count

Shape = tuple[int, ...]


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read, recognised or fitted; the message says why and what to do."""


def listed(names: Iterable[str]) -> str:
    """``a, b, c and 5 more``."""
    names = list(names)
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown


def mismatch_report(expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]) -> str | None:
    """Compare parameter names and shapes; None if they are equal.

    Returns one line each for missing, unexpected and mis-shaped parameters, with the first names and a count.
    """
    missing = [f"{name} {tuple(shape)}" for name, shape in expected.items() if name not in found]
    unexpected = [f"{name} {tuple(shape)}" for name, shape in found.items() if name not in expected]
    misshaped = [
        f"{name}: the file has {tuple(found[name])}, the model needs {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    lines = []
    if missing:
        lines.append(f"  {len(missing)} missing: {listed(missing)}")
    if unexpected:
        lines.append(f"  {len(unexpected)} unexpected: {listed(unexpected)}")
    if misshaped:
        lines.append(f"  {len(misshaped)} of another shape: {'; '.join(misshaped[:SHOWN])}")
        if len(misshaped) > SHOWN:
            lines[-1] += f" and {len(misshaped) - SHOWN} more"
    return "\n".join(lines) or None
