"""Every error that Drover raises, as one tree; each class says whose fault it is.

::

    DroverError                    the root: catch it to catch everything of ours
    +- MonitorError                the way to QEMU
    |  +- ConnectError             nobody answers at the address (yours, or QEMU is not up)
    |  |  +- ConnectTimeout        ... within the deadline; also a MonitorTimeout
    |  +- MonitorTimeout           no answer in time: the state is UNKNOWN, ask again before acting
    |  +- ConnectionClosed         the connection ended; says what was in flight
    |  +- ProtocolError            the peer does not speak the protocol; quotes what it said
    |  +- AgentError               the way to the agent in the guest, or its state
    |     +- AgentNotThere         nobody answers there: no agent runs, or the guest does not; nothing was sent
    |     +- AgentSlow             the agent was there, and does not answer: UNKNOWN; also a MonitorTimeout
    |     +- AgentFrozen           the guest's file systems are frozen: nothing was sent
    |     +- FreezeBroken          they were thawed before the end of what had to see them frozen
    |     +- ThawFailed            they may be frozen still: act
    +- CommandError                QEMU understood and refused (class, text, command)
    |  +- CommandNotSupported      QEMU has no such command
    +- NotSupported                this QEMU (or agent) lacks a feature; says which version has it
    +- ArgumentError               you passed something wrong: field, value, what is allowed
    |  +- DeviceNotFound           the instance has no such device; says which it has
    |  +- SpecError                a specification is wrong; says all that is wrong with it
    +- HotplugError                a device could not be added or removed
    |  +- NoFreeSlot               every bus that was looked at is full
    |  +- UnplugRefused            the guest said no
    |  +- UnplugPending            the guest said nothing: still pending, completes at the next reset
    |  +- TrayLocked               the guest holds a CD drive's tray shut
    +- JobError                    a background job of QEMU's did not do what was asked
    |  +- JobFailed                it ended with an error; QEMU's own text
    |  +- JobCancelled             somebody cancelled it
    |  +- JobStalled               it runs and does not move: whom it waits for is dead; also a TimeoutError
    +- NbdError                    whom QEMU should have dialled as an NBD server is of no use: QEMU was not told
    |  +- NbdUnreachable           nobody listens there
    |  +- NbdTimeout               it is silent, which would have hung QEMU; also a TimeoutError
    |  +- NbdRefused               it answered with no: no such export, TLS wanted or lacking, ...
    +- InstanceError               an instance is not as what was asked needs it
    |  +- InstanceNotFound         there is none of this name
    |  +- InstanceExists           there is one already
    |  +- InstanceBusy             somebody else works on it; says what at
    |  +- InstanceTimeout          it was not in time as it was to be: UNKNOWN; also a TimeoutError
    |  +- WrongState               it runs, and should not, or the other way round
    |  +- MemorySaved              its memory is in a file that this would make useless
    |  +- MemoryUnusable           its memory in a file is not there, or its disks were written to since
    |  +- StartFailed              QEMU did not come up; says how it ended and what it printed
    |  +- Overtaken                a step of a passage to another node, from somebody who was overtaken
    |  +- NoRoom                   the host has not the memory for one that is to arrive: nothing was done
    |  +- OperationCancelled       somebody wanted what was being done to end
    +- CallFailed                  a node daemon says no, in its own words; or it went away: UNKNOWN
    +- PkiError                    certificates are not as what was asked needs them: nothing was changed
    |  +- NotJoined                this node has no certificate, or no authority
    |  +- OtherAuthority           what is there is another authority's: left as it is
    |  +- TokenRefused             a token is none, was used, or has expired
    |  +- Untrusted                whoever answers is not who was expected: no secret was said
    +- RecordError                 a durable document is broken, or a newer Drover's: left as it is
    +- StoreError                  the store of durable records did not do it: if it wrote, UNKNOWN
    |  +- StoreFull                the disk is full: nothing was changed
    |  +- StoreBusy                others had it locked all the time: nothing was changed; also a TimeoutError
    |  +- RevisionConflict         somebody changed the record meanwhile: nothing was changed; look again
    |  +- HistoryGone              what was changed since then is no longer known: read all of it anew
    +- DaemonJobError              a job of a daemon's, such as a long call, is not as what was asked needs it
    |  +- JobNotFound              there is none of this number, or none any more
    |  +- JobWrongState            it has begun already, or has ended
    |  +- JobTaken                 another process runs it now
    |  +- IdempotencyConflict      the key was used for something else
    |  +- TooManyJobs              too many wait or run: it was not taken
    +- WatcherRuns                 the instances are watched already, by somebody else
    +- ImageError                  an image could not be made; nothing of it is left
    |  +- ImageSlow                ... in time; also a TimeoutError
    +- ProcessError                a QEMU, or another program, as a process of this host
    |  +- SpawnFailed              it could not be started, and nothing of it runs
    |  +- BinaryError              a file is no QEMU that can be used; says how it ended and what it printed
    |  |  +- BinarySlow            ... as it did not answer in time; also a TimeoutError
    |  +- NoFreeUid                there is no user id left to run it as
    |  +- ProcessRuns              it runs already
    |  +- ProcessGone              it ended, and whatever has its pid now is another
    |  +- GroupBusy                a control group has not stopped, or not ended, in time; also a TimeoutError
    |  +- ScopeFailed              systemd has not given it a control group: it runs without one
    |  +- ProcessStuck             it was killed and has not ended yet: it sits in the kernel; also a TimeoutError
    +- NetworkError                the host's side of a NIC could not be made: nothing of it is left; or not removed
    |  +- ScriptFailed             a script, or another program for it, failed; its output
    |     +- ScriptSlow            ... or did not end in time, and was killed; also a TimeoutError
    +- MigrationError              a migration did not do what was asked
       +- MigrationBlocked         it cannot be: says all that is in the way, and what to do; nothing was done
       +- MigrationFailed          QEMU says it failed, and why
       +- MigrationCancelled       somebody cancelled it

The first error of an operation is the one raised. What went wrong while undoing
it is added to that error as notes (``__notes__``).

Those about arguments are in :mod:`.argument`, those of migrations in :mod:`.migration`, those of NBD servers in
:mod:`.nbd`, those of the node, its instances and processes in :mod:`.node`, those of durable records, owners and jobs
in :mod:`.store`, those of certificates in :mod:`.trust`.
"""

