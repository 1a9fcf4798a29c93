"""What is wrong between the fields of a specification, each of which is right by itself: the machine as a whole."""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeAlias

from msgspec import UNSET

from ...errors import ArgumentError, Problem
from ...ops.slots import SCSI_TARGETS
from ...ops.storage import check_disk_id
from .device_checks import check_disk, check_nic, check_spice, check_usb, check_vfio, check_vnc
from .model import Spec

_Kind: TypeAlias = tuple[str, Iterable[Any]]

_MIB: Final = 1 << 20
_PAGES: Final = {"off": _MIB, "2MiB": 2 * _MIB, "1GiB": 1024 * _MIB}
SATA_PORTS: Final = 6  # of the ICH9
_BESIDE_GUEST: Final = 256 * _MIB  # that QEMU may need beside the guest's memory
_OTHER_THREADS: Final = 80  # beside the vCPUs: 64 that read and write for disks, and QEMU's own
USB_PORTS: Final = 15  # the most that the controller can have
SCSI_CONTROLLERS: Final = 4  # of which the first has no thread of its own
_FIRST_CID: Final = 3  # those below are the host's
# What the command line calls things of its own.
RESERVED: Final = frozenset(
    {
        *(
            "ram",
            "rng",
            "rng-source",
            "seed",
            "serial",
            "vserial",
            "agent",
            "spice-agent",
            "balloon",
            "video",
            "tablet",
        ),
        *("xhci", "tpm", "vsock", "watchdog", "panic", "ahci", "vnc-tls", "firmware-code", "firmware-vars"),
        *("control", "events", "people", "ide", "pcie.0", "pci.0"),
    }
)
_RESERVED_PREFIXES: Final = ("rp", "br", "scsi")  # followed by a number: root ports, bridges, controllers


def is_reserved(id: str) -> bool:
    """Whether a part of the machine itself has, or could have, this id."""
    return id in RESERVED or any(id.startswith(it) and id[len(it) :].isdecimal() for it in _RESERVED_PREFIXES)


def check(spec: Spec) -> Iterator[Problem]:
    """All that is wrong within a part of the machine, or with how one goes with another."""
    for one in _PARTS:
        yield from one(spec)


def check_names(spec: Spec) -> Iterator[Problem]:
    """All that is there twice and must not be, or has a name that is taken."""
    for one in _NAMES:
        yield from one(spec)


def _unique(values: Iterable[tuple[str, Any]]) -> Iterator[Problem]:
    """`values`: pairs of path and value; None is none."""
    first: dict[Any, str] = {}
    for path, value in values:
        if value is not None and (other := first.setdefault(value, path)) != path:
            yield Problem(path, value, f"unique: it is also {other}")


# -- the board --------------------------------------------------------------------------------------


def _cpu(spec: Spec) -> Iterator[Problem]:
    cpu = spec.cpu
    if cpu.count > cpu.max:
        yield Problem("cpu.count", cpu.count, f"at most cpu.max, which is {cpu.max}")
    sockets, cores, threads = cpu.topology
    if sockets * cores * threads != cpu.max:
        allowed = f"what makes {cpu.max} CPUs: sockets × cores × threads come to {sockets * cores * threads}"
        yield Problem("cpu.sockets", sockets, allowed)
    if len(cpu.pinning) > cpu.max:
        yield Problem("cpu.pinning", list(cpu.pinning), f"at most {cpu.max} entries, one a virtual CPU")
    for n, entry in enumerate(cpu.pinning):
        ends = [part.partition("-") for part in entry.split(",")]
        if any(dash and int(first) > int(last) for first, dash, last in ends):
            yield Problem(f"cpu.pinning[{n}]", entry, "numbers of host CPUs, the lower end of a range first")


