"""Operations by HMP, the language that QEMU speaks with people.

What QMP can do, do by QMP: there a refusal is an error reply, here it is told from a text.
HMP is for what only it can do, and for machines that have no QMP monitor.
"""

import os
import re
from abc import ABC, abstractmethod
from typing import Final

from ..errors import (
    ArgumentError,
    ConnectionClosed,
    MigrationCancelled,
    MigrationError,
    MigrationFailed,
    MonitorTimeout,
    NotSupported,
    ProtocolError,
)
from ..qmp.hmp import name_of, plain, quote, refusal
from ..qmp.timeouts import command_timeout
from .port import DEFAULT, Port, Timeout
from .power import QUIT_TIMEOUT, Status

MIB: Final = 1 << 20
# `info migrate` is cheap, and what it waits for takes seconds.
MIGRATION_POLL: Final = 0.1

# Seconds for commands that only HMP has; the others are in `drover.qmp.timeouts` by their QMP names.
_STORAGE: Final = 60.0  # opens, flushes or drains images
_BULK: Final = 3600.0  # copies an image, or all of the guest's memory
HMP_TIMEOUTS: Final = {
    "change": _STORAGE,
    "commit": _BULK,
    "delvm": _STORAGE,
    "drive_add": _STORAGE,
    "drive_backup": _STORAGE,
    "drive_del": _STORAGE,
    "drive_mirror": _STORAGE,
    "eject": _STORAGE,
    "loadvm": _BULK,
    "memsave": _STORAGE,
    "qemu-io": _STORAGE,
    "savevm": _BULK,
    "snapshot_blkdev": _STORAGE,
    "snapshot_blkdev_internal": _STORAGE,
}


def line_timeout(line: str, default: float | None) -> float | None:
    """Seconds that the HMP command `line` gets when the caller does not say; None waits for ever.

    :param default: for commands that are not slow by nature
    """
    if default is None:
        return None
    name = name_of(line)
    known = (command_timeout(qmp_name, default) or default for qmp_name in (name, name.replace("_", "-")))
    return max(HMP_TIMEOUTS.get(name, default), *known)


