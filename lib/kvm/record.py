"""The durable document of an instance: specification, what runs, and what is being done.

All three lie in one file, written whole, synced and renamed: a result and the end of its intent are one write, and no
crash falls between them. An *intent* says what is being changed before the first effect; whoever takes the lock next
and finds one asks QEMU what became of it, and completes or undoes it (:mod:`.reconcile`).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace as replace_fields

from ..errors import RecordError, WrongState
from ..qmp.ready import ready
from .ends import Restart, Stop
from .parcel import Board, Parcel
from .spec import Spec, public

SCHEMA: Final = 1

# Whether an instance arrives here, is on its way from here, or has gone; or has ended between two nodes, and what is
# left of its run must not go on.
Way = Literal["in", "out", "gone", "torn"]
# The intent of a QEMU's end whose machine has gone to another node.
LEAVE: Final = "leave"
# The intents of what is done with a machine's memory in a file, and the steps from which on there is no way back.
SAVE: Final = "save"
SAVED: Final = "saved"  # the file is the machine: its QEMU is to end
RESTORE: Final = "restore"
RUN: Final = "run again"  # QEMU is the machine: the file is not used again
DISCARD: Final = "discard"
# The intent to plug in a device, before the name of its kind.
ADD: Final = "add-"
# The intent of a move onto a second QEMU beside the first, and its step from which on that is the machine.
UPGRADE: Final = "upgrade"
SWITCHED: Final = "switched"


class Device(Struct, kw_only=True, omit_defaults=True):
    """A device that QEMU has because we gave it.

    :ivar kind: ``disk``, ``nic``, ``cpu``, ``memory``, ``usb``, ``vfio``, …
    :ivar bus: where it sits, and `addr` on it
    :ivar tap: host interface of a NIC
    :ivar size: of memory: what the guest has of it, in bytes
    :ivar stays: when it goes, it is still wanted at the next start
    """

    kind: str
    bus: str = ""
    addr: str = ""
    tap: str = ""
    size: int = 0
    stays: bool = False


class Intent(Struct, kw_only=True, omit_defaults=True):
    """A change that has begun and not ended.

    :ivar operation: such as ``start``, ``hot-add-disk``
    :ivar arguments: what it was asked
    :ivar step: the last step that was about to be done
    :ivar since: Unix time of its begin
    """

    operation: str
    arguments: dict[str, Any] = {}
    step: str = ""
    since: float = 0.0


class Runtime(Struct, kw_only=True, omit_defaults=True):
    """What runs, or is about to.

    :ivar generation: counts the starts of this instance
    :ivar boot_id: of the host; under another one nothing of this runs any more
    :ivar pid: of QEMU; 0 before it is started
    :ivar start_time: of that process, in ticks since the host's boot: with the pid it names one process for ever
    :ivar spec: what it was started from, with what was plugged since
    :ivar emulator: the binary, and `version` of it
    :ivar machine: the versioned machine type
    :ivar accelerator: ``kvm`` or ``tcg``, and `notice` says why not KVM
    :ivar argv: the command line
    :ivar uid: the user QEMU runs as, None for ours
    :ivar cgroup: the folder of its control group; empty where it has none
    :ivar devices: by id
    :ivar tpm_pid: of the TPM's emulator, with `tpm_start_time`
    :ivar paused: somebody wants the guest to stand still
    :ivar asked: Unix time when its power button was pressed by us
    :ivar mark: what its taps and its control group have in their names, so that two QEMUs can be there at once
    """

    generation: int
    boot_id: str
    spec: Spec
    pid: int = 0
    start_time: int = 0
    emulator: str = ""
    version: tuple[int, int, int] = (0, 0, 0)
    machine: str = ""
    accelerator: str = ""
    notice: str = ""
    argv: list[str] = []
    uid: int | None = None
    cgroup: str = ""
    devices: dict[str, Device] = {}
    tpm_pid: int = 0
    tpm_start_time: int = 0
    paused: bool = False
    asked: float = 0.0
    mark: str = ""


class Passage(Struct, frozen=True, kw_only=True):
    """The way of an instance from one node to another.

    :ivar way: which way, as seen from here
    :ivar epoch: counts them: whoever speaks of an earlier one has been overtaken
    :ivar other: the node at the other end
    :ivar home: of one that comes: where the daemon answers that has its owner record
    :ivar process: of one that comes: the process that waits for it, as that record names it
    :ivar listens: of one that comes: where that listens for it, in QEMU's words
    :ivar exports: of one that comes with disks: where that exports them, a host and a port
    :ivar board: of one that comes: what its devices are plugged into
    :ivar tls: its memory goes by TLS
    :ivar paused: of one that comes: its guest is to stand still
    """

    way: Way
    epoch: int
    other: str
    home: tuple[str, ...] = ()
    process: str = ""
    listens: str = ""
    exports: str = ""
    board: Board | None = None
    tls: bool = False
    paused: bool = False

    def heard_at(self, listens: str, exports: str) -> "Passage":
        """The same, of an instance that is awaited there."""
        return replace_fields(self, listens=listens, exports=exports)

    def torn(self) -> "Passage":
        """The same, of an instance that has ended between two nodes."""
        return replace_fields(self, way="torn")

    def at_its_end(self) -> "Passage":
        """The same, of an instance that is not here any more."""
        return replace_fields(self, way="gone")

    def __str__(self) -> str:
        return f"one {self.way}, {self.other}, of epoch {self.epoch}"


class Saved(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The memory of a machine that stands still, in a file, while no QEMU runs.

    :ivar path: of the file; empty: in the instance's own folder
    :ivar key: that is in the file, too: of this very save
    :ivar form: how the memory lies there (:data:`drover.ops.saving.Form`)
    :ivar size: bytes of the disk that the file takes
    :ivar at: Unix time
    :ivar parcel: the machine as it ran
    :ivar paused: somebody wanted the guest to stand still
    :ivar disks: by which is known that nobody has written to them since
    """

    key: str
    form: Literal["mapped-ram", "stream"]
    at: float
    parcel: Parcel
    path: str = ""
    size: int = 0
    paused: bool = False
    disks: dict[str, str] = {}


