"""A machine goes over to a second QEMU on its host, while it runs: as onto the binary that an update has brought.

The second one is started beside the first, with folders, taps and a control group of its own. All of the machine is
sent to it over a pair of sockets; then the guest stands still, both QEMUs have all of it, and neither runs. One write
of the document makes the second one the machine (``switched``), and only then the guest runs on, there, and the first
one ends. Whoever dies before that write leaves a machine that runs on where it was, after it, one that runs where it
went.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from msgspec import Struct, structs

from ..errors import (
    CommandError,
    ConnectionClosed,
    DroverError,
    MonitorError,
    MonitorTimeout,
    NotSupported,
    StartFailed,
    WrongState,
)
from ..monitor.connection import QmpConnection
from ..ops.migration import MigrationInfo, Progress
from ..ops.migration_settings import UNLIMITED, USUAL_BANDWIDTH, loses_writes
from . import launch, room
from .ending import QUIT_GRACE, end_other, end_process, log_tail, release_group, release_links
from .handover import SOURCE, TARGET
from .host import Host
from .kinds import connect_nics
from .ledger import Ledger
from .outdated import is_outdated
from .packing import check_portable, parcel_of
from .paths import InstancePaths
from .record import SWITCHED, UPGRADE, has_switched, runtime_of
from .spec import Spec
from .witness import end_if_wanted, witness

# Seconds that the guest may run on meanwhile. Who writes to its memory faster than it is copied stands still then.
_PATIENCE: Final = 60.0
# Seconds for the rest once it stands still, when nothing has to be sent twice.
_REST: Final = 600.0
_TOLD: Final = 5.0  # seconds for an event that has happened
_MARK: Final = "b"


class Upgraded(Struct, frozen=True, kw_only=True):
    """What came of it.

    :ivar moved: it went over; not where it runs what it was to run
    :ivar version: of QEMU, now
    :ivar seconds: that it took
    :ivar blackout: seconds that the guest stood still
    :ivar notices: in words
    """

    moved: bool
    version: tuple[int, int, int]
    seconds: float = 0.0
    blackout: float = 0.0
    notices: list[str] = []


class _Beside(Ledger):
    """The document as the second QEMU's, whose run is written into that of the machine."""

    def __init__(self, main: Ledger) -> None:
        super().__init__(main.paths.beside, structs.replace(main.document, runtime=main.document.other))
        self._main = main

    def step(self, step: str, **arguments: Any) -> None:
        self._main.document.other = self.document.runtime
        self._main.step(step, **arguments)

    def save(self) -> None:
        self._main.document.other = self.document.runtime
        self._main.save()


def upgrade(host: Host, ledger: Ledger, vm: QmpConnection, emulator: str = "") -> Upgraded:
    """Have a machine that runs go over to a QEMU that is started for it. If that fails, it runs on where it is.

    :param emulator: the QEMU, where it is to be another one; the next starts have it, too
    :raises NotSupported: there cannot be two QEMUs of it at once; says what to do instead
    :raises NoRoom: the host has not the memory for both
    :raises StartFailed: the second one did not come up
    :raises MigrationError: it did not go over
    """
    old = runtime_of(ledger.document)
    if not is_outdated(old) and emulator in ("", old.emulator):
        return Upgraded(moved=False, version=old.version)
    check_portable(old)
    parcel = parcel_of(old, vm)
    if emulator:
        parcel = structs.replace(parcel, spec=structs.replace(parcel.spec, emulator=emulator))
    _check_twice(parcel.spec)
    status = vm.query_status().status
    if status not in ("running", "paused"):
        raise WrongState(ledger.name, status, "running or paused")
    began, paused = time.monotonic(), old.paused or status == "paused"
    with room.let_in(host.paths, parcel.spec):
        ledger.begin(UPGRADE, paused=paused, emulator=emulator)
    beside = _Beside(ledger)
    try:
        new, notices = launch.start_beside(host, beside, parcel, "" if old.mark else _MARK)
        with new:
            stood = _send(ledger, vm, new, blind=loses_writes(old.accelerator, old.version))
            runs, unconnected = _switch(ledger, new, paused)
    except BaseException as error:
        _undo(host, ledger, vm, error)
        raise
    with suppress(MonitorError):  # what counts is its end
        vm.quit()
    notices += [*unconnected, *finish_switch(host, ledger)]
    _complete(ledger)
    return Upgraded(moved=True, version=runtime_of(ledger.document).version, seconds=time.monotonic() - began,
                    blackout=0.0 if paused else max(0.0, runs - stood), notices=notices)  # fmt: skip


def mend_upgrade(host: Host, ledger: Ledger, vm: QmpConnection) -> list[str]:
    """Finish a move that was cut off.

    :param vm: the QEMU that is the machine: :func:`finish_switch` has been called, where that is due
    """
    pending = ledger.document.pending
    assert pending is not None
    if pending.step != SWITCHED:
        _take_back(host, ledger, vm)
        return ["its upgrade was cut off: it runs on where it was"]
    notices = connect_nics(runtime_of(ledger.document))
    if not runtime_of(ledger.document).paused and vm.query_status().status == "paused":
        vm.cont()
    _complete(ledger)
    return ["its upgrade was cut off, and is completed", *notices]


def finish_switch(host: Host, ledger: Ledger) -> list[str]:
    """The second QEMU is the machine: the first one ends, and the second takes its names. May be repeated.

    :returns: notices, in words
    """
    document, notices = ledger.document, list[str]()
    if (old := document.other) is not None:
        end_process(host, Ledger(ledger.paths, structs.replace(document, runtime=old)), grace=QUIT_GRACE)
        notices = [*release_links(old), *release_group(old)]
        document.other = None
    _take_names(ledger.paths)
    ledger.save()
    return notices


