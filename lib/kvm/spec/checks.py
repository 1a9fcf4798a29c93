"""What is wrong between the fields of a specification, each of which is right by itself."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeAlias

from msgspec import UNSET

from ...errors import Problem
from ...ops.image import CACHES
from .devices import Disk, Nic
from .model import Spec

_Kind: TypeAlias = tuple[str, Iterable[Any]]


def check(spec: Spec) -> Iterator[Problem]:
    """All that is wrong."""
    for one in _CHECKS:
        yield from one(spec)


def _unique(values: Iterable[tuple[str, Any]]) -> Iterator[Problem]:
    """`values`: pairs of path and value; None is none."""
    first: dict[Any, str] = {}
    for path, value in values:
        if value is not None and (other := first.setdefault(value, path)) != path:
            yield Problem(path, value, f"unique: it is also {other}")


def _ids(spec: Spec) -> Iterator[Problem]:
    kinds: tuple[_Kind, ...] = (
        ("disks", spec.disks),
        ("nics", spec.nics),
        ("usb", spec.usb),
        ("vfio", spec.vfio),
    )
    yield from _unique((f"{kind}[{n}].id", device.id) for kind, devices in kinds for n, device in enumerate(devices))


def _macs(spec: Spec) -> Iterator[Problem]:
    yield from _unique((f"nics[{n}].mac", nic.mac.lower() or None) for n, nic in enumerate(spec.nics))


def _boot_indexes(spec: Spec) -> Iterator[Problem]:
    kinds: tuple[_Kind, ...] = (("disks", spec.disks), ("nics", spec.nics), ("vfio", spec.vfio))
    yield from _unique(
        (f"{kind}[{n}].boot_index", device.boot_index) for kind, devices in kinds for n, device in enumerate(devices)
    )


def _disks(spec: Spec) -> Iterator[Problem]:
    for n, disk in enumerate(spec.disks):
        yield from _disk(f"disks[{n}]", disk)


def _disk(path: str, disk: Disk) -> Iterator[Problem]:
    if not disk.source and not disk.cdrom:
        yield Problem(f"{path}.source", UNSET, "it is missing; only a cdrom can be empty")
    if disk.source and disk.format is None:
        yield Problem(f"{path}.format", UNSET, "it is missing; it has to be one of raw, qcow2: it is never probed")
    if disk.aio == "native" and not CACHES[disk.cache][0]:
        yield Problem(f"{path}.aio", disk.aio, f"possible with cache {disk.cache!r}: it needs none or directsync")


def _nics(spec: Spec) -> Iterator[Problem]:
    for n, nic in enumerate(spec.nics):
        yield from _nic(f"nics[{n}]", nic)


def _nic(path: str, nic: Nic) -> Iterator[Problem]:
    if nic.queues > 1 and nic.model != "virtio-net-pci":
        yield Problem(f"{path}.queues", nic.queues, f"1, and {nic.model} has a single pair of queues")


def _cpus(spec: Spec) -> Iterator[Problem]:
    if spec.cpu.count > spec.cpu.max:
        yield Problem("cpu.count", spec.cpu.count, f"at most cpu.max, which is {spec.cpu.max}")


_CHECKS: Final[tuple[Callable[[Spec], Iterator[Problem]], ...]] = (
    _ids,
    _macs,
    _boot_indexes,
    _cpus,
    _disks,
    _nics,
)
