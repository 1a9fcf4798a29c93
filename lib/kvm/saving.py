"""A machine's memory into a file and back: at each moment one of the two is the machine, and the document says which.

While it is saved: the intent first; the guest stands still; the file is written under a name that nobody guesses,
synced and named; then one write of the document makes the file the machine (``saved``), and only then QEMU ends.
Whoever dies before that write leaves a QEMU that runs on, after it, one that is ended.

While it is restored: a QEMU reads the file and stands still; then one write of the document makes that QEMU the machine
(``run again``), and only then the guest runs, and the file goes. A QEMU that ends before that write has not run: the
file is restored again. One that ends after it may have run, and has other disks than the file was saved with.
"""

import os
import time
from pathlib import Path
from typing import Final

from msgspec import structs

from ..errors import (
    ArgumentError,
    CommandError,
    ConnectionClosed,
    DroverError,
    MemoryUnusable,
    NotSupported,
    StartFailed,
    WrongState,
)
from ..monitor.connection import QmpConnection
from ..ops.fdset import Held
from ..ops.migration import MigrationInfo, Progress
from ..ops.saving import Form
from . import aside, launch, memory_file
from .ending import QUIT_GRACE, conclude, end_process, log_tail
from .ends import Stop
from .host import Host
from .ledger import Ledger
from .memory_file import Head
from .packing import check_portable, parcel_of
from .record import DISCARD, RUN, SAVE, SAVED, Document, Saved, load, runtime_of
from .state import State
from .witness import end_if_wanted, witness

# QEMU's run states from which a machine is saved; in another one it is not whole.
_WHOLE: Final = ("running", "paused", "io-error")
_LOAD: Final = "load"
_MAPPED_SINCE: Final = (9, 0, 0)
_SENT: Final = "postmigrate"


def save(host: Host, ledger: Ledger, vm: QmpConnection, file: str = "") -> Saved:
    """Write a machine that runs into a file, and end its QEMU. If that fails, it runs on.

    :param file: its path, where nothing is yet; empty: in the instance's own folder
    :raises NotSupported: it has something that cannot be saved
    :raises FileExistsError: there is something already
    :raises MigrationFailed: it could not be written, as where the disk is full
    :raises OperationCancelled: who looks on wanted it to end
    """
    document, runtime = ledger.document, runtime_of(ledger.document)
    check_portable(runtime)
    parcel = parcel_of(runtime, vm)
    path = _target(ledger, file)
    status = vm.query_status().status
    if status not in _WHOLE:
        raise WrongState(ledger.name, status, " or ".join(_WHOLE))
    head = Head(uuid=runtime.spec.uuid, key=memory_file.new_key())
    paused = runtime.paused or status == "paused"
    first = memory_file.first_name(path, head.key)
    ledger.begin(SAVE, path=os.fspath(path), key=head.key, paused=paused)
    try:
        held = Held(memory_file.begin(first, head))
        with held:
            vm.stop()
            ledger.step("write")
            vm.disarm_tls()  # of a migration before
            form = vm.save_memory(held, offset=memory_file.OFFSET, progress=_tell(ledger.name))
        ledger.step("keep")
        size = memory_file.place(first, path, instead=not file)
        document.saved = Saved(
            path=file, key=head.key, form=form, size=size, at=time.time(), parcel=parcel, paused=paused
        )
        ledger.step(SAVED)
    except BaseException as error:
        _undo(ledger, vm, error)
        raise
    vm.quit()
    _end(host, ledger)
    return document.saved


def mend_save(host: Host, ledger: Ledger, vm: QmpConnection) -> list[str]:
    """Finish a save that was cut off, and whose QEMU is there."""
    if ledger.document.saved is not None and memory_file.is_there(*_file(ledger)):
        _end(host, ledger)
        return ["its save was cut off, and is completed"]
    _take_back(ledger, vm)
    return ["its save was cut off: it runs on"]


def is_saved(document: Document) -> bool:
    """Whether a save that was cut off had come so far that the file is the machine."""
    return document.saved is not None and document.pending is not None and document.pending.operation == SAVE


def restore(
    host: Host, ledger: Ledger, *, file: str = "", emulator: str = "", paused: bool = False
) -> list[str]:
    """Start a machine that was saved, as it was. If that fails before it runs, it is saved still.

    :param file: its path, where it was moved
    :param emulator: the QEMU, where it is to be another one; the next starts have it, too
    :param paused: do not let the guest run yet
    :returns: notices, in words
    :raises WrongState: it is not saved
    :raises MemoryUnusable: the file is not there or another one, or a disk was written to since
    :raises NotSupported: this QEMU does not know how the memory lies there
    :raises StartFailed: QEMU did not come up, or did not take it
    """
    saved = ledger.document.saved
    if saved is None:
        raise WrongState(ledger.name, State.STOPPED, State.SAVED)
    path, head = Path(file or saved.path or ledger.paths.memory), memory_file.head_of(saved)
    if changed := memory_file.changed(saved.parcel.spec, saved.disks):
        why = f"{' and '.join(changed)} was written to since: the guest would not know, and ruin it"
        raise MemoryUnusable(ledger.name, os.fspath(path), why)
    parcel = saved.parcel
    if emulator:
        parcel = structs.replace(parcel, spec=structs.replace(parcel.spec, emulator=emulator))
    if saved.form != "stream" and host.binary(parcel.spec.emulator).version < _MAPPED_SINCE:
        raise NotSupported("memory that was saved as mapped-ram", "QEMU 9.0 or later")
    stands = paused or saved.paused
    notices = list[str]()

    def arrives(vm: QmpConnection) -> None:
        ledger.step(_LOAD, path=os.fspath(path), emulator=emulator)
        _load(ledger, vm, saved.form, held)
        _run(ledger, vm, stands)
        notices.extend(_used_up(ledger))

    with Held(memory_file.opened(ledger.name, path, head)) as held:
        return [*launch.start(host, ledger, paused=stands, arrives=arrives, parcel=parcel), *notices]


