"""What a NIC is to have on the host."""

from typing import Literal

from msgspec import Struct, convert

Mode = Literal["bridge", "ovs", "routed", "macvtap", "user", "fd"]


class Network(Struct, frozen=True, kw_only=True):
    """The network that a NIC is in, for scripts; empty is unknown."""

    name: str
    uuid: str = ""
    tags: tuple[str, ...] = ()
    subnet: str = ""
    gateway: str = ""
    subnet6: str = ""
    gateway6: str = ""
    mac_prefix: str = ""


class NicPlan(Struct, frozen=True, kw_only=True):
    """A NIC as the host sees it; empty, 0 and None are "not said".

    :ivar id: of the NIC, unique in its instance
    :ivar link: a bridge (``bridge``, ``ovs``), a device (``macvtap``), a routing table (``routed``)
    :ivar mac: the guest's address
    :ivar queues: pairs of queues
    :ivar mtu: bytes; the bridge's or device's own where it is not said
    :ivar ip: the guest's address, IPv4 or IPv6
    :ivar script_up: program to run when it is plugged
    :ivar script_down: program to run when it has been taken away
    """

    id: str
    mode: Mode
    mac: str
    link: str = ""
    queues: int = 1
    vhost: bool = False
    mtu: int | None = None
    vlan: int | None = None
    ip: str = ""
    network: Network | None = None
    script_up: str = ""
    script_down: str = ""
    tags: tuple[str, ...] = ()


def plan_of(nic: object) -> NicPlan:
    """The plan for a NIC of a specification, whose fields have the same names."""
    return convert(nic, NicPlan, from_attributes=True)
