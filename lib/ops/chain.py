"""Images that stand on each other: each said, each opened by us, so that QEMU follows no name in a header.

Whoever can write an image's header could else reach any file of the host: as its backing
file, or as one whose format is guessed.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final, NamedTuple, Self

from ..errors import ArgumentError
from . import image, qcow2
from .fdset import Held

# As many as QEMU itself is known to be used with; each costs two nodes and a descriptor, and slows each read down.
MAX_LAYERS: Final = 200


class Layer(NamedTuple):
    """An image and its format, as the caller knows them: neither is ever looked up in another image."""

    path: str | os.PathLike[str]
    format: str


class OpenImage(NamedTuple):
    """An image that we have open.

    :ivar held: the descriptor, to be closed as soon as QEMU has its own: it keeps the image locked
    :ivar driver: QEMU's protocol driver for it: ``file`` or ``host_device``
    :ivar header: of a qcow2 image
    """

    path: str
    format: str
    held: Held
    driver: str
    header: qcow2.Header | None


class Chain:
    """An image and those that it stands on, all open; a context manager that closes them.

    :ivar images: topmost first
    """

    def __init__(self, images: tuple[OpenImage, ...]) -> None:
        self.images = images

    @property
    def fds(self) -> list[int]:
        """The descriptors, topmost image first."""
        return [opened.held.fd for opened in self.images]

    def close(self) -> None:
        """Close those that are still open."""
        for opened in self.images:
            opened.held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_chain(layers: Sequence[Layer], *, read_only: bool = False, cache: str = "none") -> Chain:
    """Open an image and all that it stands on, or nothing.

    :param layers: topmost first: all that there are, for the headers must agree that the chain ends there
    :param read_only: whether the topmost one is opened so; the others always are
    :param cache: ``none``, ``writeback``, ``writethrough``, ``directsync`` or ``unsafe``; says whether by O_DIRECT
    :raises ArgumentError: a file is of no use, not in its format, or another chain than the headers tell of; the
        field is ``path``, or ``backing[0].path`` and so on for those beneath it
    :raises OSError: a file cannot be opened
    """
    image.check_choice("cache", cache, image.CACHES)
    if not 0 < len(layers) <= MAX_LAYERS:
        raise ArgumentError("backing", len(layers) - 1, f"at most {MAX_LAYERS - 1} images beneath one")
    direct = image.CACHES[cache][0]
    opened: list[OpenImage] = []
    with ExitStack() as undo:
        for depth, layer in enumerate(layers):
            found = _open(layer, depth, read_only or depth > 0, direct, undo)
            _check_new(found, opened, depth)
            opened.append(found)
        _check_chain(opened)
        undo.pop_all()
    return Chain(tuple(opened))


def _field(depth: int, name: str) -> str:
    return f"backing[{depth - 1}].{name}" if depth else name


def _open(layer: Layer, depth: int, read_only: bool, direct: bool, undo: ExitStack) -> OpenImage:
    path = os.fspath(layer.path)
    image.check_choice(_field(depth, "format"), layer.format, image.FORMATS)
    try:
        held = Held(image.open_image(path, read_only=read_only, direct=direct))
        undo.callback(held.close)
        driver = image.protocol_driver(held.fd, path)
        header = image.read_qcow2(held.fd, path) if layer.format == "qcow2" else None
    except ArgumentError as error:
        field = _field(depth, "path") if error.field == "path" else error.field
        raise ArgumentError(field, error.value, error.allowed) from error.__cause__
    return OpenImage(path, layer.format, held, driver, header)


def _check_new(found: OpenImage, above: Sequence[OpenImage], depth: int) -> None:
    if any(os.path.sameopenfile(found.held.fd, other.held.fd) for other in above):
        raise ArgumentError(_field(depth, "path"), found.path, "a file that is in the chain once")


def _check_chain(opened: Sequence[OpenImage]) -> None:
    """Each image names a backing file if another one is beneath it, in the format that is recorded, and else none."""
    for depth, (above, below) in enumerate(zip(opened, [*opened[1:], None], strict=True)):
        names_one = above.header is not None and above.header.backing_file is not None
        recorded = above.header and above.header.backing_format
        if below is None and names_one:
            allowed = "an image without a backing file, or with that one said in `backing`"
            raise ArgumentError(_field(depth, "path"), above.path, allowed)
        if below is not None and not names_one:
            raise ArgumentError(_field(depth + 1, "path"), below.path, f"none: '{above.path}' has no backing file")
        if below is not None and recorded not in (None, below.format):
            raise ArgumentError(_field(depth + 1, "format"), below.format, f"'{recorded}', as '{above.path}' records")
