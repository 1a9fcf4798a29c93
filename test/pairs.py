"""Two nodes that trust each other, between which machines move: real daemons, with certificates."""

import fcntl
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import waiting
from instances import temporary_node
from netns import Cable, Network
from noded import Noded, job, later
from people import Member

wait_for = partial(waiting.wait_for, timeout=60)


@contextmanager
def faults_by_anybody(allowed: bool = True) -> Iterator[None]:
    """Whether a QEMU without rights may catch the faults of its guest's memory, as one of 7.2 has to for a postcopy.

    It is the host's: who wants it otherwise waits meanwhile.
    """
    knob = Path("/proc/sys/vm/unprivileged_userfaultfd")
    with (Path(tempfile.gettempdir()) / "drover-test-userfaultfd.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = knob.read_text()
        knob.write_text(str(int(allowed)))
        try:
            yield
        finally:
            knob.write_text(before)


class Pair:
    """Both of them.

    :ivar cable: between them; None where they have one network
    """

    def __init__(self, here: Member, there: Member, cable: Cable | None = None) -> None:
        self.here, self.there, self.cable = here, there, cable

    @property
    def both(self) -> tuple[Member, Member]:
        return self.here, self.there

    def ask(self, name: str, *, back: bool = False, **params: Any) -> tuple[int, Any]:
        """Have a machine moved there, or back."""
        here, there = (self.there, self.here) if back else self.both
        asked = {"node": there.address, **params}
        return here.daemon.call("POST", f"/v1/instances/{name}/migrate", asked, timeout=120)

    def move(self, name: str, *, back: bool = False, **params: Any) -> dict[str, Any]:
        """The same, which has to succeed."""
        status, answer = self.ask(name, back=back, **params)
        assert status == 200, (answer, self.faults())
        found: dict[str, Any] = answer
        return found

    def faults(self) -> list[dict[str, Any]]:
        """What both have logged that is no usual thing."""
        return [line for each in self.both for line in each.log if line["level"] != "info"]

    def begin(self, name: str, step: str, **params: Any) -> int:
        """Begin to move it, and wait until it is at a step; the number of the job."""
        daemon = self.here.daemon
        number = later(daemon, "migrate", name, node=self.there.address, **params)
        wait_for(lambda: step in [each["name"] for each in job(daemon, number)["steps"]])
        return number

    def runs_here_alone(self, name: str) -> None:
        """It is where it was, and nothing of it is there."""
        wait_for(lambda: self.here.daemon.rows()[name]["state"] == "running")
        wait_for(lambda: name not in self.there.daemon.rows())
        status, document = self.here.daemon.call("GET", f"/v1/instances/{name}")
        assert (status, document["document"].get("passage")) == (200, None)


def ended(daemon: Noded, number: int) -> dict[str, Any]:
    """A job at its end."""
    wait_for(lambda: job(daemon, number)["state"] not in ("queued", "running"))
    return job(daemon, number)


@contextmanager
def two_nodes(
    top: Path, *, apart: bool = False, program: Path | None = None, ipv6: bool = False
) -> Iterator[Pair]:
    """A pair whose daemons run; the first has the authority.

    :param top: a folder for what they log, for each in one of its name
    :param apart: each has a network of its own, with a cable between them
    :param ipv6: by that, over the cable
    :param program: runs the daemon in place of drover-noded; gets that folder as its first argument
    """
    with ExitStack() as stack:
        cable = None
        if apart:
            cable = Cable(stack.enter_context(closing(Network())), stack.enter_context(closing(Network())))
        members = []
        for number, name in enumerate("ab"):
            (top / name / "config").mkdir(parents=True)
            paths = stack.enter_context(temporary_node()).host.paths
            hosts = [f"[{each}]" for each in cable.addresses6] if cable and ipv6 else cable.addresses if cable else ()
            where = (cable.ends[number], hosts[number]) if cable else ()
            member = Member(paths, top / name, *where)
            if program is not None:
                daemon = member.daemon
                daemon.program, daemon.options = sys.executable, [str(program), str(top / name), *daemon.options]
            members.append(member)
        first, second = members
        first.root("node", "init", "--name", "a", "--address", first.address)
        stack.callback(_end, first)
        first.daemon.start()
        second.root("node", "join", "-", "--name", "b", "--address", second.address, stdin=first.token())
        stack.callback(_end, second)
        second.daemon.start()
        yield Pair(first, second, cable)


def _end(member: Member) -> None:
    if member.daemon.runs:
        member.daemon.end()
