"""Devices: unplug, memory, network cards, serial ports."""

from collections.abc import Mapping
from typing import Annotated, Final

from msgspec import Meta, field

from .base import EventData, Known

OstSlotType = Annotated[str, Meta(examples=["DIMM", "CPU"])]
SocketType = Annotated[str, Meta(examples=["inet", "unix", "vsock", "fd"])]


class DeviceDeleted(EventData, frozen=True, kw_only=True):
    """A device has gone: the guest let go of it, or a reset took it. Its parts send one each, before their owner.

    :ivar device: the device's id; None for one without, such as the ``virtio-backend`` within a virtio device
    :ivar path: where it was in the QOM tree
    """

    device: str | None = None
    path: str


class DeviceUnplugGuestError(EventData, frozen=True, kw_only=True):
    """The guest says that it will not let go of a device.

    :ivar device: the device's id
    :ivar path: its path in the QOM tree
    """

    device: str | None = None
    path: str


class MemUnplugError(EventData, frozen=True, kw_only=True):
    """A memory device could not be unplugged; DEVICE_UNPLUG_GUEST_ERROR took this event's place.

    :ivar device: the device's id
    :ivar msg: why, for people
    """

    device: str
    msg: str


class OstInfo(EventData, frozen=True, kw_only=True):
    """What a guest reports through ACPI's _OST method on a memory or CPU slot.

    :ivar device: id of the device in the slot
    :ivar slot: the slot's number, as text
    :ivar slot_type: what kind of slot
    :ivar source: of which event it tells (ACPI 6.4, table 6.59): 1 insertion, 3 or 0x103 ejection
    :ivar status: how that stands (tables 6.60 to 6.62): 0 done, 0x80 and above refused, 0x84 still at it
    """

    device: str | None = None
    slot: str
    slot_type: OstSlotType
    source: int
    status: int


class AcpiDeviceOst(EventData, frozen=True, kw_only=True):
    """The guest reports how a plug or an unplug of memory or a CPU went.

    :ivar info: what it reports
    """

    info: OstInfo


class DeviceTrayMoved(EventData, frozen=True, kw_only=True):
    """A drive's tray was opened or closed, by the guest or by a command.

    :ivar device: name of the drive; empty where it has none, as with ``-blockdev``
    :ivar id: the device's id, or its path in the QOM tree
    :ivar tray_open: where the tray is now
    """

    device: str
    id: str | None = None
    tray_open: bool


class UnplugPrimary(EventData, frozen=True, kw_only=True):
    """A migration waits for the guest to let go of the card that the standby stands in for.

    :ivar device_id: the primary's id
    """

    device_id: str


class FailoverNegotiated(EventData, frozen=True, kw_only=True):
    """The guest's driver offers to fail over, so the standby's primary may be plugged.

    :ivar device_id: the standby's id
    """

    device_id: str


class NicRxFilterChanged(EventData, frozen=True, kw_only=True):
    """The guest changed what its network card receives. The next one comes only after ``query-rx-filter``.

    :ivar name: the card's id
    :ivar path: its path in the QOM tree
    """

    name: str | None = None
    path: str


class StreamAddress(EventData, frozen=True, kw_only=True):
    """The other end of a network backend's socket.

    :ivar type: which kind of address, and so which of the rest is there
    :ivar host: inet: host name or address
    :ivar port: inet: port or service; vsock: port
    :ivar numeric: inet: nothing was looked up by name
    :ivar to: inet: the last port of a range
    :ivar ipv4: inet: whether IPv4 may be used
    :ivar ipv6: inet: whether IPv6 may be used
    :ivar keep_alive: inet: whether TCP asks for life on a silent connection
    :ivar mptcp: inet: whether multipath TCP is used
    :ivar path: unix: path of the socket
    :ivar abstract: unix: `path` is a name without a file
    :ivar tight: unix: an abstract name ends with its last character, instead of being padded
    :ivar cid: vsock: whose
    :ivar str_: fd: name or number of the descriptor
    """

    type: SocketType
    host: str | None = None
    port: str | None = None
    numeric: bool | None = None
    to: int | None = None
    ipv4: bool | None = None
    ipv6: bool | None = None
    keep_alive: bool | None = None
    mptcp: bool | None = None
    path: str | None = None
    abstract: bool | None = None
    tight: bool | None = None
    cid: str | None = None
    str_: str | None = field(default=None, name="str")


class NetdevStreamConnected(EventData, frozen=True, kw_only=True):
    """A network backend of type ``stream`` has its connection.

    :ivar netdev_id: the backend's id
    :ivar addr: the other end
    """

    netdev_id: str
    addr: StreamAddress


