"""What avocado-vt's two monitors share: the socket, the lock, the log file, and that they can be pickled."""

import logging
import os
import re
import select
import socket
import threading
import time
from typing import Any

from ...errors import ConnectionClosed
from ...monitor.drive import drive
from ...monitor.link import Link
from ...monitor.wire import block_until_ready
from . import parse
from .errors import MonitorConnectError, MonitorError, MonitorLockError, MonitorNotSupportedCmdError, MonitorSocketError
from .places import VM, blockdev_flag, log_path, pick_supported_x_feature

LOG = logging.getLogger("drover.compat.autotest")

# A progress that is asked for changes in steps of about this many seconds.
_PROGRESS_POLL = 0.1


class Monitor:
    """A monitor of either kind.

    :param vm: the machine; its `name` is kept
    :param name: the monitor's name
    :param monitor_params: ``chardev_backend`` (``unix_socket`` or ``tcp_socket``), ``monitor_filename``, or
        ``chardev_host`` and ``chardev_port``
    :param suppress_exceptions: a monitor that cannot be reached is only logged
    :raises MonitorConnectError: nobody answers there
    """

    ACQUIRE_LOCK_TIMEOUT = 20
    DATA_AVAILABLE_TIMEOUT = 0
    CONNECT_TIMEOUT = 60
    CMD_TIMEOUT: float = 900

    re_numa_nodes = parse.NODES
    re_numa_node_info = parse.NODE_INFO
    _socket: socket.socket | None = None
    _line: Link[Any] | None = None

    def __init__(self, vm: Any, name: str, monitor_params: Any, suppress_exceptions: bool = False) -> None:
        pid = vm.get_pid()
        self._prepare(name, f"{name}-{vm.name}-pid-{'unknown' if pid is None else pid}.log")
        self.vm = VM(vm.name)
        self.vm.pid = pid
        self._enable_blockdev = self.vm.blockdev = bool(vm.check_capability(blockdev_flag()))
        self.monitor_params = monitor_params
        backend = monitor_params.get("chardev_backend", "unix_socket")
        if backend == "tcp_socket":
            address: Any = (monitor_params["chardev_host"], int(monitor_params["chardev_port"]))
        elif backend == "unix_socket":
            address = monitor_params.get("monitor_filename")
        else:
            raise NotImplementedError(f"Do not support the chardev backend {backend}.")
        self._dial(address, socket.AF_INET if backend == "tcp_socket" else socket.AF_UNIX)

    def _prepare(self, name: str, log_file: str) -> None:
        self.name = name
        self._lock = threading.RLock()
        self._log_lock = threading.RLock()
        self._supported_cmds: list[str] = []
        self.debug_log = False
        self.log_file = log_file
        self.open_log_files: dict[str, Any] = {}
        self._supported_migrate_capabilities: Any = None
        self._supported_migrate_parameters: Any = None
        self._server_closed = False

    def _dial(self, address: Any, family: int) -> None:
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.settimeout(self.CONNECT_TIMEOUT)
        try:
            self._socket.connect(address)
        except OSError as error:
            raise MonitorConnectError(f"Could not connect to monitor socket: {error}") from error

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> None:
        """Nothing is kept: the constructor makes it all anew."""

    def __setstate__(self, state: Any) -> None:
        """Nothing was kept."""

    def __getinitargs__(self) -> tuple[Any, ...]:
        """What the constructor is given when this is unpickled: it connects, and only logs if it cannot."""
        return self.vm, self.name, self.monitor_params, True

    def __reduce__(self) -> tuple[Any, ...]:
        return self.__class__, self.__getinitargs__()

    # -- the connection --------------------------------------------------

    def close(self) -> None:
        """Close the connection, and the log file."""
        self._close_sock()
        files = getattr(self, "open_log_files", {})  # there are none where the constructor came not so far
        while files:
            files.popitem()[1].close()

    def _close_sock(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close(ConnectionClosed("closed by this side"))
        if self._socket is not None:
            self._socket.close()

    def _copy_of_socket(self) -> int:
        """A descriptor that the line below takes over; `_socket` is for whoever looks at it."""
        assert self._socket is not None
        return os.dup(self._socket.fileno())

    def _open_line(self, doing: str) -> Link[Any]:
        """The line, once it is known whether the other end has gone.

        :raises MonitorSocketError: there is none, or it has
        """
        line = self._line
        if line is None:
            raise MonitorSocketError(doing, ConnectionClosed("closed by this side"))
        line.notice()
        if line.session.fault is not None:
            self._server_closed = True
            raise MonitorSocketError(doing, line.session.fault)
        return line

    def _acquire_lock(self, timeout: float = ACQUIRE_LOCK_TIMEOUT, lock: Any = None) -> bool:
        """Take the monitor's lock, or another; False after `timeout` seconds. It is never held over a wait."""
        taken: bool = (lock or self._lock).acquire(timeout=max(0, timeout))
        return taken

    def _take_lock(self, what: str) -> None:
        if not self._acquire_lock():
            raise MonitorLockError(f"Could not acquire exclusive lock to {what}")

    def _data_available(self, timeout: float = DATA_AVAILABLE_TIMEOUT) -> bool:
        """Whether something that nobody has read comes within `timeout` seconds."""
        line = self._line
        if line is None:
            raise MonitorSocketError("Verifying data on monitor socket", ConnectionClosed("closed by this side"))
        return line.session.fault is None and _readable(line, max(0, timeout))

    def _recvall(self) -> bytes:
        """Read what is there and return it; it counts as read by the monitor, too."""
        found, line = b"", self._line
        while line is not None and self._data_available():
            data = line.wire.receive()
            with line._lock:
                line._take_in(data)
            if not data:
                self._server_closed = True
                break
            found += data
        return found

    # -- logs ------------------------------------------------------------

    def _who(self) -> str:
        return f"{self.vm.name}.{self.name}"

    def _log_command(self, cmd: Any, debug: bool = True, extra_str: str = "") -> None:
        if self.debug_log or debug:
            LOG.debug("(monitor %s) Sending command '%s' %s", self._who(), cmd, extra_str)

    def _log_response(self, cmd: Any, resp: Any, debug: bool = True) -> None:
        if self.debug_log or debug:
            LOG.debug("(monitor %s) Response to '%s': %s", self._who(), cmd, resp)

    def _log_lines(self, log_str: str) -> None:
        """Write lines into the log file, each with the time; one that cannot be written costs no command."""
        self._acquire_lock(lock=self._log_lock)
        try:
            path, stamp = log_path(self.log_file), time.strftime("%Y-%m-%d %H:%M:%S")
            try:
                if path not in self.open_log_files:
                    self.open_log_files[path] = open(path, "a", encoding="utf-8", errors="replace")  # noqa: SIM115
                log = self.open_log_files[path]
                log.writelines(f"{stamp}: {line}\n" for line in log_str.splitlines())
                log.flush()
            except (OSError, ValueError) as error:
                LOG.error("cannot write the log %s: %s", path, error)
                self.open_log_files.pop(path, None)
        finally:
            self._log_lock.release()

    # -- commands that this QEMU has -------------------------------------

    def _has_command(self, cmd: Any) -> bool:
        return bool(cmd) and cmd in self._supported_cmds

    @staticmethod
    def _build_args(**kargs: Any) -> dict[str, Any]:
        """Arguments as QMP spells them; those that are None are left out."""
        return {name.replace("_", "-"): value for name, value in kargs.items() if value is not None}

    def get_workable_cmd(self, cmd: str) -> str:
        """The name by which QEMU has `cmd`: with ``-`` or ``_``, with ``x-`` or without; `cmd` where it has none."""
        if self._has_command(cmd):
            return cmd
        plain = cmd.replace("_", "-")
        for wanted in (plain, f"x-{plain}"):
            for known in self._supported_cmds:
                if known.replace("_", "-") == wanted:
                    LOG.info("Convert command %s -> %s", cmd, known)
                    return known
        return cmd

    def verify_supported_cmd(self, cmd: Any) -> None:
        """Check that QEMU has a command.

        :raises MonitorNotSupportedCmdError: it has not
        """
        if not self._has_command(cmd):
            raise MonitorNotSupportedCmdError(self.name, cmd)

    def is_responsive(self) -> bool:
        """Whether the monitor answers."""
        if self._line is None:
            LOG.warning("Monitor socket is already closed")
            return False
        try:
            self.verify_responsive()
        except MonitorError:
            return False
        return True

    def verify_responsive(self) -> None:
        """Run a command, to see that there is an answer."""
        raise NotImplementedError

    def human_monitor_cmd(self, cmd: str = "", timeout: Any = None, debug: bool = True, fd: Any = None) -> Any:
        """Run a line of the human monitor, whichever monitor this is."""
        raise NotImplementedError

    def info(self, what: str, debug: bool = True) -> Any:
        """Ask for something."""
        raise NotImplementedError

    # -- what both have --------------------------------------------------

    @classmethod
    def parse_info_numa(cls, r: str) -> list[tuple[int, set[int]]]:
        """Each NUMA node's MiB of memory and its CPUs, from the output of ``info numa``."""
        return parse.numa(r)

    def info_numa(self) -> list[tuple[int, set[int]]]:
        """Each NUMA node's MiB of memory and its CPUs."""
        return self.parse_info_numa(self.human_monitor_cmd("info numa").replace("\r\n", "\n"))

    def info_block(self, debug: bool = True) -> dict[str, dict[str, Any]]:
        """The block devices, by name."""
        info = self.info("block", debug)
        if not isinstance(info, str):
            return self._parse_info_block_qmp(info)
        try:
            return self._parse_info_block_old(info)
        except ValueError:
            return self._parse_info_block_1_5(info)

    @staticmethod
    def _parse_info_block_old(info: str) -> dict[str, dict[str, Any]]:
        return parse.block_old(info)

    @staticmethod
    def _parse_info_block_1_5(info: str) -> dict[str, dict[str, Any]]:
        return parse.block_1_5(info)

    def _parse_info_block_qmp(self, info: Any) -> dict[str, dict[str, Any]]:
        return parse.block_qmp(info, getattr(self, "_enable_blockdev", False))

    def get_migrate_progress(self) -> float:
        """Per cent of the guest's memory that have been sent."""
        raise NotImplementedError

    def wait_for_migrate_progress(self, target: float) -> None:
        """Wait until `target` per cent have been sent, or until another pass over the memory has begun."""
        before = 0.0
        while before <= (progress := self.get_migrate_progress()) < target:
            before = progress
            time.sleep(_PROGRESS_POLL)

    def _get_migrate_capability(self, capability: str, disable_auto_x_evaluation: bool = True) -> str:
        return pick_supported_x_feature(capability, self._supported_migrate_capabilities, disable_auto_x_evaluation)

    def _get_migrate_parameter(
        self, parameter: str, error_on_missing: bool = False, disable_auto_x_evaluation: bool = True
    ) -> str:
        known, kind = self._supported_migrate_parameters, "Migration parameter"
        return pick_supported_x_feature(parameter, known, disable_auto_x_evaluation, error_on_missing, kind)


def _readable(line: Link[Any], timeout: float) -> bool:
    return drive(block_until_ready(line.wire.fileno(), select.POLLIN, timeout))


def descriptor(fd: Any) -> int | None:
    """The descriptor of a file, or `fd` itself."""
    return fd if fd is None or isinstance(fd, int) else int(fd.fileno())


def plain_size(value: Any, unit: str = "B") -> int:
    """A size such as ``"512M"`` as a number of bytes; `unit` is that of a number without one."""
    text = str(value)
    found = re.fullmatch(r"(.*?)([BbKkMmGgTt]?)", text, re.DOTALL)
    assert found is not None
    return int(float(found[1]) * 1024 ** "BKMGT".index((found[2] or unit).upper()))
