"""One instance: its life, from the outside. Blocking; the node daemon gives each instance a thread.

Every method takes the instance's lock, and first mends what an earlier call left unfinished. Each is idempotent, and
each has its deadline. One instance's lock never keeps another one waiting.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Final

from ..errors import (
    ConnectionClosed,
    DroverError,
    InstanceBusy,
    InstanceTimeout,
    MemorySaved,
    MonitorTimeout,
    OperationCancelled,
    WrongState,
)
from ..monitor.connection import QmpConnection
from . import launch, saving, verify
from .condition import Ahead, Condition, look, state_of
from .deadlines import ANSWER_TIMEOUT, SHUTDOWN_TIMEOUT
from .devices import Devices
from .ending import conclude, end_process, settle_memory
from .ends import Restart, Stop
from .handover import Handover
from .host import Host
from .ledger import Ledger, opened
from .lock import LOCK_TIMEOUT
from .mend import attach, collect, mend
from .record import Saved, check_settled, load
from .repair import repair
from .restart import is_due, later
from .state import State
from .verify import Report
from .witness import end_if_wanted

_ASK_AGAIN: Final = 5.0  # seconds: a guest that boots hears the power button only later
_LOOK: Final = 0.5  # seconds until it is noticed that the wait for a guest is to end


class Instance(Devices, Handover):
    """An instance of a host.

    :param host: where it is
    :param name: which one; whether there is one is found when a method is called
    :param lock_timeout: seconds to wait for somebody else who works on it
    """

    def __init__(self, host: Host, name: str, *, lock_timeout: float = LOCK_TIMEOUT) -> None:
        self.host = host
        self.name = name
        self.lock_timeout = lock_timeout

    def show(self, *, timeout: float = ANSWER_TIMEOUT) -> Condition:
        """Return how it is now. Changes nothing, and does not wait for who works on it: then it is ``busy``.

        :param timeout: seconds for QEMU to answer; one that does not is ``unresponsive``
        :raises InstanceNotFound: there is no such instance
        """
        try:
            with opened(self.host.paths, self.name, "show", 0) as ledger:
                return look(self.host, ledger, timeout)
        except InstanceBusy as busy:
            document = load(self.host.paths.instance(self.name).document)
            return Condition(name=self.name, state=State.BUSY, document=document, detail=busy.holder)

    def mend(self, *, timeout: float = ANSWER_TIMEOUT, told: str = "") -> list[str]:
        """Complete or undo what was left unfinished, and take note of a run that has ended.

        :param timeout: seconds for QEMU to answer
        :param told: the reason of the run's end, by QEMU's own last word, for where nothing else tells
        :returns: what was done, in words
        :raises MonitorError: QEMU is there and does not answer
        """
        with opened(self.host.paths, self.name, "mend", self.lock_timeout) as ledger:
            return mend(self.host, ledger, timeout, told)

    def verify(self, *, timeout: float = ANSWER_TIMEOUT) -> Report:
        """Put specification, record and QEMU side by side, with what the host has. Changes nothing.

        :param timeout: seconds for QEMU to answer
        """
        with opened(self.host.paths, self.name, "verify", self.lock_timeout) as ledger:
            return verify.report(self.host, ledger, verify.look(self.host, ledger, timeout))

    def repair(self, *, timeout: float = ANSWER_TIMEOUT) -> list[str]:
        """Bring together what :meth:`verify` finds apart, as far as that is safe: no disk is touched.

        The document follows QEMU; what nothing needs is removed; taps go back on their bridges.

        :param timeout: seconds for QEMU to answer
        :returns: what was done, and what could not be, in words
        :raises MonitorError: QEMU is there and does not answer
        """
        with opened(self.host.paths, self.name, "repair", self.lock_timeout) as ledger:
            return repair(self.host, ledger, timeout)

    def start(
        self, *, paused: bool = False, fresh: bool = False, fds: launch.Taps = MappingProxyType({})
    ) -> list[str]:
        """Start it; nothing if it runs. One that is saved is restored.

        :param paused: do not let the guest run yet
        :param fresh: forget what was saved of it, and boot it
        :param fds: for each NIC of mode ``fd``, by its id, descriptors of its tap; they stay yours to close
        :returns: notices, in words: what the host lacks and the machine does without
        :raises StartFailed: QEMU did not come up; nothing of it stays
        """
        with self._opened("start") as ledger:
            if ledger.document.runtime is not None:
                return []
            if ledger.document.saved is not None and not fresh:
                return saving.restore(self.host, ledger, paused=paused)
            saving.discard(ledger)
            return launch.start(self.host, ledger, paused=paused, fds=fds)

    def save(self, *, file: str = "") -> Saved:
        """Write its memory into a file, and end its QEMU; nothing if it is saved. If that fails, it runs on.

        :param file: its path, where nothing is yet; empty: in the instance's own folder
        :returns: what is known of it
        :raises WrongState: it does not run
        :raises NotSupported: it has something that cannot be saved
        :raises FileExistsError: there is something already
        :raises MigrationFailed: it could not be written, as where the disk is full
        """
        with self._opened("save") as ledger:
            if ledger.document.runtime is None and ledger.document.saved is not None:
                return ledger.document.saved
        with self._running("save") as (ledger, vm):
            return saving.save(self.host, ledger, vm, file)

    def restore(self, *, file: str = "", emulator: str = "", paused: bool = False) -> list[str]:
        """Start it as it was when it was saved. If that fails before it runs, it is saved still.

        :param file: its path, where it was moved
        :param emulator: the QEMU, where it is to be another one
        :param paused: do not let the guest run yet; one that stood still when it was saved does so in any case
        :returns: notices, in words
        :raises WrongState: it is not saved
        :raises MemoryUnusable: the file is not there or another one, or a disk was written to since
        :raises StartFailed: QEMU did not come up, or did not take it
        """
        with self._opened("restore") as ledger:
            if (runtime := ledger.document.runtime) is not None:
                raise WrongState(self.name, State.PAUSED if runtime.paused else State.RUNNING, State.SAVED)
            return saving.restore(self.host, ledger, file=file, emulator=emulator, paused=paused)

    def discard(self) -> None:
        """Forget what was saved of it; nothing where nothing is. Its next start boots it."""
        with self._opened("discard") as ledger:
            saving.discard(ledger)

    def stop(self, *, timeout: float = SHUTDOWN_TIMEOUT, force: bool = True) -> Stop:
        """Have the guest shut down by its power button, then end QEMU; if it does not run, it stays so.

        :param timeout: seconds for the guest
        :param force: end it after that as if the plug was pulled
        :returns: how it ended
        :raises InstanceTimeout: the guest has not shut down, and was not to be forced; it may yet
        :raises OperationCancelled: who looks on wanted it to end; the guest was asked, and may yet
        """
        with self._opened("stop", patient=False) as ledger:
            if ledger.document.runtime is None:
                return _stay(ledger)
            ledger.document.runtime.asked = time.time()
            ledger.begin("stop")
            try:
                if self._shut_down(ledger, timeout):
                    return _last(ledger)
            except OperationCancelled:
                ledger.commit()
                raise
            if not force:
                ledger.commit()
                raise InstanceTimeout(self.name, "the guest has not shut down", timeout)
            return self._kill(ledger, f"forced: the guest had not shut down within {timeout:g} s")

    def kill(self) -> Stop:
        """End it at once, as if the plug was pulled; if it does not run, it stays so.

        :raises ProcessStuck: it sits in the kernel; it will end, and never run again
        """
        with self._opened("kill", patient=False) as ledger:
            if ledger.document.runtime is None:
                return _stay(ledger)
            ledger.begin("kill")
            return self._kill(ledger, "killed")

    def reboot(self, *, timeout: float = SHUTDOWN_TIMEOUT) -> list[str]:
        """Stop it and start it from its specification, as that is now.

        :param timeout: seconds for the guest to shut down; after that it is forced to
        """
        with self._opened("reboot", patient=False) as ledger:
            check_settled(ledger.document, State.RUNNING)  # else it would be stopped, and not started
            if ledger.document.saved is not None:
                raise MemorySaved(self.name)
        self.stop(timeout=timeout)
        return self.start()

    def reset(self) -> None:
        """Press its reset button.

        :raises WrongState: it does not run
        """
        with self._running("reset") as (_, vm):
            vm.system_reset()

    def pause(self) -> None:
        """Let the guest stand still; nothing if it does."""
        with self._running("pause") as (ledger, vm):
            self._want(ledger, paused=True)
            vm.stop()

    def resume(self) -> None:
        """Let the guest run on, also after its storage failed; nothing if it runs.

        :raises CommandError: QEMU cannot let it run
        """
        with self._running("resume") as (ledger, vm):
            vm.cont()
            self._want(ledger, paused=False)

    def go_on(self) -> bool:
        """Let a guest run on that waits for storage; not one that somebody paused meanwhile.

        :returns: whether it was let to
        :raises CommandError: QEMU cannot let it run
        """
        with self._running("go-on") as (ledger, vm):
            runtime = ledger.document.runtime
            if runtime is None or runtime.paused or state_of(vm)[0] is not State.IO_ERROR:
                return False
            vm.cont()
            return True

    def restart_due(self, waited: Restart | None = None) -> list[str] | None:
        """Start it again after its run ended by itself, if that is due still.

        :param waited: the restart whose time has come; another one that is due by now has its own
        :returns: notices, as of :meth:`start`; None where it is not due, for it runs or somebody wants it to stay
        :raises StartFailed: QEMU did not come up; it will be due again, later
        """
        with self._opened("restart") as ledger:
            due = ledger.document.restart
            if due is None or not is_due(ledger.document, self.host.boot_id) or waited not in (None, due):
                return None
            try:
                return launch.start(self.host, ledger, again=True)
            except (DroverError, OSError):
                if ledger.document.restart is due:  # it did not even begin
                    ledger.document.restart = later(due, time.time())
                    ledger.save()
                raise

    # -- how ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def _opened(self, operation: str, *, patient: bool = True) -> Iterator[Ledger]:
        """The instance's document under its lock, mended.

        :param patient: what cannot be mended, as where QEMU does not answer, is an error; else it is to be ended anyway
        """
        with opened(self.host.paths, self.name, operation, self.lock_timeout) as ledger:
            try:
                mend(self.host, ledger, ANSWER_TIMEOUT)
            except DroverError:
                if patient:
                    raise
                settle_memory(ledger)
            yield ledger

    @contextmanager
    def _running(
        self, operation: str, *, moving: bool = False, ahead: Ahead | None = None
    ) -> Iterator[tuple[Ledger, QmpConnection]]:
        """The instance's document under its lock, mended, and a connection to its QEMU.

        :param moving: also while it is on its way between nodes: there ``cont`` alone may make two of it
        :param ahead: asks of that QEMU as it is at the begin of the block
        :raises WrongState: it does not run; or it is on its way, and is to be left alone
        """
        with opened(self.host.paths, self.name, operation, self.lock_timeout) as ledger, ExitStack() as stack:
            done, vm = attach(self.host, ledger, ANSWER_TIMEOUT, stack, ahead=ahead)
            if vm is None:
                raise WrongState(self.name, State.STOPPED, State.RUNNING)
            if done and ahead is not None:
                vm.perform(ahead)  # anew: it is not as it was
            if not moving:
                check_settled(ledger.document, State.RUNNING)
            yield ledger, vm

    @staticmethod
    def _want(ledger: Ledger, *, paused: bool) -> None:
        """Write down what somebody wants: in some states QEMU does not remember it."""
        if ledger.document.runtime is not None and ledger.document.runtime.paused != paused:
            ledger.document.runtime.paused = paused
            ledger.save()

    def _shut_down(self, ledger: Ledger, timeout: float) -> bool:
        """Press the power button until the guest has shut down, and conclude its run. False: it has not in time."""
        deadline = time.monotonic() + timeout
        try:
            with QmpConnection(ledger.paths.socket("control"), timeout=ANSWER_TIMEOUT) as vm:
                while (left := deadline - time.monotonic()) > 0:
                    mark = vm.event_mark()
                    vm.system_powerdown()
                    self._wait_for_guest(vm, mark, min(left, _ASK_AGAIN))
                    if state_of(vm)[0] is State.SHUTDOWN:
                        collect(self.host, ledger, vm, State.SHUTDOWN)
                        return True
        except MonitorTimeout:
            return False  # QEMU itself hangs
        except ConnectionClosed:
            mend(self.host, ledger, ANSWER_TIMEOUT)
            return ledger.document.runtime is None
        return False

    def _wait_for_guest(self, vm: QmpConnection, mark: int, timeout: float) -> None:
        """Wait for the guest's shutdown; what counts is the state after that."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            end_if_wanted(self.name, "stop")
            try:
                vm.wait_event("SHUTDOWN", since=mark, timeout=min(left, _LOOK))
                return
            except MonitorTimeout:
                pass

    def _kill(self, ledger: Ledger, detail: str) -> Stop:
        end_process(self.host, ledger)
        conclude(self.host, ledger, Stop(reason="request", at=time.time(), detail=detail, forced=True))
        return _last(ledger)


def _stay(ledger: Ledger) -> Stop:
    """It does not run, and is not to be started again."""
    if ledger.document.restart is not None:
        ledger.document.restart = None
        ledger.save()
    return _last(ledger)


def _last(ledger: Ledger) -> Stop:
    return ledger.document.last_stop or Stop(reason="request", at=0, detail="it has never run")