def mend_restore(host: Host, ledger: Ledger, vm: QmpConnection) -> list[str]:
    """Finish a restore that was cut off, and whose QEMU is there: from a certain step on it is the machine."""
    pending, saved = ledger.document.pending, ledger.document.saved
    if pending is None or saved is None or pending.step != RUN:
        end_process(host, ledger)
        stop = Stop(reason="start-failed", at=0, detail="its restore was cut off, and is undone: it is saved still")
        return [stop.detail, *conclude(host, ledger, stop)]
    runtime = runtime_of(ledger.document)
    if not runtime.paused and vm.query_status().status == "paused":
        vm.cont()
    notices = _used_up(ledger)
    ledger.document.machine = runtime.machine
    ledger.commit()
    return ["its restore was cut off, and is completed", *notices]


def end_of_save(host: Host, ledger: Ledger) -> list[str]:
    """The same where its QEMU has ended and :func:`is_saved`."""
    _end(host, ledger)
    return ["its save was cut off, and is completed"]


def discard(ledger: Ledger) -> None:
    """Forget the memory of a machine; nothing where none is saved. May be repeated."""
    saved = ledger.document.saved
    if saved is None:
        return
    path = Path(saved.path or ledger.paths.memory)
    ledger.begin(DISCARD, path=os.fspath(path), key=saved.key)
    memory_file.remove(path, memory_file.head_of(saved))
    ledger.document.saved = None
    ledger.commit()


# -- how --------------------------------------------------------------------------------------------------------------


def _target(ledger: Ledger, file: str) -> Path:
    if not file:
        return ledger.paths.memory
    if not file.startswith("/"):
        raise ArgumentError("file", file, "an absolute path: where the memory is to be")
    aside.check_free(file)
    return Path(file)


def _tell(name: str, operation: str = SAVE) -> Progress:
    def tell(info: MigrationInfo) -> None:
        end_if_wanted(name, operation)
        witness().progress(info.ram.total - info.ram.remaining, info.ram.total, "bytes")

    return tell


def _end(host: Host, ledger: Ledger) -> None:
    """The file is the machine: its QEMU ends, and all that belonged to the run."""
    end_process(host, ledger, grace=QUIT_GRACE)
    saved = ledger.document.saved
    assert saved is not None
    ledger.document.saved = structs.replace(saved, disks=memory_file.stamps(saved.parcel.spec))
    where = saved.path or ledger.paths.memory
    conclude(host, ledger, Stop(reason="saved", at=0, detail=f"its memory is in {where}"))


def _file(ledger: Ledger) -> tuple[Path, Head]:
    """Of the save that is under way."""
    pending = ledger.document.pending
    assert pending is not None
    told = pending.arguments
    return Path(told["path"]), Head(uuid=runtime_of(ledger.document).spec.uuid, key=told["key"])


def _undo(ledger: Ledger, vm: QmpConnection, error: BaseException) -> None:
    """After a failure: it runs on. Where even that fails, the intent stays, and whoever comes next does it."""
    try:
        _take_back(ledger, vm)
    except (DroverError, OSError) as failure:
        error.add_note(f"undo of the save failed: {failure}")


def _take_back(ledger: Ledger, vm: QmpConnection) -> None:
    """The QEMU is the machine. The document says so on the disk before the file goes, and before the guest runs."""
    document, pending = ledger.document, ledger.document.pending
    assert pending is not None
    document.saved, pending.step = None, ""
    if load(ledger.paths.document).saved is not None:
        ledger.save()
    vm.drop_save()
    memory_file.remove(*_file(ledger))
    if not pending.arguments["paused"] and vm.query_status().status in ("paused", _SENT):
        vm.cont()
    ledger.commit()


def _load(ledger: Ledger, vm: QmpConnection, form: Form, held: Held) -> None:
    try:
        vm.load_memory(
            held, form=form, offset=memory_file.OFFSET, progress=lambda _: end_if_wanted(ledger.name, "restore")
        )
    except ConnectionClosed as error:
        raise StartFailed(ledger.name, "QEMU did not take what was saved", log_tail(ledger)) from error


def _run(ledger: Ledger, vm: QmpConnection, stands: bool) -> None:
    ledger.step(RUN)
    if stands:
        return
    try:
        vm.cont()
    except CommandError:
        ledger.step(_LOAD)  # it has not run
        raise


def _used_up(ledger: Ledger) -> list[str]:
    """It runs again. What cannot be removed is told: nothing uses it any more.

    :returns: notices
    """
    document, pending = ledger.document, ledger.document.pending
    saved = document.saved
    assert saved is not None
    assert pending is not None
    if emulator := pending.arguments["emulator"]:
        document.spec = structs.replace(document.spec, emulator=emulator)
    path, document.saved = Path(pending.arguments["path"]), None
    try:
        memory_file.remove(path, memory_file.head_of(saved))
    except OSError as error:
        return [f"{path}, of which it was restored, is still there: {error.strerror}"]
    return []
