"""Every error that Drover raises, as one tree; each class says whose fault it is.

::

    DroverError                    the root: catch it to catch everything of ours
    +- MonitorError                the way to QEMU
    |  +- ConnectError             nobody answers at the address (yours, or QEMU is not up)
    |  |  +- ConnectTimeout        ... within the deadline; also a MonitorTimeout
    |  +- MonitorTimeout           no answer in time: the state is UNKNOWN, ask again before acting
    |  +- ConnectionClosed         the connection ended; says what was in flight
    |  +- ProtocolError            the peer does not speak the protocol; quotes what it said
    +- CommandError                QEMU understood and refused (class, text, command)
    |  +- CommandNotSupported      QEMU has no such command
    +- NotSupported                this QEMU lacks a feature; says which version has it
    +- ArgumentError               you passed something wrong: field, value, what is allowed
    +- HotplugError                a device could not be added or removed
    |  +- NoFreeSlot               every bus that was looked at is full
    |  +- UnplugRefused            the guest said no
    |  +- UnplugPending            the guest said nothing: still pending, completes at the next reset
    +- MigrationError              a migration did not do what was asked
       +- MigrationFailed          QEMU says it failed, and why
       +- MigrationCancelled       somebody cancelled it

The first error of an operation is the one raised. What went wrong while undoing
it is added to that error as notes (``__notes__``).
"""

from collections.abc import Iterable


class DroverError(Exception):
    """Root of all errors raised by Drover."""


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
    """This QEMU cannot do what was asked.

    :ivar feature: what is missing
    :ivar needs: which QEMU has it, where that is known
    """

    def __init__(self, feature: str, needs: str = "") -> None:
        super().__init__(f"{feature} is not supported by this QEMU" + (f" (needs {needs})" if needs else ""))
        self.feature = feature
        self.needs = needs


class ArgumentError(DroverError, ValueError):
    """A wrong argument, found before anything was touched.

    :ivar field: the argument's name
    :ivar value: what was passed
    :ivar allowed: what may be passed
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field}: {value!r} is not allowed; {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed


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


class MigrationError(DroverError):
    """A migration did not do what was asked.

    :ivar status: QEMU's migration status when this was found
    :ivar desc: QEMU's own explanation, where it gave one
    """

    def __init__(self, problem: str, status: str = "", desc: str = "") -> None:
        super().__init__(problem + (f": {desc}" if desc else ""))
        self.status = status
        self.desc = desc


class MigrationFailed(MigrationError):
    """QEMU reports the migration as failed."""


class MigrationCancelled(MigrationError):
    """The migration was cancelled; the source runs on."""
