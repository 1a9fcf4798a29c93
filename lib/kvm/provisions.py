"""What an instance's specification names of a host, and the host does not have: links, files, ports, devices.

It is looked for, and nothing is made. An instance that runs here already has it: this is asked of another host.
"""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..errors import ArgumentError, Blocker, NetworkError
from . import links, netlink, ovs
from .host import Host
from .net import tap_name
from .pins import cpu_set
from .servers import useless_servers
from .spec import Nic, Spec
from .tpm import SWTPM

_TUN: Final = Path("/dev/net/tun")
_VHOST_NET: Final = Path("/dev/vhost-net")
_VHOST_VSOCK: Final = Path("/dev/vhost-vsock")
_ONLINE: Final = Path("/sys/devices/system/cpu/online")
_NET_ADMIN: Final = 1 << 12  # CAP_NET_ADMIN, of capabilities(7)
_LEAST: Final = 16 << 20  # bytes: its document, the firmware's variables, its logs
_NAMED: Final = {"macvtap": "network device", "ovs": "bridge of Open vSwitch's"}


def missing(host: Host, spec: Spec) -> Iterator[Blocker]:
    """Tell all of it."""
    for look in _LOOKS:
        yield from look(host, spec)


# -- the network ------------------------------------------------------------------------------------------------------


def _nics(host: Host, spec: Spec) -> Iterator[Blocker]:
    for number, nic in enumerate(spec.nics):
        field = f"nics[{number}]"
        if nic.on_tap:
            yield from _link(field, nic)
            yield from _tap(field, nic, spec)
        for port in nic.forwards:
            kind, _, rest = port.partition(":")
            yield from _port(f"{field}.forwards", rest.partition("-")[0], udp=kind == "udp")
        for name in ("script_up", "script_down"):
            path = getattr(nic, name)
            if path and not os.access(path, os.X_OK):
                yield Blocker("path", f"{field}.{name}", f"{path} cannot be executed there", "install it there")


def _link(field: str, nic: Nic) -> Iterator[Blocker]:
    try:
        found = _links(nic)
    except (NetworkError, OSError) as error:
        yield Blocker("link", f"{field}.link", f"its links cannot be looked at: {error}", "see that they can be there")
        return
    if found is not None:
        what = _NAMED.get(nic.mode, "bridge")
        there = f"{what}s there: {', '.join(found)}" if found else f"there is no {what} at all"
        remedy = "make it there, or connect the card to one that both nodes have"
        yield Blocker("link", f"{field}.link", f"there is no {what} {nic.link} ({there})", remedy)
    elif nic.mode == "bridge" and nic.vlan and not netlink.filters_vlans(nic.link):
        remedy = f"ip link set {nic.link} type bridge vlan_filtering 1, there"
        yield Blocker("link", f"{field}.vlan", f"the bridge {nic.link} there does not filter VLANs", remedy)


def _links(nic: Nic) -> list[str] | None:
    """The names of what it could be connected to; None: what it wants is there.

    :raises OSError: they cannot be looked at
    :raises NetworkError: likewise
    """
    names = [name for _, name in socket.if_nameindex()]
    if nic.mode == "routed":
        return None if not nic.link or netlink.table_number(nic.link) is not None else []
    if nic.mode == "bridge" and nic.link in names and links.is_bridge(nic.link):
        return None  # else it is worth the time that netlink takes to load
    found = {"bridge": netlink.bridges, "ovs": ovs.bridges}.get(nic.mode, lambda: names)()
    return None if nic.link in found else found


def _tap(field: str, nic: Nic, spec: Spec) -> Iterator[Blocker]:
    if not _may_make_links():
        remedy = "run the daemon there as root, or use mode = 'user'"
        yield Blocker("tap", f"{field}.mode", "the daemon there may not make taps (CAP_NET_ADMIN)", remedy)
    if nic.mode != "macvtap" and not _TUN.exists():
        yield Blocker("tap", f"{field}.mode", f"there is no {_TUN} there", "modprobe tun, there")
    if nic.vhost and not _VHOST_NET.exists():
        yield Blocker("tap", f"{field}.vhost", f"there is no {_VHOST_NET} there", "modprobe vhost_net, there")
    with suppress(OSError):
        name = tap_name(spec.uuid, nic.id)
        links.get_index(name)
        why = f"there is an interface {name} there, which its tap would be"
        yield Blocker("tap", field, why, f"ip link delete {name}, there, if nothing uses it")