from collections.abc import Iterable

from .argument import ArgumentError, DeviceNotFound, Problem, SpecError
from .base import DroverError
from .migration import Blocker, MigrationBlocked, MigrationCancelled, MigrationError, MigrationFailed
from .nbd import NbdError, NbdRefused, NbdTimeout, NbdUnreachable
from .node import (
    BinaryError,
    BinarySlow,
    CallFailed,
    GroupBusy,
    ImageError,
    ImageSlow,
    InstanceBusy,
    InstanceError,
    InstanceExists,
    InstanceNotFound,
    InstanceTimeout,
    MemorySaved,
    MemoryUnusable,
    NetworkError,
    NoFreeUid,
    NoRoom,
    OperationCancelled,
    Overtaken,
    ProcessError,
    ProcessGone,
    ProcessRuns,
    ProcessStuck,
    RecordError,
    ScopeFailed,
    ScriptFailed,
    ScriptSlow,
    SpawnFailed,
    StartFailed,
    WatcherRuns,
    WrongState,
)
from .store import (
    DaemonJobError,
    Fenced,
    HistoryGone,
    IdempotencyConflict,
    JobNotFound,
    JobTaken,
    JobWrongState,
    NotOwned,
    OwnerError,
    OwnerMoveError,
    RevisionConflict,
    StoreBusy,
    StoreError,
    StoreFull,
    TooManyJobs,
)
from .trust import NotJoined, OtherAuthority, PkiError, TokenRefused, Untrusted

