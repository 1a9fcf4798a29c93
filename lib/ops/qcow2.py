"""The header of a qcow2 image (QEMU's docs/interop/qcow2), read without QEMU, which would open what it names."""

from typing import Final

from msgspec import Struct

from ..errors import ArgumentError

# Bytes from the start of an image: the header, its extensions, and the backing file's name right after them.
HEAD: Final = 1 << 16

_MAGIC: Final = b"QFI\xfb"
_SIZES: Final = {2: 72, 3: 104}  # of the header's fixed part, by version
_CLUSTER_BITS: Final = range(9, 22)
_MAX_NAME: Final = 1023
_DATA_FILE_BIT: Final = 1 << 2
_EXTENDED_L2_BIT: Final = 1 << 4
_LAZY_REFCOUNTS_BIT: Final = 1 << 0
_BACKING_FORMAT: Final = 0xE2792ACA
_END: Final = 0


class Header(Struct, frozen=True, kw_only=True):
    """What a qcow2 image says of itself. Bytes, unless said otherwise.

    :ivar size: as a guest sees it
    :ivar backing_file: the image that it stands on, as it names it; None for none
    :ivar backing_format: the format of that one; None where it is not recorded
    :ivar data_file: whether what it holds lies in another file
    :ivar extended_l2: whether its clusters have parts that are there or not
    :ivar lazy_refcounts: whether it counts references late, for the price of a repair after a crash
    """

    version: int
    size: int
    cluster_size: int
    backing_file: str | None = None
    backing_format: str | None = None
    data_file: bool = False
    extended_l2: bool = False
    lazy_refcounts: bool = False


def parse(head: bytes, path: str) -> Header:
    """Read the header.

    :param head: the first :data:`HEAD` bytes of the image, or all of it
    :param path: for errors
    :raises ArgumentError: it is no qcow2 image, or a broken one
    """
    version = _number(head, 4, 4)
    if not head.startswith(_MAGIC) or len(head) < _SIZES.get(version, 0):
        raise ArgumentError("path", path, "an image in qcow2 format, as `format` says")
    if version not in _SIZES or _number(head, 20, 4) not in _CLUSTER_BITS:
        raise ArgumentError("path", path, "a qcow2 image of version 2 or 3 whose header is in order")
    cluster_size = 1 << _number(head, 20, 4)
    name = _name(head, path)
    return Header(
        version=version,
        size=_number(head, 24, 8),
        cluster_size=cluster_size,
        backing_file=name,
        backing_format=_extensions(head[:cluster_size], version, path).get(_BACKING_FORMAT) if name else None,
        data_file=version > 2 and bool(_number(head, 72, 8) & _DATA_FILE_BIT),
        extended_l2=version > 2 and bool(_number(head, 72, 8) & _EXTENDED_L2_BIT),
        lazy_refcounts=version > 2 and bool(_number(head, 80, 8) & _LAZY_REFCOUNTS_BIT),
    )


def _number(head: bytes, offset: int, size: int) -> int:
    return int.from_bytes(head[offset : offset + size], "big")


def _name(head: bytes, path: str) -> str | None:
    offset, length = _number(head, 8, 8), _number(head, 16, 4)
    if not offset:
        return None
    name = head[offset : offset + length]
    if not 0 < length <= _MAX_NAME or len(name) < length:
        raise ArgumentError("path", path, f"a qcow2 image that names its backing file within its first {HEAD} bytes")
    return name.decode(errors="surrogateescape")


def _extensions(head: bytes, version: int, path: str) -> dict[int, str]:
    """Type to content, as text; they end at the one of type 0, or where the backing file's name is."""
    found: dict[int, str] = {}
    place = _number(head, 100, 4) if version > 2 else _SIZES[2]
    stop = _number(head, 8, 8) or len(head)
    while place + 8 <= stop:
        kind, length = _number(head, place, 4), _number(head, place + 4, 4)
        if kind == _END:
            break
        if place + 8 + length > len(head):
            raise ArgumentError("path", path, "a qcow2 image whose header extensions are in order")
        found[kind] = head[place + 8 : place + 8 + length].decode(errors="surrogateescape")
        place += 8 + (length + 7) // 8 * 8
    return found
