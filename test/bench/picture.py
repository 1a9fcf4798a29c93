"""The results as a picture (SVG): bars for each figure, ours in colour, and lines for what grows.

    python test/bench/picture.py figures.json FOLDER

By hand, as bars and lines are all that is wanted: no library has to be there for that.
"""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any, Final

from growth import Curve, curves

WIDTH: Final = 500  # of a panel
GAP: Final = 20
LABEL: Final = 215
BAR: Final = 15
TEXT: Final = 11
PLOT: Final = 190  # height of the lines' panels
NAMES: Final = 195  # width of the lines' names
SHOWN: Final = (None, 500, 1000)  # sizes that get bars
OURS: Final = "drover"
LIMITS: Final = ("C", "msgspec alone", "bare QEMU", "a script", "python -c pass")
COLOURS: Final = {"ours": "#1f6feb", "limit": "#2da44e", "other": "#9aa4af"}
SHADES: Final = {
    "ours": ("#1f6feb", "#0a3069", "#54aeff"),
    "limit": ("#2da44e", "#116329"),
    "other": ("#cf222e", "#bf8700", "#8250df", "#57606a", "#bc4c00"),
}  # of lines, which are told apart
ROOM: Final = 34  # that the name of a size needs below the lines


def colour(side: str) -> str:
    """Ours, what nothing can be faster than, and the others."""
    return COLOURS[_kind(side)]


def shades(sides: Sequence[str]) -> dict[str, str]:
    """The same, each in a colour of its own."""
    kinds: dict[str, list[str]] = {}
    for side in sides:
        kinds.setdefault(_kind(side), []).append(side)
    return {side: shade for kind, those in kinds.items() for side, shade in zip(those, cycle(SHADES[kind]))}


def _kind(side: str) -> str:
    return "ours" if OURS in side else "limit" if side in LIMITS else "other"


def bars(figure: dict[str, Any], x: float, y: float) -> tuple[list[str], float]:
    """A panel: for each side a bar of the first column, a line over its middle half, a tick for the second column."""
    columns = figure["columns"][:2]
    first, second = columns[0], columns[1] if len(columns) > 1 else None
    unit = "thousand a second" if figure["is_rate"] else first["unit"]
    shown = {name: side[first["name"]]["shown"] for name, side in figure["sides"].items() if first["name"] in side}
    most = max(spread["high"] for spread in shown.values()) or 1.0
    scale = (WIDTH - LABEL - 95) / most
    out = [_text(x, y + TEXT, f"{figure['row']}. {figure['title']}", bold=True)]
    also = f"; in grey figures: {second['name']}" if second else ""
    out.append(_text(x, y + 2 * TEXT + 4, f"{first['name']}, {unit}{also}", colour="#57606a"))
    y += 3 * TEXT
    for name, spread in shown.items():
        out.append(_text(x + LABEL - 6, y + TEXT, name, anchor="end"))
        out.append(_rect(x + LABEL, y + 1, max(1.0, spread["median"] * scale), BAR - 5, colour(name)))
        low, high = x + LABEL + spread["low"] * scale, x + LABEL + spread["high"] * scale
        out.append(f'<path d="M{low:.1f} {y + 6}H{high:.1f}" stroke="#24292f" stroke-width="1.5"/>')
        value = _number(spread["median"])
        out.append(_text(max(high, x + LABEL) + 5, y + TEXT, value))
        if second and second["name"] in figure["sides"][name]:
            beside = _number(figure["sides"][name][second["name"]]["shown"]["median"])
            out.append(_text(x + WIDTH, y + TEXT, beside, anchor="end", colour="#8c959f"))
        y += BAR
    for bar in figure["bars"]:
        words = f"{bar['name']}: {_number(bar['median'])}, aim {bar['aim']}: {'met' if bar['met'] else 'missed'}"
        out.append(_text(x, y + TEXT + 1, words, colour="#57606a" if bar["met"] else "#cf222e"))
        y += TEXT + 3
    return out, y + GAP


