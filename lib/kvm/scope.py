"""Scopes of systemd: a control group for each instance where systemd runs the host (org.freedesktop.systemd1(5)).

A scope is asked for with the processes that it is to hold, so it comes after they are made and before they
execute anything. It is delegated to us, and holds two groups of ours: QEMU's and its keeper's. systemd ends
it when its last process ends, or at the host's shutdown: then after the unit that shuts the guests down.
"""

import contextlib
import os
import time
from pathlib import Path
from typing import Any, Final

from ..errors import ScopeFailed
from .cgroup import KEEPERS, PROCS, Cgroup

# The unit that shuts guests down with the host; a scope's processes get their signal only after it has ended.
SHUTDOWN_UNIT: Final = "drover-guests.service"
SLICE: Final = "machine.slice"  # where systemd-machined, libvirt and podman have theirs
_SERVICE: Final = "org.freedesktop.systemd1"
_TIMEOUT: Final = 5.0  # s; it takes 3 to 10 ms, a host that boots has longer queues
_PAUSE: Final = 0.001  # s


class Systemd:
    """The service manager of this host, or of this user on it, by its bus.

    :ivar address: of the bus
    """

    def __init__(self, address: str) -> None:
        self.address = address

    @classmethod
    def find(cls) -> "Systemd":
        """The host's where we are root, else this user's own.

        :raises ScopeFailed: it does not answer
        """
        if os.geteuid() == 0:
            found = cls("SYSTEM")
        else:
            folder = os.environ.get("XDG_RUNTIME_DIR", "")
            found = cls(os.environ.get("DBUS_SESSION_BUS_ADDRESS") or f"unix:path={folder}/bus")
        found._call("GetUnit", "s", _TIMEOUT, "-.slice")  # there always is that one
        return found

    def start_scope(self, unit: str, pids: list[int], timeout: float) -> None:
        """Ask for a scope that holds these processes. They are in it some time after that.

        :param timeout: seconds for systemd to answer
        :raises ScopeFailed: there is one of this name, or systemd does not answer
        """
        properties = [
            ("Description", ("s", f"Drover's machine {unit.removesuffix('.scope').removeprefix('drover-')}")),
            ("PIDs", ("au", pids)),
            ("Slice", ("s", SLICE)),
            ("Delegate", ("b", True)),
            ("CollectMode", ("s", "inactive-or-failed")),
            ("Before", ("as", [SHUTDOWN_UNIT])),
        ]
        self._call("StartTransientUnit", "ssa(sv)a(sa(sv))", timeout, unit, "fail", properties, [])

    def attach(self, unit: str, group: str, pids: list[int], timeout: float) -> None:
        """Move processes into a group of a scope that there is.

        :param group: its path below the scope, which begins with a slash
        :param timeout: seconds for systemd to answer
        :raises ScopeFailed: there is no such scope, or systemd does not answer
        """
        self._call("AttachProcessesToUnit", "ssau", timeout, unit, group, pids)

    def _call(self, method: str, signature: str, timeout: float, *arguments: Any) -> tuple[Any, ...]:
        # not before it is needed: where no systemd runs, nobody waits for its import
        from jeepney import DBusAddress, DBusErrorResponse, new_method_call
        from jeepney.io.blocking import open_dbus_connection
        from jeepney.wrappers import unwrap_msg

        manager = DBusAddress("/org/freedesktop/systemd1", bus_name=_SERVICE, interface=f"{_SERVICE}.Manager")
        try:
            with open_dbus_connection(self.address, auth_timeout=timeout) as bus:
                message = new_method_call(manager, method, signature, arguments)
                reply: tuple[Any, ...] = unwrap_msg(bus.send_and_get_reply(message, timeout=timeout))
        except DBusErrorResponse as error:
            raise ScopeFailed(method, error.name, " ".join(map(str, error.data or ()))) from error
        except (OSError, ValueError, KeyError, RuntimeError) as error:  # among them TimeoutError, and no such address
            raise ScopeFailed(method, "", str(error) or type(error).__name__) from error
        return reply


class Scope(Cgroup):
    """The control group of an instance in a scope of its own, which comes to be when its first process is taken in.

    :ivar unit: its name
    """

    def __init__(self, systemd: Systemd, mount: Path, name: str, member: str) -> None:
        """Nothing is asked for yet.

        :param mount: where control groups of version 2 are
        :param name: of the scope, without what every scope's name ends with
        :param member: of the group in it
        """
        super().__init__(Path())
        self.unit = f"drover-{name}.scope"
        self._systemd = systemd
        self._mount = mount
        self._member = member

    @property
    def entrances(self) -> tuple[str, str]:
        """None: systemd moves them."""
        return "", ""

    @property
    def place(self) -> str:
        """Its directory in words; empty: there is none, yet or at all."""
        return "" if self.path == Path() else os.fspath(self.path)

    def take_in(self, keeper: int, charge: int) -> None:
        """Have systemd move a keeper and its charge; where it does not, there is a notice, and they stay outside.

        :param keeper: its process id
        :param charge: likewise, of what is not the program yet
        """
        if self.notices:
            return  # it has failed once: whoever comes second need not wait for that again
        deadline = time.monotonic() + _TIMEOUT
        try:
            while not self._entered(keeper, charge, deadline):
                time.sleep(_PAUSE)
        except (ScopeFailed, OSError) as error:
            self.notices.append(f"no control group: {error}")

    def _entered(self, keeper: int, charge: int, deadline: float) -> bool:
        """Make the scope, or join it. An earlier run's may end just now: then neither is possible for a moment."""
        try:
            if self.place:
                self._join(keeper, charge, deadline)
            else:
                self._systemd.start_scope(self.unit, [keeper, charge], _left(deadline))
                self._divide(keeper, charge, deadline)
        except ScopeFailed as error:
            if not error.passing or time.monotonic() > deadline:
                raise
            return False
        return True

    def _join(self, keeper: int, charge: int, deadline: float) -> None:
        self._systemd.attach(self.unit, f"/{KEEPERS}", [keeper], _left(deadline))
        self._systemd.attach(self.unit, f"/{self._member}", [charge], _left(deadline))

    def _divide(self, keeper: int, charge: int, deadline: float) -> None:
        self._arrival(keeper, deadline)  # either may be the first one there
        scope = self._arrival(charge, deadline)
        path, keepers = scope / self._member, scope / KEEPERS
        for group, pid in ((keepers, keeper), (path, charge)):
            group.mkdir(exist_ok=True)
            (group / PROCS).write_text(str(pid), encoding="ascii")
        self.path, self.keepers = path, keepers
        for controller in ("memory", "cpu", "pids"):
            with contextlib.suppress(OSError):  # whoever wants a limit is told that there is none
                (scope / "cgroup.subtree_control").write_text(f"+{controller}", encoding="ascii")

    def _arrival(self, pid: int, deadline: float) -> Path:
        """Where the scope is, when the process is in it."""
        while time.monotonic() < deadline:
            lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
            where = next((line[4:] for line in lines if line.startswith("0::/")), "")
            if where.endswith(self.unit):
                return self._mount / where
            time.sleep(_PAUSE)
        raise ScopeFailed("StartTransientUnit", "", f"{self.unit} was not there within {_TIMEOUT:g} s")


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), _PAUSE)
