"""Ganeti's errors under their own names, and how each of Drover's becomes one of them.

::

    GenericError
    +- HypervisorError                  the monitor or QEMU; Drover's own error is its __cause__
    |  +- QmpCommandNotSupported        QEMU has no such command
    |  +- QmpTimeoutError               no answer in time; also a TimeoutError
    |  +- HotplugError                  a device could not be added or removed
    |  |  +- NoFreeSlots                no room on the bus; also a RuntimeError
    |  +- QmpDataError                  what came or was to go is no QMP; also a ProgrammerError, ValueError, TypeError
    +- ProgrammerError                  the caller erred

Where Ganeti itself is installed, each also is Ganeti's class of the same name, so that
code which says ``except errors.HypervisorError`` with Ganeti's module catches it.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ... import errors as ours

if TYPE_CHECKING:

    class _Generic(Exception): ...

    class _Hypervisor(Exception): ...

    class _Hotplug(Exception): ...

    class _Programmer(Exception): ...

else:

    def _theirs(name: str) -> type[Exception]:
        try:
            module = importlib.import_module("ganeti.errors")
        except ImportError:
            return Exception
        return getattr(module, name, Exception)

    _Generic, _Hypervisor, _Hotplug, _Programmer = map(
        _theirs, ("GenericError", "HypervisorError", "HotplugError", "ProgrammerError")
    )


class GenericError(ours.DroverError, _Generic):
    """Root of Ganeti's errors."""


class HypervisorError(GenericError, _Hypervisor):
    """Something is wrong with the monitor, or QEMU refused a command."""


class HotplugError(HypervisorError, _Hotplug):
    """A device could not be added or removed, or this QEMU has no hotplug."""


class ProgrammerError(GenericError, _Programmer):
    """The caller broke the rules of the interface."""


class QmpCommandNotSupported(HypervisorError):
    """This QEMU has no such command."""


class QmpTimeoutError(HypervisorError, TimeoutError):
    """No answer in time: whether QEMU acts or acted is unknown."""


class QmpDataError(HypervisorError, ProgrammerError, ValueError, TypeError):
    """What came from the socket, or was to go to it, is no QMP.

    Ganeti raises ProgrammerError for it, which its own callers do not catch; ValueError and TypeError
    where a message is made by hand.
    """


class NoFreeSlots(HotplugError, RuntimeError):
    """The bus is full. Ganeti raises RuntimeError for it."""


def _command_text(error: ours.CommandError) -> str:
    # Ganeti's text to the letter: its users match it
    return f"kvm: error executing the {error.command} command: {error.desc} ({error.error_class}):"


def _connect_text(error: ours.ConnectError) -> str:
    cause = error.__cause__
    reason = cause.strerror if isinstance(cause, OSError) else error.reason
    return f"kvm: cannot connect to the monitor socket: {reason}"


def ganeti_error(error: ours.DroverError) -> GenericError:
    """Ganeti's error for one of Drover's; the caller chains it."""
    match error:
        case GenericError():
            return error
        case ours.CommandNotSupported():
            return QmpCommandNotSupported(_command_text(error))
        case ours.CommandError():
            return HypervisorError(_command_text(error))
        case ours.ConnectTimeout() if not isinstance(error.__cause__, OSError):
            return QmpTimeoutError(f"Timeout while receiving a QMP message: {error.reason}")
        case ours.ConnectError():
            return HypervisorError(_connect_text(error))
        case ours.MonitorTimeout():
            return QmpTimeoutError(f"Timeout while receiving a QMP message: {error}")
        case ours.ConnectionClosed():
            return HypervisorError(f"Unable to receive data from KVM using the QMP protocol: {error}")
        case ours.ProtocolError() | ours.ArgumentError():
            return QmpDataError(f"QMP data serialization error: {error}")
        case ours.NoFreeSlot():
            return NoFreeSlots(str(error))
        case ours.HotplugError():
            return HotplugError(str(error))
    return HypervisorError(str(error))


@contextmanager
def translated() -> Iterator[None]:
    """In this block, Drover's errors become Ganeti's; what Drover noted on them goes along."""
    try:
        yield
    except ours.DroverError as error:
        theirs = ganeti_error(error)
        if theirs is error:
            raise
        for note in getattr(error, "__notes__", ()):
            theirs.add_note(note)
        raise theirs from error
