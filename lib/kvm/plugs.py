"""Devices of an instance that runs: plugged in and out, and remembered.

What is to be done is written down before its first step. Whoever finds it unfinished asks QEMU: a device that is there
was added, and is written down; of one that is not there, nothing stays.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from msgspec import convert, json, to_builtins

from ..errors import CommandError, DeviceNotFound, DroverError, HotplugError, MonitorError, NotSupported
from ..monitor.connection import QmpConnection
from ..ops.port import Port
from ..ops.topology import AskedBuses, ask_pci_buses
from ..ops.unplug import UNPLUG_TIMEOUT
from .changes import BACKEND, CHANGES, UNPLUGGING, finish_change
from .kinds import KINDS, MEMORY, NIC, Kind
from .ledger import Ledger
from .record import ADD, Device, Runtime, runtime_of
from .spec import Spec, completed, dump, extended, parse
from .view import check_visible

_REMOVE: Final = "remove-"


def _one_more(ledger: Ledger, field: str, fields: dict[str, Any]) -> Any:
    """A device from its fields, with what follows from the rest of the machine, such as its id.

    :param field: the list of the specification that it is for
    :raises SpecError: its fields are wrong, or do not go with the other devices'
    :raises ArgumentError: its QEMU runs in a root directory without something that the device needs
    """
    spec = completed(extended(runtime_of(ledger.document).spec, field, fields))
    device = getattr(spec, field)[-1]
    check_visible(runtime_of(ledger.document), device)
    return device


def another(ledger: Ledger, field: str, id: str, fields: dict[str, Any]) -> Any:
    """A device that there is, with some of its fields changed.

    :param fields: those; one that is None is as if nobody had said it
    :raises SpecError: they are wrong, or do not go with the other devices'
    """
    document = json.decode(dump(runtime_of(ledger.document).spec))
    index = [device["id"] for device in document[field]].index(id)
    told = document[field][index] | fields
    document[field][index] = {name: value for name, value in told.items() if value is not None}
    return getattr(_checked(document), field)[index]


def _checked(document: dict[str, Any]) -> Spec:
    return completed(parse(document))  # its uuid is what the address of a card comes from


class Plug:
    """A device that is to be plugged in, before anybody has looked whether it can be.

    :param kind: its kind
    :param fields: of it, as they were told
    :ivar asked: the question for the PCI buses, where it was sent
    """

    def __init__(self, kind: Kind[Any], fields: dict[str, Any]) -> None:
        self.kind = kind
        self.fields = fields
        self.asked: AskedBuses | None = None

    async def ask(self, port: Port) -> None:
        """Ask for the PCI buses, if it goes on one: QEMU answers while we read and write."""
        if self.kind.is_on_pci(self.fields):
            self.asked = await ask_pci_buses(port)


def add_one(ledger: Ledger, vm: QmpConnection, plug: Plug, field: str, given: Sequence[int] = ()) -> Any:
    """Plug a device in that is told by its fields; see :func:`add`.

    :param field: the list of the specification that it is for
    :returns: it, with its id
    :raises SpecError: its fields are wrong, or do not go with the other devices'
    :raises ArgumentError: its QEMU runs in a root directory without something that the device needs
    """
    wanted = _one_more(ledger, field, plug.fields)
    add(ledger, vm, plug.kind, wanted, given, plug.asked)
    return wanted


def add(
    ledger: Ledger,
    vm: QmpConnection,
    kind: Kind[Any],
    wanted: Any,
    given: Sequence[int] = (),
    asked: AskedBuses | None = None,
) -> None:
    """Plug a device in; it stays in the specification.

    :param given: descriptors for it
    :param asked: the question for the PCI buses, where it was sent ahead
    """
    ledger.begin(ADD + kind.name, lasting=kind.outlasts(wanted), id=wanted.id, device=to_builtins(wanted))
    try:
        device = kind.plug(vm, runtime_of(ledger.document), wanted, given, asked)
    except (DroverError, OSError) as error:
        settle(ledger, vm, error)
        raise
    _note(ledger, vm, kind, wanted, device)
    ledger.commit()


def remove(ledger: Ledger, vm: QmpConnection, kind: Kind[Any], id: str, timeout: float) -> None:
    """Plug a device out, and take it out of the specification.

    :param timeout: seconds for the guest to let go of it
    :raises UnplugRefused: the guest keeps it
    :raises UnplugPending: the guest says nothing; it goes at its next reset, and until then is written down
    """
    known(ledger, id, kind.name).stays = False
    ledger.begin(_REMOVE + kind.name, id=id)
    try:
        kind.unplug(vm, id, timeout)
    except DroverError as error:
        settle(ledger, vm, error)
    settle(ledger, vm)


def change(ledger: Ledger, vm: QmpConnection, operation: str, given: Sequence[int] = (), **told: Any) -> None:
    """Change a device that stays.

    :param operation: a name in :data:`.changes.CHANGES`
    :param given: descriptors for it
    :param told: what is to be changed: ``id``, and what that operation wants
    """
    ledger.begin(operation, **to_builtins(told))
    try:
        CHANGES[operation].act(ledger, vm, given)
    except (DroverError, OSError) as error:
        settle(ledger, vm, error)
    settle(ledger, vm)


def known(ledger: Ledger, id: str, kind: str) -> Device:
    """A device that is plugged in.

    :raises DeviceNotFound: there is none of this kind
    """
    devices = runtime_of(ledger.document).devices
    if id not in devices or devices[id].kind != kind:
        names = ", ".join(name for name, device in devices.items() if device.kind == kind) or "none"
        raise DeviceNotFound(ledger.name, id, f"one of its {kind} devices: {names}")
    return devices[id]


def settle(ledger: Ledger, vm: QmpConnection, error: Exception | None = None) -> None:
    """Write down what became of what was begun, and raise `error`, if there was one.

    Where QEMU no longer answers, the intent stays for whoever comes next.
    """
    try:
        finish_plugs(ledger, vm, vm.query_devices())
    except (MonitorError, CommandError, HotplugError) as failure:
        if error is None:
            raise
        error.add_note(f"what became of it is not known yet: {failure}")
    if error is not None:
        raise error


def mend_plugs(ledger: Ledger, vm: QmpConnection, there: dict[str, str]) -> list[str]:
    """Finish what somebody else began who is no more. See :func:`finish_plugs`.

    The guest may just be letting go of a device, or was not asked yet: it is asked once more, and waited for.

    :param there: the devices that QEMU has
    """
    pending, notices = ledger.document.pending, list[str]()
    operation = pending.operation if pending else ""
    removal = KINDS.get(operation.removeprefix(_REMOVE)) if operation.startswith(_REMOVE) else None
    if operation == BACKEND and pending is not None and pending.step == UNPLUGGING:
        removal = NIC
    if removal is not None and pending is not None:
        name = str(pending.arguments["id"])
        try:
            if name in there:
                removal.unplug(vm, name, UNPLUG_TIMEOUT)
        except (CommandError, HotplugError, NotSupported) as error:
            notices.append(f"{name} is still plugged in: {error}")
            runtime_of(ledger.document).devices[name].stays = operation == BACKEND
        there = vm.query_devices()
    return [*notices, *finish_plugs(ledger, vm, there)]


def finish_plugs(ledger: Ledger, vm: QmpConnection, there: dict[str, str]) -> list[str]:
    """Bring devices and document together, by what QEMU has. Idempotent.

    :param there: the devices that QEMU has
    :returns: what was done, in words
    """
    runtime, pending = runtime_of(ledger.document), ledger.document.pending
    notices = list[str]()
    operation = pending.operation if pending else ""
    kind = KINDS.get(operation.removeprefix(ADD).removeprefix(_REMOVE))
    if kind is not None and operation.startswith(ADD) and pending is not None:
        notices.append(_finish_add(ledger, vm, there, kind, convert(pending.arguments["device"], kind.type)))
    elif operation in CHANGES:
        notices += finish_change(ledger, vm, there)
        there = vm.query_devices()
    for name in [name for name, device in runtime.devices.items() if device.kind in KINDS and name not in there]:
        notices += _forget(ledger, vm, runtime, name)
    passage = ledger.document.passage
    if passage is None or passage.way != "in":  # of one that is awaited QEMU knows nothing yet
        notices += _weigh(ledger, vm, runtime)
    if notices or kind is not None or operation in CHANGES:
        ledger.commit()
    return notices


# -- how --------------------------------------------------------------------------------------------------------------


def _finish_add(ledger: Ledger, vm: QmpConnection, there: dict[str, str], kind: Kind[Any], wanted: Any) -> str:
    if wanted.id in there:
        kind.tidy(vm, wanted)
        _note(ledger, vm, kind, wanted)
        return f"{wanted.id} was added"
    kind.clean(vm, runtime_of(ledger.document), wanted)
    return f"{wanted.id} was not added, and nothing of it is left"


def _note(ledger: Ledger, vm: QmpConnection, kind: Kind[Any], wanted: Any, device: Device | None = None) -> None:
    """Put a device that is plugged in into the document; QEMU is asked where it is, unless that is known."""
    runtime = runtime_of(ledger.document)
    known = device or kind.describe(vm, runtime, wanted)
    runtime.devices[wanted.id] = known
    ledger.change_specs(lambda spec: kind.added(spec, wanted, known))


def _forget(ledger: Ledger, vm: QmpConnection, runtime: Runtime, id: str) -> list[str]:
    device = runtime.devices[id]
    kind = KINDS[device.kind]
    wanted = kind.find(runtime.spec, id, device)
    notices = kind.clean(vm, runtime, wanted) if wanted is not None else []
    del runtime.devices[id]
    ledger.change_specs(lambda spec: kind.removed(spec, id, device), next_start=not device.stays)
    return [f"{id} was taken out", *notices]


def _weigh(ledger: Ledger, vm: QmpConnection, runtime: Runtime) -> list[str]:
    """Memory that the guest was given, or gave back, since somebody looked last."""
    devices = {name: device for name, device in runtime.devices.items() if device.kind == MEMORY.name}
    sizes = MEMORY.sizes(vm) if devices else {}
    notices = []
    for name, device in devices.items():
        if by := sizes[name] - device.size:
            device.size = sizes[name]
            ledger.change_specs(partial(MEMORY.grown, by=by))
            notices.append(f"{name}: the guest has {sizes[name]} bytes of it")
    return notices
