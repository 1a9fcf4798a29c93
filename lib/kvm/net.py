"""The host's side of a NIC: made when it is plugged, taken away when its guest no longer has it.

:func:`plug` makes all or nothing. What it made can be taken away by whoever knows the NIC and its
interface's name, and does not have to be the process that made it: :func:`release` may be repeated, and
does not mind what is gone already. That of a machine which is still on its way to this host is made *held*: no packet
gets in or out before :func:`connect`. A tap itself goes with its last descriptor, and its routes and its
place on a bridge with it; an Open vSwitch port, a rule and a macvtap device would stay.
"""

import contextlib
import errno
import fcntl
import hashlib
import ipaddress
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, Self

from msgspec import Struct, structs

from ..errors import ArgumentError, DroverError, NetworkError, ScriptFailed, ScriptSlow
from . import links, netlink, ovs, scripts
from .rollback import Rollback
from .spec import Nic
from .taps import name_of, open_macvtap, open_tap

_VHOST: Final = "/dev/vhost-net"
_NAME_HASH: Final = 6  # bytes: with "dr" 14 letters, of 15 that a name can have
_MTU: Final = "68 to 65521"  # the kernel's limits for a tap
_RIGHTS: Final = "this needs the right CAP_NET_ADMIN, as root has; mode = 'user' needs none"
_HINTS: Final = {
    _VHOST: "the kernel's module vhost_net is not loaded (modprobe vhost_net); vhost = false needs none",
    "/dev/net/tun": "the kernel's module tun is not loaded (modprobe tun)",
}
_FORWARDING: Final = {4: "/proc/sys/net/ipv4/ip_forward", 6: "/proc/sys/net/ipv6/conf/all/forwarding"}
# Answer the guest for whom it asks on its wire, at once, and let its packets through.
_SYSCTLS: Final = {
    version: {
        f"/proc/sys/net/ipv{version}/conf/{{}}/{proxy}": "1",
        f"/proc/sys/net/ipv{version}/conf/{{}}/forwarding": "1",
        f"/proc/sys/net/ipv{version}/neigh/{{}}/proxy_delay": "0",
    }
    for version, proxy in ((4, "proxy_arp"), (6, "proxy_ndp"))
}


