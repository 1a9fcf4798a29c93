"""What can be wrong with an instance, its documents and its processes; :mod:`drover.errors` draws the whole tree."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from .base import DroverError


class InstanceError(DroverError):
    """An instance is not as what was asked needs it.

    :ivar name: the instance's
    :ivar problem: what is wrong
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name
        self.problem = problem


class InstanceNotFound(InstanceError):
    """There is no instance of this name."""

    def __init__(self, name: str, near: Iterable[str] = ()) -> None:
        hint = ", ".join(near)
        super().__init__(name, "there is no such instance" + (f"; did you mean {hint}?" if hint else ""))


class InstanceExists(InstanceError):
    """There is an instance of this name already."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "there is such an instance already")


class InstanceBusy(InstanceError):
    """Somebody else works on the instance; nothing was touched.

    :ivar holder: what at, and which process
    """

    def __init__(self, name: str, holder: str, timeout: float) -> None:
        super().__init__(name, f"busy with {holder or 'something'}" + (f" for over {timeout:g} s" if timeout else ""))
        self.holder = holder


class InstanceTimeout(InstanceError, TimeoutError):
    """The instance did not get there in time. What it does meanwhile is unknown: look before acting.

    :ivar timeout: how long it had, in seconds
    """

    def __init__(self, name: str, problem: str, timeout: float) -> None:
        super().__init__(name, f"{problem} within {timeout:g} s")
        self.timeout = timeout


class WrongState(InstanceError):
    """The instance is in a state in which this cannot be done.

    :ivar state: which
    :ivar needed: in which it could be
    """

    def __init__(self, name: str, state: str, needed: str) -> None:
        super().__init__(name, f"it is {state}; this needs it {needed}")
        self.state = state
        self.needed = needed


class MemorySaved(InstanceError):
    """The instance's memory is in a file, and this would make it useless. Nothing was done."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "its memory is saved, and what was asked would make that useless")


class MemoryUnusable(InstanceError):
    """The memory that was saved of an instance cannot be used. Nothing was done.

    :ivar path: of the file
    """

    def __init__(self, name: str, path: str, why: str) -> None:
        super().__init__(name, f"its memory in {path} cannot be used: {why}")
        self.path = path


class StartFailed(InstanceError):
    """QEMU did not come up. What the start had made is gone again.

    :ivar log: the last lines of what QEMU printed
    """

    def __init__(self, name: str, problem: str, log: str = "") -> None:
        super().__init__(name, problem + (f": {log.strip()}" if log.strip() else ""))
        self.log = log


class Overtaken(InstanceError):
    """A step of an instance's passage to another node was asked for by somebody who was overtaken. Nothing was done.

    :ivar epoch: that they speak of
    :ivar found: the passage that there is, in words
    """

    def __init__(self, name: str, epoch: int, found: str) -> None:
        super().__init__(name, f"there is no such passage of epoch {epoch}: {found}")
        self.epoch = epoch
        self.found = found


class NoRoom(InstanceError):
    """The host has not the memory for an instance that is to arrive. Nothing was done. All sizes are bytes.

    :ivar pages: ``off`` for ordinary memory, or the size of huge pages
    :ivar wanted: what it takes
    :ivar free: what is free now
    :ivar promised: of that, to others that arrive, by their names
    """

    def __init__(self, name: str, pages: str, wanted: int, free: int, promised: Mapping[str, int]) -> None:
        kind = "" if pages == "off" else f" in pages of {pages}"
        others = f", of which {sum(promised.values())} are promised to {', '.join(promised)}" if promised else ""
        super().__init__(name, f"it takes {wanted} bytes of memory{kind}, and {free} are free{others}")
        self.pages = pages
        self.wanted = wanted
        self.free = free
        self.promised = promised


class OperationCancelled(InstanceError):
    """Somebody wanted what was being done to end. What had no effect yet has none; the guest may have been asked.

    :ivar operation: what was being done
    """

    def __init__(self, name: str, operation: str) -> None:
        super().__init__(name, f"{operation} was cancelled")
        self.operation = operation


class CallFailed(DroverError):
    """A node daemon did not do what it was asked, or went away meanwhile: then nobody knows whether it did.

    :ivar code: of the error, such as ``instance-not-found``; ``no-answer`` is the daemon's own end, ``unreachable``: it
        was not asked
    :ivar facts: what else it told, such as ``instance``
    """

    def __init__(self, code: str, detail: str, facts: Mapping[str, Any] = MappingProxyType({})) -> None:
        super().__init__(detail)
        self.code = code
        self.facts = facts


class RecordError(DroverError):
    """A durable document cannot be used; it was left as it is.

    :ivar path: where it lies
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class ImageError(DroverError):
    """An image could not be made. Nothing of it is left.

    :ivar path: where it should have been
    :ivar reason: what is wrong, in qemu-img's own words where it has some
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot make {path}: {reason}")
        self.path = path
        self.reason = reason


class ImageSlow(ImageError, TimeoutError):
    """It was not ready in time, and given up.

    :ivar timeout: how long it had, in seconds
    """

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__(path, f"qemu-img was not ready within {timeout:g} s")
        self.timeout = timeout


class WatcherRuns(DroverError):
    """The instances of this host are watched already, and two watchers would get into each other's way.

    :ivar holder: the watcher
    """

    def __init__(self, holder: str) -> None:
        super().__init__(f"the instances are watched already: {holder}")
        self.holder = holder


