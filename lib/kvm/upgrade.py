"""A second QEMU of a machine on its host, onto which it goes while it runs: what there must be, and what is left of it.

One document is the machine's, and says which of two runs is it: one write makes the second one the machine
(``switched``), and only then the guest runs on, there, and the first one ends. Whoever dies before that write leaves a
machine that runs on where it was, after it, one that runs where it went. What is done in which order is
`lib/migration/local.py`'s business; what a failure leaves is settled here, by the document alone.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from msgspec import Struct, structs

from ..errors import NotSupported, WrongState
from ..monitor.connection import QmpConnection
from ..ops.migration_settings import USUAL_BANDWIDTH
from . import room
from .ending import QUIT_GRACE, end_other, end_process, release_group, release_links
from .host import Host
from .kinds import connect_nics
from .ledger import Ledger
from .outdated import is_outdated
from .packing import check_portable, parcel_of
from .parcel import Parcel
from .paths import InstancePaths
from .record import SWITCHED, UPGRADE, Document, Runtime, runtime_of
from .spec import Spec

# What a record of who may run the machine says while it is on no way: see `lib/store/owner.py`.
_AT_REST: Final = "running"


class Upgraded(Struct, frozen=True, kw_only=True):
    """What came of it.

    :ivar moved: it went over; not where it runs what it was to run
    :ivar version: of QEMU, now
    :ivar seconds: that it took
    :ivar blackout: seconds that the guest stood still, by our clock
    :ivar qemu_blackout: and by QEMU's
    :ivar steps: seconds for each step
    :ivar transferred: bytes of memory that were sent, in `rounds` rounds
    :ivar helped: what was done so that it came to its end
    :ivar notices: in words
    """

    moved: bool
    version: tuple[int, int, int]
    seconds: float = 0.0
    blackout: float = 0.0
    qemu_blackout: float = 0.0
    steps: dict[str, float] = {}
    transferred: int = 0
    rounds: int = 0
    helped: list[str] = []
    notices: list[str] = []


class Beside(Ledger):
    """The document as the second QEMU's, whose run is written into that of the machine.

    :param writing: held by whoever writes that
    """

    def __init__(self, main: Ledger, writing: threading.Lock) -> None:
        super().__init__(main.paths.beside, structs.replace(main.document, runtime=main.document.other))
        self._main = main
        self._writing = writing

    def step(self, step: str, **arguments: Any) -> None:
        with self._writing:
            self._main.document.other = self.document.runtime
            self._main.step(step, **arguments)

    def save(self) -> None:
        with self._writing:
            self._main.document.other = self.document.runtime
            self._main.save()


def is_wanted(old: Runtime, emulator: str) -> bool:
    """Whether it runs another QEMU than it is to run.

    :param old: what runs
    :param emulator: the QEMU, where it is to be another one
    """
    return is_outdated(old) or emulator not in ("", old.emulator)


def parcel_for(old: Runtime, vm: QmpConnection, emulator: str) -> tuple[Parcel, bool]:
    """The machine, as a second QEMU is to have it; and whether it is to stand still there.

    :param vm: a connection to the first one
    :raises NotSupported: there cannot be two QEMUs of it at once; says what to do instead
    :raises WrongState: it neither runs nor is paused
    """
    check_portable(old)
    parcel = parcel_of(old, vm)
    if emulator:
        parcel = structs.replace(parcel, spec=structs.replace(parcel.spec, emulator=emulator))
    _check_twice(parcel.spec)
    status = vm.query_status().status
    if status not in ("running", "paused"):
        raise WrongState(old.spec.name, status, "running or paused")
    return parcel, old.paused or status == "paused"


def intend(host: Host, ledger: Ledger, parcel: Parcel, *, paused: bool, emulator: str) -> None:
    """Write down that it goes over to a second QEMU. The memory for that is promised to it from then on.

    :raises NoRoom: the host has not so much
    """
    with room.let_in(host.paths, parcel.spec):
        ledger.begin(UPGRADE, paused=paused, emulator=emulator, phase=_AT_REST)


def exchange(document: Document) -> None:
    """Make the other one of the two QEMUs the machine. Not written yet."""
    old, other = document.runtime, document.other
    assert old is not None
    assert other is not None
    other.paused = old.paused
    document.runtime, document.other, document.generation = other, old, other.generation


def complete(ledger: Ledger) -> None:
    """Write down that the second QEMU is the machine for good."""
    document, pending = ledger.document, ledger.document.pending
    assert pending is not None
    if emulator := pending.arguments["emulator"]:
        document.spec = structs.replace(document.spec, emulator=emulator)
    ledger.commit()


def mend_upgrade(host: Host, ledger: Ledger, vm: QmpConnection) -> list[str]:
    """Finish a move that was cut off, or failed.

    :param vm: the QEMU that is the machine: :func:`finish_switch` has been called, where that is due
    """
    pending = ledger.document.pending
    assert pending is not None
    if pending.step != SWITCHED:
        _take_back(host, ledger, vm)
        return ["its upgrade was cut off: it runs on where it was"]
    notices = connect_nics(runtime_of(ledger.document))
    if not pending.arguments["paused"] and vm.query_status().status == "paused":
        vm.cont()
    complete(ledger)
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
