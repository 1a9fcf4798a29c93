"""What a hot plug or unplug that was cut off has left in QEMU, found by the names that ours always have."""

from typing import Final

from ..errors import CommandError, HotplugError
from .fdset import remove_fdsets
from .inventory import has_device
from .port import Port
from .storage import find_top, remove_nodes

# Seconds.
_LET_GO: Final = 3.0
_POLL: Final = 0.02


async def remove_leftovers(port: Port, id: str, *, queues: int = 0) -> None:
    """Remove what a device of this id stood on: block nodes, sets of descriptors, a network backend. May be repeated.

    :param queues: pairs of queues that a NIC of this id was to have: so many descriptors may wait under their names
    :raises HotplugError: the device is there: nothing was touched
    :raises CommandError: something is in use
    """
    if await has_device(port, id):
        raise HotplugError(id, "it is plugged in, so what it stands on stays")
    await _remove_nodes(port, id)
    await remove_fdsets(port, [id])
    names = [f"{id}.{kind}{number}" for number in range(queues) for kind in ("fds", "vhostfds")]
    commands = [("netdev_del", {"id": id})] if queues else []
    for command, arguments in [*commands, *(("closefd", {"fdname": name}) for name in names)]:
        try:
            await port.execute(command, arguments)
        except CommandError:
            pass  # there is none


async def _remove_nodes(port: Port, id: str) -> None:
    """Remove the block nodes. A device that has just gone, as by a reset, may have let go of them only a bit later."""
    deadline = port.now() + _LET_GO
    while True:
        try:
            await remove_nodes(port, id, await find_top(port, id))
        except CommandError:
            if port.now() >= deadline:
                raise
            await port.sleep(_POLL)
        else:
            return
