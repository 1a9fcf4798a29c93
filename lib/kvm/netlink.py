"""What needs netlink: VLANs of a bridge, routes and rules, macvtap devices.

pyroute2 takes 150 ms to load, so it is imported when it is first needed. It runs an event loop of its own for
each socket: not to be called on the thread of one that runs.
"""

import contextlib
import errno
import ipaddress
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from .links import get_index

_PVID_UNTAGGED: Final = 0x2 | 0x4  # BRIDGE_VLAN_INFO_PVID, BRIDGE_VLAN_INFO_UNTAGGED
_UP: Final = 0x1  # IFF_UP
_NUMBERS: Final = 1 << 30  # interfaces' numbers end below twice that, and the kernel counts from 1
_TABLE_NAMES: Final = ("/etc/iproute2/rt_tables", "/usr/share/iproute2/rt_tables")


def bridges() -> list[str]:
    """The bridges there are, by name."""
    with _netlink() as netlink:
        return sorted(link.get("ifname") for link in netlink.link("dump") if _kind(link) == "bridge")


def state_of(name: str) -> tuple[bool, str] | None:
    """Whether an interface is switched on, and the bridge or the like that it is a port of; empty: of none.

    :returns: None: there is no such interface
    """
    with _netlink() as netlink:
        for link in _unless_gone(netlink.link, "get", ifname=name) or ():
            master = link.get("master")
            return bool(link["flags"] & _UP), socket.if_indextoname(master) if master else ""
    return None


def set_bridge(name: str, bridge: str) -> None:
    """Make an interface a port of a bridge, and of no other one.

    :raises OSError: there is no such interface or bridge (ENODEV)
    """
    with _netlink() as netlink:
        netlink.link("set", index=get_index(name), master=get_index(bridge))


def filters_vlans(bridge: str) -> bool:
    """Whether a bridge keeps its VLANs apart.

    :raises OSError: there is none of that name
    """
    with _netlink() as netlink:
        link = netlink.link("get", ifname=bridge)[0]
        return bool(link.get(("linkinfo", "data", "br_vlan_filtering")))


def set_port_vlan(port: str, vlan: int) -> None:
    """Put a port of a bridge into one VLAN, and out of all others; what comes and goes has no tag."""
    with _netlink() as netlink:
        index = get_index(port)
        for link in netlink.get_vlans(index=index):
            for _, found in link.get("af_spec").get("attrs", ()):
                netlink.vlan_filter("del", index=index, vlan_info={"vid": found["vid"]})
        netlink.vlan_filter("add", index=index, vlan_info={"vid": vlan, "flags": _PVID_UNTAGGED})


def load() -> None:
    """Load what takes its time to load."""
    with _netlink():
        pass


def add_route(device: str, ip: str, table: int | None, *, replace: bool = False) -> None:
    """Lead to one address through a device.

    :param table: of routes; None for the main one
    :param replace: in the place of one that there is
    :raises OSError: there is such a route already (EEXIST)
    """
    address = ipaddress.ip_address(ip)
    with _netlink() as netlink:
        netlink.route(
            "replace" if replace else "add",
            dst=f"{address}/{address.max_prefixlen}",
            oif=get_index(device),
            scope="link" if address.version == 4 else "universe",
            **({} if table is None else {"table": table}),
        )


def add_rule(device: str, ip: str, table: int) -> None:
    """Let what comes in by a device be routed by a table first.

    :param ip: an address of the family that it is for
    """
    with _netlink() as netlink:
        netlink.rule("add", family=_family(ip), iifname=device, table=table)


def delete_rules(device: str) -> None:
    """Take such rules away, also of a device that is gone: they stay when it goes."""
    with _netlink() as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            for rule in netlink.get_rules(family=family):
                if rule.get("iifname") == device:
                    _unless_gone(netlink.rule, "del", family=family, iifname=device, priority=rule.get("priority"))


def add_macvtap(name: str, parent: str, mac: str) -> None:
    """Make a macvtap device on another one, in mode ``bridge``: such devices on one parent see each other.

    :raises OSError: there is an interface of that name (EEXIST), or no such parent (ENODEV)
    """
    # Its file /dev/tapN has its number, by which an interface of another network namespace may have one already, for
    # the kernel counts in each namespace and there is one /dev for all. So it gets a number that nobody has.
    number = _NUMBERS + secrets.randbelow(_NUMBERS)
    with _netlink() as netlink:
        link = get_index(parent)
        netlink.link("add", index=number, ifname=name, kind="macvtap", link=link, macvtap_mode="bridge", address=mac)


def delete_macvtap(name: str) -> None:
    """Delete it, if it is there and is a macvtap device."""
    with _netlink() as netlink:
        for link in _unless_gone(netlink.link, "get", ifname=name) or ():
            if _kind(link) == "macvtap":
                _unless_gone(netlink.link, "del", index=link["index"])


def table_number(name: str) -> int | None:
    """The number of a routing table, which may have a name.

    :returns: None for one that nobody has named
    """
    if name.isdecimal():
        return int(name)
    for file in map(Path, _TABLE_NAMES):
        with contextlib.suppress(FileNotFoundError):
            for line in file.read_text(encoding="utf-8").splitlines():
                if (words := line.split())[1:2] == [name] and words[0].isdecimal():
                    return int(words[0])
    return None


@contextlib.contextmanager
def _netlink() -> Iterator[Any]:
    """A netlink socket in this thread's network namespace, whose errors are OSError."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as netlink:
        try:
            yield netlink
        except NetlinkError as error:
            raise OSError(error.code, os.strerror(error.code)) from error


def _unless_gone(call: Callable[..., Any], *words: str, **options: Any) -> Any:
    """None where what it is about is gone already."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        return call(*words, **options)
    except NetlinkError as error:
        if error.code not in (errno.ENODEV, errno.ENOENT):
            raise
        return None


def _kind(link: Any) -> str:
    return link.get(("linkinfo", "kind")) or ""


def _family(ip: str) -> socket.AddressFamily:
    return socket.AF_INET if ipaddress.ip_address(ip).version == 4 else socket.AF_INET6
