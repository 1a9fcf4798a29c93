"""What is wrong between the fields of one device, each of which is right by itself."""

import ipaddress
from collections.abc import Iterator
from typing import Final

from msgspec import UNSET

from ...errors import ArgumentError, Problem
from ...ops.chain import MAX_LAYERS
from ...ops.image import CACHES
from ...ops.nbd import check_source, parse_nbd
from .devices import Disk, Nic, Spice, UsbDevice, VfioDevice, Vnc

_BRIDGED: Final = ("bridge", "ovs", "macvtap")  # modes that need a link
_VIRTIO: Final = "virtio-net-pci"
_VNC_PASSWORD: Final = 8  # characters: those of DES's key
_FIRST_VNC_PORT: Final = 5900
_PORTS: Final = 65535


def check_disk(path: str, disk: Disk) -> Iterator[Problem]:
    """All that is wrong with a disk."""
    if disk.source:
        yield from _image(path, disk)
    else:
        yield from _empty(path, disk)
    if disk.cdrom and disk.bus == "virtio-blk":
        yield Problem(f"{path}.bus", disk.bus, "possible for a cdrom: it needs sata or virtio-scsi")
    if disk.bus == "sata" and disk.iothread:
        yield Problem(f"{path}.iothread", disk.iothread, "possible on sata")
    if disk.bus == "sata" and disk.read_only and not disk.cdrom:
        yield Problem(f"{path}.read_only", True, "possible on sata, which has no such disks")


def _empty(path: str, disk: Disk) -> Iterator[Problem]:
    if not disk.cdrom:
        yield Problem(f"{path}.source", UNSET, "it is missing; only a cdrom can be empty")
    for field in ("format", "backing", "throttle"):
        if disk.cdrom and getattr(disk, field):
            yield Problem(f"{path}.{field}", UNSET, "it needs a source")


def _image(path: str, disk: Disk) -> Iterator[Problem]:
    if disk.format is None:
        yield Problem(f"{path}.format", UNSET, "it is missing; it has to be raw or qcow2, and is never probed")
    yield from _source(path, disk)
    if disk.aio == "native" and not CACHES[disk.cache][0]:
        yield Problem(f"{path}.aio", disk.aio, f"possible with cache {disk.cache!r}: it needs none or directsync")
    if disk.aio != "threads" and not disk.local:
        yield Problem(f"{path}.aio", disk.aio, "possible for a source that is no file of this host")
    if disk.detect_zeroes == "unmap" and disk.discard != "unmap":
        yield Problem(f"{path}.detect_zeroes", "unmap", "possible without discard 'unmap'")
    if disk.throttle is not None:
        try:
            disk.throttle.limits.check()
        except ArgumentError as error:
            yield Problem(f"{path}.throttle.{error.field}", error.value, error.allowed)
    if disk.backing:
        yield from _backing(path, disk)


def _backing(path: str, disk: Disk) -> Iterator[Problem]:
    above = disk.format
    for n, image in enumerate(disk.backing):
        inside = f"{path}.backing[{n}]"
        if above == "raw":
            yield Problem(inside, image.source, "possible: what stands on it is raw, and so stands on nothing")
        if image.source and not (disk.local and image.source.startswith("/")):
            yield Problem(f"{inside}.source", image.source, "possible: only files of this host stand on each other")
        if not image.source:
            yield Problem(f"{inside}.source", UNSET, "it is empty")
        above = image.format
    if len(disk.backing) >= MAX_LAYERS:
        yield Problem(f"{path}.backing", len(disk.backing), f"at most {MAX_LAYERS - 1} images")


def _source(path: str, disk: Disk) -> Iterator[Problem]:
    """What there is to say of a source that is no file: what it has to be, and that a guest's header is not read."""
    if disk.source.startswith("rbd:"):
        if not all(disk.source.removeprefix("rbd:").rpartition("/")):
            yield Problem(f"{path}.source", disk.source, "rbd:POOL/IMAGE")
    elif disk.source.startswith("nbd"):
        try:
            nbd = parse_nbd(disk.source)
            check_source(nbd)
            if nbd.address.startswith("unix:") and not nbd.address.startswith("unix:/"):
                yield Problem(f"{path}.source", disk.source, "with an absolute path of the socket")
        except ArgumentError as error:
            yield Problem(f"{path}.source", disk.source, error.allowed)
    if not disk.local and disk.format == "qcow2":
        yield Problem(
            f"{path}.format", "qcow2", "possible but for a file of this host: who serves a disk serves it raw"
        )


# -- network cards ----------------------------------------------------------------------------------