__all__ = [
    "DroverError",
    "MonitorError",
    "ConnectError",
    "ConnectTimeout",
    "MonitorTimeout",
    "ConnectionClosed",
    "ProtocolError",
    "AgentError",
    "AgentNotThere",
    "AgentSlow",
    "AgentFrozen",
    "FreezeBroken",
    "ThawFailed",
    "CommandError",
    "CommandNotSupported",
    "NotSupported",
    "ArgumentError",
    "DeviceNotFound",
    "SpecError",
    "Problem",
    "HotplugError",
    "NoFreeSlot",
    "UnplugRefused",
    "UnplugPending",
    "TrayLocked",
    "JobError",
    "JobFailed",
    "JobCancelled",
    "NbdError",
    "NbdUnreachable",
    "NbdTimeout",
    "NbdRefused",
    "InstanceError",
    "InstanceNotFound",
    "InstanceExists",
    "InstanceBusy",
    "InstanceTimeout",
    "MemorySaved",
    "MemoryUnusable",
    "WrongState",
    "StartFailed",
    "PkiError",
    "NotJoined",
    "OtherAuthority",
    "TokenRefused",
    "Untrusted",
    "Overtaken",
    "NoRoom",
    "OperationCancelled",
    "RecordError",
    "StoreError",
    "StoreFull",
    "StoreBusy",
    "RevisionConflict",
    "HistoryGone",
    "DaemonJobError",
    "JobNotFound",
    "JobWrongState",
    "JobTaken",
    "IdempotencyConflict",
    "TooManyJobs",
    "OwnerError",
    "NotOwned",
    "Fenced",
    "OwnerMoveError",
    "WatcherRuns",
    "ImageError",
    "ImageSlow",
    "ProcessError",
    "SpawnFailed",
    "BinaryError",
    "BinarySlow",
    "CallFailed",
    "NoFreeUid",
    "ProcessRuns",
    "ProcessGone",
    "GroupBusy",
    "ScopeFailed",
    "ProcessStuck",
    "NetworkError",
    "ScriptFailed",
    "ScriptSlow",
    "MigrationError",
    "MigrationBlocked",
    "Blocker",
    "MigrationFailed",
    "MigrationCancelled",
]


class MonitorError(DroverError):
    """Something is wrong with the connection to the monitor, not with a command."""


class ConnectError(MonitorError):
    """The monitor could not be reached.

    :ivar address: where we tried to connect, as text
    :ivar reason: why it did not work
    """

    def __init__(self, address: str, reason: str) -> None:
        # not super(): in ConnectTimeout that would be MonitorTimeout, which takes other arguments
        MonitorError.__init__(self, f"cannot connect to {address}: {reason}")
        self.address = address
        self.reason = reason


class MonitorTimeout(MonitorError, TimeoutError):
    """No answer within the deadline. Whether QEMU acts, acted or will act is unknown.

    :ivar what: what was waited for
    :ivar timeout: how long, in seconds
    """

    def __init__(self, what: str, timeout: float | None) -> None:
        super().__init__(f"{what}: no answer" + ("" if timeout is None else f" within {timeout:g} s"))
        self.what = what
        self.timeout = timeout


class ConnectTimeout(ConnectError, MonitorTimeout):
    """The socket, or QEMU's greeting on it, did not come within the deadline.

    A QMP socket serves one client at a time, so a second one waits for its
    greeting until the first one leaves.
    """

    def __init__(self, address: str, reason: str, timeout: float | None) -> None:
        ConnectError.__init__(self, address, reason)
        self.what = f"connect to {address}"
        self.timeout = timeout


class ConnectionClosed(MonitorError):
    """The connection is closed: by QEMU's end, by us, or by an error on the way.

    :ivar reason: why it ended
    :ivar in_flight: names of the commands that were sent and never answered
    """

    def __init__(self, reason: str, in_flight: Iterable[str] = ()) -> None:
        self.reason = reason
        self.in_flight = tuple(in_flight)
        lost = f" (unanswered: {', '.join(self.in_flight)})" if self.in_flight else ""
        super().__init__(f"monitor connection closed: {reason}{lost}")


class ProtocolError(MonitorError):
    """The peer broke the protocol, so the connection to it was given up.

    :ivar excerpt: the start of what it sent, for the reader
    """

    def __init__(self, problem: str, excerpt: bytes = b"") -> None:
        super().__init__(problem + (f": {excerpt!r}" if excerpt else ""))
        self.excerpt = excerpt


class AgentError(MonitorError):
    """Something is wrong with the way to the agent in the guest, or with the state that it is in."""


class AgentNotThere(AgentError):
    """Nobody answers on the agent's channel, and the command was not sent.

    No agent runs in the guest, it has not started yet, or the guest itself stands still. Which one,
    QEMU knows in part: :func:`drover.ops.agent_channel.agent_connected`.

    :ivar what: the command that was not sent
    :ivar timeout: how long we waited for the agent, in seconds
    """

    def __init__(self, what: str, timeout: float | None) -> None:
        waited = "" if timeout is None else f" within {timeout:g} s"
        super().__init__(f"{what}: no guest agent answers{waited}; nothing was sent")
        self.what = what
        self.timeout = timeout


