"""Who is killed, stopped or cut off, and how that is healed."""

import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from nodes.lane import Lane, send
from people import Member

Act = Callable[[Lane, str], None]
_DIES: Final = 10.0  # s


class Blow(NamedTuple):
    """One of them.

    :ivar strike: does it, to a lane and a machine
    :ivar heal: makes it good, where that can be
    :ivar kills: a QEMU: ``source``, ``target``
    :ivar stops: leaves the daemon stopped, of the one that is hit
    """

    strike: Act
    heal: Act
    kills: str = ""
    stops: str = ""


def _nothing(_: Lane, __: str) -> None: ...


def _of(side: str) -> Callable[[Lane], Member]:
    return lambda lane: lane.here if side == "here" else lane.there


def _kill_daemons(*sides: str) -> Blow:
    def strike(lane: Lane, _: str) -> None:
        for side in sides:
            _of(side)(lane).daemon.kill()

    def heal(lane: Lane, _: str) -> None:
        for side in sides:
            _of(side)(lane).daemon.launch()

    return Blow(strike, heal)


def _stop_daemon(side: str) -> Blow:
    member = _of(side)

    def signalled(number: int) -> Act:
        def act(lane: Lane, _: str) -> None:
            if member(lane).daemon.runs:
                member(lane).daemon.send_signal(number)

        return act

    return Blow(signalled(signal.SIGSTOP), signalled(signal.SIGCONT), stops=side)


@contextmanager
def pidfd(pid: int) -> Iterator[int]:
    """A process, whose end is seen when all of its threads have ended: by its first one alone it is dead before."""
    process = os.pidfd_open(pid)
    try:
        yield process
    finally:
        os.close(process)


def _signal_qemu(side: str, number: int) -> Act:
    def act(lane: Lane, name: str) -> None:
        if pid := lane.qemu(_of(side)(lane), name):
            with suppress(ProcessLookupError), pidfd(pid) as process:
                send(pid, number)
                if number == signal.SIGKILL:  # one that still dies may be told something, and nobody knows if it heard
                    assert select.select([process], [], [], _DIES)[0], f"{pid} has not died"

    return act


def _stop_qemu(side: str) -> Blow:
    return Blow(_signal_qemu(side, signal.SIGSTOP), _signal_qemu(side, signal.SIGCONT))


def _mend(lane: Lane, _: str) -> None:
    lane.cable.mend()


BLOWS: Final = {
    "kill the source's daemon": _kill_daemons("here"),
    "kill the target's daemon": _kill_daemons("there"),
    "kill both daemons": _kill_daemons("here", "there"),
    "kill the source's QEMU": Blow(_signal_qemu("here", signal.SIGKILL), _nothing, kills="source"),
    "kill the target's QEMU": Blow(_signal_qemu("there", signal.SIGKILL), _nothing, kills="target"),
    "stop the source's daemon": _stop_daemon("here"),
    "stop the target's daemon": _stop_daemon("there"),
    "stop the source's QEMU": _stop_qemu("here"),
    "stop the target's QEMU": _stop_qemu("there"),
    "cut the network": Blow(lambda lane, _: lane.cable.pull(), _mend),
    "cut it one way": Blow(lambda lane, _: lane.cable.lose(0), _mend),
    "cut it the other way": Blow(lambda lane, _: lane.cable.lose(1), _mend),
}
