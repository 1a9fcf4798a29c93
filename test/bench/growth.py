"""How figures grow that were taken at several sizes: from the JSON, in which several runs can be put together."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Curve:
    """One column of one side of a figure.

    :ivar points: sizes, and medians in `unit`
    """

    row: int
    name: str
    title: str
    side: str
    column: str
    unit: str
    points: Sequence[tuple[int, float]]

    @property
    def exponent(self) -> float:
        """With which power of the size it grows: 0 is not at all, 1 is in proportion; fitted to the logarithms."""
        return _slope([(math.log(size), math.log(value)) for size, value in self.points])

    @property
    def each(self) -> float:
        """What one more adds, in `unit`; fitted."""
        return _slope(self.points)


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line that fits best, by least squares."""
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / spread


def curves(figures: Sequence[dict[str, Any]]) -> Iterator[Curve]:
    """All that have two sizes or more.

    :param figures: of a document of :mod:`report`
    """
    sized: dict[str, list[dict[str, Any]]] = {}
    for figure in figures:
        if figure["size"] is not None:
            sized.setdefault(figure["name"], []).append(figure)
    for name, group in sized.items():
        group.sort(key=lambda figure: int(figure["size"]))
        largest = group[-1]
        for column in largest["columns"]:
            for side in largest["sides"]:
                points = [
                    (figure["size"], figure["sides"][side][column["name"]]["shown"]["median"])
                    for figure in group
                    if column["name"] in figure["sides"].get(side, {})
                ]
                points = [(size, value) for size, value in points if value > 0]
                if len(points) > 1:
                    unit = "thousand a second" if largest["is_rate"] else column["unit"]
                    yield Curve(largest["row"], name, largest["title"], side, column["name"], unit, points)


def lines(figures: Sequence[dict[str, Any]]) -> Iterator[str]:
    """For people."""
    found = list(curves(figures))
    if found:
        yield "growth: medians by size; the power of the size that it grows with; what one more adds"
    for curve in found:
        sizes = ", ".join(f"{size:,}: {value:,.4g}" for size, value in curve.points)
        what = f"{curve.row}. {curve.name}, {curve.side}, {curve.column}, {curve.unit}"
        yield f"  {what}: {sizes}; n^{curve.exponent:.2f}; {curve.each:.3g} each"
