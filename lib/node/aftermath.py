"""What became of an operation whose daemon was killed while it was at it: seen from how things were and how they are.

Before an operation begins, its job keeps a :class:`Before`. After a restart the instance is mended first, so that its
document is true; then the table here says whether the operation has been done, is to be done, or cannot be told of.
None is done twice: what begins a run or ends one is known by the run's number, what adds a device by the device.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from msgspec import Struct, to_builtins

from ..kvm.kinds import KINDS
from ..kvm.node import Node
from ..kvm.record import Document, load, public_saved
from ..kvm.upgrade import Upgraded
from ..qmp.ready import ready


class Before(Struct, frozen=True, kw_only=True):
    """An instance before an operation on it.

    :ivar uuid: its own; empty where there is none of this name. At its creation, the one that it is to have
    :ivar generation: of its last run
    :ivar running: that goes on
    :ivar devices: of that run: their kinds, by id
    :ivar other: of an operation that makes, or renames to, another name: the uuid of what bore that already
    """

    uuid: str = ""
    generation: int = 0
    running: bool = False
    devices: dict[str, str] = {}
    other: str = ""


class Done(NamedTuple):
    """It has been done.

    :ivar result: as it would have been told
    """

    result: Any


class Again(NamedTuple):
    """It was not done, or not wholly: to carry it out is safe."""


class Unknown(NamedTuple):
    """Nobody can tell, and to carry it out might be to do it twice.

    :ivar why: in words
    """

    why: str


Verdict = Done | Again | Unknown


class Now(NamedTuple):
    """How things are after a restart.

    :ivar document: of the instance of that name; None: there is none
    :ivar other: the uuid of what bears the other name that the operation takes
    """

    document: Document | None
    other: str


def look(node: Node, name: str, params: Any) -> Now:
    """How things are.

    :param params: of the operation
    """
    to = getattr(params, "to", "")
    other = document_of(node, to) if to else None
    return Now(document_of(node, name), other.spec.uuid if other else "")


def before(now: Now) -> Before:
    """What to keep of it."""
    document = now.document
    if document is None:
        return Before(other=now.other)
    runtime = document.runtime
    devices = {name: device.kind for name, device in runtime.devices.items()} if runtime else {}
    return Before(
        uuid=document.spec.uuid, generation=document.generation, running=runtime is not None, devices=devices,
        other=now.other,
    )  # fmt: skip


def document_of(node: Node, name: str) -> Document | None:
    """The document of an instance; None where there is none."""
    try:
        return load(node.host.paths.instance(name).document)
    except FileNotFoundError:
        return None


def judge(verb: str, was: Before, now: Now, params: Any) -> Verdict:
    """What became of an operation.

    :param verb: which
    :param params: of it
    """
    return _RULES.get(verb, _in_its_run)(was, now, params)


Rule = Callable[[Before, Now, Any], Verdict]

_OVER: Final = Unknown("the run that it was for is over")


def _in_its_run(was: Before, now: Now, _: Any) -> Verdict:
    """It sets something to what it is to be: as often as one likes, but not in another run than it was meant for."""
    document = now.document
    if document is None or document.spec.uuid != was.uuid:
        return Unknown("the instance that it was for is gone")
    if was.running and (document.runtime is None or document.generation != was.generation):
        return _OVER
    return Again()


def _started(was: Before, now: Now, _: Any) -> Verdict:
    document = now.document
    if document is None or document.spec.uuid != was.uuid or document.generation == was.generation:
        return Again()
    undone = document.runtime is None and document.last_stop and document.last_stop.reason == "start-failed"
    return Again() if undone else Done({"notices": []})


def _saved(was: Before, now: Now, params: Any) -> Verdict:
    document = now.document
    if document is not None and document.saved is not None and document.generation == was.generation:
        return Done({"saved": public_saved(document.saved)}) if document.runtime is None else Again()
    return _in_its_run(was, now, params)


def _upgraded(was: Before, now: Now, params: Any) -> Verdict:
    runtime = now.document.runtime if now.document and now.document.spec.uuid == was.uuid else None
    if runtime is not None and runtime.generation > was.generation:
        return Done(to_builtins(Upgraded(moved=True, version=runtime.version)))
    return _in_its_run(was, now, params)


def _discarded(was: Before, now: Now, _: Any) -> Verdict:
    """Whoever has run since has saved anew, or has nothing to be forgotten."""
    document = now.document
    if document is None or document.spec.uuid != was.uuid or document.generation != was.generation:
        return _OVER
    return Done(None) if document.saved is None else Again()


def _stopped(was: Before, now: Now, _: Any) -> Verdict:
    document = now.document
    if document is None or document.spec.uuid != was.uuid:
        return Unknown("the instance that it was for is gone")
    if was.running and (document.runtime is None or document.generation > was.generation):
        return Done({"stop": to_builtins(document.last_stop)})
    return Again()


def _added(kind: str) -> Rule:
    def rule(was: Before, now: Now, params: Any) -> Verdict:
        verdict = _in_its_run(was, now, params)
        runtime = now.document.runtime if now.document else None
        if not isinstance(verdict, Again) or runtime is None:
            return verdict
        devices = runtime.devices.items()
        new = [name for name, device in devices if device.kind == kind and name not in was.devices]
        if not new:
            return verdict
        return Done(to_builtins(KINDS[kind].find(runtime.spec, new[0], runtime.devices[new[0]])))

    return rule


def _removed(was: Before, now: Now, params: Any) -> Verdict:
    verdict = _in_its_run(was, now, params)
    runtime = now.document.runtime if now.document else None
    if isinstance(verdict, Again) and runtime and params.id in was.devices and params.id not in runtime.devices:
        return Done(None)
    return verdict


def _created(was: Before, now: Now, _: Any) -> Verdict:
    document = now.document
    if document is not None and document.spec.uuid == was.uuid:
        return Done({"name": document.spec.name, "uuid": was.uuid})
    return Again()


def _deleted(was: Before, now: Now, _: Any) -> Verdict:
    document = now.document
    return Done(None) if document is None or document.spec.uuid != was.uuid else Again()


def _renamed(was: Before, now: Now, params: Any) -> Verdict:
    return Done({"name": params.to}) if was.uuid and now.other == was.uuid else Again()


def _cloned(was: Before, now: Now, params: Any) -> Verdict:
    return Done({"name": params.to, "notices": []}) if now.other and not was.other else Again()


def _sent(was: Before, now: Now, params: Any) -> Verdict:
    """What was asked to send is not asked again: once it has begun, its passage says so."""
    passage = now.document.passage if now.document else None
    if passage is not None and passage.way == "out" and passage.epoch == params.epoch:
        return Done(None)
    return _in_its_run(was, now, params)


def _again(*_: Any) -> Verdict:
    """It may be repeated, whatever has become of it: by its epoch it knows itself."""
    return Again()


def _once(*_: Any) -> Verdict:
    return Unknown("it may have been done, and to do it again might be to do it twice")


_RULES: Final[Mapping[str, Rule]] = {
    "create": _created, "delete": _deleted, "rename": _renamed, "clone": _cloned,
    "start": _started, "restore": _started, "reboot": _started, "save": _saved, "discard": _discarded,
    "upgrade": _upgraded, "stop": _stopped, "kill": _stopped, "reset": _once, "qmp": _once,
    "agent": _once, "agent-exec": _once, "agent-write-file": _once, "agent-shutdown": _once,
    "migration-accept": _again, "migration-finish": _again, "migration-abort": _again, "migration-start": _sent,
    "migration-continue": _once,
    **{f"add-{kind}": _added(kind) for kind in ("disk", "nic", "usb", "vfio", "memory")},
    **{f"remove-{kind}": _removed for kind in ("disk", "nic", "usb", "vfio", "memory")},
}  # fmt: skip

ready(Before)
