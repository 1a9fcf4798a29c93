"""Ganeti's ``hypervisor/hv_kvm/monitor.py``, as it is from 3.1 on, with ``Execute`` of before."""

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from ...monitor.socket import MonitorSocket
from ...ops.port import DEFAULT
from ...ops.unplug import UNPLUG_TIMEOUT
from ...qmp.redact import redact
from .errors import (
    HotplugError,
    HypervisorError,
    ProgrammerError,
    QmpCommandNotSupported,
    QmpTimeoutError,
    translated,
)
from .messages import QmpEvent, QmpMessage, QmpTimestamp
from .raw import Monitor, Wanted
from .sockets import QemuMonitorSocket, UnixFileSocketConnection

__all__ = [
    "QmpConnection",
    "QemuMonitorSocket",
    "UnixFileSocketConnection",
    "QmpMessage",
    "QmpEvent",
    "QmpTimestamp",
    "QmpCommandNotSupported",
    "QmpTimeoutError",
    "HypervisorError",
    "HotplugError",
    "ProgrammerError",
]

log = logging.getLogger("drover.compat.ganeti")

MIB: Final = 1024 * 1024
DISK_KERNELSPACE: Final = "kernelspace"  # the node opens the image's path; the other mode lets QEMU open a URI


class _Connectable(Protocol):
    def connect(self) -> None: ...
    def close(self) -> None: ...
    def is_connected(self) -> bool: ...


class HasHvInfo(Protocol):
    """A disk, as Ganeti's ``objects.Disk``: where its device goes."""

    @property
    def hvinfo(self) -> Mapping[str, Any]:
        """Arguments of ``device_add``: driver, id, bus, and addr or channel, scsi-id and lun."""


class HasMac(HasHvInfo, Protocol):
    """A NIC, as Ganeti's ``objects.NIC``: where its device goes, and its address."""

    @property
    def mac(self) -> str:
        """Six octets in hexadecimal, with colons."""


P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=_Connectable)


