"""Ganeti's monitor as it was from 2.12 to 3.0, where that differs: ``MonitorSocket``, and how a disk is added."""

import os
import stat
from collections.abc import Callable
from typing import Any, Final

from . import monitor
from .errors import (
    HotplugError,
    HypervisorError,
    ProgrammerError,
    QmpCommandNotSupported,
    QmpTimeoutError,
    translated,
)
from .messages import QmpMessage
from .monitor import HasHvInfo, _ensure_connection
from .sockets import UnixFileSocketConnection

__all__ = [
    "QmpConnection",
    "MonitorSocket",
    "QmpMessage",
    "QmpCommandNotSupported",
    "QmpTimeoutError",
    "HypervisorError",
    "HotplugError",
    "ProgrammerError",
]


class MonitorSocket(UnixFileSocketConnection):
    """A monitor socket, QMP or other: its life, and `sock` to use it.

    :param monitor_filename: path of the unix socket
    """

    _SOCKET_TIMEOUT: Final = 5

    def __init__(self, monitor_filename: str) -> None:
        super().__init__(monitor_filename, self._SOCKET_TIMEOUT)


class QmpConnection(monitor.QmpConnection):
    """A QMP monitor, as Ganeti 2.12 to 3.0 drives it.

    :param monitor_filename: path of the unix socket
    """

    def __init__(self, monitor_filename: str) -> None:
        super().__init__(monitor_filename)

    @_ensure_connection
    def HotAddDisk(  # type: ignore[override]  # the signature changed in 3.1
        self, disk: HasHvInfo, devid: str, uri: str, drive_add_fn: Callable[[str], object] | None = None
    ) -> None:
        """Plug a disk; if a step fails, what was done before is undone, but for what `drive_add_fn` did.

        :param disk: its `hvinfo`: where it goes
        :param devid: for the device and its drive
        :param uri: path of the image, which is opened here; or a URI, for `drive_add_fn` only
        :param drive_add_fn: adds the drive by HMP's ``drive_add``; called with what QEMU is to open.
            None adds a block node instead
        :raises HotplugError: a URI without `drive_add_fn`
        :raises OSError: the image cannot be opened; nothing was touched
        """
        device = {"drive": devid} | self._filter_hvinfo(disk.hvinfo)
        is_file = os.path.exists(uri)
        vm = self._vm()
        with translated():
            if drive_add_fn is not None:
                vm.add_drive(uri, device, drive_add_fn, open_file=is_file)
            elif is_file:
                vm.add_disk(_node(devid, uri), device, open_file=True, direct=False)
            else:
                raise HotplugError(f"{devid}: {uri} is no file of this host: it needs drive_add_fn")

    @_ensure_connection
    def HasPCIDevice(self, device: object, devid: str) -> bool:
        """The name of :meth:`HasDevice` in 2.15.

        :param device: not used
        """
        return self.HasDevice(devid)


def _node(devid: str, path: str) -> dict[str, Any]:
    driver = "host_device" if stat.S_ISBLK(os.stat(path).st_mode) else "file"
    return {"driver": "raw", "node-name": devid, "file": {"driver": driver, "filename": path}}
