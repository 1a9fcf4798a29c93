"""Images of disks on this host: opened for a QEMU that is about to start, made, and looked at.

No program is run on an image that somebody else may have written: its header is read
here, and no name in it is followed.
"""

import os
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import Struct

from ..errors import ArgumentError, ImageError, ImageSlow
from ..ops import image, qcow2
from ..ops.chain import Chain, Layer, OpenImage, open_chain

__all__ = ["Chain", "ImageInfo", "Layer", "OpenImage", "create_image", "image_info", "make_overlay", "open_chain"]

# Seconds: an image of any size is made in 10 ms; a busy disk, or one over a network, takes its time to sync it.
CREATE_TIMEOUT: Final = 60.0
_LOG: Final = 2000  # characters of what qemu-img printed, in an error
_SECTOR: Final = 512


class ImageInfo(Struct, frozen=True, kw_only=True):
    """What an image is. Bytes, unless said otherwise.

    :ivar size: as a guest sees it
    :ivar allocated: what it takes of its storage; None for a block device
    :ivar length: of the file or block device
    :ivar cluster_size: of a qcow2 image
    :ivar options: how a qcow2 image is made that is like this one, in qemu-img's words
    :ivar backing_file: the image that it stands on, as it names it: not to be trusted, and relative to its own folder
    :ivar backing_format: the format of that one, where it is recorded
    """

    path: str
    format: str
    size: int
    allocated: int | None
    length: int
    cluster_size: int | None = None
    options: dict[str, str] = {}
    backing_file: str | None = None
    backing_format: str | None = None


def image_info(path: str | os.PathLike[str], format: str) -> ImageInfo:
    """Tell what an image is, by its header; it may be in use.

    :param format: ``raw`` or ``qcow2``: said, never probed
    :raises ArgumentError: it is neither a file nor a block device, or not in this format
    :raises OSError: it cannot be read
    """
    image.check_choice("format", format, image.FORMATS)
    name = os.fspath(path)
    fd = image.open_image(name, read_only=True, direct=False)
    try:
        is_file = image.protocol_driver(fd, name) == "file"
        allocated = os.fstat(fd).st_blocks * _SECTOR if is_file else None
        length = os.lseek(fd, 0, os.SEEK_END)
        if format == "raw":
            return ImageInfo(path=name, format=format, size=length, allocated=allocated, length=length)
        header = image.read_qcow2(fd, name)
    finally:
        os.close(fd)
    return ImageInfo(
        path=name,
        format=format,
        size=header.size,
        allocated=allocated,
        length=length,
        cluster_size=header.cluster_size,
        options=_options(header),
        backing_file=header.backing_file,
        backing_format=header.backing_format,
    )


def _options(header: qcow2.Header) -> dict[str, str]:
    options = {"cluster_size": str(header.cluster_size), "compat": "0.10" if header.version < 3 else "1.1"}
    found = {"extended_l2": header.extended_l2, "lazy_refcounts": header.lazy_refcounts}
    return options | {name: "on" for name, there in found.items() if there}


def create_image(
    path: str | os.PathLike[str],
    format: str,
    size: int | None = None,
    *,
    backing: Layer | None = None,
    timeout: float = CREATE_TIMEOUT,
    qemu_img: str = "qemu-img",
) -> ImageInfo:
    """Make an image; under its name it is whole or not there, and on disk when this returns.

    :param path: nothing may be there; only its owner may read it
    :param format: ``raw`` or ``qcow2``
    :param size: in bytes, in whole sectors of 512; None for that of `backing`
    :param backing: the image that the new one stands on, for qcow2; it is recorded by its absolute path
    :param timeout: seconds for all of it
    :param qemu_img: the program
    :raises ArgumentError: an argument is wrong; nothing was made
    :raises OSError: it cannot be made there, as where something is already (``FileExistsError``)
    :raises ImageError: qemu-img could not make it; nothing is left
    """
    image.check_choice("format", format, image.FORMATS)
    if backing is not None and format == "raw":
        raise ArgumentError("backing", os.fspath(backing.path), "only under a qcow2 image")
    words, beneath = _create_words(format, backing, qemu_img)
    if size is None and beneath is not None:
        size = beneath.size
    if size is None or size <= 0 or size % _SECTOR:
        raise ArgumentError(
            "size", size, f"bytes, in whole sectors of {_SECTOR}; needed where there is no backing image"
        )
    target = Path(path).absolute()
    if os.path.lexists(target):  # once more at the end, where nobody can come in between
        raise FileExistsError(None, "there is something already", str(target))
    _make(target, words, size, timeout)
    return image_info(target, format)


