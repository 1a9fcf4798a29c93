"""The names of avocado-vt's ``virttest.qemu_monitor``, over Drover (``doc/switch-from-avocado-vt.md``).

- :mod:`.kvm_monitor`  the monitors of autotest (2010 to 2012), which came before
- :mod:`.monitor`      what both monitors share; :mod:`.human` and :mod:`.qmp` are the two
- :mod:`.errors`, :mod:`.parse`, :mod:`.places`  errors, HMP's texts as data, where files are
"""

import os
import re
import shlex
import subprocess
import time
from typing import Any

from .errors import (
    HumanCmdError,
    MonitorCmdError,
    MonitorConnectError,
    MonitorError,
    MonitorLockError,
    MonitorNotSupportedCmdError,
    MonitorNotSupportedError,
    MonitorNotSupportedMigCapError,
    MonitorProtocolError,
    MonitorSocketError,
    QMPCmdError,
    QMPEventError,
)
from .human import HumanMonitor
from .monitor import LOG, Monitor
from .places import VM, Flags, pick_supported_x_feature, tmp_dir, x_non_x_feature
from .qmp import QMPMonitor

__all__ = [
    "LOG",
    "VM",
    "Flags",
    "HumanCmdError",
    "HumanMonitor",
    "Monitor",
    "MonitorCmdError",
    "MonitorConnectError",
    "MonitorError",
    "MonitorLockError",
    "MonitorNotSupportedCmdError",
    "MonitorNotSupportedError",
    "MonitorNotSupportedMigCapError",
    "MonitorProtocolError",
    "MonitorSocketError",
    "QMPCmdError",
    "QMPEventError",
    "QMPMonitor",
    "create_monitor",
    "get_monitor_filename",
    "get_monitor_filenames",
    "get_monitor_function",
    "pick_supported_x_feature",
    "wait_for_create_monitor",
    "x_non_x_feature",
]

# Seconds between two tries to reach a monitor, and that QEMU gets to print its options.
_PAUSE = 1.0
_HELP_TIMEOUT = 30.0


def get_monitor_filename(vm: Any, monitor_name: str) -> str:
    """Where the socket of a machine's monitor is; the machine has its `instance`."""
    return os.path.join(tmp_dir(), f"monitor-{monitor_name}-{vm.instance}")


def get_monitor_filenames(vm: Any) -> list[str]:
    """Where the sockets of all of a machine's monitors are."""
    return [get_monitor_filename(vm, name) for name in vm.params.objects("monitors")]


def create_monitor(vm: Any, monitor_name: str, monitor_params: Any) -> HumanMonitor | QMPMonitor:
    """Connect to a machine's monitor, and see that it answers.

    :param monitor_params: those of :class:`Monitor`, and `monitor_type`: ``qmp``, or it is a human one
    :raises MonitorError: it could not be reached, or does not answer
    """
    kind: type[HumanMonitor] | type[QMPMonitor] = HumanMonitor
    if monitor_params.get("monitor_type") == "qmp":
        if _has_option("qmp", vm.qemu_binary):
            kind = QMPMonitor
        else:
            LOG.warning("QMP monitor is unsupported by %s, creating human monitor instead.", vm.qemu_version)
    LOG.info("Connecting to monitor '<%s> %s'", kind, monitor_name)
    monitor = kind(vm, monitor_name, monitor_params)
    monitor.verify_responsive()
    return monitor


def wait_for_create_monitor(
    vm: Any, monitor_name: str, monitor_params: Any, timeout: float
) -> HumanMonitor | QMPMonitor:
    """Connect to a machine's monitor, and try again for `timeout` seconds.

    :raises MonitorConnectError: it could not be reached in time
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            return create_monitor(vm, monitor_name, monitor_params)
        except MonitorError as error:
            LOG.warning(error)
            time.sleep(min(_PAUSE, max(0.0, deadline - time.monotonic())))
    raise MonitorConnectError(monitor_name)


def get_monitor_function(vm: Any, cmd: str) -> Any:
    """The method of a machine's monitor for a command, by the name that its QEMU has."""
    return getattr(vm.monitor, vm.monitor.get_workable_cmd(cmd).replace("-", "_"))


def _has_option(option: str, binary: str) -> bool:
    command = [*shlex.split(binary), "-help"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=_HELP_TIMEOUT, check=False).stdout
    return re.search(rf"^-{re.escape(option)}(\s|$)", text, re.MULTILINE) is not None
