"""Results for people, as a table, and for programs, as JSON."""

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from contenders import OURS
from frame import Bar, Result, Series, Spread

MICRO = 1e6
PACKAGES = ("msgspec", "uvloop", "qemu.qmp")  # whose versions the figures depend on
LABEL, MEDIAN, RANGE, RATIO = 18, 11, 21, 8  # widths of columns


def table(result: Result) -> Iterator[str]:
    """The lines of one figure: a row for each side, with what ours is beside it, then the bars."""
    rounds = len(next(iter(result.series.values())).cpu)
    unit = f"{result.what}s a second, thousands" if result.is_rate else f"microseconds a {result.what}"
    ours = [name for name in OURS if name in result.series]
    clock = f"{{:>{MEDIAN}}}{'middle half':>{RANGE}}"
    yield f"{result.title}: {rounds} rounds of {result.count:,} {result.what}s; {unit}"
    yield f"{'':{LABEL}}{clock.format('CPU')}{clock.format('wall')}   ours ÷ this, by CPU"
    yield f"{'':{LABEL + 2 * (MEDIAN + RANGE)}}   " + "".join(f"{name.split()[-1]:>{RATIO}}" for name in ours)
    for name, series in result.series.items():
        beside = "".join(f"{_beside(result, own, name).median:>{RATIO}.2f}" for own in ours)
        yield f"{name:{LABEL}}{_cells(result, series.cpu)}{_cells(result, series.wall)}   {beside}"
    for bar in result.bars:
        yield _verdict(result, bar)


def _cells(result: Result, seconds: list[float]) -> str:
    spread = Spread.of(1e-3 / value for value in seconds) if result.is_rate else Spread.of(seconds, MICRO)
    digits = 0 if spread.median >= 1000 else 1
    low_high = f"{spread.low:,.{digits}f} – {spread.high:,.{digits}f}"
    return f"{spread.median:>{MEDIAN},.{digits}f}{low_high:>{RANGE}}"


def _beside(result: Result, ours: str, beside: str) -> Spread:
    return Spread.of(Bar(ours, beside, 0, result.is_rate).ratios(result.series))


def _verdict(result: Result, bar: Bar) -> str:
    ratio = Spread.of(bar.ratios(result.series))
    state = "met" if bar.is_met(ratio.median) else "MISSED"
    spread = f"{ratio.low:.2f} – {ratio.high:.2f}"
    return f"  {bar.name}: {ratio.median:.2f} ({spread}), aim {bar.aim}: {state}"


def document(results: list[Result], missing: list[str]) -> dict[str, Any]:
    """All of it, with every round, for JSON."""
    host = {
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "cpu": _processor(),
        "cpus": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "missing": missing,
    }
    return {"host": host, "figures": [_figure(result) for result in results]}


def _figure(result: Result) -> dict[str, Any]:
    return {
        "name": result.name,
        "title": result.title,
        "what": result.what,
        "count": result.count,
        "seconds": {name: _series(series) for name, series in result.series.items()},
        "bars": [_bar(result, bar) for bar in result.bars],
    }


def _series(series: Series) -> dict[str, Any]:
    return {
        "cpu": {"rounds": series.cpu, **asdict(Spread.of(series.cpu))},
        "wall": {"rounds": series.wall, **asdict(Spread.of(series.wall))},
    }


def _bar(result: Result, bar: Bar) -> dict[str, Any]:
    ratio = Spread.of(bar.ratios(result.series))
    return {**asdict(bar), "ratio": asdict(ratio), "met": bar.is_met(ratio.median)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
            return next(models, platform.machine())
    except OSError:
        return platform.machine()
