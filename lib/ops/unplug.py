"""Taking a device away from a running guest: a request, whose end is observed.

``device_del`` returns at once and promises nothing. A guest that agrees lets go,
and QEMU sends DEVICE_DELETED. One that refuses makes QEMU send
DEVICE_UNPLUG_GUEST_ERROR or an ACPI_DEVICE_OST with a status that says so. One
that ignores the request, or is still in its firmware, is silent: the request
stays, and completes when the machine is reset. It is repeated, for a guest that
boots meanwhile; but QEMU takes no second request for a device whose first one came
in the very first millisecond of the machine's life (7.2 and 10.0), so let it run first.
"""

from typing import Final

from ..errors import CommandError, MonitorTimeout, UnplugPending, UnplugRefused
from ..qmp.messages import Event
from .inventory import PERIPHERAL, has_device
from .port import Port

UNPLUG_TIMEOUT: Final = 30.0
# As the undo of a step that failed: the caller waits for this on top of the failure.
UNDO_TIMEOUT: Final = 10.0
# A guest that was not ready for the first request hears a later one. On PCIe a second
# press of the attention button within 5 s takes the first one back, so not before that.
RETRY_AFTER: Final = 6.0

# ACPI 6.4, table 6.59 and 6.62: source events of an ejection ...
_EJECT_SOURCES: Final = frozenset({3, 0x103})
# ... and the answers that are no refusal: done, and still at it.
_NOT_REFUSED: Final = frozenset({0, 0x84})

_EVENTS: Final = ("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR", "ACPI_DEVICE_OST")


def is_end_of(device: str, event: Event) -> bool:
    """Whether `event` says how the unplug of `device` ended.

    A virtio device sends a DEVICE_DELETED for its ``virtio-backend`` first, without
    a ``device``: that one does not count. A vCPU sends one for its ``lapic``, and no other.
    """
    if event.name == "ACPI_DEVICE_OST":
        info = event.data.get("info", {})
        return (
            info.get("device") == device
            and info.get("source") in _EJECT_SOURCES
            and info.get("status") not in _NOT_REFUSED
        )
    path = f"{PERIPHERAL}/{device}"
    return event.data.get("device") == device or event.data.get("path") in (path, f"{path}/lapic")


async def unplug(port: Port, device: str, *, timeout: float = UNPLUG_TIMEOUT) -> bool:
    """Ask the guest to let go of `device`, and wait until it is gone.

    :param timeout: seconds for the guest to act
    :returns: False if there was no such device
    :raises CommandError: the device cannot be unplugged at all
    :raises UnplugRefused: the guest said no; the device works on
    :raises UnplugPending: the guest said nothing; the request stays and completes at its next reset
    """
    mark = port.event_mark()
    deadline = port.now() + timeout
    try:
        await port.execute("device_del", {"id": device})
    except CommandError as error:
        if error.error_class != "DeviceNotFound":
            raise
        return False
    while True:
        wait = min(RETRY_AFTER, deadline - port.now())
        try:
            event = await port.wait_event(
                _EVENTS, since=mark, match=lambda event: is_end_of(device, event), timeout=max(0.0, wait)
            )
        except MonitorTimeout:
            if not await has_device(port, device):
                return True
            if port.now() >= deadline:
                problem = f"the guest has not let go of it within {timeout:g} s; the request stays until its next reset"
                raise UnplugPending(device, problem) from None
            await _ask_again(port, device)
            continue
        if event.name == "DEVICE_DELETED":
            return True
        raise UnplugRefused(device, f"the guest refuses to let go of it ({_why(event)})")


async def _ask_again(port: Port, device: str) -> None:
    try:
        await port.execute("device_del", {"id": device})
    except CommandError:
        pass  # "already in the process of unplug", or gone meanwhile: the wait that follows tells


def _why(event: Event) -> str:
    info = event.data.get("info")
    return f"ACPI status {info['status']:#x}" if info else event.name
