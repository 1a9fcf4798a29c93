"""Each step of a migration and each actor, with real daemons and QEMUs: one case each, and what must be so after it."""

import threading
import time
from itertools import count
from typing import Any, Final

from instances import bare
from machines import qemu_of
from nodes.blows import BLOWS
from nodes.cases import Case, Place, may_be
from nodes.lane import BRIDGE, Lane, ask, go_on, is_halted, wait_until
from nodes.left import check_agreement, check_nothing_left
from nodes.watch import Watch
from people import Member

ENDED: Final = ("done", "failed", "cancelled", "lost")
PATIENCE: Final = 75.0  # s until all has ended, once all is healed: questions are asked again after a minute at most
MACHINE: Final = "pc-q35-7.2"  # a type that both versions have
CPU: Final = {"model": "qemu64"}  # one that is the same in both
NOTICED: Final = 0.1  # s in which those who live notice who is dead
_LINES: Final = 6  # of each daemon's log, that are told where something is wrong
STUCK: Final = 6.0  # s that an alarm stands before what it says is typed

_COUNT = count(1)


class Run:
    """A case under way."""

    def __init__(self, lane: Lane, case: Case) -> None:
        self.lane, self.case = lane, case
        self.name = f"m{next(_COUNT)}"
        self.typed: list[str] = []
        self.healing: list[str] = []

    def go(self) -> str:
        """Run it.

        :returns: what became of it
        """
        lane, name = self.lane, self.name
        nics = [{"mode": "bridge", "link": BRIDGE}]
        lane.here.daemon.create(bare(self.case.versions[0], name, machine={"type": MACHINE}, cpu=CPU, nics=nics))
        lane.here.daemon.do("start", name)
        uuid = lane.here.daemon.rows()[name]["uuid"]
        sockets = [member.paths.instance(name).socket("people") for member in lane.pair.both]
        watch = Watch(*sockets)
        try:
            wait_until(lambda: watch.here.runs, 10, "it runs here")
            self._strike_all()
            time.sleep(self.case.seconds)
            self._heal()
            job = self._end()
            truth = check_agreement(lane, name, uuid, watch, job, self._kills())
            watch.check()
            assert truth.where in may_be(self.case), f"it is {truth.where}, and is to be {may_be(self.case)}: {job}"
        finally:
            lane.no_halt()
            watch.close()
        check_nothing_left(lane, name, uuid, truth)
        return f"{job['state']}, {truth.where}{': ' + ', '.join(self.typed) if self.typed else ''}"

    # -- up to the blow ------------------------------------------------------------------------------------------------

    def _strike_all(self) -> None:
        leads = self.case.leads
        places = [*(lead.at for lead in leads), self.case.place]
        self._halt_at(places[0])
        asking = threading.Thread(target=self._ask, daemon=True)
        asking.start()
        for lead, following in zip(leads, places[1:], strict=True):
            self._wait_halted(lead.at)
            self._halt_at(following)
            self._strike(lead.blow)
            if lead.lasts:
                self.healing.append(lead.blow)
            elif lead.blow in BLOWS:
                BLOWS[lead.blow].heal(self.lane, self.name)
            self._go_on(lead.blow)
        self._wait_halted(self.case.place)
        self._strike(self.case.blow)
        self._go_on(self.case.blow)
        self.healing.append(self.case.blow)

    def _ask(self) -> None:
        there, emulator = self.lane.there.address, str(qemu_of(self.case.versions[1]))
        params = {"node": there, "emulator": emulator, **dict(self.case.params)}
        ask(self.lane.here, "POST", f"/v1/instances/{self.name}/migrate", params, Prefer="respond-async")

    def _halt_at(self, place: Place) -> None:
        self.lane.halt(self._daemon_of(place), f"{self.name} {place}")

    def _daemon_of(self, place: Place) -> Member:
        return self.lane.here if place.here else self.lane.there

    def _wait_halted(self, place: Place) -> None:
        member = self._daemon_of(place)
        wait_until(lambda: is_halted(member), 40, lambda: f"it stops at {place}; {self._job()}")

    def _strike(self, blow: str) -> None:
        if blow == "cancel":
            threading.Thread(target=self._cancel, daemon=True).start()
        else:
            BLOWS[blow].strike(self.lane, self.name)
            time.sleep(NOTICED)

    def _cancel(self) -> None:
        if job := self._job():
            ask(self.lane.here, "POST", f"/v1/jobs/{job['id']}/cancel")

    def _go_on(self, blow: str) -> None:
        """Let the daemons that have stopped at a place go on, but for one that the blow has stopped."""
        stopped = BLOWS[blow].stops if blow in BLOWS else ""
        stopped_before = {BLOWS[each].stops for each in self.healing if each in BLOWS}
        for side, member in (("here", self.lane.here), ("there", self.lane.there)):
            if side != stopped and side not in stopped_before:
                go_on(member)

    # -- to its end ----------------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        for blow in self.healing:
            if blow in BLOWS:
                BLOWS[blow].heal(self.lane, self.name)
        for member in self.lane.pair.both:
            wait_until(lambda member=member: ask(member, "GET", "/v1/node")[0] == 200, 30, "a daemon answers again")

    def _kills(self) -> str:
        blows = [self.case.blow, *(lead.blow for lead in self.case.leads)]
        return " ".join(BLOWS[blow].kills for blow in blows if blow in BLOWS).strip()

    def _job(self) -> dict[str, Any] | None:
        status, told = ask(self.lane.here, "GET", f"/v1/jobs?instance={self.name}&limit=20")
        if status != 200:
            return None
        jobs = [job for job in told["jobs"] if job["kind"] == "migrate"]
        assert len(jobs) <= 1, jobs
        return jobs[0] if jobs else None

    def _end(self) -> dict[str, Any]:
        """Wait for the job's end, and type what an alarm says."""
        deadline, stands = time.monotonic() + PATIENCE, ("", 0.0)
        while True:
            job = self._job()
            if job is not None and job["state"] in ENDED:
                return job
            now, alarm = time.monotonic(), self._alarm()
            if alarm != stands[0]:
                stands = alarm, now
            elif alarm and now - stands[1] > STUCK and self._is_true(alarm):
                self._type(alarm)
                stands = "", now
            assert now < deadline, f"it comes to no end: {job}, alarm {alarm!r}, typed {self.typed}"
            time.sleep(0.05)

    def _alarm(self) -> str:
        """The command in the alarm that people see."""
        status, told = ask(self.lane.here, "GET", "/v1/instances")
        rows = {row["name"]: row for row in told["instances"]} if status == 200 else {}
        detail = rows.get(self.name, {}).get("detail", "")
        return detail[detail.index("drover ") :] if ": drover " in detail else ""

    def _is_true(self, alarm: str) -> bool:
        """Nobody says of a QEMU that lives that it is dead."""
        return "target-is-dead" not in alarm or not self.lane.qemu(self.lane.there, self.name)

    def _type(self, alarm: str) -> None:
        for command in alarm.split(" && "):
            self.typed.append(command)
            done = self.lane.here.root.run(*command.split()[1:])
            assert done.returncode == 0, f"{command}: {done.stderr}"

    def trail(self) -> str:
        return ", ".join(self.lane.trail(self.name))

    def logs(self) -> str:
        """Where the daemons' are, and what they say of faults of ours, and last of the machine."""
        paths = [member.daemon.log_path for member in self.lane.pair.both]
        texts = [path.read_text().splitlines() for path in paths]
        faults = [line for lines in texts for line in lines if "raceback" in line]
        last = [line for lines in texts for line in [line for line in lines if self.name in line.split('"')][-_LINES:]]
        return "\n".join([", ".join(map(str, paths)), *faults[-3:], *last])
