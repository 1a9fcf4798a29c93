"""How an instance is at this moment: from its document, its process, and QEMU's own answer."""

from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from ..errors import MonitorError
from ..monitor.connection import QmpConnection
from ..ops.counters import device_id
from ..ops.inventory import QUERY_DEVICES, devices_among
from ..ops.port import Port
from .ending import is_over, running
from .host import Host
from .ledger import Ledger
from .record import Document
from .sockets import dial
from .state import State, state_named

if TYPE_CHECKING:
    from ..monitor.aio import AsyncQmpConnection  # whose asyncio a command would wait for that has no use for it

# Asks something, and waits for no answer: that is for later.
Ahead = Callable[[Port], Coroutine[Any, Any, None]]

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
    condition = Condition(name=ledger.name, state=at_rest(ledger.document), document=ledger.document)
    if ledger.document.runtime is None:
        return condition
    process = running(host, ledger)
    if process is None:
        condition.state = State.ENDED
        return condition
    with process:
        try:
            with dial(ledger.paths.socket("control"), timeout, process.pid) as vm:
                state, condition.detail = state_of(vm)
                condition.state = settled(ledger.document, state)
        except MonitorError as error:
            condition.state = State.ENDED if is_over(process, error, _ENDING) else State.UNRESPONSIVE
            condition.detail = str(error)
    return condition


def at_rest(document: Document) -> State:
    """What an instance is that does not run."""
    return State.STOPPED if document.saved is None else State.SAVED


def settled(document: Document, state: State) -> State:
    """What it is, by what is kept of it: one that is paused, and was sent and did not go, is on no way any more.

    QEMU itself goes on to say ``postmigrate`` of it, until somebody has it run.

    :param state: by what QEMU says
    """
    runtime = document.runtime
    on_its_way = document.passage is not None or document.pending is not None
    stays = state is State.MIGRATING and not on_its_way and runtime is not None and runtime.paused
    return State.PAUSED if stays else state


def state_of(vm: QmpConnection) -> tuple[State, str]:
    """What a QEMU that answers does, and more of it."""
    status = vm.query_status().status
    return _worded(status, failed_among(vm.query_block()) if state_named(status) is State.IO_ERROR else {})


def first_look(vm: QmpConnection, ahead: Ahead | None = None) -> tuple[State, dict[str, str]]:
    """The same but for the words, and all devices that have an id, asked at once: QEMU takes its time to answer.

    :param ahead: asks more behind it
    """
    return vm.perform(partial(_first_look, ahead=ahead))


async def _first_look(port: Port, ahead: Ahead | None) -> tuple[State, dict[str, str]]:
    asked = [port.submit("query-status"), port.submit(*QUERY_DEVICES)]
    if ahead is not None:
        await ahead(port)
    status, entries = [await port.result(call) for call in asked]
    return state_named(status["status"]), devices_among(entries)


async def ask_state(vm: "AsyncQmpConnection") -> tuple[State, str]:
    """The same, of one on asyncio."""
    status = (await vm.query_status()).status
    return _worded(status, failed_among(await vm.query_block()) if state_named(status) is State.IO_ERROR else {})


def _worded(status: str, failed: Mapping[str, str]) -> tuple[State, str]:
    state = state_named(status)
    if state is State.IO_ERROR:
        return state, ", ".join(f"{name}: {problem}" for name, problem in failed.items())
    return state, "" if status == state else status


def failed_among(devices: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The disks whose storage has failed, by id: ``nospace``, or ``failed``.

    :param devices: all, as ``query-block`` tells them
    """
    statuses = {_name(device): str(device.get("io-status", "ok")) for device in devices}
    return {name: status for name, status in statuses.items() if status != "ok"}


def _name(device: Mapping[str, Any]) -> str:
    """A disk's id, from the QOM path that QEMU tells."""
    return device_id(str(device.get("qdev") or device["device"]))
