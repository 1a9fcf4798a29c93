"""What each call of the API takes: the bodies of its requests, checked before anything is touched."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ..kvm.spec.types import Size

Seconds = Annotated[float, Meta(ge=0, le=86400, description="seconds")]
Name = Annotated[str, Meta(min_length=1, max_length=63, description="the name of an instance")]


class Nothing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nothing is taken."""


class Start(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar paused: do not let the guest run yet"""

    paused: bool = False


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
    """

    id: str
    size: Size
    shrink: bool = False


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


class Qmp(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """:ivar execute: a command of QEMU's
    :ivar arguments: of it
    """

    execute: Annotated[str, Meta(min_length=1, max_length=100)]
    arguments: dict[str, Any] = {}
