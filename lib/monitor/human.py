"""The human monitor (HMP) in four classes: as a text socket or through QMP, blocking or on asyncio; the same verbs."""

import re
import secrets
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

from ..ops import human
from ..ops.human import HumanPort, QmpHumanPort, line_timeout
from ..ops.port import DEFAULT, Port, Timeout
from ..qmp.hmp import HmpSession
from ..qmp.life import Call
from .aio import AsyncLife, AsyncQmpConnection, AsyncWaits
from .connection import BlockingLife, BlockingWaits, QmpConnection
from .life import Life, LinkPort
from .link import Link
from .socket import Wire
from .verbs import AsyncFace, BlockingFace, verb

P = ParamSpec("P")
T = TypeVar("T")
HumanFlow = Callable[Concatenate[HumanPort, P], Coroutine[Any, Any, T]]

# Bytes, each typed as two digits: no guest guesses 32 bits that it never sees. No more, as each digit that is
# typed costs QEMU a turn of its main loop; so many cost less than 0.1 ms.
MARK_SIZE: Final = 4
_VERSION: Final = re.compile(r"^QEMU (\d+)\.(\d+)\.(\d+)", re.MULTILINE)


class human_verb(verb[P, T]):
    """Makes a method of both faces from a flow on a :class:`~drover.ops.human.HumanPort`."""

    def __init__(self, flow: HumanFlow[P, T]) -> None:
        super().__init__(cast(Any, flow))  # which port it is, only the face's `_run` knows


class HumanVerbs:
    """All verbs of a human monitor; the faces inherit them."""

    cmd = human_verb(human.cmd)
    info = human_verb(human.info)
    help = human_verb(human.help_text)

    status = human_verb(human.status)
    stop = human_verb(human.stop)
    cont = human_verb(human.cont)
    system_reset = human_verb(human.system_reset)
    system_powerdown = human_verb(human.system_powerdown)
    quit = human_verb(human.quit_machine)

    sendkey = human_verb(human.sendkey)
    mouse_move = human_verb(human.mouse_move)
    mouse_button = human_verb(human.mouse_button)
    screendump = human_verb(human.screendump)

    set_link = human_verb(human.set_link)
    balloon = human_verb(human.balloon)
    getfd = human_verb(human.getfd)

    migrate = human_verb(human.migrate)
    migrate_cancel = human_verb(human.migrate_cancel)
    migrate_status = human_verb(human.migrate_status)
    wait_migration = human_verb(human.wait_migration)


# -- the text socket ---------------------------------------------------------


class TextMonitor(HumanVerbs, Life[HmpSession]):
    """A human monitor's text socket, before it is said how to wait.

    Parameters are those of :class:`~drover.monitor.life.Life`; `limit` is the longest output, in bytes.

    :ivar banner: what QEMU said before its first prompt
    """

    banner = ""
    _greeting = "prompt"

    @property
    def version(self) -> tuple[int, int, int]:
        """QEMU's version by its banner, such as ``(7, 2, 22)``; (0, 0, 0) before, or where it told none."""
        found = _VERSION.search(self.banner)
        return (int(found[1]), int(found[2]), int(found[3])) if found else (0, 0, 0)

    def _make_session(self, wire: Wire, lost: Link[HmpSession] | None) -> HmpSession:
        return HmpSession(secrets.token_hex(MARK_SIZE).encode(), self._limit)

    def _opening(self, session: HmpSession) -> Call:
        return session.greeted

    async def _opened(self, link: Link[HmpSession]) -> None:
        self.banner = link.session.greeted.outcome()


class TextPort(LinkPort[HmpSession], HumanPort):
    """What the ports of both faces of a text socket share."""

    def __init__(self, face: TextMonitor) -> None:
        self._face = face

    async def run(self, line: str, timeout: Timeout = DEFAULT, fd: int | None = None) -> str:
        limit = line_timeout(line, self._face.timeout) if timeout is DEFAULT else timeout
        link = self.link
        if fd is not None:
            link.wire.check_descriptors()
        output: str = await self.run_call(link.submit(line, None, fd, False), limit)
        return output


class _BlockingTextPort(BlockingWaits, TextPort):
    pass


class _AsyncTextPort(AsyncWaits, TextPort):
    pass


class HumanMonitor(BlockingLife[HmpSession], TextMonitor):
    """A human monitor's text socket (``-monitor unix:…``) for blocking code; threads may share one.

    ::

        with HumanMonitor("/run/vm/demo.hmp") as hmp:
            print(hmp.info("block"))
            hmp.sendkey("ctrl-alt-delete", hold=200)

    Commands run one after another, in the order in which they were given. A verb that is used
    unconnected connects for the call and closes after it. After the connection was lost, verbs raise
    :class:`~drover.errors.ConnectionClosed` until :meth:`close` or :meth:`connect` is called, unless
    `reconnect` says otherwise; what HMP keeps for each monitor (``cpu N``, descriptors) is lost with it.
    Parameters are those of :class:`~drover.monitor.life.Life`; `limit` is the longest output, in bytes.
    """

    def _make_port(self) -> TextPort:
        return _BlockingTextPort(self)


class AsyncHumanMonitor(AsyncLife[HmpSession], TextMonitor):
    """A human monitor's text socket on asyncio; the same verbs as coroutines.

    A cancelled call that was sent keeps the monitor until its output has come and was dropped.
    Parameters are those of :class:`~drover.monitor.life.Life`; `limit` is the longest output, in bytes.
    """

    def _make_port(self) -> TextPort:
        return _AsyncTextPort(self)


# -- through QMP -------------------------------------------------------------


class QmpHumanMonitor(HumanVerbs, BlockingFace):
    """The verbs of :class:`HumanMonitor` on a machine that has only a QMP monitor (``human-monitor-command``).

    It has no connection of its own. What HMP keeps for each monitor (``cpu N``, descriptors) lasts
    only as long as one line here; :attr:`cpu_index` stands in for the former.

    :param connection: connected or not; it stays yours to close
    :ivar cpu_index: the CPU that commands such as ``info registers`` look at; None is the first
    """

    def __init__(self, connection: QmpConnection) -> None:
        self.connection = connection
        self.cpu_index: int | None = None

    def _run(self, flow: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        return self.connection._run(_through_qmp(flow, self.connection.timeout, self.cpu_index), args, kwargs)


class AsyncQmpHumanMonitor(HumanVerbs, AsyncFace):
    """The same on asyncio.

    :param connection: connected or not; it stays yours to close
    :ivar cpu_index: the CPU that commands such as ``info registers`` look at; None is the first
    """

    def __init__(self, connection: AsyncQmpConnection) -> None:
        self.connection = connection
        self.cpu_index: int | None = None

    def _run_async(
        self, flow: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, T]:
        through_qmp = _through_qmp(flow, self.connection.timeout, self.cpu_index)
        return self.connection._run_async(through_qmp, args, kwargs)


def _through_qmp(
    flow: Callable[..., Coroutine[Any, Any, T]], default: float | None, cpu_index: int | None
) -> Callable[..., Coroutine[Any, Any, T]]:
    """`flow`, which takes a human monitor's port, as one that takes a QMP monitor's."""

    def on_qmp(port: Port, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, T]:
        return flow(QmpHumanPort(port, default, cpu_index), *args, **kwargs)

    return on_qmp
