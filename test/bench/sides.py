"""The three kinds of work, each for blocking clients and for clients on an event loop."""

import asyncio
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from typing import Any, Protocol

from frame import BenchError, Clock, Side

TRIGGER = "flood"  # the command on which the sender of events starts
# A call in so many goes before the clock starts: the first ones fill caches, the interpreter's and the processor's.
WARM_UP_SHARE = 20


class Client(Protocol):
    """A blocking client of one monitor."""

    def connect(self) -> object: ...
    def execute(self, command: str, /) -> object: ...
    def events(self) -> Iterable[object]: ...
    def close(self) -> object: ...


class AsyncClient(Protocol):
    """A client of one monitor, on an event loop."""

    def connect(self) -> Coroutine[Any, Any, object]: ...
    def execute(self, command: str, /) -> Coroutine[Any, Any, object]: ...
    def events(self) -> AsyncIterable[object]: ...
    def close(self) -> Coroutine[Any, Any, object]: ...


class Blocking(Side):
    """A blocking client, connected for each round."""

    def __init__(self, name: str, make: Callable[[], Client]) -> None:
        super().__init__(name)
        self.make = make
        self.client: Client

    def setup(self) -> None:
        self.client = self.make()
        self.client.connect()

    def teardown(self) -> None:
        self.client.close()


class BlockingCalls(Blocking):
    """One command after another."""

    def __init__(self, name: str, make: Callable[[], Client], command: str) -> None:
        super().__init__(name, make)
        self.command = command

    def run(self, clock: Clock, count: int) -> None:
        client, command = self.client, self.command
        for _ in range(1 + count // WARM_UP_SHARE):
            client.execute(command)
        with clock:
            for _ in range(count):
                client.execute(command)


class BlockingEvents(Blocking):
    """Wait for events, as fast as they can be taken."""

    def run(self, clock: Clock, count: int) -> None:
        source, seen = self.client.events(), 0
        try:
            with clock:
                self.client.execute(TRIGGER)
                for _ in source:
                    seen += 1
                    if seen == count:
                        break
        finally:
            check_events(self.name, source, seen, count)


class BlockingConnects(Side):
    """From nothing to a monitor that takes commands, again and again."""

    def __init__(self, name: str, make: Callable[[], Client]) -> None:
        super().__init__(name)
        self.make = make

    def setup(self) -> None:
        self.run(Clock(), 1)  # ours asks each build of QEMU once what it can do: that is done here

    def run(self, clock: Clock, count: int) -> None:
        for _ in range(count):
            with clock:
                client = self.make()
                client.connect()
            client.close()

    def teardown(self) -> None:
        pass


class Async(Side):
    """A client on an event loop of its own, connected for each round."""

    def __init__(self, name: str, make: Callable[[], AsyncClient], new_loop: Callable[[], Any]) -> None:
        super().__init__(name)
        self.make = make
        self.new_loop = new_loop
        self.runner: asyncio.Runner
        self.client: AsyncClient

    def setup(self) -> None:
        self.runner = asyncio.Runner(loop_factory=self.new_loop)
        self.runner.run(self.begin())

    def run(self, clock: Clock, count: int) -> None:
        self.runner.run(self.work(clock, count))

    def teardown(self) -> None:
        with self.runner:
            self.runner.run(self.end())

    async def begin(self) -> None:
        """Connect. The client is made here, since some look for the running loop at once."""
        self.client = self.make()
        await self.client.connect()

    async def work(self, clock: Clock, count: int) -> None:
        """What :meth:`run` does, on the loop."""
        raise NotImplementedError

    async def end(self) -> None:
        """Disconnect."""
        await self.client.close()


class AsyncCalls(Async):
    """One command after another."""

    def __init__(self, name: str, make: Callable[[], AsyncClient], new_loop: Callable[[], Any], command: str) -> None:
        super().__init__(name, make, new_loop)
        self.command = command

    async def work(self, clock: Clock, count: int) -> None:
        client, command = self.client, self.command
        for _ in range(1 + count // WARM_UP_SHARE):
            await client.execute(command)
        with clock:
            for _ in range(count):
                await client.execute(command)


class AsyncEvents(Async):
    """Wait for events, as fast as they can be taken."""

    async def work(self, clock: Clock, count: int) -> None:
        source, seen = self.client.events(), 0
        try:
            with clock:
                await self.client.execute(TRIGGER)
                async for _ in source:
                    seen += 1
                    if seen == count:
                        break
        finally:
            check_events(self.name, source, seen, count)


class AsyncConnects(Async):
    """From nothing to a monitor that takes commands, again and again."""

    async def begin(self) -> None:
        await self.work(Clock(), 1)

    async def work(self, clock: Clock, count: int) -> None:
        for _ in range(count):
            with clock:
                client = self.make()
                await client.connect()
            await client.close()

    async def end(self) -> None:
        pass


def check_events(side: str, source: object, seen: int, count: int) -> None:
    """Make sure that the consumer got every event.

    :raises BenchError: it did not
    """
    lost = getattr(source, "lost", 0)
    if seen != count or lost:
        raise BenchError(f"{side}: saw {seen} of {count} events, and says that it lost {lost}")
