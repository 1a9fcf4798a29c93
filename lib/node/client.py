"""The node daemon from the outside: its instances, with the verbs that they have in this process.

Blocking, and by the standard library alone, so that a command starts fast. What the daemon says went wrong is raised
as :class:`~drover.errors.CallFailed`, in its own words.
"""

import errno
import http.client
import os
import socket
import struct
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct, to_builtins

from ..errors import CallFailed
from ..kvm.ends import Stop
from ..kvm.state import State
from .summary import Summary

if TYPE_CHECKING:  # a list needs none of it, and a specification takes as long to load as all that a list does
    from ..kvm.condition import Condition
    from ..kvm.kinds import Memory
    from ..kvm.record import Saved
    from ..kvm.spec import Spec
    from ..kvm.spec.devices import Disk, Nic, UsbDevice, VfioDevice
    from ..kvm.upgrade import Upgraded
    from ..kvm.verify import Report

T = TypeVar("T")

SOCKET: Final = "noded.sock"  # in the folder of what runs
NO_ANSWER: Final = "no-answer"  # the code of a call of which nobody knows whether it was carried out
# Seconds that an answer may take beyond what the call itself is given.
_GRACE: Final = 60.0
_COPY: Final = 86_400.0  # seconds that images may be copied
_TIMEVAL: Final = struct.Struct("ll")  # seconds, microseconds


class Daemon:
    """A node daemon at a unix socket.

    :ivar path: of the socket
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def answers(self) -> bool:
        """Whether somebody listens there whom we may call."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setblocking(False)
            return sock.connect_ex(os.fspath(self.path)) in (0, errno.EAGAIN)  # others stand in line

    @property
    def where(self) -> str:
        """For people."""
        return str(self.path)

    @property
    def identity(self) -> Hashable:
        """Who it is, and who we are to it: the same for those to whom one connection would do."""
        return self.path

    def connection(self, timeout: float) -> http.client.HTTPConnection:
        """One, not connected yet.

        :param timeout: seconds for each wait
        """
        return UnixConnection(self.path, timeout)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        timeout: float = _GRACE,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """One call; what it was answered.

        :param timeout: seconds for the answer
        :param headers: of the request, such as ``Prefer``
        :raises CallFailed: the daemon says no, or does not answer
        """
        connection = self.connection(timeout)
        try:
            return self.exchange(connection, method, path, body, headers)
        finally:
            connection.close()

    def exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:  # fmt: skip
        """The same over a connection of the caller's.

        :param connection: connected when it is first used
        """
        try:
            connection.request(method, path, None if body is None else msgspec.json.encode(body), headers or {})
            response = connection.getresponse()
            answer = msgspec.json.decode(response.read() or b"null")
        except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
            raise CallFailed(NO_ANSWER, f"drover-noded at {self.where} {self.lost(error)}") from error
        if response.status >= 400:
            raise CallFailed(str(answer.get("code", "")), str(answer.get("detail", response.reason)), answer)
        return answer

    def lost(self, error: Exception) -> str:
        """What became of a call that this ended."""
        how = "does not answer" if isinstance(error, TimeoutError) else f"went away ({error})"
        return f"{how}: what it was asked to do may be done, or not"


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket.

    :param path: of the socket
    :param timeout: seconds for each wait
    """

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to it."""
        self.sock = socket.socket(socket.AF_UNIX)
        # Python's own timeout would not wait for one's turn where many connect at once
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(self.timeout or 0), 1))
        self.sock.connect(os.fspath(self._path))
        self.sock.settimeout(self.timeout)


