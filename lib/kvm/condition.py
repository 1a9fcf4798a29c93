"""How an instance is at this moment: from its document, its process, and QEMU's own answer."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec import Struct

from ..errors import MonitorError
from ..monitor.connection import QmpConnection
from .ending import is_over, running
from .host import Host
from .ledger import Ledger
from .record import Document
from .sockets import dial
from .state import State, state_named

# Seconds that a look waits for the end of a QEMU that has closed its monitors.
_ENDING: Final = 1.0


class Condition(Struct, kw_only=True):
    """How an instance is.

    :ivar state: what it does
    :ivar document: what is kept of it
    :ivar detail: more of it: QEMU's own word for the state, the disk that failed, who works on it
    """

    name: str
    state: State
    document: Document
    detail: str = ""


def look(host: Host, ledger: Ledger, timeout: float) -> Condition:
    """How it is; the lock must be held, for QEMU serves one client at a time.

    :param timeout: seconds for QEMU to answer
    """
    condition = Condition(name=ledger.name, state=State.STOPPED, document=ledger.document)
    if ledger.document.runtime is None:
        return condition
    process = running(host, ledger)
    if process is None:
        condition.state = State.ENDED
        return condition
    with process:
        try:
            with dial(ledger.paths.socket("control"), timeout) as vm:
                condition.state, condition.detail = state_of(vm)
        except MonitorError as error:
            condition.state = State.ENDED if is_over(process, error, _ENDING) else State.UNRESPONSIVE
            condition.detail = str(error)
    return condition


def state_of(vm: QmpConnection) -> tuple[State, str]:
    """What a QEMU that answers does, and more of it."""
    status = vm.query_status().status
    state = state_named(status)
    if state is State.IO_ERROR:
        return state, ", ".join(f"{name}: {problem}" for name, problem in failed_disks(vm).items())
    return state, "" if status == state else status


def failed_disks(vm: QmpConnection) -> dict[str, str]:
    """The disks whose storage has failed, by id: ``nospace``, or ``failed``."""
    return failed_among(vm.query_block())


def failed_among(devices: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Those of the devices that ``query-block`` tells whose storage has failed; see :func:`failed_disks`."""
    statuses = {_name(device): str(device.get("io-status", "ok")) for device in devices}
    return {name: status for name, status in statuses.items() if status != "ok"}


def _name(device: Mapping[str, Any]) -> str:
    """A disk's id, from the QOM path that QEMU tells."""
    return str(device.get("qdev") or device["device"]).removeprefix("/machine/peripheral/").partition("/")[0]
