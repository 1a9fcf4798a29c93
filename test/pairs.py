"""Two nodes that trust each other, between which machines move: real daemons, with certificates."""

import fcntl
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import waiting
from instances import temporary_node
from netns import Cable, Network, Star
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
def two_nodes(top: Path, *, apart: bool = False, program: Path | None = None, ipv6: bool = False) -> Iterator[Pair]:
    """A pair whose daemons run; the first has the authority.

    :param top: a folder for what they log, for each in one of its name
    :param apart: each has a network of its own, with a cable between them
    :param ipv6: by that, over the cable
    :param program: runs the daemon in place of drover-noded; gets that folder as its first argument
    """
    with ExitStack() as stack:
        cable, spots = None, [_Spot(), _Spot()]
        if apart:
            cable = Cable(stack.enter_context(closing(Network())), stack.enter_context(closing(Network())))
            hosts = [f"[{each}]" for each in cable.addresses6] if ipv6 else cable.addresses
            spots = [_Spot(*each) for each in zip(cable.ends, hosts, strict=True)]
        here, there = _joined(stack, top, spots, program)
        yield Pair(here, there, cable)


class Trio:
    """Three of them, each with a network of its own.

    :ivar members: `a`, `b` and `c`
    :ivar star: what joins them
    """

    def __init__(self, members: Sequence[Member], star: Star) -> None:
        self.members, self.star = members, star

    def pair(self, here: int, there: int) -> Pair:
        """Two of them."""
        return Pair(self.members[here], self.members[there])

    def states(self, name: str) -> dict[str, str]:
        """Of a machine, on each node that has it, by the node's name."""
        rows = {node: member.daemon.rows() for node, member in zip("abc", self.members, strict=True)}
        return {node: found[name]["state"] for node, found in rows.items() if name in found}


@contextmanager
def three_nodes(top: Path) -> Iterator[Trio]:
    """Three whose daemons run; the first has the authority.

    :param top: a folder for what they log, for each in one of its name
    """
    with ExitStack() as stack:
        middle, *ends = (stack.enter_context(closing(Network())) for _ in range(4))
        star = Star(middle, *ends)
        spots = [_Spot(*each) for each in zip(star.ends, star.addresses, strict=True)]
        yield Trio(_joined(stack, top, spots), star)


class _Spot(NamedTuple):
    """Where a node is: its network, and its address there."""

    network: Network | None = None
    host: str = "127.0.0.1"


def _joined(stack: ExitStack, top: Path, spots: Sequence[_Spot], program: Path | None = None) -> list[Member]:
    """Nodes `a`, `b` and so on, which run until the end."""
    members = []
    for name, spot in zip("abc", spots, strict=False):
        (top / name / "config").mkdir(parents=True)
        paths = stack.enter_context(temporary_node()).host.paths
        member = Member(paths, top / name, *spot)
        if program is not None:
            daemon = member.daemon
            daemon.program, daemon.options = sys.executable, [str(program), str(top / name), *daemon.options]
        members.append(member)
    first = members[0]
    first.root("node", "init", "--name", "a", "--address", first.address)
    for name, member in zip("abc", members, strict=False):
        if member is not first:
            member.root("node", "join", "-", "--name", name, "--address", member.address, stdin=first.token())
        stack.callback(_end, member)
        member.daemon.start()
    return members


def _end(member: Member) -> None:
    if member.daemon.runs:
        member.daemon.end()