def check_nic(path: str, nic: Nic) -> Iterator[Problem]:
    """All that is wrong with a network card."""
    if nic.mode in _BRIDGED and not nic.link:
        yield Problem(f"{path}.link", UNSET, f"it is missing: mode {nic.mode!r} needs one")
    if nic.mode in ("user", "fd"):
        yield from _unused(path, nic, "link", "vlan", "script_up", "script_down")
    if nic.mode != "user":
        yield from _unused(path, nic, "forwards")
    else:
        yield from _unused(path, nic, "vhost", "mtu")
    if nic.mode in ("routed", "macvtap"):
        yield from _unused(path, nic, "vlan")
    most_one = nic.mode == "user" or nic.model != _VIRTIO
    if nic.queues > 1 and most_one:
        what = "mode 'user'" if nic.mode == "user" else nic.model
        yield Problem(f"{path}.queues", nic.queues, f"possible: {what} has a single pair of queues")
    if nic.vhost and nic.model != _VIRTIO:
        yield Problem(f"{path}.vhost", True, f"possible for {nic.model}: it needs {_VIRTIO}")
    if nic.ip or nic.mode == "routed":
        yield from _address(path, nic)
    for n, forward in enumerate(nic.forwards):
        if not _is_forward(forward):
            yield Problem(f"{path}.forwards[{n}]", forward, "a forwarded port such as tcp:127.0.0.1:2222-:22")


def _unused(path: str, nic: Nic, *fields: str) -> Iterator[Problem]:
    for field in fields:
        if value := getattr(nic, field):
            value = list(value) if isinstance(value, tuple) else value
            yield Problem(f"{path}.{field}", value, f"possible with mode {nic.mode!r}")


def _address(path: str, nic: Nic) -> Iterator[Problem]:
    if not nic.ip:
        yield Problem(f"{path}.ip", UNSET, "it is missing: mode 'routed' needs the guest's address")
        return
    try:
        ipaddress.ip_address(nic.ip)
    except ValueError:
        yield Problem(f"{path}.ip", nic.ip, "an address of IPv4 or IPv6")


def _is_forward(text: str) -> bool:
    host, _, guest = text.partition(":")[2].partition("-")
    for end in (host, guest):
        address, _, port = end.rpartition(":")
        try:
            if address:
                ipaddress.IPv4Address(address)
        except ValueError:
            return False
        if not 0 < int(port) <= _PORTS:
            return False
    return True


# -- screens and devices of the host ------------------------------------------------------------------


def check_vnc(vnc: Vnc) -> Iterator[Problem]:
    """All that is wrong with VNC."""
    if vnc.listen and not _port(vnc.listen) >= _FIRST_VNC_PORT:
        yield Problem("vnc.listen", vnc.listen, f"ADDRESS:PORT, the port from {_FIRST_VNC_PORT} on")
    if vnc.tls_verify and not vnc.tls_dir:
        yield Problem("vnc.tls_verify", True, "possible without vnc.tls_dir")
    if vnc.password and len(vnc.password.secret) > _VNC_PASSWORD:
        yield Problem("vnc.password", UNSET, f"it is longer than {_VNC_PASSWORD} characters, and VNC drops the rest")


def check_spice(spice: Spice) -> Iterator[Problem]:
    """All that is wrong with SPICE."""
    if spice.listen and not _port(spice.listen):
        yield Problem("spice.listen", spice.listen, "ADDRESS:PORT")
    if spice.tls_dir and not spice.listen:
        yield Problem("spice.tls_dir", spice.tls_dir, "possible on a unix socket: it needs spice.listen")


def _port(listen: str) -> int:
    """The port of ``ADDRESS:PORT``; 0 where it is none."""
    address, _, port = listen.rpartition(":")
    good = port.isdecimal() and int(port) <= _PORTS
    try:
        ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
    except ValueError:
        return 0
    return int(port) if good and (":" not in address or address.startswith("[")) else 0


def check_usb(path: str, usb: UsbDevice) -> Iterator[Problem]:
    """All that is wrong with a USB device."""
    by_kind, by_place = (bool(usb.vendor), bool(usb.product)), (bool(usb.bus), bool(usb.address))
    if usb.type != "host":
        if any((*by_kind, *by_place)):
            yield Problem(f"{path}.type", usb.type, "'host', and only a device of the host has a vendor or a bus")
    elif not (all(by_kind) and not any(by_place)) and not (all(by_place) and not any(by_kind)):
        yield Problem(path, UNSET, "a device of the host is told by vendor and product, or by bus and address")


def check_vfio(path: str, vfio: VfioDevice) -> Iterator[Problem]:
    """All that is wrong with a PCI device of the host."""
    if bool(vfio.host) == bool(vfio.mediated):
        yield Problem(path, UNSET, "it is told by host or by mediated, one of them")
