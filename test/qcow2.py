"""Headers of qcow2 images, made by hand: for those who look at no more of an image."""

import struct


def header(size: int = 1 << 20, backing: str = "", backing_format: str = "") -> bytes:
    """The first cluster of an image of version 3."""
    extension = struct.pack(">II", 0xE2792ACA, len(backing_format)) + backing_format.encode().ljust(8, b"\0")
    extensions = (extension if backing_format else b"") + bytes(8)
    place = 104 + len(extensions)
    fixed = struct.pack(">4sIQIIQ", b"QFI\xfb", 3, place if backing else 0, len(backing), 16, size)
    return (fixed.ljust(96, b"\0") + struct.pack(">II", 4, 104) + extensions + backing.encode()).ljust(1 << 16, b"\0")
