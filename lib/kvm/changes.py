"""Changes of a device that stays plugged in: its limits, its cable, its medium, what it stands on.

As with :mod:`.plugs`, what is wanted is written down first. A change that QEMU can be asked about is then what QEMU
says; one that it cannot be asked about, and that may be done again, is done again.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

from msgspec import convert, structs

from ..errors import DroverError, MonitorError, UnplugPending
from ..monitor.connection import QmpConnection
from ..ops.chain import Layer
from ..ops.throttle import Limits
from . import net
from .kinds import NIC, plug_nic, release_nic, tap_of
from .ledger import Ledger
from .record import runtime_of
from .spec import Disk, Nic, Spec, Throttle

# Steps of a change of what a card stands on.
UNPLUGGING: Final = "unplugging"
_UNPLUGGED: Final = "unplugged"
_MOVED: Final = "moved"
_BACK: Final = "back"


class Change(ABC):
    """One kind of change. What it was asked is in the ledger: ``id`` and more."""

    @abstractmethod
    def act(self, ledger: Ledger, vm: QmpConnection, given: Sequence[int] = ()) -> None:
        """Do it.

        :param given: descriptors for it, which nobody but who asked can have
        """

    @abstractmethod
    def finish(self, ledger: Ledger, vm: QmpConnection, there: dict[str, str]) -> list[str]:
        """Find out what became of it, and put that into the document.

        :param there: the devices that QEMU has
        :returns: notices
        """


def arguments(ledger: Ledger) -> dict[str, Any]:
    """What the change that is under way was asked."""
    assert ledger.document.pending is not None
    return ledger.document.pending.arguments


def _replace(ledger: Ledger, field: str, id: str, /, **changed: Any) -> None:
    """Change a device in the specification."""

    def change(spec: Spec) -> Spec:
        devices = tuple(structs.replace(it, **changed) if it.id == id else it for it in getattr(spec, field))
        return structs.replace(spec, **{field: devices})

    ledger.change_specs(change)


class _Throttle(Change):
    def act(self, ledger: Ledger, vm: QmpConnection, given: Sequence[int] = ()) -> None:
        told = arguments(ledger)
        vm.set_disk_throttle(told["id"], _limits(told["throttle"]))

    def finish(self, ledger: Ledger, vm: QmpConnection, there: dict[str, str]) -> list[str]:
        told = arguments(ledger)
        if told["id"] not in there or vm.query_disk_throttle(told["id"]) != _limits(told["throttle"]):
            return [f"{told['id']}: its limits are as they were"]
        throttle = convert(told["throttle"], Throttle | None)
        _replace(ledger, "disks", told["id"], throttle=throttle)
        return [f"{told['id']}: it has other limits"]


def _limits(throttle: dict[str, Any] | None) -> Limits:
    return convert(throttle, Throttle).limits if throttle else Limits()


class _Link(Change):
    def act(self, ledger: Ledger, vm: QmpConnection, given: Sequence[int] = ()) -> None:
        told = arguments(ledger)
        vm.set_link(told["id"], up=told["state"] == "up")

    def finish(self, ledger: Ledger, vm: QmpConnection, there: dict[str, str]) -> list[str]:
        told = arguments(ledger)
        if told["id"] in there:
            self.act(ledger, vm)  # QEMU does not tell how it is
            _replace(ledger, "nics", told["id"], link_state=told["state"])
        return [f"{told['id']}: its link is {told['state']}"]


class _Medium(Change):
    """Of a CD drive. Asked: ``disk`` as it is to be, ``force``, ``timeout``, and ``node``, that of the old medium."""

    def act(self, ledger: Ledger, vm: QmpConnection, given: Sequence[int] = ()) -> None:
        told = arguments(ledger)
        disk: Disk = convert(told["disk"], Disk)
        how: dict[str, Any] = {"force": told["force"], "timeout": told["timeout"]}
        if not disk.source:
            vm.eject_medium(disk.id, **how)
            return
        backing: Sequence[Layer] = [Layer(image.source, image.format) for image in disk.backing]
        vm.change_medium(disk.id, disk.source, format=disk.format or "raw", backing=backing, cache=disk.cache, **how)

    def finish(self, ledger: Ledger, vm: QmpConnection, there: dict[str, str]) -> list[str]:
        """By the node of the medium: the old one's, another one's, or none."""
        told = arguments(ledger)
        disk: Disk = convert(told["disk"], Disk)
        if disk.id not in there:
            return []
        node = vm.tidy_cdrom(disk.id).node
        if node is None:
            _replace(ledger, "disks", disk.id, source="", format=None, backing=())
            return [f"{disk.id}: there is no medium in it"]
        if node == told["node"]:
            return [f"{disk.id}: its medium is the one that it had"]
        _replace(ledger, "disks", disk.id, source=disk.source, format=disk.format, backing=disk.backing)
        return [f"{disk.id}: its medium is {disk.source}"]


class _Backend(Change):
    """What a network card stands on. Asked: ``nic`` as it is to be."""

    def act(self, ledger: Ledger, vm: QmpConnection, given: Sequence[int] = ()) -> None:
        """From bridge to bridge the tap moves; else the card goes and comes again, at the same place."""
        runtime, new = runtime_of(ledger.document), self._new(ledger)
        old, device = self._old(ledger, new.id), runtime.devices[new.id]
        if net.can_move(old, new):
            self._move(ledger, old, new)
            # the guest is to ask for its address anew
            for up in (False, new.link_state == "up"):
                vm.set_link(new.id, up=up)
            ledger.step(_MOVED)
            return
        ledger.step(UNPLUGGING)
        try:
            vm.hot_remove_nic(new.id)
        except UnplugPending:
            device.stays = True
            raise
        release_nic(runtime, old)
        ledger.step(_UNPLUGGED)
        plug_nic(vm, runtime, new, given=given, bus=device.bus, addr=device.addr)

    def finish(self, ledger: Ledger, vm: QmpConnection, there: dict[str, str]) -> list[str]:
        """By the last step, and whether the card is there. If it is not the new one, it becomes the old one again."""
        pending, runtime, new = ledger.document.pending, runtime_of(ledger.document), self._new(ledger)
        assert pending is not None
        old = self._old(ledger, new.id)
        if pending.step == _MOVED or (pending.step == _UNPLUGGED and new.id in there):
            runtime.devices[new.id] = NIC.describe(vm, runtime, new)
            _replace(ledger, "nics", new.id, **structs.asdict(new))
            return [f"{new.id}: it is connected to {new.link or new.mode}"]
        if new.id not in there:
            return self._back(ledger, vm, old, new)
        if net.can_move(old, new):
            try:
                self._move(ledger, new, old)
            except (DroverError, OSError) as error:  # whoever comes next could do no better
                return [f"{new.id}: it could not be put back on {old.link}: {error}"]
        return [f"{new.id}: it is connected as it was"]

    def _back(self, ledger: Ledger, vm: QmpConnection, old: Nic, new: Nic) -> list[str]:
        """The card was taken out, and the new one is not there: the old one comes back, with its address."""
        runtime = runtime_of(ledger.document)
        device = runtime.devices[new.id]
        ledger.step(_BACK)  # from here on a card that is there is the old one
        notices = NIC.clean(vm, runtime, new)
        try:
            plug_nic(vm, runtime, old, bus=device.bus, addr=device.addr)
        except MonitorError:
            raise
        except (DroverError, OSError) as error:
            device.stays = True
            return [*notices, f"{old.id}: it is out until the next start, for it could not be put back: {error}"]
        return [*notices, f"{old.id}: it was put back as it was"]

    def _move(self, ledger: Ledger, old: Nic, new: Nic) -> None:
        spec = runtime_of(ledger.document).spec
        index = [nic.id for nic in spec.nics].index(new.id)
        net.move(old, new, spec.name, uuid=spec.uuid, index=index, name=tap_of(runtime_of(ledger.document), new.id))

    def _new(self, ledger: Ledger) -> Nic:
        return convert(arguments(ledger)["nic"], Nic)

    def _old(self, ledger: Ledger, id: str) -> Nic:
        return next(nic for nic in runtime_of(ledger.document).spec.nics if nic.id == id)


THROTTLE: Final = "set-throttle"
LINK: Final = "set-link"
MEDIUM: Final = "change-medium"
BACKEND: Final = "change-nic"
CHANGES: Final[dict[str, Change]] = {THROTTLE: _Throttle(), LINK: _Link(), MEDIUM: _Medium(), BACKEND: _Backend()}


def finish_change(ledger: Ledger, vm: QmpConnection, there: dict[str, str]) -> list[str]:
    """Find out what became of the change that is under way, and put that into the document.

    :returns: notices
    """
    assert ledger.document.pending is not None
    return CHANGES[ledger.document.pending.operation].finish(ledger, vm, there)