def _limits(spec: Spec) -> Iterator[Problem]:
    limits = spec.limits
    least, fewest = spec.memory.max + _BESIDE_GUEST, spec.cpu.max + _OTHER_THREADS
    if limits.memory is not None and limits.memory < least:
        allowed = f"at least {least}: memory.max and {_BESIDE_GUEST // _MIB} MiB for QEMU itself"
        yield Problem("limits.memory", limits.memory, allowed)
    if limits.threads is not None and limits.threads < fewest:
        allowed = f"at least {fewest}: cpu.max and {_OTHER_THREADS} for QEMU itself"
        yield Problem("limits.threads", limits.threads, allowed)


def _memory(spec: Spec) -> Iterator[Problem]:
    memory = spec.memory
    page = _PAGES[memory.hugepages]
    for name, value in (("size", memory.size), ("max", memory.max)):
        if not value or value % page:
            yield Problem(f"memory.{name}", value, f"a positive multiple of {page // _MIB} MiB")
    if memory.max < memory.size:
        yield Problem("memory.max", memory.max, f"at least memory.size, which is {memory.size}")
    elif memory.slots and memory.max == memory.size:
        yield Problem("memory.slots", memory.slots, "possible without a memory.max above memory.size")


def _firmware(spec: Spec) -> Iterator[Problem]:
    firmware = spec.firmware
    if firmware.secure_boot and not (firmware.type == "uefi" and spec.machine.q35):
        yield Problem("firmware.secure_boot", True, "possible but with firmware.type 'uefi' on machine.type 'q35'")
    if firmware.vars_template and not (firmware.type == "uefi" and firmware.code):
        yield Problem(
            "firmware.vars_template", firmware.vars_template, "possible but with a firmware.code of type 'uefi'"
        )
    if firmware.code and firmware.type == "uefi" and not firmware.vars_template:
        yield Problem(
            "firmware.vars_template", UNSET, "it is missing: what variables does this firmware.code start with?"
        )


def _boot(spec: Spec) -> Iterator[Problem]:
    boot = spec.boot
    for name, value in (("initrd", boot.initrd), ("cmdline", boot.cmdline)):
        if value and not boot.kernel:
            yield Problem(f"boot.{name}", value, "possible without boot.kernel")
    for kind, some in _kinds(spec):
        for n, device in enumerate(some):
            if boot.kernel and kind != "usb" and device.boot_index == 0:
                yield Problem(f"{kind}[{n}].boot_index", 0, "free: it is that of boot.kernel")


def _others(spec: Spec) -> Iterator[Problem]:
    if spec.watchdog and spec.watchdog.model == "itco" and not spec.machine.q35:
        yield Problem("watchdog.model", "itco", "in a pc: it is q35's own")
    if 0 < spec.vsock_cid < _FIRST_CID:
        yield Problem("vsock_cid", spec.vsock_cid, f"0 for none, or from {_FIRST_CID} on")


def _chroot(spec: Spec) -> Iterator[Problem]:
    if not spec.chroot:
        if spec.chroot_paths:
            yield Problem("chroot_paths", list(spec.chroot_paths), "possible without chroot = true")
        return
    paths = [(f"chroot_paths[{n}]", path) for n, path in enumerate(spec.chroot_paths)]
    screens = (("vnc", spec.vnc), ("spice", spec.spice))
    paths += [(f"{name}.tls_dir", screen.tls_dir) for name, screen in screens if screen is not None and screen.tls_dir]
    for field, path in paths:
        folder = os.path.normpath(path).lstrip("/").partition("/")[0]
        if not folder:
            yield Problem(field, path, "possible with a chroot: that would be the host's whole root")
        elif folder == "proc":
            yield Problem(field, path, "possible with a chroot, which has a /proc of its own")


# -- ids and what else must differ --------------------------------------------------------------------


def _kinds(spec: Spec) -> tuple[_Kind, ...]:
    return (("disks", spec.disks), ("nics", spec.nics), ("usb", spec.usb), ("vfio", spec.vfio))


