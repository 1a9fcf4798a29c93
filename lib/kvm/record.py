"""The durable document of an instance: specification, what runs, and what is being done.

All three lie in one file, written whole, synced and renamed: a result and the end of its intent are one write, and no
crash falls between them. An *intent* says what is being changed before the first effect; whoever takes the lock next
and finds one asks QEMU what became of it, and completes or undoes it (:mod:`.reconcile`).
"""

import os
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from ..errors import RecordError
from ..qmp.ready import ready
from .spec import Spec

SCHEMA: Final = 1


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


class Stop(Struct, kw_only=True, omit_defaults=True):
    """How the last run ended.

    :ivar reason: ``request``, ``guest-shutdown``, ``host-signal``, ``panic``, ``crash``, ``host-boot``,
        ``start-failed`` or ``unknown``
    :ivar at: Unix time when it was found
    :ivar detail: in words
    :ivar exit_code: of QEMU, where it is known; `signal` that killed it
    :ivar log: the last lines of QEMU's log
    :ivar forced: we ended QEMU as if the plug was pulled
    """

    reason: str
    at: float
    detail: str = ""
    exit_code: int | None = None
    signal: int | None = None
    log: str = ""
    forced: bool = False


class Restart(Struct, kw_only=True, omit_defaults=True):
    """A start after a run that has ended by itself.

    :ivar count: how many there were in a row, with this one
    :ivar at: Unix time when it is due, or was begun
    :ivar due: it has not begun
    :ivar boot_id: the host's boot in which the run ended: it is due in no other one
    """

    count: int = 0
    at: float = 0.0
    due: bool = False
    boot_id: str = ""


class Document(Struct, kw_only=True, omit_defaults=True):
    """Everything that is kept of one instance.

    :ivar spec: what it is to be at its next start
    :ivar machine: the versioned machine type that its first boot pinned
    :ivar places: bus and address of each device in the last run: a guest finds it there again
    :ivar generation: of the last start
    :ivar runtime: None while it does not run
    :ivar pending: the change that is under way
    :ivar last_stop: how the last run ended
    :ivar restart: the start again that is due, or what runs came of; None where somebody started it
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


def save(path: Path, document: Document) -> None:
    """Write a document: wholly, and so that it survives a crash of the host, or not at all.

    :raises OSError: it could not be written; the old one is untouched
    """
    # the schema is always said, though it is the default
    data = msgspec.json.format(msgspec.json.encode({"schema": SCHEMA} | msgspec.to_builtins(document)), indent=1)
    replace(path, data)


def replace(path: Path, data: bytes) -> None:
    """Put a file in the place of another one, durably, readable by us alone."""
    new = path.with_name(f".{path.name}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(new, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Let the names in a folder survive a crash of the host."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


ready(Document, _Version)
