"""What is fuzzed: one function for each parser. It takes any bytes, and raises where the parser breaks a promise.

The promises: no exception but the parser's own; the same result for the same bytes, however they are cut;
memory bounded by the parser's limit; time bounded by the size of what came in.

The first five bytes of an input say how the rest is cut (:func:`pieces`), so that the fuzzer tries that, too.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count, cycle
from pathlib import Path
from typing import Any, Final

from drover.compat.qmp._link import FaceSession
from drover.compat.qmp.legacy import QEMUMonitorProtocol, QMPBadPortError
from drover.errors import ArgumentError, CommandError, ConnectionClosed, MonitorError
from drover.monitor.address import Endpoint, describe, endpoint_of, parse_address
from drover.qmp import agent, hmp
from drover.qmp.events import EventLog
from drover.qmp.framing import LineFramer
from drover.qmp.messages import MessageReader
from drover.qmp.schema import Schema
from drover.qmp.session import QmpSession, State
from drover.shell.check import check
from drover.shell.complete import find_spot
from drover.shell.literal import LineError
from drover.shell.parse import Command, Own, parse
from drover.testing.recorded import recorded_schema

HERE: Final = Path(__file__).resolve().parent
# Bytes. Small, so that inputs of the fuzzer's size reach it; QEMU's greeting fits.
LIMIT: Final = 400
# What a parser may hold beside one message: the read that it was given last, and its own few words.
SLACK: Final = 1 << 12
# An input may say that it stands for this many of itself, which shows where time or memory grow too fast.
MOST: Final = 1 << 18
# Seconds of this process for one input of that size; the slowest takes a tenth, emulated coverage and all.
TIME: Final = 20.0
HEAD: Final = 5


def pieces(head: bytes, payload: bytes) -> Iterator[bytes]:
    """`payload` in pieces, whose sizes `head` says."""
    start = 0
    for size in cycle(byte % 61 + 1 for byte in head):
        if start >= len(payload):
            return
        yield payload[start : start + size]
        start += size


def split(data: bytes) -> tuple[list[bytes], list[bytes]]:
    """An input whole, and in pieces."""
    head, payload = data[:HEAD].ljust(HEAD, b"\0"), data[HEAD:]
    if head[0] >= 0xF0 and payload:
        payload *= max(1, min(1 << (head[0] & 15), MOST // len(payload)))
    return [payload], list(pieces(head[1:], payload))


def held(thing: object) -> int:
    """How many bytes of text and data `thing` holds in its own attributes."""
    if isinstance(thing, (bytes, bytearray, str)):
        return len(thing)
    if isinstance(thing, (list, tuple)):
        return sum(map(held, thing))
    if isinstance(thing, (MessageReader, LineFramer, agent.AgentSession, hmp.HmpSession, QmpSession)):
        return sum(map(held, vars(thing).values()))
    return 0


def bounded(thing: object, read: bytes) -> None:
    """`thing` holds no more than it may, after a read."""
    assert held(thing) <= 2 * LIMIT + len(read) + SLACK, f"{type(thing).__name__} holds {held(thing)} bytes"


# -- the protocols -----------------------------------------------------------


def framing(data: bytes) -> None:
    """Messages by :class:`MessageReader`."""

    def read(parts: list[bytes]) -> Any:
        reader = MessageReader(LIMIT)
        messages: list[Any] = []
        for part in parts:
            messages += reader.feed(part)
            bounded(reader, part)
        return messages, None if reader.fault is None else type(reader.fault)

    whole, cut = map(read, split(data))
    assert whole == cut


def lines(data: bytes) -> None:
    """Blocks of lines by :class:`LineFramer`: nothing is lost or added."""
    whole, cut = split(data)
    framer = LineFramer()
    out = b"".join(map(framer.feed, cut))
    end = whole[0].rfind(b"\n") + 1
    assert out == whole[0][:end]
    assert len(framer.rest) == len(whole[0]) - end


def _drain(session: Any) -> None:
    while session.outbox:
        session.sent(len(session.outbox[0][0]))


def _told(call: Any) -> Any:
    return call.command, call.done, call.value, type(call.error)


GREETING: Final = b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}}, "capabilities": ["oob"]}}\r\n'


def session(data: bytes) -> None:
    """A QMP session that is ready, or, by the last bit of the input's second byte, has yet to be greeted."""
    handshake = bool(data[1:2] and data[1] & 1)

    def talk(parts: list[bytes]) -> Any:
        qmp = QmpSession(EventLog(8), LIMIT)
        if not handshake:
            qmp.receive(GREETING + b'{"return": {}, "id": 1}\r\n')
            _drain(qmp)
        calls = [qmp.submit(f"command-{number}", fd=number if number == 5 else None) for number in range(12)]
        qmp.abandon(calls[1])
        _drain(qmp)
        for part in parts:
            qmp.receive(part)
            if handshake:
                _drain(qmp)
            bounded(qmp, part)
            assert len(qmp.in_flight) <= 9
        qmp.close(ConnectionClosed("over"))
        assert qmp.state is State.CLOSED
        assert all(call.done for call in (*calls, qmp.negotiation) if not call.abandoned)
        return [*map(_told, calls), qmp.events.mark(), qmp.stray, type(qmp.fault)]

    whole, cut = map(talk, split(data))
    # with a handshake, what we have sent by the time of a reply depends on when it came
    assert handshake or whole == cut


