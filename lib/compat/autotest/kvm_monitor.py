"""The monitors of autotest's ``kvm_monitor`` (2010 to 2012), on those of avocado-vt that came of them."""

import os
import re
import socket
from typing import Any

from . import human, qmp
from . import monitor as common
from .errors import (
    HumanCmdError,
    MonitorConnectError,
    MonitorError,
    MonitorLockError,
    MonitorNotSupportedCmdError,
    MonitorNotSupportedError,
    MonitorProtocolError,
    MonitorSocketError,
    QMPCmdError,
)
from .places import VM

__all__ = [
    "HumanMonitor",
    "Monitor",
    "MonitorConnectError",
    "MonitorError",
    "MonitorLockError",
    "MonitorNotSupportedCmdError",
    "MonitorNotSupportedError",
    "MonitorProtocolError",
    "MonitorSocketError",
    "QMPCmdError",
    "QMPMonitor",
]

CMD_TIMEOUT = 20


class Monitor(common.Monitor):
    """A monitor of either kind.

    :param name: the monitor's name
    :param filename: of its unix socket
    :raises MonitorConnectError: nobody answers there
    """

    CMD_TIMEOUT = CMD_TIMEOUT

    def __init__(self, name: str, filename: str) -> None:
        self.vm = VM(name)
        self.filename = filename
        self._prepare(name, os.path.basename(filename + ".log"))
        self._dial(filename, socket.AF_UNIX)

    def __getinitargs__(self) -> tuple[Any, ...]:
        return self.name, self.filename, True

    def _start(self, suppress_exceptions: bool) -> None:
        """Connect, where whoever asked wants to hear of a failure, or only the log."""
        try:
            Monitor.__init__(self, self.name, self.filename)
            self._begin()
        except MonitorError as error:
            self._close_sock()
            if not suppress_exceptions:
                raise
            common.LOG.warning(error)

    def _begin(self) -> None:
        raise NotImplementedError


class HumanMonitor(Monitor, human.HumanMonitor):
    """A human monitor's socket; any number of threads may share one.

    :param name: the monitor's name
    :param filename: of its unix socket
    :param suppress_exceptions: a monitor that cannot be reached is only logged
    :raises MonitorConnectError: nobody answers there
    :raises MonitorProtocolError: there was no prompt
    """

    PROMPT_TIMEOUT = 20
    _begin = human.HumanMonitor._begin

    def __init__(self, name: str, filename: str, suppress_exceptions: bool = False) -> None:
        self.name, self.filename = name, filename
        self._start(suppress_exceptions)

    def cmd(self, cmd: str, timeout: float = CMD_TIMEOUT, debug: bool = True, fd: Any = None) -> str:
        """Run a line, and return what it prints, an error too.

        :raises MonitorProtocolError: the prompt did not come back in time
        :raises MonitorSocketError: the connection has ended
        """
        try:
            return super().cmd(cmd, timeout, debug, fd)
        except HumanCmdError as error:
            return str(error.out)

    def send_args_cmd(self, cmdlines: str, timeout: float = CMD_TIMEOUT, convert: bool = True) -> str:
        """Run lines like ``memsave val=0,size=10240,filename=f``, ``;`` between them; return all that they print."""
        output = super().send_args_cmd(cmdlines, timeout, convert)
        return output if isinstance(output, str) else "".join(output)

    def set_link(self, name: str, up: Any) -> str:
        """Switch a link on or off, by the words that this QEMU has for it."""
        found = re.search(r"(\w+)\|(\w+)", self.cmd("help set_link"))
        words = found.groups() if found else ("on", "off")
        return self.cmd(f"set_link {name} {words[0 if up else 1]}")

    def live_snapshot(  # type: ignore[override]
        self, device: str, snapshot_file: str, snapshot_format: str = "qcow2"
    ) -> Any:
        """Write on into a new image."""
        return super().live_snapshot(device, snapshot_file, format=snapshot_format)

    def migrate(self, uri: str, full_copy: Any = False, incremental_copy: Any = False, wait: Any = False) -> Any:
        """Begin to send the machine; `wait` for the end."""
        return super().migrate(uri, full_copy, incremental_copy, wait)


class QMPMonitor(Monitor, qmp.QMPMonitor):
    """A QMP monitor; any number of threads may share one.

    :param name: the monitor's name
    :param filename: of its unix socket
    :param suppress_exceptions: a monitor that cannot be reached is only logged
    :raises MonitorConnectError: nobody answers there
    :raises MonitorProtocolError: there was no greeting
    """

    READ_OBJECTS_TIMEOUT = 5
    RESPONSE_TIMEOUT = 20
    PROMPT_TIMEOUT = 20
    _begin = qmp.QMPMonitor._begin
    _prepare = qmp.QMPMonitor._prepare

    def __init__(self, name: str, filename: str, suppress_exceptions: bool = False) -> None:
        self.name, self.filename = name, filename
        self._start(suppress_exceptions)

    def cmd(self, cmd: str, args: Any = None, timeout: float = CMD_TIMEOUT, debug: bool = True, fd: Any = None) -> Any:
        """Run a command, and return what QEMU returned; raises what avocado-vt's does."""
        return super().cmd(cmd, args, timeout, debug, fd)

    def cmd_raw(self, data: str, timeout: float = CMD_TIMEOUT) -> dict[str, Any]:
        """Send a text, and return the whole reply, an error too."""
        return super().cmd_raw(data, timeout)

    def cmd_obj(self, obj: Any, timeout: float = CMD_TIMEOUT) -> dict[str, Any]:
        """Send an object as JSON, and return the whole reply, an error too."""
        return super().cmd_obj(obj, timeout)

    def cmd_qmp(self, cmd: str, args: Any = None, id: Any = None, timeout: float = CMD_TIMEOUT) -> dict[str, Any]:
        """Run a command, and return the whole reply, an error too."""
        return super().cmd_qmp(cmd, args, id, timeout)

    def live_snapshot(  # type: ignore[override]
        self, device: str, snapshot_file: str, snapshot_format: str = "qcow2"
    ) -> Any:
        """Write on into a new image."""
        return super().live_snapshot(device, snapshot_file, format=snapshot_format)

    def migrate(self, uri: str, full_copy: Any = False, incremental_copy: Any = False, wait: Any = False) -> Any:
        """Begin to send the machine; `wait` is not looked at."""
        return super().migrate(uri, full_copy or None, incremental_copy or None, wait)
