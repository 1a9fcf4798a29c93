"""A machine's run state (QEMU's ``docs/interop`` QMP reference, "VM run state")."""

from typing import Any, Final

from msgspec import Struct, convert

from ..errors import ConnectionClosed, MonitorTimeout
from ..qmp.ready import ready
from .port import Port

# How long a machine may take to end after `quit`: it flushes its disks before.
QUIT_TIMEOUT: Final = 60.0
# RESET is sent from the main loop right after the reply.
RESET_TIMEOUT: Final = 10.0


class Status(Struct, frozen=True):
    """The run state.

    :ivar running: whether the vCPUs run
    :ivar status: QEMU's RunState, such as ``running``, ``paused``, ``inmigrate``, ``postmigrate``
    """

    running: bool
    status: str


async def query_status(port: Port) -> Status:
    """Return the run state (``query-status``)."""
    return convert(await port.execute("query-status"), Status)


async def stop(port: Port) -> None:
    """Pause the vCPUs; returns when they stand still and the disks are flushed (``stop``)."""
    await port.execute("stop")


async def cont(port: Port) -> None:
    """Let the vCPUs run (``cont``).

    :raises CommandError: the machine is in a state that cannot run, such as ``shutdown``, or a disk is locked
    """
    await port.execute("cont")


async def system_powerdown(port: Port) -> None:
    """Press the power button (``system_powerdown``): a request, which the guest may ignore.

    Wait for the event ``SHUTDOWN`` to see that it followed.
    """
    await port.execute("system_powerdown")


async def system_reset(port: Port, *, timeout: float = RESET_TIMEOUT) -> None:
    """Reset the machine (``system_reset``) and wait until it happened.

    :param timeout: seconds to wait for the event ``RESET``
    :raises MonitorTimeout: the event did not come in time
    """
    mark = port.event_mark()
    await port.execute("system_reset")
    await port.wait_event(("RESET",), since=mark, timeout=timeout)


async def system_wakeup(port: Port) -> None:
    """Wake a guest that sleeps (``system_wakeup``).

    :raises CommandError: it does not sleep, or cannot be woken
    """
    await port.execute("system_wakeup")


async def inject_nmi(port: Port) -> None:
    """Send a non-maskable interrupt (``inject-nmi``): a guest that is set up so dumps its memory."""
    await port.execute("inject-nmi")


async def quit_machine(port: Port, *, timeout: float | None = QUIT_TIMEOUT) -> None:
    """End QEMU at once, as by pulling the plug (``quit``), and wait until it has ended.

    QEMU closes its disks before its monitors, so at the return they are released.

    :param timeout: seconds to wait for the end; None waits for ever
    :raises MonitorTimeout: QEMU still holds the connection
    """
    try:
        await port.execute("quit", timeout=timeout)
    except ConnectionClosed:
        return  # it may end before its reply is read
    except MonitorTimeout:
        pass  # what counts is the end, which is asked for next
    await port.wait_closed(timeout)


async def query_version(port: Port) -> dict[str, Any]:
    """Return QEMU's version as it tells it: ``{"qemu": {...}, "package": ...}`` (``query-version``)."""
    version: dict[str, Any] = await port.execute("query-version")
    return version


ready(Status)
