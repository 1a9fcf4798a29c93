"""One instance: its life, from the outside. Blocking; the node daemon gives each instance a thread.

Every method takes the instance's lock, and first mends what an earlier call left unfinished. Each is idempotent, and
each has its deadline. One instance's lock never keeps another one waiting.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Final

from ..errors import ConnectionClosed, DroverError, InstanceBusy, InstanceTimeout, MonitorTimeout, WrongState
from ..monitor.connection import QmpConnection
from . import launch, verify
from .condition import Condition, look, state_of
from .devices import Devices
from .ending import conclude, end_process
from .host import Host
from .ledger import Ledger, opened
from .lock import LOCK_TIMEOUT
from .mend import attach, collect, mend
from .record import Stop, load
from .repair import repair
from .restart import is_due, later
from .state import State
from .verify import Report

# Seconds. What a guest usually takes to shut down; ten minutes of updates are its owner's business to allow.
SHUTDOWN_TIMEOUT: Final = 60.0
# Seconds for an answer of a QEMU that runs.
ANSWER_TIMEOUT: Final = 10.0
_ASK_AGAIN: Final = 5.0  # seconds: a guest that boots hears the power button only later


class Instance(Devices):
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

    def start(self, *, paused: bool = False, fds: launch.Taps = MappingProxyType({})) -> list[str]:
        """Start it; nothing if it runs.

        :param paused: do not let the guest run yet
        :param fds: for each NIC of mode ``fd``, by its id, descriptors of its tap; they stay yours to close
        :returns: notices, in words: what the host lacks and the machine does without
        :raises StartFailed: QEMU did not come up; nothing of it stays
        """
        with self._opened("start") as ledger:
            if ledger.document.runtime is not None:
                return []
            return launch.start(self.host, ledger, paused=paused, fds=fds)

    def stop(self, *, timeout: float = SHUTDOWN_TIMEOUT, force: bool = True) -> Stop:
        """Have the guest shut down by its power button, then end QEMU; if it does not run, it stays so.

        :param timeout: seconds for the guest
        :param force: end it after that as if the plug was pulled
        :returns: how it ended
        :raises InstanceTimeout: the guest has not shut down, and was not to be forced; it may yet
        """
        with self._opened("stop", patient=False) as ledger:
            if ledger.document.runtime is None:
                return _stay(ledger)
            ledger.document.runtime.asked = time.time()
            ledger.begin("stop")
            if self._shut_down(ledger, timeout):
                return _last(ledger)
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

    def restart_due(self) -> list[str] | None:
        """Start it again after its run ended by itself, if that is due still.

        :returns: notices, as of :meth:`start`; None where it is not due, for it runs or somebody wants it to stay
        :raises StartFailed: QEMU did not come up; it will be due again, later
        """
        with self._opened("restart") as ledger:
            due = ledger.document.restart
            if due is None or not is_due(ledger.document, self.host.boot_id):
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
            yield ledger

    @contextmanager
    def _running(self, operation: str) -> Iterator[tuple[Ledger, QmpConnection]]:
        with opened(self.host.paths, self.name, operation, self.lock_timeout) as ledger, ExitStack() as stack:
            _, vm = attach(self.host, ledger, ANSWER_TIMEOUT, stack)
            if vm is None:
                raise WrongState(self.name, State.STOPPED, State.RUNNING)
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
                    try:
                        vm.wait_event("SHUTDOWN", since=mark, timeout=min(left, _ASK_AGAIN))
                    except MonitorTimeout:
                        pass  # what counts is the state
                    if state_of(vm)[0] is State.SHUTDOWN:
                        collect(self.host, ledger, vm, State.SHUTDOWN)
                        return True
        except MonitorTimeout:
            return False  # QEMU itself hangs
        except ConnectionClosed:
            mend(self.host, ledger, ANSWER_TIMEOUT)
            return ledger.document.runtime is None
        return False

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
