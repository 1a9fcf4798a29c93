"""A program: drover-noded as it is, which stops itself, by SIGSTOP, when a migration comes to where a test wants it to.

``halting.py FOLDER OPTION…``: the folder has the file `halt`, while a stop is wanted, with one line::

    MACHINE ROLE STATE MOMENT

The role is ``driver`` or ``arrival``, the state one of its table's. The moment is ``entered``, when the state has been
come to and nothing of what it asks for has been done; or ``heard``, when the first word has come in that state, and was
not taken in. Or the role is ``seam-here`` or ``seam-there``, the state one of :data:`SEAMS`, and the moment ``before``
or ``after``. The file is removed when it stops. In the file `trail` is each state that is come to, a line each.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from drover.kvm import launch
from drover.kvm.node import Node
from drover.migration.driver import Driver, Host
from drover.migration.source import Departure
from drover.migration.target import Target
from drover.node import daemon
from drover.node.books import Books

# Where something is written down, or begins to be: whose function, of what name, and how it knows the machine.
_SELF: Final = lambda args: args[0]._name  # noqa: E731
_FIRST: Final = lambda args: args[1]  # noqa: E731
SEAMS: Final[dict[str, tuple[str, Any, str, Callable[[Any], str]]]] = {
    "keep": ("seam-here", Books, "keep", _FIRST),
    "set-out": ("seam-here", Departure, "set_out", _SELF),
    "gone": ("seam-here", Departure, "gone", _SELF),
    "end": ("seam-here", Departure, "end", _SELF),
    "forget": ("seam-here", Books, "forget", _FIRST),
    "put": ("seam-there", Node, "_put", lambda args: args[1].spec.name),
    "launched": ("seam-there", launch, "start", lambda args: args[1].name),
    "learn": ("seam-there", Books, "learn", _FIRST),
    "arrived": ("seam-there", Target, "arrived", _SELF),
    "ended": ("seam-there", Target, "ended", _SELF),
    "delete": ("seam-there", Node, "delete", _FIRST),
}


def main() -> None:
    folder = Path(sys.argv[1])
    _watch(folder, Driver, "driver", lambda it: (it.machine.known.plan.machine, it.machine.state))
    _watch(folder, Host, "arrival", lambda it: (it.arrival.known.it.machine, it.arrival.state))
    for seam, (role, owner, function, name_of) in SEAMS.items():
        _wrap(folder, f"{role} {seam}", owner, function, name_of)
    daemon.main(sys.argv[2:])


def _watch(folder: Path, kind: type[Any], role: str, where: Callable[[Any], tuple[str, str]]) -> None:
    does = kind._step

    def step(self: Any, event: Any) -> Any:
        machine, before = where(self)
        _stop_at(folder, f"{machine} {role} {before} heard")
        actions = does(self, event)
        after = where(self)[1]
        if after != before or type(event).__name__ == "Begin":
            _note(folder, f"{machine} {role} {after}")
            _stop_at(folder, f"{machine} {role} {after} entered")
        return actions

    kind._step = step


def _wrap(folder: Path, place: str, owner: Any, function: str, name_of: Callable[[Any], str]) -> None:
    does = getattr(owner, function)

    def wrapped(*args: Any, **more: Any) -> Any:
        name = name_of(args)
        _stop_at(folder, f"{name} {place} before")
        result = does(*args, **more)
        _stop_at(folder, f"{name} {place} after")
        return result

    setattr(owner, function, wrapped)


def _stop_at(folder: Path, place: str) -> None:
    wanted = folder / "halt"
    try:
        if wanted.read_text() != place:
            return
    except FileNotFoundError:
        return
    wanted.unlink()
    _note(folder, f"{place}: stopped")
    os.kill(os.getpid(), signal.SIGSTOP)


def _note(folder: Path, line: str) -> None:
    with (folder / "trail").open("a") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    main()
