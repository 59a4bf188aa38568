"""How much of what was predicted is kept, day by day, as an SVG picture without scripts."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 720, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 34


@dataclass(frozen=True)
class DayOfCorrections:
    """What became of the boxes that were looked at on one day."""

    day: datetime.date
    predicted: int
    kept: int
    model_version: str

    @property
    def rate(self) -> float:
        """The part that was kept as predicted."""
        return self.kept / self.predicted


def acceptance_plot(days: Sequence[DayOfCorrections]) -> Markup | None:
    """A line of the acceptance rate over time; None without corrections.

    Args:
        days: of any order; those of one day and several model versions are added up. A dashed line stands
            where another version has taken over.
    """
    days = sorted((day for day in days if day.predicted > 0), key=lambda day: day.day)
    if not days:
        return None
    first, last = days[0].day, days[-1].day
    span = max((last - first).days, 1)

    def x(day: datetime.date) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * ((day - first).days / span if first != last else 0.5)

    def y(rate: float) -> float:
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - rate)

    shapes: list[Markup] = []
    for percent in (0, 25, 50, 75, 100):
        height = y(percent / 100)
        shapes.append(_line("grid", _LEFT, height, WIDTH - _RIGHT, height))
        shapes.append(_text("end", _LEFT - 6, height + 4, f"{percent} %"))
    shapes.append(_text("start" if first != last else "middle", x(first), HEIGHT - 10, first.isoformat()))
    if last != first:
        shapes.append(_text("end", x(last), HEIGHT - 10, last.isoformat()))
    known = days[0].model_version
    for one in days:
        if one.model_version != known:
            known = one.model_version
            title = Markup("<title>{}</title>").format(f"{known} took over")
            shapes.append(_line("takeover", x(one.day), _TOP, x(one.day), HEIGHT - _BOTTOM, title))
    together = _by_day(days)
    points = [(x(day), y(kept / predicted)) for day, (kept, predicted) in together.items()]
    line = " ".join(f"{left:.1f},{top:.1f}" for left, top in points)
    shapes.append(Markup('<polyline class="rate" points="{}"/>').format(line))
    for (day, (kept, predicted)), (left, top) in zip(together.items(), points, strict=True):
        said = f"{day}: {kept} of {predicted} boxes kept ({100 * kept / predicted:.0f} %)"
        shapes.append(
            Markup('<circle class="rate" cx="{}" cy="{}" r="4"><title>{}</title></circle>').format(
                f"{left:.1f}", f"{top:.1f}", said
            )
        )
    label = f"Boxes kept as predicted, {first} to {last}"
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, Markup("").join(shapes)
    )


def _by_day(days: Sequence[DayOfCorrections]) -> dict[datetime.date, tuple[int, int]]:
    together: dict[datetime.date, tuple[int, int]] = {}
    for day in days:
        kept, predicted = together.get(day.day, (0, 0))
        together[day.day] = (kept + day.kept, predicted + day.predicted)
    return together


def _line(kind: str, x1: float, y1: float, x2: float, y2: float, inside: str = "") -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}">{}</line>').format(
        kind, f"{x1:.1f}", f"{y1:.1f}", f"{x2:.1f}", f"{y2:.1f}", inside
    )


def _text(anchor: str, x: float, y: float, text: str) -> Markup:
    return Markup('<text text-anchor="{}" x="{}" y="{}">{}</text>').format(
        anchor, f"{x:.1f}", f"{y:.1f}", escape(text)
    )
