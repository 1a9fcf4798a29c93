"""Virtual CPUs that come and go while the machine runs.

Without KVM, both ways are dangerous. QEMU gives each vCPU a region of the buffer for translated code,
and aborts over a new vCPU where a guest that was busy has used them all up (assertion in
``tcg/region.c``; tried on 7.2 and 10.0). A machine that may get more than it starts with has a larger
buffer, so that it is rarely so. And 7.2 corrupts its memory when one is taken out: it dies of the vCPU
or DIMM that comes next. Nothing tells beforehand, so there it is done only for who says that he knows.
"""

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct, convert

from ..errors import ArgumentError, HotplugError, NoFreeSlot, NotSupported
from ..qmp.ready import ready
from .inventory import PERIPHERAL, has_device, query_kvm
from .nic import check_id
from .port import Port
from .undo import Undo
from .unplug import UNDO_TIMEOUT, UNPLUG_TIMEOUT, unplug

# The last that QEMU sends is of a part of the vCPU; the whole goes within the same turn of its main loop.
_GONE_TIMEOUT: Final = 10.0
_GONE_POLL: Final = 0.02


class CpuSlot(Struct, frozen=True, kw_only=True, rename="kebab"):
    """A place for a virtual CPU.

    :ivar type: the driver that ``device_add`` takes
    :ivar props: its place: socket, core and thread numbers, as far as the machine has them
    :ivar vcpus_count: how many vCPUs are plugged in together
    :ivar qom_path: where the vCPU is that is plugged in; None where the place is free
    """

    type: str
    props: dict[str, int]
    vcpus_count: int = 1
    qom_path: str | None = None


async def query_hotpluggable_cpus(port: Port) -> list[CpuSlot]:
    """Return all places for vCPUs, by their numbers, also those that were there at the start.

    By ``query-hotpluggable-cpus``.

    :raises CommandError: this machine type takes none
    """
    return slots_among(await port.execute("query-hotpluggable-cpus"))


def slots_among(entries: Any) -> list[CpuSlot]:
    """The same, by what QEMU answers to ``query-hotpluggable-cpus``."""
    return sorted(convert(entries, list[CpuSlot]), key=lambda slot: sorted(slot.props.items()))


async def hot_add_cpu(
    port: Port, *, id: str, props: Mapping[str, int] | None = None, even_under_tcg: bool = False
) -> CpuSlot:
    """Plug in a vCPU; whether the guest uses it is up to the guest.

    :param id: for the device
    :param props: which place, by its numbers; what is not said may be any. None takes the first that is free
    :param even_under_tcg: also where the machine runs without KVM, though QEMU may abort, and the machine be lost
    :returns: where it is
    :raises ArgumentError: there is no such place, or it is taken
    :raises NotSupported: the machine runs without KVM
    :raises NoFreeSlot: the machine has as many as ``maxcpus`` allows
    :raises CommandError: QEMU refused
    """
    check_id(id)
    with port.reservations.name(id), port.reservations.name("(a vCPU's place)"):
        slot = _choose(await query_hotpluggable_cpus(port), id, props or {})
        await _check_kvm(port, even_under_tcg)
        device: dict[str, Any] = {"driver": slot.type, "id": id} | slot.props
        async with Undo(port) as undo:
            await undo.step("device_add", device, undo=lambda _: unplug(port, id, timeout=UNDO_TIMEOUT))
            found = [entry for entry in await query_hotpluggable_cpus(port) if entry.qom_path == f"{PERIPHERAL}/{id}"]
            if not found:
                raise HotplugError(id, "QEMU took the vCPU, and shows none")
            undo.keep()
    return found[0]


def _choose(slots: list[CpuSlot], id: str, props: Mapping[str, int]) -> CpuSlot:
    fitting = [slot for slot in slots if slot.props | dict(props) == slot.props]
    free = [slot for slot in fitting if slot.qom_path is None]
    if free:
        return free[0]
    if not props:
        raise NoFreeSlot(id, {"vCPUs": sum(slot.vcpus_count for slot in slots)})
    left = [slot.props for slot in slots if slot.qom_path is None]
    problem = "is taken" if fitting else "is no place of this machine"
    raise ArgumentError("props", dict(props), f"it {problem}; free are {left or 'none'}")


async def _check_kvm(port: Port, even_under_tcg: bool) -> None:
    if not even_under_tcg and not (await query_kvm(port)).enabled:
        raise NotSupported("vCPU hotplug without KVM, over which QEMU may abort,", "KVM; or even_under_tcg=True")


async def hot_remove_cpu(port: Port, id: str, *, timeout: float = UNPLUG_TIMEOUT, even_under_tcg: bool = False) -> None:
    """Take a vCPU from the running guest. One that was there at the start has no id, and stays.

    :param timeout: seconds for the guest to act
    :param even_under_tcg: also where the machine runs without KVM, though QEMU may abort, and the machine be lost
    :raises NotSupported: the machine runs without KVM
    :raises UnplugRefused: the guest said no; the vCPU works on
    :raises UnplugPending: the guest said nothing; it stays until its next reset
    :raises HotplugError: there is no such vCPU
    """
    with port.reservations.name(id):
        if not any(slot.qom_path == f"{PERIPHERAL}/{id}" for slot in await query_hotpluggable_cpus(port)):
            raise HotplugError(id, "there is no such vCPU that was plugged in")
        await _check_kvm(port, even_under_tcg)
        await unplug(port, id, timeout=timeout)
        deadline = port.now() + _GONE_TIMEOUT
        while await has_device(port, id):
            if port.now() >= deadline:
                raise HotplugError(id, "the guest has let go of it, and QEMU still has it")
            await port.sleep(_GONE_POLL)


ready(CpuSlot)
