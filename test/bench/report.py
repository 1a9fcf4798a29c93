"""Results for people, as a table, and for programs, as JSON."""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from contenders import OURS
from frame import CPU, WALL, Bar, Column, Result, Series, Spread

PACKAGES = ("msgspec", "uvloop", "qemu.qmp", "avocado-framework-plugin-vt")  # whose versions the figures depend on
LABEL, MEDIAN, RANGE, RATIO = 20, 11, 21, 8  # least widths of columns


def table(result: Result) -> Iterator[str]:
    """The lines of one figure: a row for each side, with what ours is beside it, then the bars."""
    rounds = max(len(values) for series in result.series.values() for values in series.columns.values())
    ours = [name for name in OURS if name in result.series] if CPU.name in _names(result) else []
    yield f"{result.row}. {result.title}: {rounds} rounds of {_counted(result)}"
    label = max(LABEL, *(len(name) + 1 for name in result.series))
    heads = "".join(f"{head:>{MEDIAN}}{'middle half':>{RANGE}}" for head in _heads(result))
    yield f"{'':{label}}{heads}" + ("   ours ÷ this, by CPU" if ours else "")
    if ours:
        named = "".join(f"{name.split()[-1]:>{RATIO}}" for name in ours)
        yield f"{'':{label + len(result.columns) * (MEDIAN + RANGE)}}   {named}"
    for name, series in result.series.items():
        cells = "".join(_cells(result, column, series) for column in result.columns)
        beside = "".join(f"{_ratio(result, own, name):>{RATIO}.2f}" for own in ours)
        yield f"{name:{label}}{cells}   {beside}".rstrip()
    for bar in result.bars:
        yield _verdict(result, bar)


def _names(result: Result) -> list[str]:
    return [column.name for column in result.columns]


def _counted(result: Result) -> str:
    if result.is_rate:
        return f"{result.count:,} {result.what}s; {result.what}s a second, thousands"
    return f"{result.count:,} {result.what}{'s' if result.count > 1 else ''}"


def _heads(result: Result) -> list[str]:
    return [column.name if result.is_rate else _in_unit(column) for column in result.columns]


def _in_unit(column: Column) -> str:
    return f"{column.name}, {column.unit}" if column.unit else column.name


def shown(result: Result, column: Column, series: Series) -> Spread:
    """What a side came to in a column, in the unit that it is shown in."""
    if result.is_rate:
        return Spread.of(1e-3 / value for value in series[column])
    return Spread.of(series[column], column.scale)


def _cells(result: Result, column: Column, series: Series) -> str:
    if column.name not in series.columns:
        return f"{'–':>{MEDIAN}}{'':>{RANGE}}"
    spread = shown(result, column, series)
    digits = 0 if spread.median >= 1000 else 1 if spread.median >= 10 else 2
    low_high = f"{spread.low:,.{digits}f} – {spread.high:,.{digits}f}"
    return f"{spread.median:>{MEDIAN},.{digits}f}{low_high:>{RANGE}}"


def _ratio(result: Result, ours: str, beside: str) -> float:
    pairs = zip(result.series[ours].cpu, result.series[beside].cpu, strict=True)
    ratio = Spread.of(ours / beside if beside else float("nan") for ours, beside in pairs).median
    return 1 / ratio if result.is_rate else ratio


def _verdict(result: Result, bar: Bar) -> str:
    spread = Spread.of(bar.values(result.series))
    state = "met" if bar.is_met(spread.median) else "MISSED"
    digits = 0 if abs(spread.median) >= 1000 else 2
    median, low, high = (f"{value:,.{digits}f}" for value in (spread.median, spread.low, spread.high))
    return f"  {bar.name}: {median} ({low} – {high}), aim {bar.aim}: {state}"


def document(results: list[Result], missing: list[str], before: dict[str, Any] | None = None) -> dict[str, Any]:
    """All of it, with every round, for JSON.

    :param before: an earlier one: its figures stay where they were not taken anew
    """
    host = {
        "when": time.strftime("%Y-%m-%d"),
        "python": sys.version.split()[0],
        "cpus": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "missing": missing,
    }
    figures = {figure["title"]: figure for figure in (before or {}).get("figures", [])}
    figures |= {result.title: _figure(result) for result in results}
    return {"host": host, "figures": sorted(figures.values(), key=lambda figure: int(figure["row"]))}


def _figure(result: Result) -> dict[str, Any]:
    return {
        "row": result.row,
        "name": result.name,
        "title": result.title,
        "what": result.what,
        "count": result.count,
        "size": result.size,
        "load": round(os.getloadavg()[0], 1),
        "is_rate": result.is_rate,
        "columns": [asdict(column) for column in result.columns],
        "sides": {name: _series(result, series) for name, series in result.series.items()},
        "bars": [_bar(result, bar) for bar in result.bars],
    }


def _series(result: Result, series: Series) -> dict[str, Any]:
    scales = {column.name: column for column in (WALL, CPU, *result.columns)}
    return {
        name: {"rounds": [_short(value) for value in values], "shown": _shortened(shown(result, scales[name], series))}
        for name, values in series.columns.items()
        if name in _names(result)
    }


def _bar(result: Result, bar: Bar) -> dict[str, Any]:
    spread = Spread.of(bar.values(result.series))
    return {"name": bar.name, "aim": bar.aim, **_shortened(spread), "met": bar.is_met(spread.median)}


def _shortened(spread: Spread) -> dict[str, float]:
    return {name: _short(value) for name, value in asdict(spread).items()}


def _short(value: float) -> float:
    """Four digits: no clock here is better than that."""
    return float(f"{value:.4g}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