class RemoteInstance:
    """An instance that a daemon serves; see :class:`drover.kvm.instance.Instance` for its verbs.

    :ivar name: its name; whether there is one is found when a method is called
    """

    def __init__(self, daemon: Daemon, name: str) -> None:
        self.name = name
        self._daemon = daemon
        self._path = f"/v1/instances/{quote(name, safe='')}"

    def show(self, *, timeout: float = 0) -> "Condition":
        """How it is; passwords are not told."""
        from ..kvm.condition import Condition
        from ..kvm.record import Document

        shown = self._daemon.call("GET", self._path)
        row = msgspec.convert(shown["summary"], Summary)
        document = msgspec.convert(_readable(shown["document"]), Document, strict=False)
        return Condition(name=self.name, state=State(row.state), document=document, detail=row.detail)

    def verify(self, *, timeout: float = 0) -> "Report":
        """Specification, record and QEMU side by side."""
        from ..kvm.verify import Report

        found = self._daemon.call("GET", f"{self._path}/verify")
        return msgspec.convert({key: value for key, value in found.items() if key != "agrees"}, Report)

    def repair(self, *, timeout: float = 0) -> list[str]:
        """Bring together what :meth:`verify` finds apart."""
        return self._notices("repair")

    def mend(self, *, timeout: float = 0) -> list[str]:
        """Complete or undo what was left unfinished."""
        return self._notices("mend")

    def start(self, *, paused: bool = False, fresh: bool = False) -> list[str]:
        """Start it."""
        return self._notices("start", paused=paused, fresh=fresh)

    def save(self, *, file: str = "") -> "Saved":
        """Write its memory into a file, and end its QEMU."""
        from ..kvm.record import Saved

        return msgspec.convert(_readable(self._call("save", file=file)["saved"]), Saved, strict=False)

    def restore(self, *, file: str = "", emulator: str = "", paused: bool = False) -> list[str]:
        """Start it as it was when it was saved."""
        return self._notices("restore", file=file, emulator=emulator, paused=paused)

    def upgrade(self, *, emulator: str = "") -> "Upgraded":
        """Have it go over to a new QEMU while it runs."""
        from ..kvm.upgrade import Upgraded

        return self._do("upgrade", Upgraded, emulator=emulator)

    def discard(self) -> None:
        """Forget what was saved of it."""
        self._call("discard")

    def stop(self, *, timeout: float, force: bool = True) -> Stop:
        """Shut it down."""
        return self._do("stop", Stop, "stop", timeout=timeout, force=force)

    def kill(self) -> Stop:
        """End it at once."""
        return self._do("kill", Stop, "stop")

    def reboot(self, *, timeout: float) -> list[str]:
        """Shut it down and start it."""
        return self._notices("reboot", timeout=timeout)

    def reset(self) -> None:
        """Press its reset button."""
        self._call("reset")

    def pause(self) -> None:
        """Let the guest stand still."""
        self._call("pause")

    def resume(self) -> None:
        """Let the guest run on."""
        self._call("resume")

    def add_disk(self, **fields: Any) -> "Disk":
        """Plug a disk in."""
        from ..kvm.spec.devices import Disk

        return self._do("add-disk", Disk, **fields)

    def remove_disk(self, id: str, *, timeout: float) -> None:
        """Take a disk out."""
        self._call("remove-disk", id=id, timeout=timeout)

    def resize_disk(self, id: str, size: int, *, shrink: bool = False, dry_run: bool = False) -> int:
        """Make a disk larger."""
        return self._do("resize-disk", int, "size", id=id, size=size, shrink=shrink, dry_run=dry_run)

    def set_throttle(self, id: str, **limits: int) -> None:
        """Limit a disk."""
        self._call("set-throttle", id=id, limits=limits)

    def change_medium(self, id: str, source: str, *, format: str = "raw", force: bool = False) -> None:
        """Put a medium into a CD drive, or take it out."""
        self._call("change-medium", id=id, source=source, format=format, force=force)

    def add_nic(self, **fields: Any) -> "Nic":
        """Plug a network card in."""
        from ..kvm.spec.devices import Nic

        return self._do("add-nic", Nic, **fields)

    def remove_nic(self, id: str, *, timeout: float) -> None:
        """Take a network card out."""
        self._call("remove-nic", id=id, timeout=timeout)

    def change_nic(self, id: str, **fields: Any) -> "Nic":
        """Connect a card to something else."""
        from ..kvm.spec.devices import Nic

        return self._do("change-nic", Nic, id=id, fields=fields)

    def set_link(self, id: str, *, up: bool) -> None:
        """Plug the cable of a card in or out."""
        self._call("set-link", id=id, up=up)

    def add_usb(self, **fields: Any) -> "UsbDevice":
        """Plug a USB device in."""
        from ..kvm.spec.devices import UsbDevice

        return self._do("add-usb", UsbDevice, **fields)

    def remove_usb(self, id: str, *, timeout: float) -> None:
        """Take a USB device out."""
        self._call("remove-usb", id=id, timeout=timeout)

    def add_vfio(self, **fields: Any) -> "VfioDevice":
        """Give it a PCI device of the host."""
        from ..kvm.spec.devices import VfioDevice

        return self._do("add-vfio", VfioDevice, **fields)

    def remove_vfio(self, id: str, *, timeout: float) -> None:
        """Take it back."""
        self._call("remove-vfio", id=id, timeout=timeout)

    def set_vcpus(self, count: int, *, timeout: float, even_under_tcg: bool = False) -> int:
        """Plug vCPUs in or out."""
        return self._do("set-vcpus", int, "count", count=count, timeout=timeout, even_under_tcg=even_under_tcg)

    def add_memory(self, size: int, *, type: str = "dimm") -> "Memory":
        """Plug memory in."""
        from ..kvm.kinds import Memory

        return self._do("add-memory", Memory, size=size, type=type)

    def remove_memory(self, id: str, *, timeout: float) -> None:
        """Take memory out."""
        self._call("remove-memory", id=id, timeout=timeout)

    def resize_memory(self, id: str, size: int) -> int:
        """Give the guest more or less of virtio-mem."""
        return self._do("resize-memory", int, "size", id=id, size=size)

    def balloon(self, size: int) -> int:
        """Ask the guest to do with less memory."""
        return self._do("balloon", int, "size", size=size)

    def wait_driver(self, id: str, timeout: float) -> None:
        """Wait for the guest's driver of a device."""
        self._call("wait-driver", id=id, timeout=timeout)

    def run_program(self, **params: Any) -> dict[str, Any]:
        """Run a program in its guest, by the guest's agent; see :class:`drover.node.guest.Exec`."""
        told: dict[str, Any] = self._call("agent-exec", **params)
        return told

    def _call(self, verb: str, **params: Any) -> Any:
        body = {name: to_builtins(value) if isinstance(value, Struct) else value for name, value in params.items()}
        timeout = float(params.get("timeout") or 0) + _GRACE
        return self._daemon.call("POST", f"{self._path}/{verb}", body, timeout=timeout)

    def _do(self, verb: str, kind: type[T], part: str = "", /, **params: Any) -> T:
        answer = self._call(verb, **params)
        return msgspec.convert(answer[part] if part else answer, kind)

    def _notices(self, verb: str, **params: Any) -> list[str]:
        return self._do(verb, list[str], "notices", **params)


