"""The machine: its run state, its clock, its guest's crashes."""

from collections.abc import Mapping
from typing import Annotated, Final

from msgspec import Meta

from .base import EventData, Known

ShutdownCause = Annotated[
    str,
    Meta(
        examples=[
            "none",
            "host-error",
            "host-qmp-quit",
            "host-qmp-system-reset",
            "host-signal",
            "host-ui",
            "guest-shutdown",
            "guest-reset",
            "guest-panic",
            "subsystem-reset",
            "snapshot-load",
        ]
    ),
]
PanicAction = Annotated[str, Meta(examples=["pause", "poweroff", "run"])]
PanicKind = Annotated[str, Meta(examples=["hyper-v", "s390"])]
S390CrashReason = Annotated[
    str, Meta(examples=["unknown", "disabled-wait", "extint-loop", "pgmint-loop", "opint-loop"])
]
WatchdogAction = Annotated[
    str, Meta(examples=["reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"])
]
DumpStatus = Annotated[str, Meta(examples=["none", "active", "completed", "failed"])]
FailureRecipient = Annotated[str, Meta(examples=["hypervisor", "guest"])]
FailureAction = Annotated[str, Meta(examples=["ignore", "inject", "fatal", "reset"])]


class Stop(EventData, frozen=True, kw_only=True):
    """The vCPUs stand still."""


class Resume(EventData, frozen=True, kw_only=True):
    """The vCPUs run again."""


class Powerdown(EventData, frozen=True, kw_only=True):
    """The power button was pressed. What the guest makes of it is its own business: a SHUTDOWN follows, or none."""


class Shutdown(EventData, frozen=True, kw_only=True):
    """The machine is powered down, or QEMU is about to end.

    :ivar guest: whether the guest did it, and not the host
    :ivar reason: who or what did it
    """

    guest: bool | None = None
    reason: ShutdownCause | None = None


class Reset(EventData, frozen=True, kw_only=True):
    """The machine was reset.

    :ivar guest: whether the guest did it, and not the host
    :ivar reason: who or what did it
    """

    guest: bool | None = None
    reason: ShutdownCause | None = None


class Suspend(EventData, frozen=True, kw_only=True):
    """The guest sleeps with its memory powered (ACPI S3)."""


class SuspendDisk(EventData, frozen=True, kw_only=True):
    """The guest has written its memory to disk and powers down (ACPI S4). A SHUTDOWN follows."""


class Wakeup(EventData, frozen=True, kw_only=True):
    """The guest has left its sleep (ACPI S3)."""


class RtcChange(EventData, frozen=True, kw_only=True):
    """The guest has set its clock. At most one a second is sent.

    :ivar offset: how far it is from where ``-rtc base`` put it, in seconds
    :ivar qom_path: the clock's path
    """

    offset: int
    qom_path: str | None = None


class Watchdog(EventData, frozen=True, kw_only=True):
    """The watchdog's time is up.

    :ivar action: what QEMU does: the RESET, SHUTDOWN or STOP of it follows
    """

    action: WatchdogAction


class PanicInfo(EventData, frozen=True, kw_only=True):
    """What a guest told of its crash.

    :ivar type: which guest tells, and so which of the rest is there
    :ivar arg1: Hyper-V: first parameter of the crash, as 64 bits without sign
    :ivar arg2: Hyper-V: second
    :ivar arg3: Hyper-V: third
    :ivar arg4: Hyper-V: fourth
    :ivar arg5: Hyper-V: fifth
    :ivar core: s390: number of the CPU
    :ivar psw_mask: s390: mask of the program status word
    :ivar psw_addr: s390: address in the program status word
    :ivar reason: s390: why it is taken for a crash
    """

    type: PanicKind
    arg1: int | None = None
    arg2: int | None = None
    arg3: int | None = None
    arg4: int | None = None
    arg5: int | None = None
    core: int | None = None
    psw_mask: int | None = None
    psw_addr: int | None = None
    reason: S390CrashReason | None = None


class GuestPanicked(EventData, frozen=True, kw_only=True):
    """The guest says that it has crashed (pvpanic, Hyper-V, s390).

    :ivar action: what QEMU does with it
    :ivar info: what the guest told
    """

    action: PanicAction
    info: PanicInfo | None = None


class GuestCrashloaded(EventData, frozen=True, kw_only=True):
    """The guest has crashed, and is loading a kernel to deal with it (kdump).

    :ivar action: what QEMU does with it: ``run``
    :ivar info: what the guest told
    """

    action: PanicAction
    info: PanicInfo | None = None


class GuestPvshutdown(EventData, frozen=True, kw_only=True):
    """The guest asks by pvpanic to be shut down, for want of a better way."""


class FailureFlags(EventData, frozen=True, kw_only=True):
    """More on a failure of memory.

    :ivar action_required: the broken memory was being used
    :ivar recursive: it came while the guest was still dealing with an earlier one
    """

    action_required: bool
    recursive: bool


class MemoryFailure(EventData, frozen=True, kw_only=True):
    """The host's hardware reports broken memory.

    :ivar recipient: whose memory it is: QEMU's own (``hypervisor``) or the guest's
    :ivar action: what QEMU does with it
    :ivar flags: more on it
    """

    recipient: FailureRecipient
    action: FailureAction
    flags: FailureFlags


class DumpProgress(EventData, frozen=True, kw_only=True):
    """A dump of the guest's memory.

    :ivar status: how it stands
    :ivar completed: bytes that are written
    :ivar total: bytes to write
    """

    status: DumpStatus
    completed: int
    total: int


class DumpCompleted(EventData, frozen=True, kw_only=True):
    """A ``dump-guest-memory`` in the background has ended: well, or with an error.

    :ivar result: how it ended
    :ivar error: why it failed, for people
    """

    result: DumpProgress
    error: str | None = None


MACHINE_EVENTS: Final[Mapping[str, Known]] = {
    "DUMP_COMPLETED": Known(DumpCompleted, (2, 6)),
    "GUEST_CRASHLOADED": Known(GuestCrashloaded, (5, 0)),
    "GUEST_PANICKED": Known(GuestPanicked, (1, 5)),
    "GUEST_PVSHUTDOWN": Known(GuestPvshutdown, (9, 1)),
    "MEMORY_FAILURE": Known(MemoryFailure, (5, 2)),
    "POWERDOWN": Known(Powerdown, (0, 12)),
    "RESET": Known(Reset, (0, 12), later={"guest": (2, 10), "reason": (4, 0)}),
    "RESUME": Known(Resume, (0, 12)),
    "RTC_CHANGE": Known(RtcChange, (0, 13), later={"qom_path": (7, 0)}),
    "SHUTDOWN": Known(Shutdown, (0, 12), later={"guest": (2, 10), "reason": (4, 0)}),
    "STOP": Known(Stop, (0, 12)),
    "SUSPEND": Known(Suspend, (1, 1)),
    "SUSPEND_DISK": Known(SuspendDisk, (1, 2)),
    "WAKEUP": Known(Wakeup, (1, 1)),
    "WATCHDOG": Known(Watchdog, (0, 13)),
}