class AgentSlow(AgentError, MonitorTimeout):
    """The agent was there, and has not answered within the deadline. What became of the command is unknown.

    If the agent has ended, its successor runs what it finds in the channel, however late. Closing the connection
    drops what the guest has not read.

    :ivar busy_with: what the agent is at as far as we know: the command itself, or an earlier one whose end
        nobody waited for, in which case the command was not sent
    """

    def __init__(self, what: str, timeout: float | None, busy_with: str = "") -> None:
        waited = "" if timeout is None else f" within {timeout:g} s"
        behind = f" (not sent: it is at {busy_with})" if busy_with not in ("", what) else ""
        MonitorError.__init__(self, f"{what}: no answer of the guest agent{waited}{behind}")
        self.what = what
        self.timeout = timeout
        self.busy_with = busy_with


class AgentFrozen(AgentError):
    """The guest's file systems are frozen, so the agent would refuse the command, and it was not sent.

    :ivar command: its name
    """

    def __init__(self, command: str) -> None:
        super().__init__(f"{command}: not while the guest's file systems are frozen")
        self.command = command


class FreezeBroken(AgentError):
    """The guest's file systems were thawed too early: a snapshot taken meanwhile is not consistent."""


class ThawFailed(AgentError):
    """The guest's file systems could not be thawed, as far as is known: what writes in the guest may hang."""


class CommandError(DroverError):
    """QEMU refused a command; the connection is fine.

    :ivar command: the command's name
    :ivar error_class: QEMU's error class, such as ``GenericError`` or ``DeviceNotFound``
    :ivar desc: QEMU's text
    """

    def __init__(self, command: str, error_class: str, desc: str) -> None:
        super().__init__(f"{command}: {desc} ({error_class})")
        self.command = command
        self.error_class = error_class
        self.desc = desc


class CommandNotSupported(CommandError):
    """QEMU has no such command (error class ``CommandNotFound``)."""


class NotSupported(DroverError):
    """This QEMU, or this guest's agent, cannot do what was asked.

    :ivar feature: what is missing
    :ivar needs: which QEMU has it, where that is known
    """

    def __init__(self, feature: str, needs: str = "", by: str = "this QEMU") -> None:
        super().__init__(f"{feature} is not supported by {by}" + (f" (needs {needs})" if needs else ""))
        self.feature = feature
        self.needs = needs


class HotplugError(DroverError):
    """A device could not be added or removed.

    :ivar device: the device's id
    """

    def __init__(self, device: str, problem: str) -> None:
        super().__init__(f"{device}: {problem}")
        self.device = device


class NoFreeSlot(HotplugError):
    """No bus has room for the device.

    :ivar full: bus name to the number of slots that it has, all taken
    """

    def __init__(self, device: str, full: dict[str, int]) -> None:
        seen = ", ".join(f"{bus} ({slots} of {slots} used)" for bus, slots in full.items())
        super().__init__(device, f"no free slot: {seen or 'this machine has no bus that takes hotplug'}")
        self.full = full


class UnplugRefused(HotplugError):
    """The guest answered the unplug request with no. The device works on."""


class UnplugPending(HotplugError):
    """The guest said nothing within the deadline: it ignores the request, or is still in its firmware.

    The request cannot be taken back. It completes at the guest's next reset at
    the latest, and until then what backs the device must stay as it is.
    """


class TrayLocked(HotplugError):
    """The guest holds the tray of a CD drive shut, as it uses the medium. That one is still in.

    The guest was told that somebody wants it out, and may open the tray later.

    :ivar timeout: how long it had, in seconds
    """

    def __init__(self, device: str, timeout: float) -> None:
        super().__init__(device, f"the guest holds the tray shut, for {timeout:g} s by now")
        self.timeout = timeout


class JobError(DroverError):
    """A background job of QEMU's did not do what was asked.

    :ivar job: the job's id
    :ivar type: what kind of job, such as ``mirror``; empty where that is not known
    :ivar desc: QEMU's own explanation, where it gave one
    """

    def __init__(self, job: str, problem: str, type: str = "", desc: str = "") -> None:
        super().__init__(f"{type + ' ' if type else ''}job '{job}' {problem}" + (f": {desc}" if desc else ""))
        self.job = job
        self.type = type
        self.desc = desc


class JobFailed(JobError):
    """The job ended with an error. What it left unfinished, such as a copy, is not to be used."""


class JobCancelled(JobError):
    """The job was cancelled before its end, by whomever. What it left unfinished is not to be used."""


class JobStalled(JobError, TimeoutError):
    """The job runs, has something to do, and does not move: its storage, or the way there, is dead.

    :ivar seconds: for how long it was watched
    """

    def __init__(self, job: str, seconds: float, type: str = "") -> None:
        super().__init__(job, f"has not moved for {seconds:g} s", type)
        self.seconds = seconds
