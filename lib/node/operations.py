"""All that can be done through the API, as one table: the routes, their documents and the audit log are made of it."""

from collections.abc import Callable, Mapping
from enum import IntEnum
from inspect import signature
from typing import Any, Final

from msgspec import UNSET, Struct, to_builtins

from ..errors import Problem, SpecError, WrongState
from ..kvm.instance import ANSWER_TIMEOUT, Instance
from ..kvm.node import Node
from ..kvm.record import load
from ..kvm.sockets import dial
from ..kvm.spec import Disk, Nic, UsbDevice, VfioDevice, parse
from ..kvm.state import State
from . import parameters as p


class Role(IntEnum):
    """What a caller may do; each may do what those before it may."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3


class Operation(Struct, frozen=True, kw_only=True):
    """One thing that can be done to an instance, or to the node.

    :ivar verb: its name, in the path and in the audit log
    :ivar takes: the type of its parameters; None: a document that the operation checks itself
    :ivar document: the type that such a document is of
    :ivar does: does it, blocking: with the node, the instance's name and the parameters; returns JSON values
    :ivar summary: in one line
    :ivar role: who may
    """

    verb: str
    takes: type[Struct] | None
    does: Callable[[Node, str, Any], Any]
    summary: str
    role: Role = Role.OPERATOR
    document: type[Struct] | None = None


def _on(act: Callable[[Instance, Any], Any]) -> Callable[[Node, str, Any], Any]:
    """An operation on one instance, its result in JSON values."""

    def does(node: Node, name: str, params: Any) -> Any:
        return to_builtins(act(node.instance(name), params), enc_hook=str)

    return does


def _create(node: Node, _: str, document: Any) -> Any:
    instance = node.create(parse(document))
    spec = instance.show().document.spec
    return {"name": spec.name, "uuid": spec.uuid}


def _delete(node: Node, name: str, _: p.Nothing) -> None:
    node.delete(name)


def _rename(node: Node, name: str, params: p.Rename) -> Any:
    node.rename(name, params.to)
    return {"name": params.to}


def _clone(node: Node, name: str, params: p.Clone) -> Any:
    cloned = node.clone(name, params.to, disks=params.disks, linked=params.linked)
    return {"name": params.to, "notices": list(cloned.notices)}


def free(verb: Callable[..., Any], fields: Mapping[str, Any], above: str = "") -> Mapping[str, Any]:
    """Fields that a verb takes as arguments by name, as they are; what is wrong with them it says itself.

    :param above: the name of the field that they are in, with a dot
    :raises SpecError: one is called as an argument of the verb's own, such as descriptors of this process
    """
    own = [each.name for each in signature(verb).parameters.values() if each.kind is not each.VAR_KEYWORD]
    if wrong := [Problem(f"{above}{name}", UNSET, "there is no such field") for name in fields if name in own]:
        raise SpecError(wrong)
    return fields


def _qmp(instance: Instance, params: p.Qmp) -> Any:
    """On the socket that is people's: what they do there is their own business."""
    if load(instance.host.paths.instance(instance.name).document).runtime is None:
        raise WrongState(instance.name, State.STOPPED, State.RUNNING)
    with dial(instance.host.paths.instance(instance.name).socket("people"), ANSWER_TIMEOUT) as vm:
        return vm.execute(params.execute, params.arguments)


def _fields(params: Any) -> dict[str, Any]:
    fields: dict[str, Any] = to_builtins(params)
    return fields


CREATE: Final = Operation(verb="create", takes=None, does=_create, summary="Make an instance of a specification.")
DELETE: Final = Operation(verb="delete", takes=p.Nothing, does=_delete, summary="Forget one that does not run.")

# What of a specification a device is, by the verb that plugs it in.
_DEVICES: Final[dict[str, type[Struct]]] = {
    "add-disk": Disk, "add-nic": Nic, "add-usb": UsbDevice, "add-vfio": VfioDevice,
}  # fmt: skip