class ProcessError(DroverError):
    """Something is wrong with a program that we run beside us, as a process."""


class SpawnFailed(ProcessError):
    """A program could not be started. Nothing of it runs.

    :ivar program: its name or path
    :ivar reason: what is wrong, in the system's or the program's own words
    """

    def __init__(self, program: str, reason: str) -> None:
        super().__init__(f"cannot start {program}: {reason}")
        self.program = program
        self.reason = reason


class BinaryError(ProcessError):
    """A file is no QEMU that can be used. Nothing of it runs.

    :ivar path: the file, or the name that was looked for
    :ivar reason: what is wrong
    :ivar status: how it ended by itself, such as ``exit status 1``; empty where it did not
    :ivar log: the last lines of what it printed
    """

    def __init__(self, path: str, reason: str, *, status: str = "", log: str = "") -> None:
        super().__init__(f"{path} is no usable QEMU: {reason}" + (f": {log.strip()}" if log.strip() else ""))
        self.path = path
        self.reason = reason
        self.status = status
        self.log = log


class BinarySlow(BinaryError, TimeoutError):
    """It did not answer in time and was killed. It may be no QEMU, or the host was too busy.

    :ivar timeout: how long it had, in seconds
    """

    def __init__(self, path: str, timeout: float, *, log: str = "") -> None:
        super().__init__(path, f"it did not answer within {timeout:g} s", log=log)
        self.timeout = timeout


class NoFreeUid(ProcessError):
    """No user id of the pool can be lent.

    :ivar first: the lowest id of the pool
    :ivar last: the highest one
    :ivar lent: how many of them instances have; the others are in passwd, or some process has them
    """

    def __init__(self, first: int, last: int, lent: int) -> None:
        super().__init__(f"no free user id from {first} to {last}: {lent} are lent to instances, the others not free")
        self.first = first
        self.last = last
        self.lent = lent


class ProcessRuns(ProcessError):
    """It was to be started, and runs already.

    :ivar status_path: the file where its exit status will be
    """

    def __init__(self, status_path: str) -> None:
        super().__init__(f"the process of {status_path} runs already")
        self.status_path = status_path


class ProcessGone(ProcessError):
    """The process has ended; if there is one of that pid, it is another.

    :ivar pid: what its pid was
    """

    def __init__(self, pid: int) -> None:
        super().__init__(f"the process {pid} has ended")
        self.pid = pid


class GroupBusy(ProcessError, TimeoutError):
    """A control group is not as it was told to be within the deadline. What was told to it holds on.

    :ivar path: its directory
    :ivar key: ``populated`` or ``frozen``, of its ``cgroup.events``
    :ivar pids: the processes in it
    :ivar timeout: how long we waited, in seconds
    """

    def __init__(self, path: str, key: str, pids: Iterable[int], timeout: float) -> None:
        self.path = path
        self.key = key
        self.pids = tuple(pids)
        self.timeout = timeout
        which = ", ".join(map(str, self.pids))
        super().__init__(f"{path}: '{key}' has not changed within {timeout:g} s (processes: {which})")


class ScopeFailed(ProcessError):
    """systemd has not given us a scope.

    :ivar call: the method of its manager that failed
    :ivar name: its error's name; empty where there was no answer
    :ivar problem: what it says
    """

    def __init__(self, call: str, name: str, problem: str) -> None:
        self.call = call
        self.name = name
        self.problem = problem
        super().__init__(f"systemd: {call}: {problem or name}")

    @property
    def passing(self) -> bool:
        """Whether it may be otherwise in a moment: an earlier scope of that name is still ending."""
        return self.name.endswith(".UnitExists")


class ProcessStuck(ProcessError, TimeoutError):
    """The process was sent SIGKILL and has not ended within the deadline.

    It will when the kernel lets go of it, never to run again, and holds what it has till then.

    :ivar pid: its pid
    :ivar timeout: how long we waited, in seconds
    :ivar state: the kernel's letter: ``D`` is in the middle of I/O that cannot be interrupted
    :ivar waits_in: the kernel's function in which it waits, where that is told
    """

    def __init__(self, pid: int, timeout: float, state: str, waits_in: str = "") -> None:
        where = f", in {waits_in}" if waits_in else ""
        super().__init__(f"the process {pid} was killed and has not ended within {timeout:g} s (state {state}{where})")
        self.pid = pid
        self.timeout = timeout
        self.state = state
        self.waits_in = waits_in


class NetworkError(DroverError):
    """The host's side of a NIC could not be made, in which case nothing of it is left; or not be taken away.

    :ivar device: the network interface, or what else it is about
    :ivar problem: what is wrong
    """

    def __init__(self, device: str, problem: str) -> None:
        super().__init__(f"{device}: {problem}")
        self.device = device
        self.problem = problem


class ScriptFailed(NetworkError):
    """A script or program that sets up the host's network failed.

    :ivar output: the end of what it printed
    """

    def __init__(self, program: str, problem: str, output: str = "") -> None:
        super().__init__(program, problem + (f": {output}" if output else ""))
        self.output = output


class ScriptSlow(ScriptFailed, TimeoutError):
    """It did not end in time and was killed, with all of its process group. What it did meanwhile holds.

    :ivar timeout: how long it had, in seconds
    """

    def __init__(self, program: str, timeout: float, output: str = "") -> None:
        super().__init__(program, f"did not end within {timeout:g} s, and was killed", output)
        self.timeout = timeout
