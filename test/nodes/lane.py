"""Two nodes in which one machine after the other is moved, stopped at a step, struck, and held to what must be so."""

import http.client
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from drover.kvm.record import load
from pairs import Pair, two_nodes
from people import Member
from waiting import is_dead, state_of

HALTING: Final = Path(__file__).with_name("halting.py")
BRIDGE: Final = "br0"


class Lane:
    """Two nodes, each in a network of its own with a bridge, whose daemons stop where they are wanted to.

    :param top: a folder for what they log
    """

    def __init__(self, pair: Pair, top: Path) -> None:
        assert pair.cable is not None
        self.pair, self.cable = pair, pair.cable
        self.here, self.there = pair.here, pair.there
        self._folders = {id(pair.here): top / "a", id(pair.there): top / "b"}
        for end in self.cable.ends:
            end.ip(f"link add {BRIDGE} type bridge")

    def halt(self, member: Member, place: str) -> None:
        """Have a daemon stop once, where :mod:`.halting` says."""
        self._folder(member, "halt.new").write_text(place)
        self._folder(member, "halt.new").rename(self._folder(member, "halt"))

    def no_halt(self) -> None:
        """Have none stop any more."""
        for member in self.pair.both:
            self._folder(member, "halt").unlink(missing_ok=True)

    def trail(self, name: str) -> list[str]:
        """The states that a machine has come to, in this order on each node."""
        lines: list[str] = []
        for member in self.pair.both:
            with suppress(FileNotFoundError):
                lines += self._folder(member, "trail").read_text().splitlines()
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{name} ")]

    def _folder(self, member: Member, name: str) -> Path:
        return self._folders[id(member)] / name

    def qemu(self, member: Member, name: str) -> int:
        """The process of a machine's QEMU on a node; 0: there is none."""
        with suppress(FileNotFoundError):
            runtime = load(member.paths.instance(name).document).runtime
            if runtime is not None and runtime.pid and not is_dead(runtime.pid):
                return runtime.pid
        return 0


@contextmanager
def lane(top: Path) -> Iterator[Lane]:
    """One that is ready."""
    with two_nodes(top, apart=True, program=HALTING) as pair:
        yield Lane(pair, top)


def is_halted(member: Member) -> bool:
    return member.daemon.runs and state_of(member.daemon.pid) == "T"


def send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def go_on(member: Member) -> None:
    """Let a daemon that has stopped go on."""
    if is_halted(member):
        member.daemon.send_signal(signal.SIGCONT)


def ask(member: Member, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """A call to a daemon that may be away; 0: it was not answered."""
    try:
        return member.daemon.call(method, path, body, timeout=5, headers=headers)
    except (OSError, http.client.HTTPException, json.JSONDecodeError):
        return 0, None


def wait_until(condition: Callable[[], bool], seconds: float, what: str | Callable[[], str]) -> None:
    """Wait for something.

    :param what: that is, in words
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s: {what if isinstance(what, str) else what()}"
        time.sleep(0.02)
