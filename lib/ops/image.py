"""What an image file says of itself, and how QEMU is told to open it. Pure but for one read of a header.

An image's format is said, never probed: a guest can write any header into a raw disk.
"""

import errno
import os
import stat
from collections.abc import Mapping
from typing import Any, Final

from ..errors import ArgumentError

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

# qcow2 header (QEMU's docs/interop/qcow2): magic, version and the fields that name other files.
_QCOW2_MAGIC: Final = b"QFI\xfb"
_QCOW2_HEADER: Final = 80
_DATA_FILE_BIT: Final = 1 << 2


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


def check_image(fd: int, path: str, format: str) -> str:
    """Check that the open image can be given to a machine as it is; return QEMU's protocol driver for it.

    :raises ArgumentError: it is neither a file nor a block device, or not of this format, or it refers to other files
    """
    mode = os.fstat(fd).st_mode
    _check_kind(mode, path)
    if format == "qcow2":
        # through a descriptor of its own: ours may be O_DIRECT, which wants aligned reads
        with open(f"/proc/self/fd/{fd}", "rb", buffering=0) as image:
            check_qcow2(image.read(_QCOW2_HEADER), path)
    return "host_device" if stat.S_ISBLK(mode) else "file"


def _check_kind(mode: int, path: str) -> None:
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise ArgumentError("path", path, "a file or a block device")


def check_qcow2(header: bytes, path: str) -> None:
    """Check that an image is qcow2 and complete in itself.

    QEMU would open files that the header names; whoever can write the header could so
    reach any file of the host.

    :raises ArgumentError: it is no qcow2 image, or has a backing file or an external data file
    """
    if len(header) < 72 or not header.startswith(_QCOW2_MAGIC):
        raise ArgumentError("path", path, "an image in qcow2 format, as `format` says")
    version = int.from_bytes(header[4:8], "big")
    if int.from_bytes(header[8:16], "big"):
        raise ArgumentError("path", path, "an image without a backing file")
    if version >= 3 and int.from_bytes(header[72:80], "big") & _DATA_FILE_BIT:
        raise ArgumentError("path", path, "an image without an external data file")


def block_nodes(
    node: str, format: str, driver: str, filename: str, *, read_only: bool, cache: str, discard: str, aio: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of ``blockdev-add`` for an image: a protocol node, then a format node that stands on it by name.

    Not the one within the other: QEMU would open the inner one anew whenever the outer one changes between reading
    and writing, as around a snapshot, and cannot where the file came as a descriptor.
    """
    direct, no_flush, _ = CACHES[cache]
    common = {"read-only": read_only, "discard": discard, "cache": {"direct": direct, "no-flush": no_flush}}
    file = file_node(node)
    protocol = {"driver": driver, "node-name": file, "filename": filename, "aio": aio, **common}
    return protocol, {"driver": format, "node-name": node, "file": file, **common}


def file_node(node: str) -> str:
    """Name of the protocol node under a format node of ours."""
    return f"{node}-file"
