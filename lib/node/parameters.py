"""What each call of the API takes: the bodies of its requests, checked before anything is touched."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ..kvm.spec.types import Size

Seconds = Annotated[float, Meta(ge=0, le=86400, description="seconds")]
Name = Annotated[str, Meta(min_length=1, max_length=63, description="the name of an instance")]

MeansName = Literal["blackout", "bandwidth", "auto-converge", "dirty-limit", "postcopy"]  # `Means`, for who asks
Epoch = Annotated[int, Meta(ge=1, le=2**53, description="a whole number from 1: it counts the passages")]
NodeName = Annotated[str, Meta(min_length=1, max_length=253, description="the name of a node")]


class Nothing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nothing is taken."""


class Start(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar paused: do not let the guest run yet
    :ivar fresh: of one that is saved: forget that, and boot it
    """

    paused: bool = False
    fresh: bool = False


class Save(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar file: its path, where nothing is yet; empty: in the instance's own folder"""

    file: str = ""


class Restore(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar file: its path, where it was moved
    :ivar emulator: the QEMU, where it is to be another one
    :ivar paused: do not let the guest run yet
    """

    file: str = ""
    emulator: str = ""
    paused: bool = False


class Upgrade(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar emulator: the QEMU, where it is to be another one"""

    emulator: str = ""


class Stop(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar timeout: seconds for the guest to shut down
    :ivar force: end it after that as if the plug was pulled
    """

    timeout: Seconds = 60.0
    force: bool = True


class Reboot(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar timeout: seconds for the guest to shut down; after that it is forced to"""

    timeout: Seconds = 60.0


class Rename(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar to: the new name"""

    to: Name


class Clone(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar to: the name of the clone
    :ivar disks: for disks, by their ids, the path of the copy
    :ivar linked: the disks are overlays on the images of the old ones, which have to be read only
    """

    to: Name
    disks: dict[str, str] = {}
    linked: bool = False


class Unplug(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar id: of the device
    :ivar timeout: seconds for the guest to let go of it
    """

    id: str
    timeout: Seconds = 30.0


class Resize(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar id: of the disk
    :ivar size: bytes, or a text such as 20GiB
    :ivar shrink: it may be smaller than it was, which cuts off its end
    :ivar dry_run: only see whether it may; the answer is the size that it has
    """

    id: str
    size: Size
    shrink: bool = False
    dry_run: bool = False


class Throttle(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar id: of the disk
    :ivar limits: as in a specification; none lifts them all
    """

    id: str
    limits: dict[str, int] = {}


class Medium(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar id: of the drive
    :ivar source: of the medium; empty takes it out
    :ivar format: of it
    :ivar force: even if the guest holds the tray shut
    """

    id: str
    source: str = ""
    format: str = "raw"
    force: bool = False


class Link(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar id: of the network card
    :ivar up: its cable is plugged in
    """

    id: str
    up: bool


class Change(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar id: of the network card
    :ivar fields: what is to be other than it is, as in a specification
    """

    id: str
    fields: dict[str, Any]


class Vcpus(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar count: how many it is to have
    :ivar timeout: seconds for the guest to let go of them
    :ivar even_under_tcg: without KVM, too, where QEMU may abort over it
    """

    count: Annotated[int, Meta(ge=1, le=4096)]
    timeout: Seconds = 30.0
    even_under_tcg: bool = False


class AddMemory(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar size: bytes, or a text such as 512MiB
    :ivar type: a DIMM, or virtio-mem that can be resized
    """

    size: Size
    type: Literal["dimm", "virtio-mem"] = "dimm"


class ResizeMemory(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar id: of the virtio-mem
    :ivar size: what the guest is to have of it: bytes, or a text
    :ivar timeout: seconds for the guest
    """

    id: str
    size: Size
    timeout: Seconds = 30.0


class Balloon(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar size: what the guest is to do with: bytes, or a text
    :ivar timeout: seconds for the guest
    """

    size: Size
    timeout: Seconds = 30.0


class Accept(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar parcel: of the other node, as it tells it
    :ivar uri: where to listen: ``tcp:192.0.2.7:0``, ``unix:/path``
    :ivar epoch: of the passage
    :ivar other: the node that it comes from
    :ivar capabilities: of QEMU's migration
    :ivar parameters: likewise
    :ivar emulator: the QEMU that is to wait, where it is another one than the specification's
    """

    parcel: dict[str, Any]
    uri: str
    epoch: Epoch
    other: NodeName
    capabilities: dict[str, bool] = {}
    parameters: dict[str, Any] = {}
    emulator: str = ""


class Announce(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar initial: milliseconds from the first time to the second
    :ivar max: milliseconds between two times at most
    :ivar rounds: times in all; 0: not at all
    :ivar step: milliseconds that each pause is longer than the one before
    """

    initial: Annotated[int, Meta(ge=0, le=100_000)] = 50
    max: Annotated[int, Meta(ge=0, le=100_000)] = 550
    rounds: Annotated[int, Meta(ge=0, le=1000)] = 5
    step: Annotated[int, Meta(ge=1, le=10_000)] = 100


class Move(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar node: where the other node's daemon answers: a host, and maybe a port
    :ivar blackout: seconds that the guest may stand still at most
    :ivar deadline: seconds that the whole may take; None: 60, and 60 for each GiB that goes over
    :ivar means: what may be done so that it comes to its end, in this order; None: what costs the guest no risk
    :ivar postcopy: it may be finished by postcopy, which stakes the machine on both nodes
    :ivar postcopy_preempt: in a postcopy, pages that the guest waits for overtake the others, by a connection of their
        own; None: where both QEMUs are 8.0 or later
    :ivar throttle: percent of the vCPUs' time that auto-converge may take at most
    :ivar bandwidth: bytes a second to begin with; 0: as fast as it goes
    :ivar ceiling: bytes a second up to which that may be raised; 0: not at all
    :ivar multifd: connections that memory goes over; 0: the one
    :ivar compression: of what goes over several: ``zlib`` or ``zstd``; empty: none
    :ivar zero_copy: the kernel sends memory from where it lies; wants several connections, no TLS, and no compression
    :ivar copy_disks: images that the other node has not are copied
    :ivar shared_disks: ids of disks that are on storage in common, where the nodes cannot see that themselves
    :ivar announce: how the switches are told where its network cards are now
    :ivar emulator: the QEMU that is to wait there, where it is another one than the specification's
    :ivar tls: memory and disks go over by TLS 1.3, with certificates of this migration's own
    :ivar recover: go on with one that has no job any more
    :ivar check: only look whether it could be moved so: the answer is all that is in the way; nothing is done
    """

    node: Annotated[str, Meta(min_length=1, max_length=300)]
    blackout: Annotated[float, Meta(gt=0, le=60)] = 0.3
    deadline: Annotated[float, Meta(gt=0, le=604_800)] | None = None
    means: tuple[MeansName, ...] | None = None
    postcopy: bool = False
    postcopy_preempt: bool | None = None
    throttle: Annotated[int, Meta(ge=1, le=99)] = 80
    bandwidth: Annotated[int, Meta(ge=0, le=1 << 50)] = 0
    ceiling: Annotated[int, Meta(ge=0, le=1 << 50)] = 0
    multifd: Annotated[int, Meta(ge=0, le=255)] = 0
    compression: Literal["", "zlib", "zstd"] = ""
    zero_copy: bool = False
    copy_disks: bool = False
    shared_disks: tuple[str, ...] = ()
    announce: Announce = Announce()
    emulator: str = ""
    tls: bool = True
    recover: bool = False
    check: bool = False


class Migrate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar uri: where the other side listens
    :ivar epoch: of the passage
    :ivar other: the node that it goes to
    :ivar capabilities: of QEMU's migration
    :ivar parameters: likewise
    """

    uri: str
    epoch: Epoch
    other: NodeName
    capabilities: dict[str, bool] = {}
    parameters: dict[str, Any] = {}


class Passage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar epoch: of the passage"""

    epoch: Epoch


class Qmp(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar execute: a command of QEMU's
    :ivar arguments: of it
    """

    execute: Annotated[str, Meta(min_length=1, max_length=100)]
    arguments: dict[str, Any] = {}