def make_overlay(
    path: str, backing: Layer, *, shown: str, timeout: float = CREATE_TIMEOUT, qemu_img: str = "qemu-img"
) -> None:
    """Make a file of ours a qcow2 image that stands on another one, and holds nothing yet.

    :param path: an empty file; nobody else may know it
    :param backing: the image beneath; it is recorded by its absolute path
    :param shown: the path that it is going to have, for errors
    :param timeout: seconds for all of it
    :param qemu_img: the program
    :raises ArgumentError: `backing` is not in its format
    :raises OSError: `backing` cannot be read
    :raises ImageError: qemu-img could not make it
    """
    words, beneath = _create_words("qcow2", backing, qemu_img)
    assert beneath is not None
    _run([*words, path, str(beneath.size)], shown, timeout)


def make_blank(
    path: str,
    format: str,
    size: int,
    *,
    shown: str,
    options: Mapping[str, str] = {},
    backing: tuple[str, str] | None = None,
    timeout: float = CREATE_TIMEOUT,
    qemu_img: str = "qemu-img",
) -> None:
    """Make a file of ours an image that holds nothing yet.

    :param path: an empty file; nobody else may know it
    :param size: in bytes
    :param shown: the path that it is going to have, for errors
    :param options: of a qcow2 image, in qemu-img's words
    :param backing: what it records as its backing file, and as its format: taken as it is, and not looked at
    :param timeout: seconds for all of it
    :param qemu_img: the program
    :raises ImageError: qemu-img could not make it
    """
    words = [qemu_img, "create", "-q", "-f", format]
    words += ["-o", ",".join(f"{name}={value}" for name, value in options.items())] if options else []
    words += ["-u", "-b", backing[0], "-F", backing[1]] if backing is not None else []
    _run([*words, path, str(size)], shown, timeout)


def _create_words(format: str, backing: Layer | None, qemu_img: str) -> tuple[list[str], ImageInfo | None]:
    """How qemu-img is called, but for path and size, and what is beneath."""
    words = [qemu_img, "create", "-q", "-f", format]
    if backing is None:
        return words, None
    beneath = image_info(*backing)
    # -u: qemu-img does not open it
    return [*words, "-u", "-b", os.path.abspath(beneath.path), "-F", beneath.format], beneath


def _make(target: Path, words: Sequence[str], size: int, timeout: float) -> None:
    new = target.with_name(f".{target.name[:64]}.{secrets.token_hex(8)}.new")
    fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _run([*words, str(new), str(size)], str(target), timeout)
        os.fsync(fd)
        os.link(new, target)  # unlike a rename it takes nobody else's place
    finally:
        os.close(fd)
        with suppress(FileNotFoundError):
            new.unlink()
    _sync_folder(target.parent)


def _run(words: Sequence[str], path: str, timeout: float) -> None:
    environment = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ImageSlow(path, timeout) from error
    except FileNotFoundError as error:
        raise ImageError(path, f"there is no {words[0]}: install the Debian package qemu-utils") from error
    if done.returncode:
        raise ImageError(path, done.stdout.decode(errors="replace").strip()[-_LOG:] or f"status {done.returncode}")


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
