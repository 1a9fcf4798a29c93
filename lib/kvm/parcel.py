"""What one node tells another of an instance that is to move there."""

from typing import Literal

from msgspec import Struct

from ..qmp.ready import ready
from .spec import Spec


class Vcpu(Struct, frozen=True, kw_only=True):
    """A vCPU that was plugged in since the boot.

    :ivar id: of the device
    :ivar driver: of it
    :ivar place: socket, core and thread numbers, as far as the machine has them
    """

    id: str
    driver: str
    place: dict[str, int]


class Stick(Struct, frozen=True, kw_only=True):
    """Memory that was plugged in since the boot.

    :ivar id: of the device; what it is made of has ``-mem`` behind it
    :ivar size: in bytes; of virtio-mem the most that it can give
    :ivar used: what the guest has of it, in bytes
    :ivar at: where it begins in the guest's address space
    :ivar node: NUMA node
    :ivar slot: of a DIMM
    :ivar bus: of virtio-mem, and `addr` on it
    """

    id: str
    kind: Literal["dimm", "virtio-mem"]
    size: int
    used: int
    at: int
    node: int = 0
    slot: int = 0
    bus: str = ""
    addr: str = ""


class Board(Struct, frozen=True, kw_only=True):
    """What a machine was booted with and no longer follows from its specification, which grows with what is plugged in.

    Where it is other on the two sides, the machine's state cannot be read.

    :ivar vcpus: how many it was booted with
    :ivar memory: likewise, in bytes
    :ivar root_ports: their number
    :ivar scsi: controllers, and the I/O thread of each
    :ivar usb: it has a USB controller
    :ivar plugged_vcpus: what came since
    :ivar sticks: likewise
    """

    vcpus: int
    memory: int
    root_ports: int = 0
    scsi: dict[str, str] = {}
    usb: bool = False
    plugged_vcpus: tuple[Vcpu, ...] = ()
    sticks: tuple[Stick, ...] = ()


class Parcel(Struct, frozen=True, kw_only=True):
    """What a node has to know of an instance that is to arrive there. It holds the instance's secrets.

    :ivar spec: of the machine that runs
    :ivar machine: its versioned type
    :ivar version: of its QEMU
    :ivar accelerator: ``kvm`` or ``tcg``
    :ivar generation: counts its starts
    :ivar places: bus and address of each device: the other side has to have them where they are
    :ivar board: what they are plugged into; None: as the specification has it
    """

    spec: Spec
    machine: str
    version: tuple[int, int, int]
    accelerator: str
    generation: int
    places: dict[str, tuple[str, str]] = {}
    board: Board | None = None


ready(Parcel)
