"""What is allowed in a specification beyond its types. Each check yields its problems; none stops at the first."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final
from uuid import UUID

from ...errors import ArgumentError, Problem
from ...ops.disk import BUSES
from ...ops.image import AIOS, CACHES, DISCARDS, FORMATS
from ...ops.nic import check_id
from ..paths import check_name
from ..taps import MAX_QUEUES
from .document import Disk, Nic, Spec

ACCELERATIONS: Final = ("auto", "kvm", "tcg")
NIC_MODES: Final = ("user", "bridge")
NIC_MODELS: Final = ("virtio-net-pci", "e1000", "e1000e", "rtl8139")
_DISK_CHOICES: Final = {
    "format": FORMATS,
    "bus": BUSES,
    "cache": tuple(CACHES),
    "aio": AIOS,
    "discard": DISCARDS,
    "detect_zeroes": ("off", "on", "unmap"),
    "werror": ("report", "ignore", "stop", "enospc"),
    "rerror": ("report", "ignore", "stop"),
}
_MIB: Final = 1 << 20
_MAX_PORTS: Final = 64  # beyond it the firmware takes seconds, and a guest runs out of interrupt vectors
_ID_LENGTH: Final = 26  # a node name has 31 characters, and some of ours have an ending
_SERIAL_LENGTH: Final = 20  # what virtio-blk shows of it
_MAC: Final = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_CPU_SET: Final = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


def check(spec: Spec) -> list[Problem]:
    """Everything that is wrong with a specification whose types are right."""
    return [problem for part in _CHECKS for problem in part(spec)]


def _general(spec: Spec) -> Iterator[Problem]:
    try:
        check_name(spec.name)
    except ArgumentError as error:
        yield Problem("name", f"{spec.name!r}: {error.allowed}")
    if spec.uuid:
        try:
            UUID(spec.uuid)
        except ValueError:
            yield Problem("uuid", f"{spec.uuid!r} is no UUID")
    yield from _choice("acceleration", spec.acceleration, ACCELERATIONS)
    if not 0 <= spec.machine.root_ports <= _MAX_PORTS:
        yield Problem("machine.root_ports", f"{spec.machine.root_ports} is not from 0 to {_MAX_PORTS}")
    if spec.boot.initrd and not spec.boot.kernel:
        yield Problem("boot.initrd", "it needs boot.kernel")
    if spec.boot.cmdline and not spec.boot.kernel:
        yield Problem("boot.cmdline", "it needs boot.kernel")


def _cpu(spec: Spec) -> Iterator[Problem]:
    cpu = spec.cpu
    if cpu.count < 1:
        yield Problem("cpu.count", f"{cpu.count} is not at least 1")
    if cpu.max and cpu.max < cpu.count:
        yield Problem("cpu.max", f"{cpu.max} is less than cpu.count, {cpu.count}")
    shape = (cpu.sockets, cpu.cores, cpu.threads)
    if any(shape) and not all(shape):
        yield Problem("cpu.sockets", "sockets, cores and threads are said together or not at all")
    elif all(shape) and cpu.sockets * cpu.cores * cpu.threads != (cpu.max or cpu.count):
        yield Problem("cpu.sockets", f"{' × '.join(map(str, shape))} is not what there can be, {cpu.max or cpu.count}")
    for number, entry in enumerate(cpu.pinning):
        if not _CPU_SET.fullmatch(entry):
            yield Problem(f"cpu.pinning[{number}]", f"{entry!r} is no set of CPUs such as '0-3,8'")


def _memory(spec: Spec) -> Iterator[Problem]:
    memory = spec.memory
    if memory.size < _MIB or memory.size % _MIB:
        yield Problem("memory.size", f"{memory.size} is no multiple of 1 MiB")
    if memory.max and memory.max < memory.size:
        yield Problem("memory.max", f"{memory.max} is less than memory.size, {memory.size}")
    if bool(memory.max > memory.size) != bool(memory.slots):
        yield Problem("memory.slots", "memory.slots and a memory.max above memory.size need each other")
    if not 0 <= memory.slots <= 256:
        yield Problem("memory.slots", f"{memory.slots} is not from 0 to 256")


def _disks(spec: Spec) -> Iterator[Problem]:
    for number, disk in enumerate(spec.disks):
        path = f"disks[{number}]"
        yield from _id(path, disk.id)
        yield from _disk(path, disk)
    yield from _twice("disks", "boot_index", [disk.boot_index for disk in spec.disks])


def _disk(path: str, disk: Disk) -> Iterator[Problem]:
    for field, allowed in _DISK_CHOICES.items():
        yield from _choice(f"{path}.{field}", getattr(disk, field), allowed)
    if not disk.source.startswith("/"):
        yield Problem(f"{path}.source", f"{disk.source!r} is no absolute path")
    if disk.aio == "native" and disk.cache in CACHES and not CACHES[disk.cache][0]:
        yield Problem(f"{path}.aio", "'native' needs cache 'none' or 'directsync': it goes by O_DIRECT")
    if len(disk.serial) > _SERIAL_LENGTH:
        yield Problem(f"{path}.serial", f"{disk.serial!r} has more than {_SERIAL_LENGTH} characters")
    if disk.boot_index is not None and disk.boot_index < 0:
        yield Problem(f"{path}.boot_index", f"{disk.boot_index} is negative")


def _nics(spec: Spec) -> Iterator[Problem]:
    for number, nic in enumerate(spec.nics):
        path = f"nics[{number}]"
        yield from _id(path, nic.id)
        yield from _nic(path, nic)
    yield from _twice("nics", "mac", [nic.mac.lower() or None for nic in spec.nics])


def _nic(path: str, nic: Nic) -> Iterator[Problem]:
    yield from _choice(f"{path}.mode", nic.mode, NIC_MODES)
    yield from _choice(f"{path}.model", nic.model, NIC_MODELS)
    if (nic.mode == "bridge") != bool(nic.link):
        yield Problem(f"{path}.link", "mode 'bridge' needs the bridge's name here, and no other mode takes one")
    if nic.mac and not _MAC.fullmatch(nic.mac):
        yield Problem(f"{path}.mac", f"{nic.mac!r} is not six octets in hexadecimal with colons")
    elif nic.mac and int(nic.mac[:2], 16) & 1:
        yield Problem(f"{path}.mac", f"{nic.mac!r} is a multicast address: the first octet must be even")
    most = MAX_QUEUES if nic.mode != "user" and nic.model == "virtio-net-pci" else 1
    if not 1 <= nic.queues <= most:
        yield Problem(f"{path}.queues", f"{nic.queues} is not from 1 to {most}, for this model and mode")


def _ids(spec: Spec) -> Iterator[Problem]:
    """Disks and cards share QEMU's one space of device ids."""
    seen: dict[str, str] = {}
    for kind, ids in (("disks", [disk.id for disk in spec.disks]), ("nics", [nic.id for nic in spec.nics])):
        for number, name in enumerate(ids):
            if name in seen:
                yield Problem(f"{kind}[{number}].id", f"{name!r} is the id of {seen[name]}, too")
            seen.setdefault(name, f"{kind}[{number}]")


def _id(path: str, value: str) -> Iterator[Problem]:
    try:
        check_id(value)
    except ArgumentError as error:
        yield Problem(f"{path}.id", f"{value!r}: {error.allowed}")
    if len(value) > _ID_LENGTH:
        yield Problem(f"{path}.id", f"{value!r} has more than {_ID_LENGTH} characters")


def _choice(path: str, value: str, allowed: Sequence[str]) -> Iterator[Problem]:
    if value not in allowed:
        yield Problem(path, f"{value!r} is not one of {', '.join(allowed)}")


def _twice(kind: str, field: str, values: Sequence[object]) -> Iterator[Problem]:
    for number, value in enumerate(values):
        if value is not None and value in values[:number]:
            yield Problem(f"{kind}[{number}].{field}", f"{value!r} is that of {kind}[{values.index(value)}], too")


_CHECKS: Final[tuple[Callable[[Spec], Iterator[Problem]], ...]] = (_general, _cpu, _memory, _disks, _nics, _ids)
