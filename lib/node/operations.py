"""All that can be done through the API, as one table: the routes, their documents and the audit log are made of it."""

from collections.abc import Callable, Mapping
from enum import IntEnum
from inspect import signature
from typing import Any, Final

from msgspec import UNSET, Struct, to_builtins

from ..errors import Problem, SpecError, WrongState
from ..kvm.deadlines import ANSWER_TIMEOUT
from ..kvm.instance import Instance
from ..kvm.node import Node
from ..kvm.record import load, public_saved
from ..kvm.sockets import dial
from ..kvm.spec import Disk, Nic, Spec, UsbDevice, VfioDevice, completed, parse, public
from ..kvm.spec.reader import Reader
from ..kvm.state import State
from ..kvm.witness import end_if_wanted, witness
from ..migration.local import upgrade
from ..qmp.redact import HIDDEN, redact
from . import guest, passages
from . import parameters as p
from .problems import Refused


class Role(IntEnum):
    """What a caller may do; each may do what those before it may. A node is another daemon of ours."""

    VIEWER = 1
    NODE = 2
    OPERATOR = 3
    ADMIN = 4


class Operation(Struct, frozen=True, kw_only=True):
    """One thing that can be done to an instance, or to the node.

    :ivar verb: its name, in the path and in the audit log
    :ivar takes: the type of its parameters; None: a device's fields, which the operation checks itself, or a
        specification
    :ivar document: the type that such a document is of
    :ivar does: does it, blocking: with the node, the instance's name and the parameters; returns JSON values
    :ivar summary: in one line
    :ivar role: who may
    :ivar socket: it is done beside what else is done to the instance, on a socket of its own
    :ivar journey: it goes to another node by it, which the daemon sees to (:class:`.departures.Departures`)
    :ivar secret: the names of its parameters that are neither kept nor shown
    """

    verb: str
    takes: type[Struct] | None
    does: Callable[[Node, str, Any], Any]
    summary: str
    role: Role = Role.OPERATOR
    document: type[Struct] | None = None
    socket: str = ""
    journey: bool = False
    secret: frozenset[str] = frozenset()


def _on(act: Callable[[Instance, Any], Any]) -> Callable[[Node, str, Any], Any]:
    """An operation on one instance, its result in JSON values."""

    def does(node: Node, name: str, params: Any) -> Any:
        return to_builtins(act(node.instance(name), params), enc_hook=str)

    return does


def _create(node: Node, _: str, spec: Spec) -> Any:
    wanted = completed(spec)
    node.create(wanted)
    return {"name": wanted.name, "uuid": wanted.uuid}


def _delete(node: Node, name: str, _: p.Nothing) -> None:
    node.delete(name)


def _rename(node: Node, name: str, params: p.Rename) -> Any:
    node.rename(name, params.to)
    return {"name": params.to}


def _clone(node: Node, name: str, params: p.Clone) -> Any:
    def tell(done: int, of: int) -> None:
        end_if_wanted(name, "clone")
        witness().progress(done, of, "bytes")

    cloned = node.clone(name, params.to, disks=params.disks, linked=params.linked, tell=tell)
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
    paths = instance.host.paths.instance(instance.name)
    if (runtime := load(paths.document).runtime) is None:
        raise WrongState(instance.name, State.STOPPED, State.RUNNING)
    with dial(paths.socket("people"), ANSWER_TIMEOUT, runtime.pid) as vm:
        return vm.execute(params.execute, params.arguments)


def _fields(params: Any) -> dict[str, Any]:
    fields: dict[str, Any] = to_builtins(params)
    return fields


CREATE: Final = Operation(
    verb="create", takes=None, does=_create, summary="Make an instance of a specification.", document=Spec
)
DELETE: Final = Operation(verb="delete", takes=p.Nothing, does=_delete, summary="Forget one that does not run.")

# What of a specification a device is, by the verb that plugs it in.
_DEVICES: Final[dict[str, type[Struct]]] = {
    "add-disk": Disk, "add-nic": Nic, "add-usb": UsbDevice, "add-vfio": VfioDevice,
}  # fmt: skip

