"""The devices of a specification: disks, NICs, consoles and what else can be plugged in."""

from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import asdict

from ...ops.throttle import MAX_LENGTH, MAX_RATE, Limits
from ..taps import MAX_QUEUES
from .types import BootIndex, Id, Line, Mac, Path, PciAddress, Secret

Format = Literal["raw", "qcow2"]
Source = Annotated[
    str,
    Meta(
        pattern=r"^(/[^\x00\n]*|nbd://[^\x00\n]+|nbd\+unix://[^\x00\n]*|rbd:[^\x00\n]+)?$",
        description="an absolute path, nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH or rbd:POOL/IMAGE",
    ),
]
# As slirp has it: the host's address and the guest's may be left out.
Forward = Annotated[
    str,
    Meta(
        pattern=r"^(tcp|udp):[0-9.]*:\d{1,5}-[0-9.]*:\d{1,5}$",
        description="a forwarded port such as tcp:127.0.0.1:2222-:22",
    ),
]

Rate = Annotated[int, Meta(ge=0, le=MAX_RATE)]
Seconds = Annotated[int, Meta(ge=1, le=MAX_LENGTH)]


class Throttle(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of bytes and of requests a second; 0 is none. Either ``…_total``, or ``…_read`` and ``…_write``.

    :ivar bps_total: bytes a second
    :ivar bps_read: bytes a second, when reading
    :ivar bps_write: bytes a second, when writing
    :ivar iops_total: requests a second
    :ivar iops_read: requests a second, when reading
    :ivar iops_write: requests a second, when writing
    :ivar bps_total_max: the rate of a burst, bytes a second
    :ivar bps_read_max: the rate of a burst, bytes a second, when reading
    :ivar bps_write_max: the rate of a burst, bytes a second, when writing
    :ivar iops_total_max: the rate of a burst, requests a second
    :ivar iops_read_max: the rate of a burst, requests a second, when reading
    :ivar iops_write_max: the rate of a burst, requests a second, when writing
    :ivar bps_total_max_length: for how many seconds a burst may last, bytes
    :ivar bps_read_max_length: for how many seconds a burst may last, bytes, when reading
    :ivar bps_write_max_length: for how many seconds a burst may last, bytes, when writing
    :ivar iops_total_max_length: for how many seconds a burst may last, requests
    :ivar iops_read_max_length: for how many seconds a burst may last, requests, when reading
    :ivar iops_write_max_length: for how many seconds a burst may last, requests, when writing
    :ivar iops_size: a request of more bytes than this counts as several; 0: each counts as one
    """

    bps_total: Rate = 0
    bps_read: Rate = 0
    bps_write: Rate = 0
    iops_total: Rate = 0
    iops_read: Rate = 0
    iops_write: Rate = 0
    bps_total_max: Rate = 0
    bps_read_max: Rate = 0
    bps_write_max: Rate = 0
    iops_total_max: Rate = 0
    iops_read_max: Rate = 0
    iops_write_max: Rate = 0
    bps_total_max_length: Seconds = 1
    bps_read_max_length: Seconds = 1
    bps_write_max_length: Seconds = 1
    iops_total_max_length: Seconds = 1
    iops_read_max_length: Seconds = 1
    iops_write_max_length: Seconds = 1
    iops_size: Rate = 0

    @property
    def limits(self) -> Limits:
        """As :func:`drover.ops.throttle.set_disk_throttle` takes them."""
        return Limits(**asdict(self))


class BackingImage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An image that another one stands on. Read only.

    :ivar source: where it is, as of a disk
    :ivar format: said, never probed
    """

    source: Source
    format: Format


class Disk(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A disk or a CD drive.

    :ivar id: of the device and of its block node; empty is ``disk0``, ``disk1``, … whichever is free
    :ivar source: a file or block device, or a network block device by its URI; empty is a CD drive without a medium
    :ivar kind: ``cdrom`` is read only and can change its medium
    :ivar format: said, never probed
    :ivar bus: ``auto`` is virtio-blk for a disk and sata for a CD drive
    :ivar cache: of the host
    :ivar aio: how QEMU reads and writes; ``native`` needs a cache mode without the host's cache
    :ivar discard: whether the guest's discards reach the image
    :ivar detect_zeroes: writing zeroes makes holes (``unmap``), or is quicker (``on``)
    :ivar serial: what the guest sees as its serial number
    :ivar iothread: name of a thread of its own, which several disks may share
    :ivar throttle: its limits
    :ivar read_only: the guest cannot write
    :ivar boot_index: its place in the boot order, 1 is first; None is not booted from, unless nothing has one
    :ivar werror: when a write fails: ``enospc`` stops the machine where there is no space, and reports the rest
    :ivar rerror: when a read fails
    :ivar backing: the images that it stands on, from top to bottom
    """

    id: Id = ""
    source: Source = ""
    kind: Literal["disk", "cdrom"] = "disk"
    format: Format | None = None
    bus: Literal["auto", "virtio-blk", "virtio-scsi", "sata"] = "auto"
    cache: Literal["none", "writeback", "writethrough", "directsync", "unsafe"] = "none"
    aio: Literal["threads", "native", "io_uring"] = "threads"
    discard: Literal["unmap", "ignore"] = "unmap"
    detect_zeroes: Literal["off", "on", "unmap"] = "off"
    serial: Annotated[
        str, Meta(pattern=r"^[\x21-\x7e]{0,20}$", description="at most 20 printable characters of ASCII, no blanks")
    ] = ""
    iothread: Id = ""
    throttle: Throttle | None = None
    read_only: bool = False
    boot_index: BootIndex | None = None
    werror: Literal["enospc", "report", "ignore", "stop"] = "enospc"
    rerror: Literal["report", "ignore", "stop"] = "report"
    backing: tuple[BackingImage, ...] = ()

    @property
    def cdrom(self) -> bool:
        """It is a CD drive."""
        return self.kind == "cdrom"

    @property
    def local(self) -> bool:
        """Its image, where it has one, is a file or device of this host, which we open."""
        return self.source.startswith("/")


class Network(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The network that a NIC is in: nothing but what scripts are told of it, in Ganeti's words.

    :ivar name: its name
    :ivar uuid: its UUID
    :ivar tags: any
    :ivar subnet: of IPv4, such as 10.0.0.0/24
    :ivar gateway: of IPv4
    :ivar subnet6: of IPv6
    :ivar gateway6: of IPv6
    :ivar mac_prefix: what the addresses of its NICs begin with
    """

    name: Line
    uuid: Line = ""
    tags: tuple[Line, ...] = ()
    subnet: Line = ""
    gateway: Line = ""
    subnet6: Line = ""
    gateway6: Line = ""
    mac_prefix: Line = ""


class Nic(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A network card. What it stands on is made by :mod:`drover.kvm.net`.

    :ivar id: of the device and its back end; empty is ``nic0``, ``nic1``, … whichever is free
    :ivar mode: what it is connected to; ``user`` is QEMU's own network, which needs no rights
    :ivar link: a bridge (``bridge``, ``ovs``), a device (``macvtap``), a routing table (``routed``)
    :ivar mac: made when the instance is, where it is empty
    :ivar model: the device that the guest sees
    :ivar queues: pairs of queues
    :ivar vhost: the host's kernel moves the packets
    :ivar mtu: told to the guest and set on the host; None is the link's own
    :ivar vlan: on the bridge
    :ivar ip: the guest's address: routed to it, or told to scripts
    :ivar network: the network that it is in, for scripts
    :ivar script_up: a program that is run when it is plugged
    :ivar script_down: one for when it has been taken away
    :ivar tags: for scripts
    :ivar boot_index: its place in the boot order
    :ivar link_state: whether its cable is plugged in, as the guest sees it
    :ivar forwards: of mode ``user``: ports of the host for the guest, such as ``tcp:127.0.0.1:2222-:22``
    """

    id: Id = ""
    mode: Literal["bridge", "ovs", "routed", "macvtap", "user", "fd"] = "user"
    link: Annotated[str, Meta(pattern=r"^([^\s/\x00]{1,15})?$", description="the name of a link of the host")] = ""
    mac: Mac = ""
    model: Literal["virtio-net-pci", "e1000", "e1000e", "rtl8139"] = "virtio-net-pci"
    queues: Annotated[int, Meta(ge=1, le=MAX_QUEUES)] = 1
    vhost: bool = False
    mtu: Annotated[int, Meta(ge=68, le=65521)] | None = None
    vlan: Annotated[int, Meta(ge=1, le=4094)] | None = None
    ip: Line = ""
    network: Network | None = None
    script_up: Path = ""
    script_down: Path = ""
    tags: tuple[Line, ...] = ()
    boot_index: BootIndex | None = None
    link_state: Literal["up", "down"] = "up"
    forwards: tuple[Forward, ...] = ()

    @property
    def on_tap(self) -> bool:
        """It stands on a tap that we make, and take away."""
        return self.mode not in ("user", "fd")


class Serial(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The serial console.

    :ivar log: what the guest writes on it is kept
    """

    log: bool = True


class Vnc(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The screen by VNC.

    :ivar listen: ``ADDRESS:PORT``, the port from 5900 on; empty is a unix socket
    :ivar tls_dir: a folder with ``ca-cert.pem``, ``server-cert.pem``, ``server-key.pem``; empty is without TLS
    :ivar tls_verify: clients need a certificate of that CA
    :ivar password: at most 8 characters count; never on a command line
    :ivar keymap: of the clients that send characters, such as ``de``
    """

    listen: Line = ""
    tls_dir: Path = ""
    tls_verify: bool = False
    password: Secret | None = None
    keymap: Annotated[str, Meta(pattern=r"^([a-z]{2}(-[a-z]{2})?)?$", description="a keymap such as de or en-us")] = ""


class Spice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The screen by SPICE.

    :ivar listen: ``ADDRESS:PORT``; empty is a unix socket
    :ivar tls_dir: a folder with ``ca-cert.pem``, ``server-cert.pem``, ``server-key.pem``; then all is encrypted
    :ivar password: never on a command line
    :ivar agent: a channel for the SPICE agent in the guest
    """

    listen: Line = ""
    tls_dir: Path = ""
    password: Secret | None = None
    agent: bool = True


class Tpm(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A TPM 2.0, by swtpm.

    :ivar model: the interface that the guest sees
    """

    model: Literal["crb", "tis"] = "crb"


class Watchdog(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Acts when the guest does nothing for too long.

    :ivar model: ``itco`` is in every q35 already
    :ivar action: what is done then
    """

    model: Literal["i6300esb", "itco"] = "i6300esb"
    action: Literal["reset", "shutdown", "poweroff", "pause", "inject-nmi", "none"] = "reset"


class UsbDevice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A USB device.

    :ivar id: of the device; empty is ``usb1``, ``usb2``, … whichever is free
    :ivar type: an emulated one, or ``host`` for one of the host's
    :ivar vendor: of a host's device: four hexadecimal digits
    :ivar product: the same
    :ivar bus: of a host's device, instead: the number of its bus
    :ivar address: and its number there
    """

    id: Id = ""
    type: Literal["tablet", "mouse", "keyboard", "host"] = "host"
    vendor: Annotated[str, Meta(pattern=r"^([0-9a-fA-F]{4})?$", description="four hexadecimal digits")] = ""
    product: Annotated[str, Meta(pattern=r"^([0-9a-fA-F]{4})?$", description="four hexadecimal digits")] = ""
    bus: Annotated[int, Meta(ge=0, le=255)] = 0
    address: Annotated[int, Meta(ge=0, le=127)] = 0


class VfioDevice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A PCI device of the host.

    :ivar id: of the device; empty is ``vfio0``, ``vfio1``, … whichever is free
    :ivar host: its address there
    :ivar mediated: instead, the sysfs folder of a mediated device
    :ivar rom: the guest sees its option ROM
    :ivar boot_index: its place in the boot order
    """

    id: Id = ""
    host: PciAddress = ""
    mediated: Path = ""
    rom: bool = True
    boot_index: BootIndex | None = None
