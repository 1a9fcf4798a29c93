"""A descriptor of ours goes to QEMU, which names it ``/dev/fdset/N`` where it takes a file name."""

import os
import secrets
from collections.abc import Collection
from typing import Final, Self

from ..qmp.life import Call
from . import image
from .port import Port
from .undo import Revert, Undo

# Numbers of sets that we choose: QEMU's own begin with 0, and are C's ints.
_CHOSEN_BITS: Final = 30


class Held:
    """Our copy of a descriptor, closed once."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Close it, if that was not done."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def opaque_of(id: str) -> str:
    """How a set of descriptors is marked that is there for the device of this id."""
    return f"drover:{id}"


async def add_fd(undo: Undo, held: Held, id: str) -> int:
    """Pass a descriptor on and close our copy, which would keep the image locked after QEMU's death (``add-fd``).

    Once a node has opened the set, ``remove-fd`` is due: the node has a copy of its own.

    :param id: what it is for
    :returns: number of the set
    """
    added = await undo.step(
        "add-fd",
        {"opaque": opaque_of(id)},
        fd=held.fd,
        undo=lambda added: Revert("remove-fd", {"fdset-id": added["fdset-id"]}, may_be_gone=True),
    )
    held.close()
    fdset: int = added["fdset-id"]
    return fdset


def send_fd(undo: Undo, held: Held, id: str) -> tuple[Call, int]:
    """The same, without waiting: what uses the set may be sent right behind it.

    The number is drawn by lot. Where somebody had the same one, QEMU would still take the last descriptor of that set.

    :param id: what it is for
    :returns: the command, and the number of the set
    """
    fdset = (1 << _CHOSEN_BITS) + secrets.randbits(_CHOSEN_BITS)
    way_back = Revert("remove-fd", {"fdset-id": fdset}, may_be_gone=True)
    call = undo.send("add-fd", {"fdset-id": fdset, "opaque": opaque_of(id)}, fd=held.fd, undo=way_back)
    if call.sent:
        held.close()
    return call, fdset


async def add_file(port: Port, undo: Undo, held: Held, node: str, id: str, *, read_only: bool) -> None:
    """Have QEMU open a file as a raw node, with the host's cache; at the return it alone has it open.

    The node is a raw one above the file's: by itself that one may ask a client of an export for whole blocks.

    :param id: what it is for
    """
    fdset = await add_fd(undo, held, id)
    way = image.common_options(read_only=read_only, cache="writeback", discard="unmap")
    file = {"driver": "file", "filename": f"/dev/fdset/{fdset}", **way}
    options = {"driver": "raw", "node-name": node, "file": file, **way}
    await undo.step("blockdev-add", options, undo=Revert("blockdev-del", {"node-name": node}))
    await port.execute("remove-fd", {"fdset-id": fdset})


async def remove_fdsets(port: Port, ids: Collection[str]) -> None:
    """Have QEMU close the sets of descriptors that are there for these devices; what has opened one keeps its copy.

    A set that was given on the command line stays otherwise, and with it the image open when its disk has gone.
    """
    marks = set(map(opaque_of, ids))
    for fdset in await port.execute("query-fdsets"):
        if any(fd.get("opaque") in marks for fd in fdset["fds"]):
            await port.execute("remove-fd", {"fdset-id": fdset["fdset-id"]})