# On an instance, each at its own path below it.
_ACTS: Final[tuple[tuple[str, type[Struct] | None, Callable[[Instance, Any], Any], str], ...]] = (
    ("start", p.Start, lambda vm, it: {"notices": vm.start(**_fields(it))}, "Start it; nothing if it runs."),
    ("save", p.Save, lambda vm, it: {"saved": public_saved(vm.save(file=it.file))},
     "Write its memory into a file, and end its QEMU."),
    ("restore", p.Restore, lambda vm, it: {"notices": vm.restore(**_fields(it))}, "Start it as it was when saved."),
    ("upgrade", p.Upgrade, lambda vm, it: upgrade(vm, emulator=it.emulator),
     "Have it go over to the QEMU of an update, while it runs."),
    ("discard", p.Nothing, lambda vm, it: vm.discard(), "Forget what was saved of it."),
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
    ("resize-disk", p.Resize, lambda vm, it: {"size": vm.resize_disk(**_fields(it))},
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

# In the guest, by its agent.
_GUEST: Final[tuple[tuple[str, type[Struct], Callable[[Instance, Any], Any], str, tuple[str, ...]], ...]] = (
    ("agent", guest.Command, guest.command, "Have the guest's agent execute a command.", ()),
    ("agent-exec", guest.Exec, guest.execute, "Run a program in the guest.", ("env", "input")),
    ("agent-write-file", guest.WriteFile, guest.write_file, "Write a file of the guest.", ("data",)),
    ("agent-set-password", guest.SetPassword, guest.set_password, "Give a guest's user a password.", ("password",)),
    ("agent-shutdown", guest.Shutdown, guest.shut_down, "Have the guest end by its own means.", ()),
)

# Between nodes.
_PASSAGE: Final = (
    Operation(
        verb="migrate", takes=p.Move, does=passages.by_the_daemon, journey=True,
        summary="Move it to another node, while it runs.",
    ),
    Operation(
        verb="migration-accept", takes=p.Accept, does=passages.accept, role=Role.NODE, secret=frozenset({"parcel"}),
        summary="Have a QEMU wait for an instance that comes from another node.",
    ),
    Operation(
        verb="migration-start", takes=p.Migrate, does=passages.send, role=Role.NODE,
        summary="Begin to send it to another node.",
    ),
    Operation(
        verb="migration-continue", takes=p.Passage, does=passages.switch_over, role=Role.NODE,
        summary="Let it go over, once it stands before that.",
    ),
    Operation(
        verb="migration-finish", takes=p.Passage, does=passages.finish, role=Role.NODE,
        summary="Where it has arrived, let it run; where it has left, end its QEMU.",
    ),
    Operation(
        verb="migration-abort", takes=p.Passage, does=passages.abort, role=Role.NODE,
        summary="End its passage before it has gone over.",
    ),
)  # fmt: skip

ACTS: Final = {
    verb: Operation(verb=verb, takes=takes, does=_on(act), summary=summary, document=_DEVICES.get(verb))
    for verb, takes, act, summary in _ACTS
} | {
    "rename": Operation(verb="rename", takes=p.Rename, does=_rename, summary="Give it another name; it must not run."),
    "clone": Operation(verb="clone", takes=p.Clone, does=_clone, summary="Make an instance like it; it must not run."),
    "qmp": Operation(
        verb="qmp", takes=p.Qmp, does=_on(_qmp), summary="Have its QEMU execute a command.", role=Role.ADMIN,
        socket="people",
    ),
} | {
    verb: Operation(verb=verb, takes=takes, does=_on(act), summary=summary, socket="agent", secret=frozenset(secret))
    for verb, takes, act, summary, secret in _GUEST
} | {step.verb: step for step in _PASSAGE}  # fmt: skip

OPERATIONS: Final = {operation.verb: operation for operation in (CREATE, DELETE, *ACTS.values())}


def parameters(operation: Operation, document: Any) -> Any:
    """What an operation takes, of what was sent.

    :raises SpecError: it is something else; says all that is wrong with it
    """
    if operation.takes is None:
        if not isinstance(document, Mapping):
            raise Refused(422, "argument-error", "the body has to be a JSON object")
        return parse(document) if operation is CREATE else document
    reader = Reader()
    params = reader.struct(operation.takes, document)
    if reader.problems:
        raise SpecError(reader.problems)
    return params


def shown(operation: Operation, params: Any) -> tuple[Any, bool]:
    """Parameters as JSON values that may be kept and shown.

    :returns: them, and whether something secret was left out
    """
    whole = to_builtins(params)
    if isinstance(params, Spec):
        told: Any = public(params)
    elif isinstance(params, p.Qmp | guest.Command):
        told = redact("", whole) | {"arguments": redact(params.execute, whole["arguments"])}
    else:
        told = {name: HIDDEN if name in operation.secret and value else value for name, value in whole.items()}
    return told, told != whole
