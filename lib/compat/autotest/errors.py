"""The errors of avocado-vt's monitors, by its names; what went wrong below is in their ``__cause__``."""

from typing import Any


class MonitorError(Exception):
    """Root of all errors of these monitors."""


class MonitorConnectError(MonitorError):
    """Nobody answers at the monitor's address.

    :ivar monitor_name: which monitor, or what went wrong
    """

    def __init__(self, monitor_name: Any) -> None:
        super().__init__()
        self.monitor_name = monitor_name

    def __str__(self) -> str:
        return f"Could not connect to monitor '{self.monitor_name}'"


class MonitorSocketError(MonitorError):
    """The connection has ended, or is broken.

    :ivar msg: what was being done
    :ivar e: why it did not work
    """

    def __init__(self, msg: Any, e: Any) -> None:
        super().__init__(msg, e)
        self.msg = msg
        self.e = e

    def __str__(self) -> str:
        return f"{self.msg}    ({self.e})"


class MonitorLockError(MonitorError):
    """Somebody else holds the monitor's lock."""


class MonitorProtocolError(MonitorError):
    """No answer in time, or none that could be understood."""


class MonitorCmdError(MonitorError):
    """QEMU refused a command."""


class MonitorNotSupportedError(MonitorError):
    """This QEMU lacks something."""


class MonitorNotSupportedCmdError(MonitorNotSupportedError):
    """This QEMU lacks a command; nothing was sent.

    :ivar monitor: name of the monitor
    :ivar cmd: name of the command
    """

    def __init__(self, monitor: Any, cmd: Any) -> None:
        Exception.__init__(self)
        self.monitor = monitor
        self.cmd = cmd

    def __str__(self) -> str:
        return f"Not supported cmd '{self.cmd}' in monitor '{self.monitor}'"


class MonitorNotSupportedMigCapError(MonitorNotSupportedError):
    """This QEMU lacks a migration capability, or cannot switch it."""


class HumanCmdError(MonitorCmdError):
    """A command of the human monitor printed an error.

    :ivar cmd: the line
    :ivar out: all that it printed
    """

    def __init__(self, cmd: Any, out: Any) -> None:
        super().__init__(cmd, out)
        self.cmd = cmd
        self.out = out

    def __str__(self) -> str:
        return f"Human monitor command {self.cmd!r} failed    error message: {self.out!r})"


class QMPCmdError(MonitorCmdError):
    """QEMU answered a QMP command with an error.

    :ivar cmd: name of the command
    :ivar qmp_args: its arguments
    :ivar data: the error, with ``class`` and ``desc``
    """

    def __init__(self, cmd: Any, qmp_args: Any, data: Any) -> None:
        super().__init__(cmd, qmp_args, data)
        self.cmd = cmd
        self.qmp_args = qmp_args
        self.data = data

    def __str__(self) -> str:
        return f"QMP command {self.cmd!r} failed    (arguments: {self.qmp_args!r},    error message: {self.data!r})"


class QMPEventError(MonitorError):
    """The event that ends an operation did not come.

    :ivar cmd: name of the command that began it
    :ivar qmp_event: name of the event
    :ivar vm_name: of the machine
    :ivar name: of the monitor
    """

    def __init__(self, cmd: Any, qmp_event: Any, vm_name: Any, name: Any) -> None:
        super().__init__(cmd, qmp_event, vm_name, name)
        self.cmd = cmd
        self.qmp_event = qmp_event
        self.name = name
        self.vm_name = vm_name

    def __str__(self) -> str:
        where = f"{self.vm_name}.{self.name}"
        return f"QMP event {self.qmp_event} not received after {self.cmd} (monitor '{where}')"