def _ensure_connection(fn: Callable[Concatenate[M, P], T]) -> Callable[Concatenate[M, P], T]:
    """Make a method connect for the call, and close after it, where there is no connection yet."""

    @functools.wraps(fn)
    def wrapper(mon: M, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if mon.is_connected():
            return fn(mon, *args, **kwargs)
        mon.connect()
        try:
            return fn(mon, *args, **kwargs)
        finally:
            mon.close()

    return wrapper


class QmpConnection(QemuMonitorSocket):
    """A QMP monitor, as Ganeti drives it.

    A method named in CamelCase that is called unconnected connects for the call and closes
    after it. Each raises :class:`~.errors.HypervisorError` or one of its kind: QEMU refused, no
    answer in time, the connection ended. An object is for one thread at a time.

    :param socket_path: of the unix socket
    :ivar timeout: seconds. As it comes, commands that are slow by nature get more (:mod:`drover.qmp.timeouts`);
        set to anything else, it holds for each command
    :ivar version: QEMU's, as ``(7, 2, 22)``; `package`, its distributor's text; `supported_commands`,
        the names of all its commands; None before the first connect
    :ivar unplug_timeout: seconds that a guest has to let go of a device
    """

    _QMP_TIMEOUT = 5
    _FIRST_MESSAGE_KEY = "QMP"
    _ACTUAL_KEY = ACTUAL_KEY = "actual"
    _VERSION_KEY = "version"
    _PACKAGE_KEY = "package"
    _QEMU_KEY = "qemu"
    _CAPABILITIES_COMMAND = "qmp_capabilities"
    _QUERY_COMMANDS = "query-commands"
    # Members of a device's hvinfo that go to device_add; Ganeti keeps others there, too.
    _DEVICE_ATTRIBUTES: Final = ("driver", "id", "bus", "addr", "channel", "scsi-id", "lun")

    def __init__(self, socket_path: str) -> None:
        super().__init__(socket_path, self._QMP_TIMEOUT)
        self.version: tuple[int, int, int] | None = None
        self.package: str | None = None
        self.supported_commands: frozenset[str] | None = None
        self.unplug_timeout = UNPLUG_TIMEOUT

    # -- the connection --------------------------------------------------

    def connect(self) -> None:
        """Connect, greet, negotiate, and ask which commands there are; nothing happens when there is a connection.

        :raises HypervisorError: nobody listens there, or what answers is no QMP monitor
        :raises QmpTimeoutError: no greeting in time: another client may hold the monitor
        """
        super().connect()

    def Execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """The name of :meth:`execute_qmp` up to Ganeti 3.0."""
        return self.execute_qmp(command, arguments)

    def execute_qmp(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Run one command and return what QEMU returned.

        :param arguments: JSON values; left out of the message when empty
        :raises QmpCommandNotSupported: this QEMU has no such command; nothing was sent
        :raises HypervisorError: QEMU refused, or the connection ended
        :raises QmpTimeoutError: no answer in time; the command may still take effect
        :raises ProgrammerError: not connected
        """
        vm = self._vm()
        if self.supported_commands is not None and command not in self.supported_commands:
            raise QmpCommandNotSupported(f"Instance does not support the '{command}' QMP command.")
        timeout = DEFAULT if self.timeout == self._QMP_TIMEOUT else self.timeout
        with translated():
            value = vm.execute(command, arguments or None, timeout=timeout)
        log.debug("%s %s done", command, redact(command, arguments))
        return value

    def _open_line(self, fd: int) -> MonitorSocket:
        vm = Monitor(fd, self.timeout)
        vm.connect()
        self.version, self.package = vm.version, vm.package.strip()
        self.supported_commands = vm.supported_commands
        return vm

    def _vm(self) -> Monitor:
        line = self._connected()
        assert isinstance(line, Monitor)
        line.timeout = self.timeout
        return line

    def _take(self, wanted: Wanted, timeout: float | None) -> QmpMessage | None:
        vm = self._vm()
        with translated():
            return vm.next_message(wanted, timeout)

    # -- hotplug ---------------------------------------------------------

    @_ensure_connection
    def HotAddNic(
        self,
        nic: HasMac,
        devid: str,
        tapfds: Sequence[int] | None = None,
        vhostfds: Sequence[int] | None = None,
        features: Mapping[str, Any] | None = None,
        is_chrooted: bool = False,
    ) -> None:
        """Plug a NIC; if a step fails, what was done before is undone.

        :param nic: its `mac`, and its `hvinfo`: where it goes
        :param devid: for the device and its netdev
        :param tapfds: descriptors of a tap, one for each pair of queues; they stay yours to close
        :param vhostfds: descriptors of ``/dev/vhost-net``, as many; used with the feature ``vhost``
        :param features: ``{"vhost": bool, "mq": (bool, number of pairs of queues)}``
        :param is_chrooted: QEMU cannot reach its ROM files
        """
        features = features or {}
        device: dict[str, Any] = {"netdev": devid, "mac": nic.mac}
        if is_chrooted:
            device["romfile"] = ""
        device |= self._filter_hvinfo(nic.hvinfo)
        several, queues = features.get("mq", (False, 1))
        if several:
            # a vector for each queue of each pair, one for the control queue, one for the configuration
            device |= {"mq": True, "vectors": 2 * queues + 2}
        vhost = list(vhostfds or ()) if features.get("vhost", False) else None
        vm = self._vm()
        with translated():
            vm.add_nic(list(tapfds or ()), vhost, device)

    @_ensure_connection
    def HotDelNic(self, devid: str) -> None:
        """Take a NIC from the guest; its netdev goes when the guest has let go of the device. May be repeated.

        :raises HotplugError: there is no such NIC; or the guest said no, or nothing within `unplug_timeout`:
            then device and netdev stay
        """
        vm = self._vm()
        with translated():
            vm.remove_nic(devid, self.unplug_timeout)

    @_ensure_connection
    def HotAddDisk(
        self, disk: HasHvInfo, access_mode: str, cache_writeback: bool, direct: bool, blockdevice: dict[str, Any]
    ) -> None:
        """Plug a disk; if a step fails, what was done before is undone.

        :param disk: its `hvinfo`: where it goes
        :param access_mode: ``kernelspace``: the image is opened here and QEMU gets the descriptor;
            ``userspace``: QEMU opens what `blockdevice` says
        :param cache_writeback: whether the guest sees a write cache
        :param direct: whether the image is opened with O_DIRECT
        :param blockdevice: arguments of ``blockdev-add``, with ``node-name``; not changed
        :raises OSError: the image cannot be opened; nothing was touched
        """
        device = {"drive": blockdevice["node-name"], "write-cache": "on" if cache_writeback else "off"}
        device |= self._filter_hvinfo(disk.hvinfo)
        vm = self._vm()
        with translated():
            vm.add_disk(blockdevice, device, open_file=access_mode == DISK_KERNELSPACE, direct=direct)

    @_ensure_connection
    def HotDelDisk(self, devid: str) -> None:
        """Take a disk from the guest; its block node goes when the guest has let go of the device. May be repeated.

        :raises HotplugError: there is no such disk; or the guest said no, or nothing within `unplug_timeout`:
            then device and node stay, and the image must, too
        """
        vm = self._vm()
        with translated():
            vm.remove_disk(devid, self.unplug_timeout)

    @_ensure_connection
    def ResizeBlockDevice(self, disk_id: str, new_size: int) -> None:
        """Tell the guest that its disk has a new size, in bytes."""
        self.execute_qmp("block_resize", {"node-name": disk_id, "size": new_size})

    @_ensure_connection
    def HasDevice(self, devid: str) -> bool:
        """Return whether there is a device of this id, on whatever bus."""
        vm = self._vm()
        with translated():
            return vm.has_device(devid)

    @_ensure_connection
    def GetFreePCISlot(self) -> int:
        """Return the lowest free slot of the root bus.

        :raises NoFreeSlots: it is full, or takes no hotplug, as that of q35
        """
        vm = self._vm()
        with translated():
            return vm.free_pci_slot()

    @_ensure_connection
    def CheckDiskHotAddSupport(self) -> None:
        """Check that this QEMU can add disks.

        :raises HotplugError: it cannot
        """
        self._require("Cannot hot-add disk", "add-fd", "blockdev-add")

    @_ensure_connection
    def CheckNicHotAddSupport(self) -> None:
        """Check that this QEMU can add NICs.

        :raises HotplugError: it cannot
        """
        self._require("Cannot hot-add NIC", "getfd", "netdev_add")

    def _require(self, problem: str, *commands: str) -> None:
        for command in commands:
            if command not in (self.supported_commands or ()):
                raise HotplugError(f"{problem}: {command} qmp command is not supported.")

    def _filter_hvinfo(self, hvinfo: Mapping[str, Any]) -> dict[str, Any]:
        return {name: hvinfo[name] for name in self._DEVICE_ATTRIBUTES if name in hvinfo}

    # -- what QEMU is ----------------------------------------------------

    @_ensure_connection
    def GetVersion(self) -> tuple[int, int, int] | None:
        """Return QEMU's version, as ``(7, 2, 22)``."""
        return self.version

    @_ensure_connection
    def HasDynamicAutoReadOnly(self) -> bool:
        """Return whether QEMU's file drivers reopen their image read-only and back as needed."""
        if self.version is not None and self.version[:2] == (4, 0):
            return True  # it does, and its schema does not say so yet
        schema = self.execute_qmp("query-qmp-schema")
        return any("dynamic-auto-read-only" in entity.get("features", ()) for entity in schema)

    @_ensure_connection
    def GetCpuInformation(self) -> list[dict[str, Any]]:
        """Return the virtual CPUs without disturbing them (``query-cpus-fast``)."""
        cpus: list[dict[str, Any]] = self.execute_qmp("query-cpus-fast")
        return cpus

    # -- migration -------------------------------------------------------

    @_ensure_connection
    def SetMigrationParameters(self, max_bandwidth: int, downtime_limit: int) -> None:
        """Set how fast a migration sends, and how long the guest may stand still.

        :param max_bandwidth: bytes per second, in precopy and in postcopy
        :param downtime_limit: milliseconds
        """
        parameters = {"max-bandwidth": max_bandwidth, "downtime-limit": downtime_limit}
        if self.version is not None and self.version >= (3, 0, 0):
            parameters["max-postcopy-bandwidth"] = max_bandwidth
        self.execute_qmp("migrate-set-parameters", parameters)

    @_ensure_connection
    def SetMigrationCapabilities(self, capabilities: Iterable[str], state: bool) -> None:
        """Switch all of these capabilities on or off."""
        switches = [{"capability": name, "state": state} for name in capabilities]
        self.execute_qmp("migrate-set-capabilities", {"capabilities": switches})

    @_ensure_connection
    def StartMigration(self, target: str, port: int | str) -> None:
        """Begin to send this machine; returns when it has begun.

        :param target: name or address of the target host; an IPv6 address may be without its brackets
        :param port: TCP port on it
        """
        host = f"[{target}]" if ":" in target and not target.startswith("[") else target
        self.execute_qmp("migrate", {"uri": f"tcp:{host}:{port}"})

    @_ensure_connection
    def StartPostcopyMigration(self) -> None:
        """Let the target run now, and fetch the rest of its memory as it needs it."""
        self.execute_qmp("migrate-start-postcopy")

    @_ensure_connection
    def GetMigrationStatus(self) -> dict[str, Any]:
        """Return the state of the migration, as ``query-migrate`` tells it; empty before the first one."""
        status: dict[str, Any] = self.execute_qmp("query-migrate")
        return status

    # -- the machine -----------------------------------------------------

    @_ensure_connection
    def StopGuestEmulation(self) -> None:
        """Pause the guest."""
        self.execute_qmp("stop")

    @_ensure_connection
    def ContinueGuestEmulation(self) -> None:
        """Let the paused guest run."""
        self.execute_qmp("cont")

    @_ensure_connection
    def SetSpicePassword(self, spice_pwd: str) -> None:
        """Set the password of the SPICE display; it is not logged."""
        self.execute_qmp("set_password", {"protocol": "spice", "password": spice_pwd})

    @_ensure_connection
    def SetVNCPassword(self, vnc_pwd: str) -> None:
        """Set the password of the VNC display; it is not logged."""
        self.execute_qmp("set_password", {"protocol": "vnc", "password": vnc_pwd})

    @_ensure_connection
    def SetBalloonMemory(self, memory: int) -> None:
        """Ask the guest to give back memory until it has only `memory` MiB."""
        self.execute_qmp("balloon", {"value": memory * MIB})

    @_ensure_connection
    def Powerdown(self) -> None:
        """Press the power button: a request, which the guest may ignore."""
        self.execute_qmp("system_powerdown")