# -- how --------------------------------------------------------------------------------------------------------------


def _check_twice(spec: Spec) -> None:
    if alone := list(_alone(spec)):
        what = f"a second QEMU of {spec.name} beside the first, for {', '.join(alone)},"
        raise NotSupported(what, f"drover save {spec.name}, then drover restore {spec.name}", by="a host")


def _alone(spec: Spec) -> Iterator[str]:
    """What two QEMUs of one host cannot have at once."""
    if spec.tpm is not None:
        yield "its TPM"
    if spec.vsock_cid:
        yield "vsock_cid"
    for field, screen in (("vnc", spec.vnc), ("spice", spec.spice)):
        if screen is not None and screen.listen:
            yield f"{field}.listen"
    for index, nic in enumerate(spec.nics):
        if nic.mode not in ("bridge", "user"):
            yield f"nics[{index}].mode {nic.mode}"
        elif nic.forwards:
            yield f"nics[{index}].forwards"


def _send(ledger: Ledger, vm: QmpConnection, new: QmpConnection, *, blind: bool) -> float:
    """Send the machine, until both have all of it and neither runs.

    :param blind: the guest is to stand still from the beginning
    :returns: Unix time since when it does
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        new.reset_migration_capabilities(TARGET)
        new.migrate_incoming(fd=theirs.fileno())
        vm.disarm_tls()  # of a migration before
        vm.reset_migration_capabilities({**SOURCE, "auto-converge": True})
        vm.set_migration_parameters({"max-bandwidth": UNLIMITED})
        mark = vm.event_mark()
        if blind:
            vm.stop()
        ledger.step("send")
        vm.migrate(fd=ours.fileno())
    _converge(ledger, vm)
    vm.migrate_continue()
    vm.wait_migration(timeout=_REST)
    try:
        if (status := new.wait_incoming(timeout=_REST).status) != "paused":
            raise WrongState(ledger.name, status, "paused")
    except ConnectionClosed as error:
        raise StartFailed(ledger.name, "the second QEMU did not take the machine", log_tail(ledger)) from error
    with suppress(MonitorTimeout):  # it stood still before
        return vm.wait_event("STOP", since=mark, timeout=0).timestamp
    return time.time()


def _converge(ledger: Ledger, vm: QmpConnection) -> None:
    try:
        vm.wait_migration(until=("pre-switchover",), progress=_teller(ledger.name), timeout=_PATIENCE)
    except MonitorTimeout:
        vm.stop()  # the guest writes faster than is sent
        vm.wait_migration(until=("pre-switchover",), progress=_teller(ledger.name), timeout=_REST)


def _teller(name: str) -> Progress:
    def tell(info: MigrationInfo) -> None:
        end_if_wanted(name, UPGRADE)
        witness().progress(info.ram.total - info.ram.remaining, info.ram.total, "bytes")

    return tell


def _switch(ledger: Ledger, new: QmpConnection, paused: bool) -> tuple[float, list[str]]:
    """From here on the second one is the machine.

    :returns: Unix time since when it runs, and notices, in words
    """
    document, mark = ledger.document, new.event_mark()
    old, other = document.runtime, document.other
    assert old is not None
    assert other is not None
    other.paused = old.paused
    document.runtime, document.other, document.generation = other, old, other.generation
    ledger.step(SWITCHED)
    notices = connect_nics(other)
    if paused:
        return time.time(), notices
    try:
        new.cont()
    except CommandError:  # it has not run
        document.runtime, document.other, document.generation = old, other, old.generation
        ledger.step("send")
        raise
    new.announce_arrival()
    with suppress(MonitorTimeout):
        return new.wait_event("RESUME", since=mark, timeout=_TOLD).timestamp, notices
    return time.time(), notices


def _complete(ledger: Ledger) -> None:
    document, pending = ledger.document, ledger.document.pending
    assert pending is not None
    if emulator := pending.arguments["emulator"]:
        document.spec = structs.replace(document.spec, emulator=emulator)
    ledger.commit()


def _undo(host: Host, ledger: Ledger, vm: QmpConnection, error: BaseException) -> None:
    """After a failure: it runs on where it was. Where even that fails, the intent stays, for whoever comes next."""
    if has_switched(ledger.document):
        return  # there is no way back any more: whoever comes next goes on
    try:
        _take_back(host, ledger, vm)
    except (DroverError, OSError) as failure:
        error.add_note(f"undo of the upgrade failed: {failure}")


def _take_back(host: Host, ledger: Ledger, vm: QmpConnection) -> None:
    """The first QEMU is the machine. The second one is dead before the guest runs on."""
    pending = ledger.document.pending
    assert pending is not None
    end_other(host, ledger)
    vm.migrate_cancel()
    vm.reset_migration_capabilities({})
    vm.set_migration_parameters({"max-bandwidth": USUAL_BANDWIDTH})
    if not pending.arguments["paused"] and vm.query_status().status in ("paused", "postmigrate"):
        vm.cont()
    ledger.commit()


def _take_names(paths: InstancePaths) -> None:
    """The sockets and the exit status of the second QEMU become those of the machine. May be repeated."""
    beside = paths.beside
    for source, target in ((beside.run, paths.run), (beside.private, paths.private)):
        with suppress(FileNotFoundError):
            for entry in os.listdir(source):
                os.replace(source / entry, target / entry)
            source.rmdir()
    with suppress(FileNotFoundError):
        os.replace(beside.exit_status, paths.exit_status)
