"""How a run ended, and what has to go with it.

QEMU is started with ``-action shutdown=pause,panic=pause``: a guest that has shut down or panicked stands still in the
run state ``shutdown`` or ``guest-panicked`` until somebody has read that, be it after our own restart. Only a signal
from the host, a ``quit``, or a crash end the process.
"""

import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import convert
from msgspec.structs import replace

from ..errors import MonitorError, MonitorTimeout, ProcessGone, ProcessStuck
from . import logs
from .cgroup import Cgroup
from .ends import Stop
from .faults import take_back
from .host import Host
from .keeper import read_status
from .kinds import NIC, release_nic
from .ledger import Ledger
from .memory_file import Head, remove
from .process import STATUS_TIMEOUT, Process
from .record import ADD, LEAVE, SAVE, Document, Runtime, has_begun_to_run
from .restart import restart_after
from .tpm import end_tpm

# Seconds from the end of its monitors to its own: it frees the guest's memory, some 0.1 s a GiB.
QUIT_GRACE: Final = 30.0
_LOG_LINES: Final = 20
_LOG_BYTES: Final = 16384
# What QEMU prints when a signal asked it to end (main_loop_should_exit in system/runstate.c).
_SIGNALLED: Final = re.compile(r"terminating on signal (\d+)(?: from pid (\d+))?")


def log_tail(ledger: Ledger) -> str:
    """The last lines of what QEMU printed in this run."""
    try:
        with ledger.paths.log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _LOG_BYTES))
            lines = logs.of_last_run(file.read().decode(errors="replace")).splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join(lines[-_LOG_LINES:])


def why_it_ended(host: Host, ledger: Ledger) -> Stop:
    """Why QEMU is no more, from how it ended and what it said last."""
    document, log = ledger.document, log_tail(ledger)
    stop = Stop(reason="unknown", at=time.time(), detail="it ended while nobody watched", log=log)
    if document.runtime is not None and document.runtime.boot_id != host.boot_id:
        stop.reason, stop.detail = "host-boot", "the host was booted anew"
        return stop
    if status := read_status(ledger.paths.exit_status, STATUS_TIMEOUT):
        stop.exit_code, stop.signal = status.code, status.signal
        told = _SIGNALLED.search(log.rpartition("\n")[2])
        if status.signal is not None or status.code:
            stop.reason, stop.detail = "crash", str(status)
        elif told is not None:
            sender = f" from process {told[2]}" if told[2] else ""
            stop.reason, stop.detail = "host-signal", f"signal {told[1]}{sender}"
        else:
            stop.reason, stop.detail = "request", "somebody told QEMU to quit"
    if document.pending is not None and document.pending.operation in ("stop", "kill"):
        stop.reason, stop.detail, stop.log = "request", document.pending.operation, ""
    if document.pending is not None and document.pending.operation == LEAVE:
        stop.reason, stop.detail, stop.log = "migrated", "it went to another node", ""
    return stop


def running(host: Host, ledger: Ledger) -> Process | None:
    """The QEMU of the document, if it runs; else None, and whatever has its pid now is somebody else's."""
    runtime = ledger.document.runtime
    if runtime is None or not runtime.pid or runtime.boot_id != host.boot_id:
        return None
    try:
        return Process.attach(runtime.pid, runtime.start_time, runtime.boot_id, ledger.paths.exit_status)
    except ProcessGone:
        return None


def is_over(process: Process, error: MonitorError, grace: float) -> bool:
    """Whether a QEMU that could not be talked to has ended, or does so now: its monitors close before it is gone.

    :param error: what came of talking to it: one that was silent is not on its way out, and is not waited for
    :param grace: seconds to wait for its end
    """
    return process.wait(0 if isinstance(error, MonitorTimeout) else grace)


def end_process(host: Host, ledger: Ledger, *, grace: float = 0.0) -> None:
    """Kill the QEMU of the document, if it runs, and see it end.

    :param grace: seconds to end by itself, for one that was told to quit: it has closed its disks, not freed its memory
    :raises ProcessStuck: it has not ended yet
    """
    process = running(host, ledger)
    if process is not None:
        with process:
            if not process.wait(grace):
                process.kill()


def conclude(host: Host, ledger: Ledger, stop: Stop) -> list[str]:
    """Write down the end of a run whose QEMU is gone, when all that belonged to it has gone, too.

    In the same write: whether it is to be started again.

    :returns: what could not be tidied up, in words
    """
    end_other(host, ledger)
    notices = release(host, ledger)
    document = ledger.document
    stop.at = stop.at or time.time()
    if document.runtime is not None and document.runtime.pid:
        devices = document.runtime.devices.items()
        document.places = {name: (device.bus, device.addr) for name, device in devices if device.bus}
    stop.detail += settle_memory(ledger)
    document.restart = restart_after(document, stop, host.boot_id)
    stop.generation = document.generation if document.runtime is None else document.runtime.generation
    document.last_stop, document.runtime = stop, None
    ledger.commit()
    return notices


def end_other(host: Host, ledger: Ledger) -> None:
    """End a second QEMU of an instance, of which nobody needs anything, with all that belonged to it. May be repeated.

    :raises ProcessStuck: it has not ended yet
    """
    if (other := ledger.document.other) is None:
        return
    beside = Ledger(ledger.paths.beside, replace(ledger.document, runtime=other))
    end_process(host, beside)
    release(host, beside)
    ledger.document.other = None


def settle_memory(ledger: Ledger) -> str:
    """What becomes of the memory in a file when a run ends, or is to, while it was being saved or restored.

    A file that was not the machine yet goes. One that may have run again is not used any more: its disks are others.

    :returns: what is to be known, in words
    """
    document, pending = ledger.document, ledger.document.pending
    if pending is None:
        return ""
    if has_begun_to_run(document) and document.saved is not None:
        file = document.saved.path or ledger.paths.memory
        document.saved = None
        return f"; it may have run after it was restored: what was saved, in {file}, is kept, and not used any more"
    if pending.operation == SAVE and document.saved is None and document.runtime is not None:
        head = Head(uuid=document.runtime.spec.uuid, key=pending.arguments["key"])
        with suppress(OSError):
            remove(Path(pending.arguments["path"]), head)
    return ""


def release_links(runtime: Runtime) -> list[str]:
    """Take away what a run's cards stood on. Idempotent; QEMU must be gone."""
    return [notice for nic in runtime.spec.nics for notice in release_nic(runtime, nic)]


def _release_pending(document: Document, runtime: Runtime) -> list[str]:
    """The same of a card that was being plugged in, when whoever did so, or the host, died."""
    pending = document.pending
    if pending is None or pending.operation != ADD + NIC.name:
        return []
    return release_nic(runtime, convert(pending.arguments["device"], NIC.type))


def release_group(runtime: Runtime) -> list[str]:
    """Take away a run's control group. Idempotent; QEMU must be gone."""
    if runtime.cgroup and not Cgroup(Path(runtime.cgroup)).remove():
        return [f"{runtime.cgroup}: there are processes in it still"]
    return []


def release(host: Host, ledger: Ledger) -> list[str]:
    """Take away everything that a run had on the host. Idempotent; QEMU must be gone."""
    runtime = ledger.document.runtime
    if runtime is None:
        return []
    take_back(runtime.uid)
    notices = [*release_links(runtime), *_release_pending(ledger.document, runtime)]
    try:
        end_tpm(ledger)
    except ProcessStuck as error:
        notices.append(str(error))
    notices += release_group(runtime)
    host.remove_folders(ledger.paths)
    ledger.paths.exit_status.unlink(missing_ok=True)
    return notices