# On an instance, each at its own path below it.
_ACTS: Final[tuple[tuple[str, type[Struct] | None, Callable[[Instance, Any], Any], str], ...]] = (
    ("start", p.Start, lambda vm, it: {"notices": vm.start(paused=it.paused)}, "Start it; nothing if it runs."),
    ("stop", p.Stop, lambda vm, it: {"stop": vm.stop(timeout=it.timeout, force=it.force)}, "Shut it down."),
    ("kill", p.Nothing, lambda vm, it: {"stop": vm.kill()}, "End it at once, as if the plug was pulled."),
    ("reboot", p.Reboot, lambda vm, it: {"notices": vm.reboot(timeout=it.timeout)}, "Shut it down and start it anew."),
    ("reset", p.Nothing, lambda vm, it: vm.reset(), "Press its reset button."),
    ("pause", p.Nothing, lambda vm, it: vm.pause(), "Let the guest stand still."),
    ("resume", p.Nothing, lambda vm, it: vm.resume(), "Let the guest run on."),
    ("mend", p.Nothing, lambda vm, it: {"notices": vm.mend()}, "Complete or undo what was left unfinished."),
    ("repair", p.Nothing, lambda vm, it: {"notices": vm.repair()}, "Bring together what verify finds apart."),
    ("add-disk", None, lambda vm, it: vm.add_disk(**free(Instance.add_disk, it)), "Plug a disk in."),
    ("remove-disk", p.Unplug, lambda vm, it: vm.remove_disk(it.id, timeout=it.timeout), "Take a disk out."),
    ("resize-disk", p.Resize, lambda vm, it: {"size": vm.resize_disk(it.id, it.size, shrink=it.shrink)},
     "Make a disk larger."),
    ("set-throttle", p.Throttle,
     lambda vm, it: vm.set_throttle(it.id, **free(Instance.set_throttle, it.limits, "limits.")), "Limit a disk."),
    ("change-medium", p.Medium, lambda vm, it: vm.change_medium(it.id, it.source, format=it.format, force=it.force),
     "Put a medium into a CD drive, or take it out."),
    ("add-nic", None, lambda vm, it: vm.add_nic(**free(Instance.add_nic, it)), "Plug a network card in."),
    ("remove-nic", p.Unplug, lambda vm, it: vm.remove_nic(it.id, timeout=it.timeout), "Take a network card out."),
    ("change-nic", p.Change, lambda vm, it: vm.change_nic(it.id, **free(Instance.change_nic, it.fields, "fields.")),
     "Connect a card to something else."),
    ("set-link", p.Link, lambda vm, it: vm.set_link(it.id, up=it.up), "Plug the cable of a card in or out."),
    ("add-usb", None, lambda vm, it: vm.add_usb(**free(Instance.add_usb, it)), "Plug a USB device in."),
    ("remove-usb", p.Unplug, lambda vm, it: vm.remove_usb(it.id, timeout=it.timeout), "Take a USB device out."),
    ("add-vfio", None, lambda vm, it: vm.add_vfio(**free(Instance.add_vfio, it)), "Give it a PCI device of the host."),
    ("remove-vfio", p.Unplug, lambda vm, it: vm.remove_vfio(it.id, timeout=it.timeout), "Take it back."),
    ("set-vcpus", p.Vcpus, lambda vm, it: {"count": vm.set_vcpus(**_fields(it))}, "Plug vCPUs in or out."),
    ("add-memory", p.AddMemory, lambda vm, it: vm.add_memory(it.size, type=it.type), "Plug memory in."),
    ("remove-memory", p.Unplug, lambda vm, it: vm.remove_memory(it.id, timeout=it.timeout), "Take memory out."),
    ("resize-memory", p.ResizeMemory, lambda vm, it: {"size": vm.resize_memory(it.id, it.size, timeout=it.timeout)},
     "Give the guest more or less of virtio-mem."),
    ("wait-driver", p.Unplug, lambda vm, it: vm.wait_driver(it.id, it.timeout), "Wait for the guest's driver."),
    ("balloon", p.Balloon, lambda vm, it: {"size": vm.balloon(it.size, timeout=it.timeout)},
     "Ask the guest to do with less memory."),
)  # fmt: skip

ACTS: Final = {
    verb: Operation(verb=verb, takes=takes, does=_on(act), summary=summary, document=_DEVICES.get(verb))
    for verb, takes, act, summary in _ACTS
} | {
    "rename": Operation(verb="rename", takes=p.Rename, does=_rename, summary="Give it another name; it must not run."),
    "clone": Operation(verb="clone", takes=p.Clone, does=_clone, summary="Make an instance like it; it must not run."),
    "qmp": Operation(
        verb="qmp", takes=p.Qmp, does=_on(_qmp), summary="Have its QEMU execute a command.", role=Role.ADMIN
    ),
}
