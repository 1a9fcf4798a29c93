"""The kinds of work, each for blocking clients and for clients on an event loop."""

import asyncio
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from typing import Any, Final, Protocol

import msgspec
from flood import CHUNK, event, line
from frame import BenchError, Clock, Side

TRIGGER = "flood"  # the command on which the sender of events starts
# A call in so many goes before the clock starts: the first ones fill caches, the interpreter's and the processor's.
WARM_UP_SHARE = 20
IN_FLIGHT: Final = 8  # commands: more, and QEMU does not read on
KIND: Final = "BLOCK_JOB_COMPLETED"  # what a filter lets through
KINDS_IN_CHUNK: Final = sum(event(number)["event"] == KIND for number in range(CHUNK))


class Client(Protocol):
    """A blocking client of one monitor."""

    def connect(self) -> object: ...
    def execute(self, command: str, /) -> object: ...
    def events(self, *names: str) -> Iterable[object]: ...
    def close(self) -> object: ...


class AsyncClient(Protocol):
    """A client of one monitor, on an event loop."""

    def connect(self) -> Coroutine[Any, Any, object]: ...
    def execute(self, command: str, /) -> Coroutine[Any, Any, object]: ...
    def events(self, *names: str) -> AsyncIterable[object]: ...
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
    """Wait for events, as fast as they can be taken.

    :param names: only these
    """

    def __init__(self, name: str, make: Callable[[], Client], names: tuple[str, ...] = ()) -> None:
        super().__init__(name, make)
        self.names = names

    def run(self, clock: Clock, count: int) -> None:
        source, seen, wanted = self.client.events(*self.names), 0, expected(count, self.names)
        try:
            with clock:
                self.client.execute(TRIGGER)
                for _ in source:
                    seen += 1
                    if seen == wanted:
                        break
        finally:
            check_events(self.name, source, seen, wanted)


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


class AsyncFlights(AsyncCalls):
    """Eight commands at once, again and again; by one call where the client was written by hand for that."""

    async def work(self, clock: Clock, count: int) -> None:
        fly = getattr(self.client, "fly", self._fly)
        for _ in range(1 + count // WARM_UP_SHARE // IN_FLIGHT):
            await fly(self.command, IN_FLIGHT)
        with clock:
            for _ in range(count // IN_FLIGHT):
                await fly(self.command, IN_FLIGHT)

    async def _fly(self, command: str, times: int) -> None:
        await asyncio.gather(*[self.client.execute(command) for _ in range(times)])


class AsyncEvents(Async):
    """Wait for events, as fast as they can be taken.

    :param names: only these
    """

    def __init__(
        self, name: str, make: Callable[[], AsyncClient], new_loop: Callable[[], Any], names: tuple[str, ...] = ()
    ) -> None:
        super().__init__(name, make, new_loop)
        self.names = names

    async def work(self, clock: Clock, count: int) -> None:
        source, seen, wanted = self.client.events(*self.names), 0, expected(count, self.names)
        try:
            with clock:
                await self.client.execute(TRIGGER)
                async for _ in source:
                    seen += 1
                    if seen == wanted:
                        break
        finally:
            check_events(self.name, source, seen, wanted)


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


class Decodes(Side):
    """The same events decoded where they are, by msgspec alone: the limit."""

    def __init__(self) -> None:
        super().__init__("msgspec alone")

    def setup(self) -> None:
        self.block = b"".join(line(event(number)) for number in range(CHUNK))
        self.decode_lines = msgspec.json.Decoder().decode_lines

    def run(self, clock: Clock, count: int) -> None:
        with clock:
            for _ in range(count // CHUNK):
                for _ in self.decode_lines(self.block):
                    pass

    def teardown(self) -> None:
        pass


def expected(count: int, names: tuple[str, ...]) -> int:
    """How many of so many events bear one of these names."""
    return count // CHUNK * KINDS_IN_CHUNK if names else count


def check_events(side: str, source: object, seen: int, count: int) -> None:
    """Make sure that the consumer got every event.

    :raises BenchError: it did not
    """
    lost = getattr(source, "lost", 0)
    if seen != count or lost:
        raise BenchError(f"{side}: saw {seen} of {count} events, and says that it lost {lost}")