class Document(Struct, kw_only=True, omit_defaults=True):
    """Everything that is kept of one instance.

    :ivar spec: what it is to be at its next start
    :ivar machine: the versioned machine type that its first boot pinned
    :ivar places: bus and address of each device in the last run: a guest finds it there again
    :ivar generation: of the last start
    :ivar runtime: None while it does not run
    :ivar pending: the change that is under way
    :ivar last_stop: how the last run ended that has; also while the next one goes on
    :ivar restart: the start again that is due, or what runs came of; None where somebody started it
    :ivar passage: its way to or from another node; while there is one it is not started
    :ivar epoch: of the last passage that there was
    :ivar other: a second QEMU of it, which is to be the machine, or was: `pending` says which
    :ivar saved: its memory, where that is in a file; beside a run only while `pending` says which of the two it is
    """

    schema: int = field(default=SCHEMA)
    spec: Spec
    machine: str = ""
    places: dict[str, tuple[str, str]] = {}
    generation: int = 0
    runtime: Runtime | None = None
    pending: Intent | None = None
    last_stop: Stop | None = None
    restart: Restart | None = None
    passage: Passage | None = None
    epoch: int = 0
    saved: Saved | None = None
    other: Runtime | None = None

    @property
    def comes(self) -> bool:
        """Whether its machine is still on its way to here."""
        return self.passage is not None and self.passage.way == "in"


_WHERE: Final[Mapping[Way, str]] = {
    "in": "arriving from", "out": "on its way to", "gone": "gone to", "torn": "torn, on its way to",
}  # fmt: skip


def check_settled(document: Document, needed: str) -> None:
    """See that nobody starts what may run elsewhere, nor changes, or lets run, what is on its way.

    :param needed: the state that it would have to be in
    :raises WrongState: it is on its way from or to another node, or has gone there
    """
    if (passage := document.passage) is not None and (passage.way != "torn" or document.runtime is not None):
        where = _WHERE[passage.way]
        raise WrongState(document.spec.name, f"{where} {passage.other}", needed)


def public_saved(saved: Saved) -> dict[str, Any]:
    """What is known of a machine's memory in a file, as JSON values for whoever may see it."""
    shown: dict[str, Any] = msgspec.to_builtins(saved)
    shown["parcel"] |= {"spec": public(saved.parcel.spec)}
    return shown


def has_begun_to_run(document: Document) -> bool:
    """Whether it is being restored, and beyond the point from which on its QEMU is the machine."""
    pending = document.pending
    return pending is not None and pending.operation == RESTORE and pending.step == RUN


def has_switched(document: Document) -> bool:
    """Whether a move to a second QEMU is under way that has come so far that this is the machine."""
    pending = document.pending
    return pending is not None and pending.operation == UPGRADE and pending.step == SWITCHED


def runtime_of(document: Document) -> Runtime:
    """What runs, of an instance of which it is known that it does."""
    if document.runtime is None:
        raise ValueError(f"{document.spec.name} does not run")
    return document.runtime


class _Version(Struct):
    schema: int = 0


def load(path: Path) -> Document:
    """Read a document.

    :raises FileNotFoundError: there is none
    :raises RecordError: it is broken, or a newer Drover wrote it: it is left as it is
    """
    data = path.read_bytes()
    try:
        schema = msgspec.json.decode(data, type=_Version).schema
        if schema > SCHEMA:
            raise RecordError(str(path), f"its schema is {schema}, and this Drover knows {SCHEMA}: use a newer one")
        return msgspec.json.decode(data, type=Document)
    except msgspec.MsgspecError as error:
        raise RecordError(str(path), f"it cannot be read: {error}") from error


def save(path: Path, document: Document, *, lasting: bool = True) -> None:
    """Write a document: wholly, and so that it survives a crash of the host, or not at all.

    :param lasting: if not: after a crash of the host it may be the one before, whole; any process sees it at once
    :raises OSError: it could not be written; the old one is untouched
    """
    # the schema is always said, though it is the default
    data = msgspec.json.format(msgspec.json.encode({"schema": SCHEMA} | msgspec.to_builtins(document)), indent=1)
    replace(path, data, lasting=lasting)


def replace(path: Path, data: bytes, *, lasting: bool = True) -> None:
    """Put a file in the place of another one, durably, readable by us alone.

    :param lasting: if not, a crash of the host may bring the other one back
    """
    new = path.with_name(f".{path.name}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        os.fsync(fd)
    except OSError as error:
        error.filename = os.fspath(path)  # which a write does not say
        raise
    finally:
        os.close(fd)
    os.rename(new, path)
    if lasting:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Let the names in a folder survive a crash of the host."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


ready(Document, _Version)
