"""What a list says of one instance: a row that is ready before anybody asks for it."""

from typing import TYPE_CHECKING

from msgspec import Struct, structs

from ..kvm.ends import Restart, Stop
from ..kvm.outdated import is_outdated
from ..kvm.state import State
from ..qmp.ready import ready

if TYPE_CHECKING:
    from ..kvm.record import Document


class Summary(Struct, frozen=True, kw_only=True):
    """An instance in one row.

    :ivar since: Unix time since when it is in this state, as far as this daemon has seen it
    :ivar detail: more of the state, in words: the disk that failed, what is done to it
    :ivar pid: of QEMU; 0 where it does not run
    :ivar generation: counts its starts
    :ivar version: of QEMU, such as ``10.0.2``; empty where it does not run
    :ivar machine: the versioned machine type
    :ivar accelerator: ``kvm`` or ``tcg``
    :ivar vcpus: that it has, or is to have
    :ivar memory: likewise, in bytes
    :ivar disks: how many
    :ivar nics: how many
    :ivar autostart: it starts with the host
    :ivar last_stop: how the last run ended that has, without the lines of its log
    :ivar restart: the start again that is due, if one is
    :ivar outdated: the file of its QEMU was replaced since it was started
    """

    name: str
    uuid: str
    state: State
    since: float
    detail: str = ""
    pid: int = 0
    generation: int = 0
    version: str = ""
    machine: str = ""
    accelerator: str = ""
    vcpus: int = 0
    memory: int = 0
    disks: int = 0
    nics: int = 0
    autostart: bool = False
    last_stop: Stop | None = None
    restart: Restart | None = None
    outdated: bool = False


def summarised(name: str, document: "Document", state: State, since: float, detail: str = "") -> Summary:
    """The row of an instance.

    :param name: its own; a document that was renamed with its folder has the old one still
    """
    runtime = document.runtime
    spec = document.spec if runtime is None else runtime.spec
    return Summary(
        name=name,
        uuid=spec.uuid,
        state=state,
        since=since,
        detail=detail,
        pid=runtime.pid if runtime else 0,
        generation=document.generation,
        version=".".join(map(str, runtime.version)) if runtime else "",
        machine=runtime.machine if runtime else document.machine,
        accelerator=runtime.accelerator if runtime else "",
        vcpus=spec.cpu.count,
        memory=spec.memory.size,
        disks=len(spec.disks),
        nics=len(spec.nics),
        autostart=document.spec.autostart,
        last_stop=structs.replace(document.last_stop, log="") if document.last_stop else None,
        restart=document.restart if document.restart and document.restart.due else None,
        outdated=is_outdated(runtime),
    )


def unreadable(name: str, why: str, since: float) -> Summary:
    """The row of an instance of which nobody can tell how it is."""
    return Summary(name=name, uuid="", state=State.UNKNOWN, since=since, detail=why)


ready(Summary)