class HumanPort(ABC):
    """A human monitor as a flow sees it, whichever way its lines travel."""

    @abstractmethod
    async def run(self, line: str, timeout: Timeout = DEFAULT, fd: int | None = None) -> str:
        """Run one line and return what it printed, with plain line ends.

        :raises MonitorTimeout: it is not through yet; what it prints later is dropped
        :raises ConnectionClosed: the connection ended first
        """

    @abstractmethod
    async def wait_closed(self, timeout: float | None) -> None:
        """Wait until QEMU has closed the connection.

        :raises MonitorTimeout: it did not
        """

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Let time pass."""

    @abstractmethod
    def now(self) -> float:
        """A clock, in seconds; only differences mean anything."""


class QmpHumanPort(HumanPort):
    """The human monitor behind a QMP monitor (``human-monitor-command``).

    :param default: seconds for commands that are not slow by nature; None waits for ever
    :param cpu_index: the CPU that commands such as ``info registers`` look at; None is the first
    """

    def __init__(self, port: Port, default: float | None, cpu_index: int | None = None) -> None:
        self._port = port
        self._default = default
        self._more: dict[str, int] = {} if cpu_index is None else {"cpu-index": cpu_index}

    async def run(self, line: str, timeout: Timeout = DEFAULT, fd: int | None = None) -> str:
        if fd is not None:
            # it would look for the descriptor at a monitor that lives only as long as this line
            raise NotSupported("a descriptor along with human-monitor-command", "a text monitor; or QMP's own getfd")
        command = "human-monitor-command"
        if timeout is DEFAULT:
            timeout = line_timeout(line, command_timeout(command, self._default))
        output: str = await self._port.execute(command, {"command-line": line} | self._more, timeout=timeout)
        return plain(output)

    async def wait_closed(self, timeout: float | None) -> None:
        await self._port.wait_closed(timeout)

    async def sleep(self, seconds: float) -> None:
        await self._port.sleep(seconds)

    def now(self) -> float:
        return self._port.now()


# -- any command -------------------------------------------------------------


async def cmd(
    port: HumanPort, command: str, timeout: Timeout = DEFAULT, *, fd: int | None = None, check: bool = True
) -> str:
    """Run one line, and return what it printed: line ends are plain ones, without the last.

    :param command: such as ``info block``; arguments with blanks in them in double quotes
    :param timeout: seconds; the default is the object's, or more for a command that is slow by nature;
        None waits for ever
    :param fd: a descriptor to go along, on a text monitor; it stays yours to close
    :param check: False returns a text that tells a refusal like any other output
    :raises CommandError: it was refused; :class:`~drover.errors.CommandNotSupported`: there is no such command
    :raises ArgumentError: such a line cannot be typed; nothing was sent
    :raises MonitorTimeout: it is not through yet; what it prints later is dropped. On a text monitor
        no other command can run before
    :raises ConnectionClosed: the connection ended first
    """
    output = await port.run(command, timeout, fd)
    error = refusal(command, output) if check else None
    if error is not None:
        raise error
    return output


async def info(port: HumanPort, what: str, timeout: Timeout = DEFAULT) -> str:
    """Return what QEMU tells about something (``info``), such as ``status``, ``block -v``, ``mtree``."""
    return await cmd(port, f"info {what}", timeout)


async def help_text(port: HumanPort, command: str = "") -> str:
    """Return QEMU's help for one command, or the list of all (``help``).

    :raises CommandNotSupported: there is no such command
    """
    return await cmd(port, f"help {command}".rstrip())


# -- run state ---------------------------------------------------------------

_STATUS: Final = re.compile(r"VM status: (running|paused)(?: \(single step mode\))?(?: \(([a-z-]+)\))?")


async def status(port: HumanPort) -> Status:
    """Return the run state (``info status``).

    :raises ProtocolError: what came is no run state
    """
    output = await cmd(port, "info status")
    found = _STATUS.match(output)
    if found is None:
        raise ProtocolError("no run state in the answer of `info status`", output.encode()[:80])
    return Status(found[1] == "running", found[2] or found[1])


async def stop(port: HumanPort) -> None:
    """Pause the vCPUs (``stop``)."""
    await cmd(port, "stop")


async def cont(port: HumanPort) -> None:
    """Let the vCPUs run (``cont``)."""
    await cmd(port, "cont")


async def system_reset(port: HumanPort) -> None:
    """Ask for a reset of the machine (``system_reset``). HMP has no events: when it happened cannot be seen here."""
    await cmd(port, "system_reset")


async def system_powerdown(port: HumanPort) -> None:
    """Press the power button (``system_powerdown``): a request, which the guest may ignore."""
    await cmd(port, "system_powerdown")


async def quit_machine(port: HumanPort, *, timeout: float | None = QUIT_TIMEOUT) -> None:
    """End QEMU at once, as by pulling the plug (``quit``), and wait until it has ended.

    :param timeout: seconds for all of it; None waits for ever
    :raises MonitorTimeout: QEMU still holds the connection
    """
    deadline = None if timeout is None else port.now() + timeout
    try:
        await cmd(port, "quit", timeout)
    except ConnectionClosed:
        return  # it ends before its prompt
    except MonitorTimeout:
        pass  # what counts is the end, which is asked for next
    await port.wait_closed(None if deadline is None else max(0.0, deadline - port.now()))


# -- keyboard, mouse, screen -------------------------------------------------


async def sendkey(port: HumanPort, keys: str, hold: int | None = None) -> None:
    """Press keys together, and release them (``sendkey``); returns before they are released.

    :param keys: QEMU's names joined by ``-``, such as ``ctrl-alt-f1``, or codes such as ``0x1c``
    :param hold: how long they stay down, in milliseconds; None leaves it to QEMU (100)
    :raises CommandError: QEMU knows no such key
    """
    await cmd(port, f"sendkey {quote(keys)}" + ("" if hold is None else f" {hold:d}"))


async def mouse_move(port: HumanPort, dx: int, dy: int, dz: int = 0) -> None:
    """Move the mouse by `dx`, `dy` (relative) or to it (absolute pointers), and its wheel by `dz` (``mouse_move``)."""
    await cmd(port, f"mouse_move {dx:d} {dy:d}" + (f" {dz:d}" if dz else ""))


async def mouse_button(port: HumanPort, state: int) -> None:
    """Say which buttons are down (``mouse_button``).

    :param state: sum of 1 (left), 2 (middle) and 4 (right); 0 releases all
    """
    await cmd(port, f"mouse_button {state:d}")


async def screendump(port: HumanPort, path: str | os.PathLike[str]) -> None:
    """Write the first console's picture to a file, as PPM (``screendump``).

    :param path: as QEMU sees it: relative to its own directory, written with its own rights
    """
    await cmd(port, f"screendump {quote(os.fspath(path))}")


# -- devices -----------------------------------------------------------------


async def set_link(port: HumanPort, name: str, up: bool) -> None:
    """Plug or unplug a NIC's cable (``set_link``).

    :param name: id of the NIC, or of its network backend
    """
    await cmd(port, f"set_link {quote(name)} {'on' if up else 'off'}")


async def balloon(port: HumanPort, size: int) -> None:
    """Ask the guest to use `size` bytes of memory (``balloon``): a request; `info balloon` tells how far it is.

    :param size: bytes, a multiple of 1 MiB, which is HMP's unit
    """
    if size <= 0 or size % MIB:
        raise ArgumentError("size", size, "a positive multiple of 1 MiB, in bytes")
    await cmd(port, f"balloon {size // MIB}")


async def getfd(port: HumanPort, name: str, fd: int) -> None:
    """Give QEMU a copy of a descriptor, for later commands of this monitor (``getfd``).

    :param name: how they will call it; a descriptor that had this name is closed
    :param fd: it stays yours to close
    :raises NotSupported: not a text monitor: descriptors belong to the monitor they came by, and HMP
        commands that travel through QMP do not see those of the QMP monitor
    """
    await cmd(port, f"getfd {quote(name)}", fd=fd)


# -- migration ---------------------------------------------------------------

_MIGRATION: Final = re.compile(r"^(?:Migration status|Status):\s*([a-z-]+)(?:[ \t]+\((.*)\))?", re.MULTILINE)


async def migrate(port: HumanPort, uri: str, *, resume: bool = False) -> None:
    """Start a migration (``migrate -d``) and return at once: the monitor stays usable.

    :param uri: such as ``tcp:HOST:PORT``, ``unix:PATH``, ``exec:COMMAND``, ``fd:NAME``
    :param resume: go on with a postcopy migration that was interrupted
    :raises CommandError: QEMU refused; that it cannot connect is told only by :func:`wait_migration`
    """
    await cmd(port, f"migrate -d {'-r ' if resume else ''}{quote(uri)}")


async def migrate_cancel(port: HumanPort) -> None:
    """Cancel the migration that runs (``migrate_cancel``); nothing happens when there is none."""
    await cmd(port, "migrate_cancel")


async def migrate_status(port: HumanPort) -> str:
    """Return QEMU's migration status, such as ``active``; empty when there was no migration (``info migrate``)."""
    return (await _migration(port))[0]


async def wait_migration(port: HumanPort, *, timeout: float | None) -> None:
    """Wait until the migration has completed.

    :param timeout: seconds; None waits for ever
    :raises MigrationFailed: it failed, and why, where QEMU says so
    :raises MigrationCancelled: somebody cancelled it
    :raises MigrationError: there is none
    :raises MonitorTimeout: it still runs
    """
    deadline = None if timeout is None else port.now() + timeout
    while True:
        state, desc = await _migration(port)
        if state == "completed":
            return
        if state in ("failed", "cancelled"):
            kind = MigrationFailed if state == "failed" else MigrationCancelled
            raise kind(f"migration {state}", state, desc)
        if state in ("", "none"):
            raise MigrationError("there is no migration to wait for", state)
        if deadline is not None and port.now() + MIGRATION_POLL > deadline:
            raise MonitorTimeout("the end of the migration", timeout)
        await port.sleep(MIGRATION_POLL)


async def _migration(port: HumanPort) -> tuple[str, str]:
    found = _MIGRATION.search(await cmd(port, "info migrate"))
    return (found[1], found[2] or "") if found else ("", "")
