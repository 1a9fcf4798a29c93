"""The outcome: words with places for the numbers of descriptors, and what these descriptors are."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

_FD: Final = re.compile(r"\{fd:([\w.-]+)\}")


class DiskNeed(Struct, frozen=True, kw_only=True):
    """An image that is to be opened for QEMU.

    :ivar fd: the name of its descriptor
    :ivar path: of the image
    :ivar format: what it is said to be
    :ivar direct: with O_DIRECT
    """

    fd: str
    path: str
    format: str
    read_only: bool
    direct: bool


class Built(Struct, frozen=True, kw_only=True):
    """A device of the specification, and where it sits."""

    id: str
    kind: str
    bus: str = ""
    addr: str = ""


class Launch:
    """A command line in the making.

    :ivar words: of the command line, ``{fd:NAME}`` where the number of a descriptor goes
    :ivar disks: the images to open
    :ivar devices: what of the specification it makes
    """

    def __init__(self) -> None:
        self.words: list[str] = []
        self.disks: list[DiskNeed] = []
        self.devices: list[Built] = []

    @property
    def fds(self) -> tuple[str, ...]:
        """The names of all descriptors, in the order of the words."""
        return tuple(dict.fromkeys(name for word in self.words for name in _FD.findall(word)))

    def add(self, *words: str) -> None:
        """Add words as they are."""
        self.words += words

    def option(self, option: str, **properties: Any) -> None:
        """Add an option with its properties as JSON, which needs no escaping; ``_`` stands for ``-`` in a name.

        What is None is left out.
        """
        said = {name.replace("_", "-"): value for name, value in properties.items() if value is not None}
        self.add(option, _json(said))

    def put_first(self, words: Iterable[str]) -> None:
        """Put words in front of all others: buses, before what sits on them."""
        self.words = [*words, *self.words]

    def resolve(self, numbers: Mapping[str, int]) -> list[str]:
        """The words with the descriptors' numbers in them.

        :raises KeyError: a descriptor is missing
        """
        return [_FD.sub(lambda found: str(numbers[found[1]]), word) for word in self.words]


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def device(driver: str, **properties: Any) -> tuple[str, str]:
    """The two words of a device."""
    said = {name.replace("_", "-"): value for name, value in properties.items() if value is not None}
    return "-device", _json({"driver": driver} | said)
