"""Recordings of real migrations, and how to play them to the policy. What made them is record.py."""

import json
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from drover.migration.course import Course, Look, begin
from drover.migration.forecast import Round
from drover.migration.means import Means, Terms
from drover.migration.policy import Advice, look

DATA = Path(__file__).parents[1] / "data" / "migration"
NAMES = sorted(path.stem for path in DATA.glob("*.json"))
MIB = 1 << 20


class Recording:
    """One of them: what QEMU told every 100 ms, and what was set meanwhile."""

    def __init__(self, name: str) -> None:
        self.told: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text(encoding="ascii"))
        self.name = name

    @property
    def ended(self) -> float | None:
        """The second at which it was over; None if it was not, and was cancelled."""
        took: int = self.told["ended"]["total-time"]
        return took / 1000 if self.told["ended"]["status"] == "completed" else None

    def looks(self) -> list[Look]:
        """What the policy would have seen."""
        measured = [(ms, Round(seconds, dirtied)) for ms, seconds, dirtied in self.told["measured"]]
        looks = []
        for row in self.told["rows"]:
            told = dict(zip(self.told["columns"], row, strict=True))
            at = told["ms"]
            new = measured.pop(0)[1] if measured and measured[0][0] <= at else None
            seen = {name: told[name] for name in ("transferred", "remaining", "scanned", "rounds", "throttle")}
            looks.append(Look(at=at / 1000, measured=new, **seen))
        return looks

    def terms(self, *means: Means) -> Terms:
        """What was known of it beforehand."""
        told = self.told
        contents = (told["fill"] + 2) * MIB
        return Terms(
            deadline=600, memory=told["total"], means=means, resident=contents, granted=told["bandwidth"] * MIB
        )

    def play(self, terms: Terms) -> tuple[Course, list[tuple[float, Advice]]]:
        """Play it to the policy, which cannot change it; but it knows what was set."""
        pulls = list(self.told["pulls"])
        course, told = begin(terms), []
        setting = replace(course.setting, downtime=self.told["downtime"] / 1000)
        course = replace(course, setting=setting)
        for seen in self.looks():
            while pulls and seen.at > pulls[0][0]:
                course = pulled(course, pulls.pop(0)[1])
            course, advice = look(terms, course, seen)
            told.append((seen.at, advice))
        return course, told


def pulled(course: Course, parameters: dict[str, int]) -> Course:
    """What is known once somebody has set this."""
    setting = course.setting
    setting = replace(
        setting,
        downtime=parameters.get("downtime-limit", setting.downtime * 1000) / 1000,
        throttle=parameters.get("max-cpu-throttle", setting.throttle),
    )
    bandwidth = parameters.get("max-bandwidth", course.bandwidth)
    return replace(course, setting=setting, bandwidth=float(bandwidth), end=None)
