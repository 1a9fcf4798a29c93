"""What an image file says of itself, and how QEMU is told to open it. Pure but for one read of a header.

An image's format is said, never probed: a guest can write any header into a raw disk.
"""

import errno
import os
import stat
from collections.abc import Mapping
from typing import Any, Final

from ..errors import ArgumentError
from . import qcow2

FORMATS: Final = ("raw", "qcow2")

# Cache modes as QEMU's own table has them: cache.direct, cache.no-flush, and the device's write-cache.
CACHES: Final[Mapping[str, tuple[bool, bool, bool]]] = {
    "none": (True, False, True),
    "writeback": (False, False, True),
    "writethrough": (False, False, False),
    "directsync": (True, False, False),
    "unsafe": (False, True, True),
}
DISCARDS: Final = ("unmap", "ignore")
AIOS: Final = ("threads", "native", "io_uring")
DETECT_ZEROES: Final = ("off", "on", "unmap")


def check_choice(field: str, value: str, allowed: tuple[str, ...] | Mapping[str, object]) -> None:
    """Raise :class:`ArgumentError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ArgumentError(field, value, f"one of {', '.join(allowed)}")


def open_image(path: str, *, read_only: bool, direct: bool) -> int:
    """Open an image for QEMU and return the descriptor.

    :param direct: with O_DIRECT: QEMU 9.0 and later take only a descriptor that has it where they want it
    :raises ArgumentError: it is neither a file nor a block device, or cannot be opened with O_DIRECT
    :raises OSError: it cannot be opened
    """
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
    _check_kind(os.stat(path).st_mode, path)  # before the open: to open a FIFO would block
    try:
        return os.open(path, flags | (os.O_DIRECT if direct else 0))
    except OSError as error:
        if direct and error.errno == errno.EINVAL:
            raise ArgumentError("cache", path, "writeback or writethrough: its file system has no O_DIRECT") from error
        raise


def protocol_driver(fd: int, path: str) -> str:
    """QEMU's protocol driver for an open image: ``file`` or ``host_device``.

    :raises ArgumentError: it is neither a file nor a block device
    """
    mode = os.fstat(fd).st_mode
    _check_kind(mode, path)
    return "host_device" if stat.S_ISBLK(mode) else "file"


def read_qcow2(fd: int, path: str) -> qcow2.Header:
    """The header of an open qcow2 image that holds its data itself.

    :raises ArgumentError: it is no qcow2 image, or a broken one, or its data lies in a file that it names
    """
    # through a descriptor of its own: ours may be O_DIRECT, which wants aligned reads
    with open(f"/proc/self/fd/{fd}", "rb", buffering=0) as file:
        header = qcow2.parse(file.read(qcow2.HEAD), path)
    if header.data_file:
        raise ArgumentError("path", path, "an image without an external data file")
    return header


def _check_kind(mode: int, path: str) -> None:
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise ArgumentError("path", path, "a file or a block device")


def block_nodes(
    node: str,
    format: str,
    driver: str,
    filename: str,
    *,
    read_only: bool,
    cache: str,
    discard: str,
    aio: str,
    detect_zeroes: str = "off",
    backing: str | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of ``blockdev-add`` for an image: a protocol node, then a format node that stands on it by name.

    Not the one within the other: QEMU would open the inner one anew whenever the outer one changes between reading
    and writing, as around a snapshot, and cannot where the file came as a descriptor.

    :param backing: the node of the image beneath; None keeps QEMU from looking for one, whatever the header says
    """
    common = common_options(read_only=read_only, cache=cache, discard=discard)
    file = file_node(node)
    protocol = {"driver": driver, "node-name": file, "filename": filename, **common}
    if aio != "threads":
        protocol["aio"] = aio
    return protocol, format_node(node, format, common, detect_zeroes, backing)


def common_options(*, read_only: bool, cache: str, discard: str) -> dict[str, Any]:
    """What a protocol node and the format node on it are both told.

    What QEMU does by itself is not said: it reads a command byte by byte, and takes 3 us for each.
    """
    direct, no_flush, _ = CACHES[cache]
    said: dict[str, Any] = {"read-only": True} if read_only else {}
    if discard != "ignore":
        said["discard"] = discard
    if direct or no_flush:
        said["cache"] = {"direct": direct, "no-flush": no_flush}
    return said


def format_node(
    node: str, format: str, common: Mapping[str, Any], detect_zeroes: str = "off", backing: str | None = None
) -> dict[str, Any]:
    """The arguments of ``blockdev-add`` for a format node on the file node of its name."""
    options: dict[str, Any] = {"driver": format, "node-name": node, "file": file_node(node), **common}
    if detect_zeroes != "off":
        options["detect-zeroes"] = detect_zeroes
    if format == "qcow2":
        options["backing"] = backing
    return options


def file_node(node: str) -> str:
    """Name of the protocol node under a format node of ours."""
    return f"{node}-file"


def backing_node(node: str, depth: int) -> str:
    """Name of the format node of a disk's image at this depth; 0 is the topmost one, whose node has the disk's id."""
    return f"{node}-back{depth}" if depth else node