def _readable(document: dict[str, Any]) -> dict[str, Any]:
    """A document in which passwords are not told, as one that could be kept."""
    saved = document.get("saved") or document  # or it is that itself
    parts = (document, document.get("runtime") or {}, document.get("other") or {}, saved.get("parcel") or {})
    for spec in (part.get("spec") or {} for part in parts):
        for screen in ("vnc", "spice"):
            if spec.get(screen) and spec[screen].get("password"):
                spec[screen]["password"] = {"secret": spec[screen]["password"]}
    return document


class RemoteNode:
    """The instances that a daemon serves; see :class:`drover.kvm.node.Node`."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @property
    def names(self) -> list[str]:
        """Of all instances."""
        return [row.name for row in self.rows()]

    def rows(self) -> list[Summary]:
        """A row for each, from the daemon's memory."""
        return msgspec.convert(self._daemon.call("GET", "/v1/instances")["instances"], list[Summary])

    def instance(self, name: str) -> RemoteInstance:
        """The one of this name."""
        return RemoteInstance(self._daemon, name)

    def create(self, spec: "Spec") -> RemoteInstance:
        """Make one."""
        self._daemon.call("POST", "/v1/instances", to_builtins(spec))
        return self.instance(spec.name)

    def delete(self, name: str) -> None:
        """Forget one that does not run."""
        self._daemon.call("DELETE", f"/v1/instances/{quote(name, safe='')}")

    def clone(self, name: str, new: str, *, disks: Mapping[str, str], linked: bool) -> tuple[RemoteInstance, list[str]]:
        """Make one like one that does not run; and what is to be known about it."""
        params = {"to": new, "disks": disks, "linked": linked}
        told = self._daemon.call("POST", f"/v1/instances/{quote(name, safe='')}/clone", params, timeout=_COPY)
        return self.instance(new), told["notices"]

    def rename(self, name: str, new: str) -> RemoteInstance:
        """Give one another name."""
        self._daemon.call("POST", f"/v1/instances/{quote(name, safe='')}/rename", {"to": new})
        return self.instance(new)