def lines(group: Sequence[Curve], x: float, y: float) -> tuple[list[str], float]:
    """A panel of one figure's column: a line for each side, both axes by their logarithms."""
    head = f"{group[0].row}. {group[0].name}: {group[0].column}, {group[0].unit}, by size"
    out = [_text(x, y + TEXT, head, bold=True)]
    y += TEXT + 8
    sizes = sorted({size for curve in group for size, _ in curve.points})
    values = [value for curve in group for _, value in curve.points]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    high = max(high, low + 1)
    left, width = x + 50, WIDTH - 50 - NAMES

    def at(size: float, value: float) -> tuple[float, float]:
        across = math.log(size / sizes[0]) / math.log(sizes[-1] / sizes[0])
        return left + width * across, y + PLOT * (high - math.log10(value)) / (high - low)

    for power in range(low, high + 1):
        level = at(sizes[0], 10.0**power)[1]
        out.append(f'<path d="M{left} {level:.1f}h{width}" stroke="#d0d7de"/>')
        out.append(_text(left - 5, level + 4, _number(10.0**power), anchor="end", colour="#57606a"))
    below: list[tuple[float, str]] = []
    for size in reversed(sizes):  # one that has no room beside a larger one goes without a name
        place = at(size, 10.0**low)[0]
        if not below or below[-1][0] - place >= ROOM:
            below.append((place, f"{size:,}"))
    out += [_text(place, y + PLOT + 14, size, anchor="middle", colour="#57606a") for place, size in below]
    colours = shades([curve.side for curve in group])
    ends = _apart([(at(*curve.points[-1])[1], number) for number, curve in enumerate(group)])
    for number, curve in enumerate(group):
        shade = colours[curve.side]
        points = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in curve.points)
        out.append(f'<polyline points="{points}" fill="none" stroke="{shade}" stroke-width="2"/>')
        words = f"{curve.side}: n^{curve.exponent:.2f}"
        out.append(_text(left + width + 6, ends[number] + 4, words, colour=shade))
    return out, y + PLOT + 14 + GAP


def _apart(ends: list[tuple[float, int]]) -> dict[int, float]:
    """Where the names of lines go that end near each other: none over another."""
    found: dict[int, float] = {}
    last = -math.inf
    for level, number in sorted(ends):
        last = max(level, last + TEXT + 1)
        found[number] = last
    return found


def picture(panels: Sequence[Any], note: str) -> str:
    """All panels, in two columns, each under the shorter one."""
    body = [_text(GAP, GAP, note, colour="#57606a")]
    heights = [2.0 * GAP, 2.0 * GAP]
    for draw, what in panels:
        column = 0 if heights[0] <= heights[1] else 1
        drawn, heights[column] = draw(what, GAP + column * (WIDTH + 2 * GAP), heights[column])
        body += drawn
    width, height = 2 * WIDTH + 4 * GAP, max(heights)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:.0f}" font-size="{TEXT}" '
    head += 'font-family="DejaVu Sans, Arial, sans-serif">'
    return "\n".join([head, _rect(0, 0, width, height, "#ffffff"), *body, "</svg>", ""])


def _text(x: float, y: float, words: str, *, anchor: str = "start", colour: str = "#24292f", bold: bool = False) -> str:
    more = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{more}>{escape(words)}</text>'


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def draw(document: dict[str, Any], folder: Path, stem: str) -> Iterator[Path]:
    """Write the pictures of a document of :mod:`report`; where they are."""
    host, figures = document["host"], document["figures"]
    note = f"{host['when']}, {host['cpus']} cores, Python {host['python']}; blue: ours; green: the limit; "
    notes = {
        stem: note + "a line over the middle half of the rounds",
        f"{stem}-growth": note + "n^x: it grows with that power of the size, by the fitted slope",
    }
    single = [(bars, figure) for figure in figures if figure["size"] in SHOWN and figure["bars"]]
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves(figures):
        groups.setdefault((curve.name, curve.column), []).append(curve)
    for name, panels in ((stem, single), (f"{stem}-growth", [(lines, group) for group in groups.values()])):
        if panels:
            path = folder / f"{name}.svg"
            path.write_text(picture(panels, notes[name]), encoding="utf-8")
            yield path


if __name__ == "__main__":
    source = Path(sys.argv[1])
    for drawn in draw(json.loads(source.read_text(encoding="utf-8")), Path(sys.argv[2]), source.stem):
        print(drawn)