def _named(spec: Spec) -> list[tuple[str, str]]:
    """Paths and values of all ids."""
    devices = [(f"{kind}[{n}].id", device.id) for kind, some in _kinds(spec) for n, device in enumerate(some)]
    threads = [(f"disks[{n}].iothread", disk.iothread) for n, disk in enumerate(spec.disks) if disk.iothread]
    return devices + threads


def _ids(spec: Spec) -> Iterator[Problem]:
    for path, name in _named(spec):
        if is_reserved(name):
            yield Problem(path, name, "free: a part of the machine itself has this id")
    yield from _unique((f"{kind}[{n}].id", device.id) for kind, some in _kinds(spec) for n, device in enumerate(some))
    for n, disk in enumerate(spec.disks):
        try:
            check_disk_id(disk.id, len(disk.backing))
        except ArgumentError as error:
            yield Problem(f"disks[{n}].id", disk.id, f"good: {error.allowed}")


def _macs(spec: Spec) -> Iterator[Problem]:
    yield from _unique((f"nics[{n}].mac", nic.mac.lower() or None) for n, nic in enumerate(spec.nics))


def _boot_indexes(spec: Spec) -> Iterator[Problem]:
    yield from _unique(
        (f"{kind}[{n}].boot_index", device.boot_index)
        for kind, some in _kinds(spec)
        if kind != "usb"
        for n, device in enumerate(some)
    )


def _host_devices(spec: Spec) -> Iterator[Problem]:
    yield from _unique((f"vfio[{n}].host", device.host.lower() or None) for n, device in enumerate(spec.vfio))


# -- the devices ------------------------------------------------------------------------------------


def _disks(spec: Spec) -> Iterator[Problem]:
    for n, disk in enumerate(spec.disks):
        yield from check_disk(f"disks[{n}]", disk)
    sata = [n for n, disk in enumerate(spec.disks) if disk.bus == "sata"]
    for n in sata[SATA_PORTS:]:
        yield Problem(f"disks[{n}].bus", "sata", f"possible: the machine has {SATA_PORTS} SATA ports")
    threads: dict[str, int] = {"": 0}
    for n, disk in enumerate(spec.disks):
        if disk.bus == "virtio-scsi":
            threads[disk.iothread] = threads.get(disk.iothread, 0) + 1
            if threads[disk.iothread] == SCSI_TARGETS + 1:
                yield Problem(f"disks[{n}].bus", "virtio-scsi", f"possible: a controller has {SCSI_TARGETS} places")
            if len(threads) > SCSI_CONTROLLERS:
                allowed = f"possible: virtio-scsi can have {SCSI_CONTROLLERS - 1} threads, each with its controller"
                yield Problem(f"disks[{n}].iothread", disk.iothread, allowed)


def _nics(spec: Spec) -> Iterator[Problem]:
    for n, nic in enumerate(spec.nics):
        yield from check_nic(f"nics[{n}]", nic)


def _plugged(spec: Spec) -> Iterator[Problem]:
    for n, usb in enumerate(spec.usb):
        yield from check_usb(f"usb[{n}]", usb)
    tablet = spec.screen and all(usb.type != "tablet" for usb in spec.usb)
    if len(spec.usb) + tablet > USB_PORTS:
        yield Problem("usb", UNSET, f"there are more devices than ports, {USB_PORTS}")
    for n, vfio in enumerate(spec.vfio):
        yield from check_vfio(f"vfio[{n}]", vfio)


def _screens(spec: Spec) -> Iterator[Problem]:
    if spec.vnc:
        yield from check_vnc(spec.vnc)
    if spec.spice:
        yield from check_spice(spec.spice)


_Checks: TypeAlias = tuple[Callable[[Spec], Iterator[Problem]], ...]
_PARTS: Final[_Checks] = (
    *(_cpu, _memory, _limits, _firmware, _boot, _disks, _nics, _plugged, _screens, _others, _chroot),
)
_NAMES: Final[_Checks] = (_ids, _macs, _boot_indexes, _host_devices)