class Plugged(Struct, kw_only=True):
    """The host's side of a NIC. A context manager that closes our copies of its descriptors.

    :ivar name: of the interface; empty where there is none
    :ivar tap_fds: one for each pair of queues
    :ivar vhost_fds: as many, or none
    :ivar notices: what is not quite as it was meant
    """

    name: str
    tap_fds: list[int] = []
    vhost_fds: list[int] = []
    notices: list[str] = []

    def close(self) -> None:
        """Close them. A QEMU that they were passed to keeps the device."""
        for fds in (self.tap_fds, self.vhost_fds):
            while fds:
                os.close(fds.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Jack(Struct, frozen=True, kw_only=True):
    """A NIC, and where it is plugged."""

    nic: Nic
    instance: str
    uuid: str
    index: int
    name: str
    held: bool = False

    def wrong(self, field: str, allowed: str) -> ArgumentError:
        return ArgumentError(f"nics[{self.index}].{field}", getattr(self.nic, field), allowed)

    def run_up(self, timeout: float) -> None:
        self._run(self.nic.script_up, "up", timeout)

    def run_down(self, timeout: float) -> None:
        self._run(self.nic.script_down, "down", timeout)

    def _run(self, path: str, action: Literal["up", "down"], timeout: float) -> None:
        if not path or not self.name:
            return
        env = scripts.environment(
            self.nic, self.instance, uuid=self.uuid, index=self.index, interface=self.name, action=action
        )
        scripts.run([path], env, timeout=timeout)


def tap_name(uuid: str, nic: str, mark: str = "") -> str:
    """The name of a NIC's interface on the host: always the same one, so that it is found again.

    :param uuid: of its instance
    :param nic: its id
    :param mark: of the run: two QEMUs of one instance have each its own
    """
    return "dr" + hashlib.blake2s(f"{uuid}/{nic}{mark and f'/{mark}'}".encode(), digest_size=_NAME_HASH).hexdigest()


def plug(
    nic: Nic,
    instance: str,
    *,
    uuid: str,
    index: int,
    name: str = "",
    given: Sequence[int] = (),
    held: bool = False,
    timeout: float = scripts.TIMEOUT,
) -> Plugged:
    """Make the host's side of a NIC, all of it or nothing, and run its script.

    A script that fails may have done half of its work, so the one for the way down is run then.

    :param nic: of a completed specification: with an id and an address
    :param instance: its name
    :param uuid: the instance's
    :param index: which of the instance's NICs it is
    :param name: for the interface; :func:`tap_name` where it is not said
    :param given: mode ``fd``: descriptors of a tap, one for each pair of queues; they stay yours to close
    :param held: all is made but for the last step, :func:`connect`
    :param timeout: of a script, in seconds
    :raises ArgumentError: what the NIC is to have does not fit this host; nothing of it is left
    :raises NetworkError: it could not be made; nothing of it is left
    :raises ScriptFailed: its script failed, or did not end; what that has made, the other script takes away
    """
    name = _interface(nic, uuid, index, name, given)
    jack = _Jack(nic=nic, instance=instance, uuid=uuid, index=index, name=name, held=held)
    try:
        with Rollback() as undo:
            plugged = Plugged(name=jack.name)
            undo.remember("the descriptors", plugged.close)
            _open_vhost(jack, plugged)
            plugged.tap_fds.extend(_copies(given))
            _PLUG.get(nic.mode, _nothing)(jack, plugged, undo)
            undo.remember("the script", lambda: jack.run_down(timeout))
            jack.run_up(timeout)
            undo.keep()
    except OSError as error:
        if isinstance(error, DroverError):
            raise
        raise _explained(jack, error) from error
    return plugged


def connect(nic: Nic, instance: str, *, uuid: str, index: int, name: str = "") -> None:
    """Let packets through a NIC that was plugged in held: its guest is about to run. May be repeated.

    Takes a fraction of a millisecond; one of mode ``routed`` a few.

    :param name: of the interface; :func:`tap_name` where it is not said
    :raises NetworkError: it could not be
    """
    jack = _Jack(nic=nic, instance=instance, uuid=uuid, index=index, name=name or tap_name(uuid, nic.id))
    try:
        if nic.mode in _PLUG:
            links.set_up(jack.name)
        if nic.mode == "routed":
            netlink.add_route(jack.name, nic.ip, netlink.table_number(nic.link), replace=True)
    except OSError as error:
        raise _explained(jack, error) from error


def release(
    nic: Nic, instance: str, *, uuid: str, index: int, name: str, timeout: float = scripts.TIMEOUT
) -> list[str]:
    """Take away what is left of a NIC's host side once no guest has it, and run its script; may be repeated.

    :param name: of the interface, as it was plugged
    :param timeout: of the script, in seconds
    :returns: notices, such as of a script that failed
    :raises NetworkError: something is left
    """
    jack = _Jack(nic=nic, instance=instance, uuid=uuid, index=index, name=name)
    notices = []
    try:
        jack.run_down(timeout)
    except ScriptFailed as error:
        notices.append(str(error))
    try:
        _RELEASE.get(nic.mode, _nothing)(jack)
    except (NetworkError, OSError) as error:
        left = error if isinstance(error, NetworkError) else _explained(jack, error)
        for notice in notices:
            left.add_note(notice)
        raise left from error
    return notices


def can_move(old: Nic, new: Nic) -> bool:
    """Whether a NIC becomes another one by :func:`move`, so that its guest keeps the card."""
    same = structs.replace(old, link=new.link, vlan=new.vlan, network=new.network, tags=new.tags, ip=new.ip,
                           script_up=new.script_up, script_down=new.script_down, link_state=new.link_state)  # fmt: skip
    return old.mode == "bridge" and same == new


def move(
    old: Nic, new: Nic, instance: str, *, uuid: str, index: int, name: str, timeout: float = scripts.TIMEOUT
) -> list[str]:
    """Move the tap of a NIC that is plugged in to another bridge, or to another VLAN there. May be repeated.

    Where that fails it is on the old one again.

    :param old: as it is, and `new`, as it is to be: see :func:`can_move`; the other parameters are those of
        :func:`release`
    :returns: notices
    :raises ArgumentError: the host has no such bridge; nothing was touched
    :raises NetworkError: it could not be moved
    """
    was, jack = (_Jack(nic=nic, instance=instance, uuid=uuid, index=index, name=name) for nic in (old, new))
    try:
        mtu = _check_bridge(jack)
        with Rollback() as undo:
            undo.remember("the old bridge", lambda: _enter(was, new.link, links.get_mtu(old.link), timeout))
            was.run_down(timeout)
            _enter(jack, old.link, mtu, timeout)
            undo.keep()
    except OSError as error:
        if isinstance(error, DroverError):
            raise
        raise _explained(jack, error) from error
    return _too_long(new)


def _enter(jack: _Jack, other: str, mtu: int, timeout: float) -> None:
    for bridge in (other, jack.nic.link):
        links.leave_bridge(bridge, jack.name)
    _set_mtu(jack, max(mtu, jack.nic.mtu or 0))
    _join(jack)
    jack.run_up(timeout)


# -- one function a mode ---------------------------------------------------------------------------------------------


def _nothing(*_: object) -> None:
    pass


def _plug_bridge(jack: _Jack, plugged: Plugged, undo: Rollback) -> None:
    nic = jack.nic
    mtu = _check_bridge(jack)
    # A bridge takes the lowest MTU of its ports, so a tap with a lower one would lower all the others'.
    _make_tap(jack, plugged, max(mtu, nic.mtu or 0))
    _join(jack)
    # the spanning tree takes its time with a port, up to half a minute
    _set_up(jack, ip=False, held=jack.held and not links.spans_tree(nic.link))
    plugged.notices += _too_long(nic)


def _check_bridge(jack: _Jack) -> int:
    """The MTU of its bridge."""
    mtu = _mtu_of_link(jack, netlink.bridges)
    if jack.nic.vlan and not netlink.filters_vlans(jack.nic.link):
        raise jack.wrong("vlan", f"none on a bridge that does not filter VLANs, as {jack.nic.link} does not")
    return mtu


def _join(jack: _Jack) -> None:
    try:
        links.join_bridge(jack.nic.link, jack.name)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise _no_such_link(jack, netlink.bridges) from error
        raise
    if jack.nic.vlan:
        netlink.set_port_vlan(jack.name, jack.nic.vlan)


def _too_long(nic: Nic) -> list[str]:
    mtu = links.get_mtu(nic.link)
    if not nic.mtu or nic.mtu <= mtu:
        return []
    return [f"{nic.link} takes packets of {mtu} bytes, and drops larger ones, up to {nic.mtu}"]


def _plug_ovs(jack: _Jack, plugged: Plugged, undo: Rollback) -> None:
    nic = jack.nic
    mtu = nic.mtu or 0
    if nic.link in _interfaces():  # which a bridge of Open vSwitch's need not be
        mtu = max(mtu, links.get_mtu(nic.link))
    _make_tap(jack, plugged, mtu)
    _set_up(jack, ip=False, held=jack.held)
    undo.remember("the port", lambda: ovs.delete_port(jack.name))  # first: a change that was slow may come yet
    try:
        ovs.add_port(nic.link, jack.name, nic.vlan, ovs.port_ids(nic, jack.uuid))
    except ScriptSlow:
        raise
    except ScriptFailed as error:
        if nic.link in ovs.bridges():
            raise
        raise _no_such_link(jack, ovs.bridges) from error


def _plug_routed(jack: _Jack, plugged: Plugged, undo: Rollback) -> None:
    nic = jack.nic
    table = netlink.table_number(nic.link)
    if nic.link and table is None:
        raise jack.wrong("link", "a routing table: none, a number, or a name that iproute2 knows")
    try:
        version = ipaddress.ip_address(nic.ip).version
    except ValueError:
        raise jack.wrong("ip", "the guest's address, IPv4 or IPv6") from None
    _make_tap(jack, plugged, nic.mtu)
    _set_up(jack, ip=True, held=jack.held)
    if Path(_FORWARDING[version]).read_text(encoding="ascii").strip() == "0":
        plugged.notices.append(f"{_FORWARDING[version]} is 0: nobody but this host reaches {nic.ip}")
    for file, value in _SYSCTLS[version].items():
        Path(file.format(jack.name)).write_text(value, encoding="ascii")
    if table is not None:
        undo.remember("the rule", lambda: netlink.delete_rules(jack.name))
        netlink.add_rule(jack.name, nic.ip, table)
    if jack.held:
        netlink.load()  # it is to be quick when the guest waits for it
        return
    try:
        netlink.add_route(jack.name, nic.ip, table)
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise jack.wrong("ip", "one that no other device of this host leads to") from error
        raise


def _plug_macvtap(jack: _Jack, plugged: Plugged, undo: Rollback) -> None:
    nic = jack.nic
    mtu = _mtu_of_link(jack, _interfaces)
    if nic.vlan:
        raise jack.wrong("vlan", "none in mode macvtap: take a VLAN's own device as link")
    if nic.mtu and nic.mtu > mtu:
        raise jack.wrong("mtu", f"at most that of {nic.link}, which is {mtu}")
    if jack.name in _interfaces():
        raise OSError(errno.EEXIST, "there is an interface of this name already", jack.name)
    undo.remember("the device", lambda: netlink.delete_macvtap(jack.name))
    netlink.add_macvtap(jack.name, nic.link, nic.mac)
    plugged.tap_fds = open_macvtap(jack.name, queues=nic.queues).fds
    _set_mtu(jack, nic.mtu)
    _set_up(jack, ip=False, held=jack.held)


def _release_routed(jack: _Jack) -> None:
    if jack.nic.link:
        netlink.delete_rules(jack.name)


_PLUG: Final[dict[str, Callable[[_Jack, Plugged, Rollback], None]]] = {
    "bridge": _plug_bridge,
    "ovs": _plug_ovs,
    "routed": _plug_routed,
    "macvtap": _plug_macvtap,
}
_RELEASE: Final[dict[str, Callable[[_Jack], None]]] = {
    "ovs": lambda jack: ovs.delete_port(jack.name),
    "routed": _release_routed,
    "macvtap": lambda jack: netlink.delete_macvtap(jack.name),
}


# -- their parts -----------------------------------------------------------------------------------------------------


def _interface(nic: Nic, uuid: str, index: int, name: str, given: Sequence[int]) -> str:
    if nic.mode == "user":
        return ""
    if nic.mode != "fd":
        return name or tap_name(uuid, nic.id)
    try:
        (name,) = {name_of(fd) for fd in given}
    except (OSError, ValueError):
        name = ""
    if not name or len(given) != nic.queues:
        allowed = f"descriptors of one tap, given by whoever starts the instance, as many as queues ({nic.queues})"
        raise ArgumentError(f"nics[{index}].mode", nic.mode, allowed)
    return name


def _copies(given: Sequence[int]) -> Iterator[int]:
    for fd in given:
        yield fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _open_vhost(jack: _Jack, plugged: Plugged) -> None:
    if not jack.nic.vhost:
        return
    if not jack.name:
        raise jack.wrong("vhost", "only a NIC that stands on a tap can have it")
    for _ in range(jack.nic.queues):
        plugged.vhost_fds.append(os.open(_VHOST, os.O_RDWR | os.O_CLOEXEC))


def _make_tap(jack: _Jack, plugged: Plugged, mtu: int | None) -> None:
    plugged.tap_fds = open_tap(jack.name, queues=jack.nic.queues, new=True).fds
    # A bridge takes the lowest address of its ports for its own. Behind a router it is the guest's gateway, and the
    # same one wherever the guest moves to.
    mac = jack.nic.mac.lower()
    links.set_mac(jack.name, ("fc" if mac.startswith("fe") else "fe") + mac[2:])
    _set_mtu(jack, mtu)


def _set_mtu(jack: _Jack, mtu: int | None) -> None:
    if not mtu:
        return
    try:
        links.set_mtu(jack.name, mtu)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise jack.wrong("mtu", _MTU) from error
        raise


def _set_up(jack: _Jack, *, ip: bool, held: bool) -> None:
    if not ip:  # the host is to say nothing to the guest by itself
        with contextlib.suppress(OSError):  # there may be no IPv6 at all
            Path(f"/proc/sys/net/ipv6/conf/{jack.name}/disable_ipv6").write_text("1", encoding="ascii")
    if not held:
        links.set_up(jack.name)


def _mtu_of_link(jack: _Jack, others: Callable[[], list[str]]) -> int:
    try:
        return links.get_mtu(jack.nic.link)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        raise _no_such_link(jack, others) from error


def _no_such_link(jack: _Jack, others: Callable[[], list[str]]) -> ArgumentError:
    what = {"macvtap": "a network device", "ovs": "a bridge of Open vSwitch's"}.get(jack.nic.mode, "a bridge")
    found = ", ".join(others())
    return jack.wrong("link", f"{what} of this host: {found}" if found else f"{what}, and this host has none")


def _interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def _explained(jack: _Jack, error: OSError) -> NetworkError:
    what = os.fspath(error.filename or jack.name or jack.nic.id)
    hint = _HINTS.get(what, "") if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO) else ""
    if isinstance(error, PermissionError):
        hint = _RIGHTS
    return NetworkError(jack.name or jack.nic.id, f"{what}: {error.strerror}" + (f": {hint}" if hint else ""))