def face(data: bytes) -> None:
    """The session below the names of qemu.qmp, which takes the greeting by itself."""

    def talk(parts: list[bytes]) -> Any:
        events: list[Any] = []
        greet, negotiate = data[1:2] < b"\x80", data[1:2] < b"\x40"
        qmp = FaceSession(events.append, LIMIT, greet, negotiate)
        for part in parts:
            qmp.receive(part)
            bounded(qmp, part)
            _drain(qmp)
        qmp.close(ConnectionClosed("over"))
        return (repr(qmp.said), repr(events), type(qmp.fault)) if not negotiate else repr(qmp.said)

    whole, cut = map(talk, split(data))
    assert whole == cut


def human(data: bytes) -> None:
    """The text monitor: prompt, echo, output."""

    def talk(parts: list[bytes], greeted: bool) -> Any:
        session = hmp.HmpSession(b"Drov", LIMIT)
        _drain(session)
        if greeted:
            session.receive(b"QEMU 7.2.22 monitor\r\n(qemu) " + hmp.echo_of(b"Drov") + b"\x1b[D" * 4 + b"\x1b[K")
        calls = [session.submit("info status"), session.submit("info version")]
        for part in parts:
            _drain(session)
            session.receive(part)
            bounded(session, part)
        session.close(ConnectionClosed("over"))
        return [*map(_told, calls), type(session.fault), session.banner]

    whole, cut = split(data)
    greeted = bool(data[1:2] and data[1] & 1)
    first, second = talk(whole, greeted), talk(cut, greeted)
    # greeted, the second line goes out when the first was answered, which a whole input does not wait for
    assert greeted or first == second


def texts(data: bytes) -> None:
    """What is made of the text monitor's answers, and of arguments that go into its lines."""
    whole, _ = split(data)
    text = whole[0].decode("utf-8", "replace")
    line, _, output = text.partition("\n")
    found = hmp.refusal(line, hmp.plain(output))
    assert found is None or isinstance(found, CommandError)
    try:
        quoted = hmp.quote(text)
    except ArgumentError:
        return
    assert len(quoted.encode()) <= 4 * hmp.MAX_ARGUMENT + 2


def guest_agent(data: bytes) -> None:
    """A guest agent's session."""
    for parts in split(data):
        session = agent.AgentSession(iter(count(1)).__next__, LIMIT)
        call = session.submit("guest-ping")
        late = session.submit("guest-info")
        for part in parts:
            _drain(session)
            session.receive(part)
            bounded(session, part)
        session.close(ConnectionClosed("over"))
        assert call.done
        assert late.done
        assert session.state is agent.State.CLOSED
        assert isinstance(session.fault, MonitorError)


# -- texts that people type --------------------------------------------------


def _text(data: bytes) -> str:
    return split(data)[0][0].decode("utf-8", "surrogateescape")


def address(data: bytes) -> None:
    """Addresses, ours and those of qemu.qmp."""
    text = _text(data)
    try:
        place = parse_address(text)
    except ArgumentError:
        pass
    else:
        assert isinstance(place, Endpoint)
        assert parse_address(str(place)) == place == endpoint_of(text)
        assert describe(text) == str(place)
    try:
        theirs = QEMUMonitorProtocol.parse_address(text)
    except QMPBadPortError:
        return
    assert theirs == text or (isinstance(theirs, tuple) and theirs[1] >= 0)


def shell(data: bytes) -> None:
    """A shell's line: parsed, checked by the schema, completed."""
    text = _text(data)
    find_spot(text)
    try:
        found = parse(text)
    except LineError as error:
        _inside(error, text)
        return
    assert found is None or isinstance(found, Own | Command)
    if isinstance(found, Command):
        try:
            arguments = check(found, schema())
        except LineError as error:
            _inside(error, text)
        else:
            json.dumps(arguments, allow_nan=False, ensure_ascii=False).encode()


def _inside(error: LineError, text: str) -> None:
    assert 0 <= error.position <= len(text), error


@cache
def schema() -> Schema:
    """QEMU 10.0's."""
    return Schema(recorded_schema("10.0"))


@dataclass(frozen=True)
class Target:
    """One parser.

    :ivar seeds: the folder of what its fuzzer begins with
    :ivar longest: longest input, in bytes
    """

    run: Callable[[bytes], None]
    seeds: str
    longest: int = 2000


TARGETS: Final = {
    target.run.__name__: target
    for target in (
        Target(framing, "qmp"),
        Target(lines, "qmp"),
        Target(session, "qmp"),
        Target(face, "qmp"),
        Target(human, "hmp"),
        Target(texts, "texts"),
        Target(guest_agent, "agent"),
        Target(address, "address", 300),
        Target(shell, "shell", 500),
    )
}


def one_input(target: Target, data: bytes) -> None:
    """Try one input, which must not take long."""
    began = time.process_time()
    target.run(data)
    took = time.process_time() - began
    assert took < TIME, f"{len(data)} bytes took {took:.1f} s"


# In large pieces, in small ones, by which more of a target is switched on, and sixteen times over.
HEADS: Final = (b"\x00\xfe\xfe\xfe\xfe", b"\x00\x01\x06\x0a\x03", b"\x00\x81\x3c\x3c\x3c", b"\xf4\x00\x3c\x02\x3c")


def inputs(name: str) -> Iterator[tuple[str, bytes]]:
    """What the fuzzer of a target begins with: what real QEMUs said (seeds/), and what once went wrong (found/)."""
    for path in sorted((HERE / "seeds" / TARGETS[name].seeds).iterdir()):
        for number, head in enumerate(HEADS):
            yield f"{path.name}-{number}", head + path.read_bytes()
    for path in sorted((HERE / "found").glob(f"{name}-*")):
        yield path.name, path.read_bytes()