class NetdevStreamDisconnected(EventData, frozen=True, kw_only=True):
    """A network backend of type ``stream`` lost its connection.

    :ivar netdev_id: the backend's id
    """

    netdev_id: str


class NetdevVhostUserConnected(EventData, frozen=True, kw_only=True):
    """A network backend of type ``vhost-user`` has its connection.

    :ivar netdev_id: the backend's id
    :ivar chardev_id: id of its character device
    """

    netdev_id: str
    chardev_id: str


class NetdevVhostUserDisconnected(EventData, frozen=True, kw_only=True):
    """A network backend of type ``vhost-user`` lost its connection.

    :ivar netdev_id: the backend's id
    """

    netdev_id: str


class RdmaGidStatusChanged(EventData, frozen=True, kw_only=True):
    """The guest's driver set or removed an address of an RDMA device.

    :ivar netdev: name of the network device
    :ivar gid_status: set, and not removed
    :ivar subnet_prefix: upper 64 bits of the address
    :ivar interface_id: lower 64 bits of the address
    """

    netdev: str
    gid_status: bool
    subnet_prefix: int
    interface_id: int


class VserportChange(EventData, frozen=True, kw_only=True):
    """A program in the guest opened or closed a virtio-serial port.

    :ivar id: the port's id
    :ivar open: whether it is open now
    """

    id: str
    open: bool


class BalloonChange(EventData, frozen=True, kw_only=True):
    """The guest's balloon changed its size. At most one a second is sent.

    :ivar actual: what is left to the guest, in bytes
    """

    actual: int


class HvBalloonStatusReport(EventData, frozen=True, kw_only=True):
    """A Windows guest with hv-balloon reports on its memory. At most one a second is sent.

    :ivar committed: used, or not usable, in bytes
    :ivar available: free for the guest's programs, in bytes
    """

    committed: int
    available: int


class MemoryDeviceSizeChange(EventData, frozen=True, kw_only=True):
    """The guest took or gave back memory of a virtio-mem device. At most one a second is sent.

    :ivar id: the device's id
    :ivar size: what it has now, in bytes
    :ivar qom_path: the device's path
    """

    id: str | None = None
    size: int
    qom_path: str | None = None


class VfuClientHangup(EventData, frozen=True, kw_only=True):
    """The client of a vfio-user server closed its connection.

    :ivar vfu_id: id of the server object
    :ivar vfu_qom_path: its path
    :ivar dev_id: id of the device that it served
    :ivar dev_qom_path: that device's path
    """

    vfu_id: str
    vfu_qom_path: str
    dev_id: str
    dev_qom_path: str


DEVICE_EVENTS: Final[Mapping[str, Known]] = {
    "ACPI_DEVICE_OST": Known(AcpiDeviceOst, (2, 1)),
    "BALLOON_CHANGE": Known(BalloonChange, (1, 2)),
    "DEVICE_DELETED": Known(DeviceDeleted, (1, 5)),
    "DEVICE_TRAY_MOVED": Known(DeviceTrayMoved, (1, 1), later={"id": (2, 8)}),
    "DEVICE_UNPLUG_GUEST_ERROR": Known(DeviceUnplugGuestError, (6, 2)),
    "FAILOVER_NEGOTIATED": Known(FailoverNegotiated, (4, 2)),
    "HV_BALLOON_STATUS_REPORT": Known(HvBalloonStatusReport, (8, 2)),
    "MEMORY_DEVICE_SIZE_CHANGE": Known(MemoryDeviceSizeChange, (5, 1), later={"qom_path": (6, 2)}),
    "MEM_UNPLUG_ERROR": Known(MemUnplugError, (2, 4), until=(9, 0)),
    "NETDEV_STREAM_CONNECTED": Known(NetdevStreamConnected, (7, 2)),
    "NETDEV_STREAM_DISCONNECTED": Known(NetdevStreamDisconnected, (7, 2)),
    "NETDEV_VHOST_USER_CONNECTED": Known(NetdevVhostUserConnected, (10, 0)),
    "NETDEV_VHOST_USER_DISCONNECTED": Known(NetdevVhostUserDisconnected, (10, 0)),
    "NIC_RX_FILTER_CHANGED": Known(NicRxFilterChanged, (1, 6)),
    "RDMA_GID_STATUS_CHANGED": Known(RdmaGidStatusChanged, (4, 0), until=(9, 0)),
    "UNPLUG_PRIMARY": Known(UnplugPrimary, (4, 2)),
    "VFU_CLIENT_HANGUP": Known(VfuClientHangup, (7, 1)),
    "VSERPORT_CHANGE": Known(VserportChange, (2, 1)),
}
