"""What an earlier call, or the host, left unfinished: completed or undone, by what QEMU itself says.

Whoever takes an instance's lock to change it comes by here first, so nothing has to be remembered between two calls.
"""

import time
from contextlib import ExitStack
from typing import Final

from ..errors import MonitorError
from ..monitor.connection import QmpConnection
from .condition import Ahead, first_look
from .ending import QUIT_GRACE, conclude, end_process, is_over, running, why_it_ended
from .ends import Stop
from .host import Host
from .keeper import read_status
from .keys import are_placed, sweep
from .launch import finish
from .ledger import Ledger
from .plugs import mend_plugs
from .process import STATUS_TIMEOUT
from .record import DISCARD, LEAVE, RESTORE, SAVE, UPGRADE, has_switched
from .saving import discard, end_of_save, is_saved, mend_restore, mend_save
from .sockets import dial
from .state import State
from .upgrade import finish_switch, mend_upgrade

# Seconds after a press of the power button in which a guest's shutdown is its answer: some install updates first.
_ASKED: Final = 600.0
ENDED_BY_GUEST: Final = {State.SHUTDOWN: "guest-shutdown", State.PANICKED: "panic"}


def mend(host: Host, ledger: Ledger, timeout: float, told: str = "") -> list[str]:
    """Bring document and machine together. Idempotent.

    :param timeout: seconds for QEMU to answer; and, should it close the connection, to be gone
    :param told: the reason of the end, by QEMU's own last word, for where nothing else tells
    :returns: what was done, in words
    :raises MonitorError: QEMU is there and does not answer; the document is as it was
    """
    with ExitStack() as stack:
        return attach(host, ledger, timeout, stack, told)[0]


def attach(
    host: Host, ledger: Ledger, timeout: float, stack: ExitStack, told: str = "", ahead: Ahead | None = None
) -> tuple[list[str], QmpConnection | None]:
    """The same, and a connection to its QEMU if it runs then.

    :param stack: closes that connection
    :param told: see :func:`mend`
    :param ahead: asks more with the first look; what is done after that it does not know
    :returns: what was done, and the connection
    """
    if ledger.document.runtime is None:
        return _forget(ledger), None
    if has_switched(ledger.document):
        finish_switch(host, ledger)
    process = running(host, ledger)
    if process is None:
        return _ended(host, ledger, told), None
    with process:
        try:
            vm = stack.enter_context(dial(ledger.paths.socket("control"), timeout, process.pid))
            state, devices = first_look(vm, ahead)
            if state in ENDED_BY_GUEST:
                return collect(host, ledger, vm, state), None
            notices = _go_on(host, ledger, vm, state, devices)
            return notices, vm if _runs(ledger) else None
        except MonitorError as error:
            if not is_over(process, error, min(timeout, QUIT_GRACE)):
                raise
    return _ended(host, ledger, told), None


def _runs(ledger: Ledger) -> bool:
    """Not where a kill that had been begun has come to its end."""
    return ledger.document.runtime is not None


def collect(host: Host, ledger: Ledger, vm: QmpConnection, state: State) -> list[str]:
    """End a QEMU whose guest has come to its end, and write down how."""
    pending, runtime = ledger.document.pending, ledger.document.runtime
    asked = pending is not None and pending.operation == "stop"
    if state is State.SHUTDOWN and runtime is not None:
        asked = asked or time.time() - runtime.asked < _ASKED
    stop = Stop(reason="request" if asked else ENDED_BY_GUEST[state], at=0, detail="the guest shut down")
    if state is State.PANICKED:
        stop.detail = "the guest panicked"
    vm.quit()
    end_process(host, ledger, grace=QUIT_GRACE)
    if status := read_status(ledger.paths.exit_status, STATUS_TIMEOUT):
        stop.exit_code, stop.signal = status.code, status.signal
    return [f"its run has ended: {stop.detail}", *conclude(host, ledger, stop)]


def _forget(ledger: Ledger) -> list[str]:
    if ledger.document.pending is None:
        return []
    what = ledger.document.pending.operation
    if what == DISCARD:
        discard(ledger)
    ledger.commit()
    return [f"{what}: nothing of it was left"]


def _ended(host: Host, ledger: Ledger, told: str = "") -> list[str]:
    pending = ledger.document.pending
    if is_saved(ledger.document):
        return end_of_save(host, ledger)
    if pending is not None and pending.operation in ("start", RESTORE):
        stop = Stop(reason="start-failed", at=0, detail="the start was cut off, and is undone")
    else:
        stop = why_it_ended(host, ledger)
        if told and stop.reason == "unknown":
            stop.reason, stop.detail = told, f"{stop.detail} but for its events"
    return [f"its run has ended: {stop.reason}, {stop.detail}", *conclude(host, ledger, stop)]


def _forget_keys(ledger: Ledger, vm: QmpConnection) -> list[str]:
    """Whoever was to take the keys of a migration away has not. In postcopy they may be needed yet."""
    private = ledger.paths.private
    if ledger.document.passage is not None or not are_placed(private):
        return []
    if vm.query_migrate().status.startswith("postcopy"):
        return []
    vm.disarm_tls()
    sweep(private)
    return ["the keys of a migration that is over were left, and are removed"]


def _go_on(host: Host, ledger: Ledger, vm: QmpConnection, state: State, devices: dict[str, str]) -> list[str]:
    """The machine is there, with these devices: complete what was begun with it, or undo it."""
    document, pending = ledger.document, ledger.document.pending
    if document.runtime is None:
        return []
    if pending is not None and pending.operation == SAVE:
        return mend_save(host, ledger, vm)
    if pending is not None and pending.operation == RESTORE:
        return mend_restore(host, ledger, vm)
    if pending is not None and pending.operation == UPGRADE:
        return mend_upgrade(host, ledger, vm)
    notices = [*mend_plugs(ledger, vm, devices), *_forget_keys(ledger, vm)]
    if document.pending is None or pending is None:
        return notices
    if pending.operation == "start":
        if state is State.STARTING:
            finish(vm, document.runtime, paused=bool(pending.arguments.get("paused")))
        document.machine = document.runtime.machine
        ledger.commit()
        return ["its start was cut off, and is completed"]
    if pending.operation in ("kill", LEAVE):
        end_process(host, ledger)
        return _ended(host, ledger)
    # a request to shut down was sent, or not: the guest runs, and may follow yet
    ledger.commit()
    return [f"{pending.operation} was cut off: it runs on"]
