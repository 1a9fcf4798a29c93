"""Both faces of a QMP monitor behind one: a test is written once and runs on each.

::

    def test_status(face: Face) -> None:
        with FakeQemu() as fake, face.open(fake.path) as vm:
            assert vm.query_status().status == "running"
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drover import AsyncQmpConnection, QmpConnection


class Face:
    """How a test uses one of the faces.

    :ivar name: ``blocking`` or ``asyncio``
    """

    name = "blocking"

    def make(self, address: Any, **options: Any) -> Any:
        """A connection object, not connected."""
        return QmpConnection(address, **options)

    @contextmanager
    def open(self, address: Any, **options: Any) -> Iterator[Any]:
        """A connected connection, closed at the end."""
        vm = self.make(address, **options)
        vm.connect()
        try:
            yield vm
        finally:
            vm.close()

    def close(self) -> None:
        """Free what the face itself needs."""


class _Blocked:
    """An asyncio connection whose coroutines are run to their end where they are called."""

    def __init__(self, loop: asyncio.AbstractEventLoop, vm: AsyncQmpConnection) -> None:
        self._loop = loop
        self.vm = vm

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.vm, name)
        if name == "events":
            return lambda *args, **kwargs: self._iterate(value(*args, **kwargs))
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            result = value(*args, **kwargs)
            return self._loop.run_until_complete(result) if asyncio.iscoroutine(result) else result

        return call

    def _iterate(self, events: Any) -> Iterator[Any]:
        while True:
            yield self._loop.run_until_complete(events.__anext__())


class AsyncFace(Face):
    """The asyncio face, on an event loop of its own."""

    name = "asyncio"

    def __init__(self, new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop) -> None:
        self.loop = new_loop()

    def make(self, address: Any, **options: Any) -> Any:
        return _Blocked(self.loop, AsyncQmpConnection(address, **options))

    def run(self, flow: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the face's loop."""
        return self.loop.run_until_complete(flow)

    def close(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


def uvloop_face() -> AsyncFace:
    """The asyncio face on uvloop."""
    import uvloop

    face = AsyncFace(uvloop.new_event_loop)
    face.name = "uvloop"
    return face


FACES: dict[str, Callable[[], Face]] = {"blocking": Face, "asyncio": AsyncFace, "uvloop": uvloop_face}


def socket_path(directory: Path) -> Path:
    """A path for a socket, short enough wherever pytest put its directory."""
    return directory / "s"