def _may_make_links() -> bool:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & _NET_ADMIN)
    return False


def _screens(host: Host, spec: Spec) -> Iterator[Blocker]:
    for name, screen in (("vnc", spec.vnc), ("spice", spec.spice)):
        if screen is not None and screen.listen:
            yield from _port(f"{name}.listen", screen.listen)
        if screen is not None and screen.tls_dir and not os.path.isdir(screen.tls_dir):
            yield Blocker("path", f"{name}.tls_dir", f"there is no folder {screen.tls_dir} there", "make it there")


def _port(field: str, listen: str, *, udp: bool = False) -> Iterator[Blocker]:
    address, _, port = listen.rpartition(":")
    address = address.removeprefix("[").removesuffix("]") or "0.0.0.0"  # noqa: S104 - as QEMU takes it
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as trial:
        if not udp:  # as QEMU does
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((address, int(port)))
            if not udp:
                trial.listen(1)
        except OSError as error:
            remedy = "free it there, or have the instance listen elsewhere"
            yield Blocker("port", field, f"nobody can listen at {listen} there: {error.strerror}", remedy)


# -- files and devices ------------------------------------------------------------------------------------------------


def _paths(host: Host, spec: Spec) -> Iterator[Blocker]:
    paths = {"boot.kernel": spec.boot.kernel, "boot.initrd": spec.boot.initrd,
             "firmware.code": spec.firmware.code, "firmware.vars_template": spec.firmware.vars_template}  # fmt: skip
    paths |= {f"chroot_paths[{number}]": path for number, path in enumerate(spec.chroot_paths)}
    for field, path in paths.items():
        if path and not os.access(path, os.R_OK):
            state = "cannot be read" if os.path.lexists(path) else "is not there"
            yield Blocker("path", field, f"{path} {state}", "put the same file there, or have it on shared storage")


def _tpm(host: Host, spec: Spec) -> Iterator[Blocker]:
    if spec.tpm is not None and shutil.which(SWTPM) is None:
        yield Blocker("tpm", "tpm", f"there is no {SWTPM} there", "install it there (Debian: swtpm)")


def _chroot(host: Host, spec: Spec) -> Iterator[Blocker]:
    try:
        host.check(spec)
    except ArgumentError as error:
        yield Blocker("chroot", error.field, error.allowed, "run the daemon there as root, or do without")


def _vsock(host: Host, spec: Spec) -> Iterator[Blocker]:
    if spec.vsock_cid and not _VHOST_VSOCK.exists():
        yield Blocker("vsock", "vsock_cid", f"there is no {_VHOST_VSOCK} there", "modprobe vhost_vsock, there")


def _pinning(host: Host, spec: Spec) -> Iterator[Blocker]:
    online = cpu_set(_ONLINE.read_text(encoding="ascii").strip())
    for number, entry in enumerate(spec.cpu.pinning):
        if not cpu_set(entry) & online:
            why = f"that node has no CPU of {entry}, but {_ONLINE.read_text(encoding='ascii').strip()}"
            yield Blocker("pinning", f"cpu.pinning[{number}]", why, "pin it to CPUs that both nodes have")


def _servers(host: Host, spec: Spec) -> Iterator[Blocker]:
    for field, uri, error in useless_servers(spec):
        if not uri.startswith("nbd+unix:"):  # one on a socket of the other host: told of with the disks
            yield Blocker("disk", field, f"{uri} is of no use there: {error}", "let that node reach it")


def _space(host: Host, spec: Spec) -> Iterator[Blocker]:
    for folder in (host.paths.state, host.paths.run):
        with suppress(FileNotFoundError):
            found = os.statvfs(folder)
            if (free := found.f_bavail * found.f_frsize) < _LEAST:
                why = f"{free} bytes are free there, and its documents and logs need up to {_LEAST}"
                yield Blocker("space", os.fspath(folder), why, "make room there")


_LOOKS: Final[tuple[Callable[[Host, Spec], Iterator[Blocker]], ...]] = (
    *(_nics, _screens, _paths, _tpm, _chroot, _vsock, _pinning, _servers, _space),
)
