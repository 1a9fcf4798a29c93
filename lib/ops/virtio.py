"""What a guest's drivers make of their virtio devices, which QEMU sees by the status that each of them writes.

A Linux that has no interrupt vectors left for a device gives it up, and tells nobody but its own log: with one vCPU it
has some for about fifty virtio-blk disks. QEMU's commands for that (``x-query-virtio``, 7.2 and later) are not stable
ones; where they are missing nothing is said.
"""

from enum import StrEnum
from typing import Any, Final

from ..errors import CommandError
from .inventory import PERIPHERAL
from .port import Port

_POLL: Final = 0.1  # seconds
_BACKEND: Final = "/virtio-backend"


class DriverState(StrEnum):
    """How far a guest's driver has come with a device."""

    READY = "ready"
    FAILED = "failed"
    WAITING = "waiting"  # none has come yet
    UNKNOWN = "unknown"  # it is no virtio device, or this QEMU does not tell


async def query_driver(port: Port, id: str) -> DriverState:
    """Return what the guest makes of a virtio device (``x-query-virtio-status``).

    :param id: of the device
    """
    return await _ask(port, f"{PERIPHERAL}/{id}{_BACKEND}")


async def query_drivers(port: Port) -> dict[str, DriverState]:
    """Return that of all virtio devices that have an id."""
    try:
        devices: list[dict[str, Any]] = await port.execute("x-query-virtio")
    except CommandError:
        return {}
    prefix = f"{PERIPHERAL}/"
    paths = [device["path"] for device in devices if device["path"].startswith(prefix)]
    names = [path.removeprefix(prefix).removesuffix(_BACKEND) for path in paths]
    told = await port.ask_many([("x-query-virtio-status", {"path": path}) for path in paths])
    return {name: _state(answer) for name, answer in zip(names, told, strict=True)}


async def wait_driver(port: Port, id: str, timeout: float) -> DriverState:
    """Wait until the guest's driver is ready, or has failed.

    :param id: of the device
    :param timeout: seconds; Linux takes up to 5 for one on a root port
    :returns: what it has come to by then
    """
    deadline = port.now() + timeout
    while (state := await query_driver(port, id)) is DriverState.WAITING and port.now() < deadline:
        await port.sleep(_POLL)
    return state


async def _ask(port: Port, path: str) -> DriverState:
    [answer] = await port.ask_many([("x-query-virtio-status", {"path": path})])
    return _state(answer)


def _state(answer: dict[str, Any] | None) -> DriverState:
    if answer is None:
        return DriverState.UNKNOWN
    # each is a name of the virtio specification's, a colon, and an explanation
    words = {text.partition(":")[0].removeprefix("VIRTIO_CONFIG_S_") for text in answer["status"]["statuses"]}
    if "FAILED" in words:
        return DriverState.FAILED
    return DriverState.READY if "DRIVER_OK" in words else DriverState.WAITING
