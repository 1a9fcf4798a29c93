"""What a machine that runs needs of a node that it is to go to, and what keeps it here: asked of its QEMU."""

from collections.abc import Iterator

from ..errors import ArgumentError, Blocker, CommandError, DroverError
from ..kvm.argv.board import cpu_model
from ..kvm.fitness import firmware_of
from ..kvm.packing import bound_devices, parcel_of
from ..kvm.parcel import Parcel
from ..kvm.record import Runtime
from ..monitor.connection import QmpConnection
from ..ops.cpu_model import CpuModel
from ..ops.migration import MigrationInfo, query_both
from .checks import Need
from .storage import DiskImage
from .survey import survey


def examined(runtime: Runtime, vm: QmpConnection) -> Need:
    """Tell it.

    :param runtime: of the machine
    :param vm: a connection to its QEMU
    :raises MonitorError: its QEMU does not answer
    :raises NotSupported: it has memory of a kind that is not known here
    """
    info, status = vm.perform(query_both)
    blockers, parcel = [*_bound(runtime), *_by_qemu(info, runtime.spec.name, status)], parcel_of(runtime, vm)
    images = _images(runtime, vm, blockers)
    return Need(
        parcel=parcel, images=tuple(images), cpu=_cpu(runtime, vm), firmware=_firmware(parcel),
        paused=runtime.paused or status == "paused", blockers=tuple(blockers),
    )  # fmt: skip


def _bound(runtime: Runtime) -> Iterator[Blocker]:
    """Devices that cannot go over."""
    for device, what in bound_devices(runtime.spec).items():
        yield Blocker("device-bound", device, f"it is {what}, which no other node has", "drover detach it before")


def _by_qemu(info: MigrationInfo, name: str, status: str) -> Iterator[Blocker]:
    """What QEMU itself says that keeps it."""
    if status == "postmigrate":
        why = "it was sent before, did not go, and stands still since: QEMU does not send it again until it has run"
        yield Blocker("sent-before", "the guest", why, f"drover resume {name}, drover pause {name}")
    for reason in info.blocked_reasons:
        yield Blocker("qemu", "QEMU", reason.rstrip("."), "take out what that is about")


def _images(runtime: Runtime, vm: QmpConnection, blockers: list[Blocker]) -> list[DiskImage]:
    try:
        return vm.perform(lambda port: survey(port, runtime.spec.disks, runtime.pid))
    except ArgumentError as error:
        what, why = error.field, f"{error.value!r} is not {error.allowed}"
    except OSError as error:
        what, why = str(error.filename or "disks"), error.strerror or str(error)
    blockers.append(Blocker("disk", what, why, f"drover verify {runtime.spec.name} shows how it should be"))
    return []


def _firmware(parcel: Parcel) -> tuple[int, int] | None:
    try:
        return firmware_of(parcel)
    except (DroverError, OSError):  # it was uninstalled since: what there is elsewhere cannot be compared with it
        return None


def _cpu(runtime: Runtime, vm: QmpConnection) -> CpuModel | None:
    try:
        return vm.query_cpu_model(cpu_model(runtime.spec.cpu, runtime.accelerator))
    except CommandError:
        return None
