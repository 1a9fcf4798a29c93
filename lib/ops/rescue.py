"""For when QEMU's main loop hangs: commands that go past it, out of band.

A disk or a migration on a network that has died can hold up QEMU's main loop: in ``stop``, which waits for
the guest's last requests, or on the target of a broken postcopy. Every other command then waits behind it, and
a new connection does not even get through its negotiation. So keep one open from before. These go out of band
where that was negotiated (it is, unless the connection was told ``oob=False``), and in band where not.

They work while no more than eight commands wait in QEMU, which the session sees to.
"""

from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct

from ..errors import ArgumentError
from .port import Port

# Each kind of thing that can be yanked, and the member that names which one.
_NAMED_BY: Final = {"block-node": "node-name", "chardev": "id"}


class YankInstance(Struct, frozen=True):
    """A connection of QEMU's that can be cut.

    :ivar type: ``block-node`` (NBD, ...), ``chardev`` (a socket) or ``migration``
    :ivar name: of the block node or the character device; empty for the migration
    """

    type: str
    name: str = ""


async def query_yank(port: Port) -> list[YankInstance]:
    """Return what can be yanked now (``query-yank``, QEMU 6.0 and later), out of band."""
    found = await port.execute("query-yank", oob=True)
    return [YankInstance(each["type"], each.get(_NAMED_BY.get(each["type"], ""), "")) for each in found]


async def yank(port: Port, instances: Iterable[YankInstance]) -> None:
    """Cut connections at once (``yank``, QEMU 6.0 and later), out of band: what waits on them fails, and goes on.

    A guest's requests on the disk fail as its ``werror`` and ``rerror`` say; the migration fails.

    :param instances: as :func:`query_yank` has them
    :raises CommandError: one of them is none (``DeviceNotFound``); nothing was cut
    """
    await port.execute("yank", {"instances": [_instance(each) for each in instances]}, oob=True)


def _instance(instance: YankInstance) -> dict[str, Any]:
    if instance.type == "migration":
        return {"type": instance.type}
    if instance.type not in _NAMED_BY:
        raise ArgumentError("instances", instance, "of type block-node, chardev or migration")
    return {"type": instance.type, _NAMED_BY[instance.type]: instance.name}


async def migrate_pause(port: Port) -> None:
    """Break off a migration in postcopy, on either side, out of band (``migrate-pause``).

    Both sides go to ``postcopy-paused``: the way to recover when the network is dead, and nobody has noticed. Not
    before the target's run state has left ``inmigrate``: QEMU loses the machine when it is broken off in the first
    moment of postcopy, though both sides say ``postcopy-active`` (tried on 7.2 and 10.0). Nor on a target whose
    connection may just be breaking: QEMU looks at what it has taken away, and dies (7.2); :func:`yank` cuts it as well.

    :raises CommandError: it is not in postcopy
    """
    await port.execute("migrate-pause", oob=True)


async def migrate_recover(port: Port, uri: str) -> None:
    """Listen anew on the target of a paused postcopy, out of band (``migrate-recover``); its main loop hangs.

    Then let the source ``migrate`` there with ``resume``.

    :param uri: where to listen: ``unix:/path``, ``tcp:host:port``
    :raises CommandError: it is not in ``postcopy-paused``
    """
    await port.execute("migrate-recover", {"uri": uri}, oob=True)
