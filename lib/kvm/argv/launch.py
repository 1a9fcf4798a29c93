"""What :func:`~drover.kvm.argv.build` takes and gives, and the command line as it is being written."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from msgspec import Struct, json

from ...errors import ArgumentError, NotSupported
from ...ops.chain import Layer
from ..parcel import Board
from ..spec import Spec

_PLACEHOLDER: Final = re.compile(r"\{fd:([A-Za-z0-9._-]+)\}")

_UNDERSCORED: Final = frozenset({"chassis_nr", "host_mtu"})  # so QEMU calls them, and all others with '-'


class Qemu(Protocol):
    """What a QEMU is asked: :class:`drover.kvm.binary.Binary` knows it."""

    def has_device(self, name: str) -> bool:
        """Whether it has a device of this driver name."""


class Given(Struct, frozen=True, kw_only=True):
    """What a command line needs that is in no specification.

    :ivar machine: the versioned machine type
    :ivar accelerator: ``kvm`` or ``tcg``
    :ivar private: folder for the sockets that QEMU makes itself
    :ivar block_devices: which of the images (:func:`~drover.kvm.argv.disks.disk_needs`) are block devices: the names
        of their descriptors
    :ivar firmware_code: OVMF
    :ivar firmware_vars: the instance's own store of its variables
    :ivar seed: the disk for cloud-init
    :ivar places: bus and address where devices were before, by their ids: there they stay while there is such a bus
    :ivar incoming: it waits for its machine, which comes from another QEMU
    :ivar board: what that machine was booted with, and what came since; None: as the specification has it
    """

    machine: str
    accelerator: str
    private: Path
    block_devices: frozenset[str] = frozenset()
    firmware_code: str = ""
    firmware_vars: str = ""
    seed: str = ""
    places: Mapping[str, tuple[str, str]] = {}
    incoming: bool = False
    board: Board | None = None


class DiskNeed(Struct, frozen=True, kw_only=True):
    """An image to be opened for QEMU, with those that it stands on.

    :ivar fds: names of the descriptors, of the topmost image first
    :ivar layers: the images: path and format
    :ivar read_only: how the topmost one is opened; the others are only read
    :ivar cache: how the host caches them: with O_DIRECT, or not
    """

    fds: tuple[str, ...]
    layers: tuple[Layer, ...]
    read_only: bool
    cache: str


class Built(Struct, frozen=True, kw_only=True):
    """A device of the specification, and where it sits.

    :ivar kind: ``disk``, ``nic``, ``usb``, ``vfio``, ``cpu`` or ``memory``
    :ivar size: of memory: what the guest has of it, in bytes
    """

    id: str
    kind: str
    bus: str = ""
    addr: str = ""
    size: int = 0


class Launch(Struct, frozen=True, kw_only=True):
    """A command line, complete but for the numbers of descriptors.

    :ivar words: the arguments, without the program; ``{fd:NAME}`` is where a number goes
    :ivar fds: names of the descriptors, in order
    :ivar disks: those of them that are images: the caller opens them as it is said here
    :ivar devices: what of the specification it makes
    """

    words: tuple[str, ...]
    fds: tuple[str, ...]
    disks: tuple[DiskNeed, ...]
    devices: tuple[Built, ...]

    def resolve(self, fds: Mapping[str, int]) -> list[str]:
        """The words with the numbers in them.

        :raises ArgumentError: a descriptor is missing
        """
        if missing := [name for name in self.fds if name not in fds]:
            raise ArgumentError("fds", sorted(fds), f"these are missing: {', '.join(missing)}")

        def number(found: re.Match[str]) -> str:
            # what looks like ours and is not, is a text of the specification's
            return str(fds[found[1]]) if found[1] in self.fds else found[0]

        return [_PLACEHOLDER.sub(number, word) for word in self.words]


class Writer:
    """A command line that is being written.

    :ivar spec, given: for whom, and what is known
    """

    def __init__(self, spec: Spec, given: Given, qemu: Qemu | None) -> None:
        self.spec = spec
        self.given = given
        self._qemu = qemu
        self._words: list[str] = []
        self._fds: list[str] = []
        self._sets = 0
        self._disks: list[DiskNeed] = []
        self._devices: list[Built] = []

    def finish(self) -> Launch:
        """All of it."""
        return Launch(
            words=tuple(self._words), fds=tuple(self._fds), disks=tuple(self._disks), devices=tuple(self._devices)
        )

    def add(self, *words: str) -> None:
        """Words as they are."""
        self._words += words

    def pairs(self, option: str, first: str = "", /, **values: str) -> None:
        """An option of ``key=value`` pairs, with what stands before them; ``_`` stands for ``-`` in a name."""
        pairs = [f"{key.replace('_', '-')}={escape(value)}" for key, value in values.items()]
        self.add(option, ",".join([first, *pairs] if first else pairs))

    def json(self, option: str, value: Mapping[str, Any]) -> None:
        """An option that takes JSON: nothing in it has to be escaped."""
        self.add(option, json.encode(value).decode())

    def device(self, driver: str, **properties: Any) -> None:
        """A device; ``_`` stands for ``-`` in a name, and what is None is left to QEMU.

        :raises NotSupported: this QEMU has no such device
        """
        if self._qemu is not None and not self._qemu.has_device(driver):
            raise NotSupported(f"the device {driver}")
        self.json("-device", {"driver": driver, **_told(properties)})

    def object(self, kind: str, id: str, **properties: Any) -> None:
        """An object; ``_`` stands for ``-`` in a name, and what is None is left to QEMU."""
        self.json("-object", {"qom-type": kind, "id": id, **_told(properties)})

    def note(self, kind: str, id: str, bus: str = "", addr: str = "", size: int = 0) -> None:
        """Remember that a device of the specification is at a place."""
        self._devices.append(Built(kind=kind, id=id, bus=bus, addr=addr, size=size))

    def fd(self, name: str) -> str:
        """What stands for a descriptor's number."""
        if name not in self._fds:
            self._fds.append(name)
        return f"{{fd:{name}}}"

    def fdset(self, name: str, opaque: str) -> str:
        """A file that QEMU gets as a descriptor where it wants to open a path: the path."""
        self._sets += 1
        self.pairs("-add-fd", fd=self.fd(name), set=str(self._sets), opaque=f"drover:{opaque}")
        return f"/dev/fdset/{self._sets}"

    def need(self, need: DiskNeed) -> None:
        """Remember an image that is to be opened."""
        self._disks.append(need)


def _told(properties: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: value for name, value in properties.items() if value is not None}
    return {name if name in _UNDERSCORED else name.replace("_", "-"): value for name, value in told.items()}


def escape(value: str) -> str:
    """A value within an option of pairs: a comma is doubled."""
    return value.replace(",", ",,")
