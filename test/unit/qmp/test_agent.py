"""The agent session: whatever a guest sends, in any cut, no reply is taken for that of another command."""

import json
import logging
import tracemalloc
from collections.abc import Iterator
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from drover.errors import ArgumentError, CommandError, CommandNotSupported, ConnectionClosed, ProtocolError
from drover.qmp.agent import MOVES, SENTINEL, SYNC, SYNC_IDS, AgentSession, State
from drover.qmp.life import Call

STRAY = b'{"error": {"class": "GenericError", "desc": "JSON parse error, stray \'\\\\uFFFD\'"}}\n'


def step(number: int) -> bytes:
    """How qemu-ga answers 0xFF and a sync."""
    return STRAY + SENTINEL + b'{"return": %d}\n' % number


def reply(value: Any) -> bytes:
    return json.dumps({"return": value}).encode() + b"\n"


def send_all(session: AgentSession) -> bytes:
    """Empty the outbox, as a socket that takes everything."""
    data = b""
    while session.outbox:
        piece, _ = session.outbox[0]
        data += piece
        session.sent(len(piece))
    return data


def commands(data: bytes) -> list[str]:
    """Names of the commands in what was sent."""
    return [json.loads(line.lstrip(SENTINEL))["execute"] for line in data.splitlines()]


def fresh(limit: int = 1 << 20) -> AgentSession:
    """A session whose syncs are numbered 1, 2, 3 ..."""
    return AgentSession(iter(count(1)).__next__, limit)


def ready() -> AgentSession:
    """A session in step, by sync 1."""
    session = fresh()
    session.submit(SYNC)
    send_all(session)
    session.receive(step(1))
    assert session.state is State.READY
    return session


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """`data` in pieces."""
    marks = sorted(draw(st.sets(st.integers(0, len(data)), max_size=12)) | {0, len(data)})
    return [data[start:end] for start, end in pairwise(marks)]


# What an earlier client may have left, or an agent that ended half way, and what looks like the right thing.
LEFTOVERS = [
    b'{"return": {}}\n',
    b'{"return": {"name": "hal',
    SENTINEL,
    SENTINEL + b'{"return": 7}\n',
    SENTINEL + b'{"return": 1',
    SENTINEL + b'{"return": 1.0}\n',
    SENTINEL + b'{"return": true}\n',
    SENTINEL + b'{"error": {"class": "GenericError", "desc": "x"}}\n',
    b'{"return": 1}\n',
    b"login: \r\n",
    STRAY,
]
garbage = st.lists(st.one_of(st.sampled_from(LEFTOVERS), st.binary(max_size=30)), max_size=8).map(b"".join)


@given(st.data(), garbage, st.lists(st.integers() | st.text() | st.dictionaries(st.text(), st.booleans()), max_size=4))
def test_any_cut(data: st.DataObject, before: bytes, values: list[Any]) -> None:
    """Whatever lies in the channel before the step, the replies behind it reach those who asked."""
    assume(SENTINEL + b'{"return": 1}\n' not in before + b"\n")  # that would be the step itself
    session = fresh()
    calls = [session.submit(f"guest-{number}") for number in range(len(values))]
    if not calls:
        calls, values = [session.submit("guest-ping")], [{}]
    assert commands(send_all(session)) == [SYNC]
    for piece in data.draw(cut(before + b"\n" + step(1))):
        session.receive(piece)
    for call, value in zip(calls, values, strict=True):
        assert commands(send_all(session)) == [call.command]
        for piece in data.draw(cut(reply(value))):
            session.receive(piece)
        assert call.outcome() == value
    assert session.state is State.READY


@given(st.data(), garbage | st.binary(max_size=300))
def test_anything_never_breaks_it(data: st.DataObject, noise: bytes) -> None:
    for pieces in ([noise], data.draw(cut(noise))):
        session = ready()
        session._limit = 64
        call = session.submit("guest-ping")
        for piece in pieces:
            send_all(session)
            session.receive(piece)
        session.close(ConnectionClosed("over"))
        assert call.done
        assert session.state is State.CLOSED


class Channel(RuleBasedStateMachine):
    """Callers that give up at any time, before an agent that answers at any time, ends, and starts again.

    Each reply tells which command it answers, so that a mix-up shows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.session = AgentSession(iter(count(1)).__next__)
        self.calls: list[Call] = []
        self.to_agent = b""
        self.to_us = b""
        self.number = 0

    def open_calls(self) -> list[Call]:
        return [call for call in self.calls if not call.done and not call.abandoned]

    @rule(sync=st.integers(0, 5))
    def submit(self, sync: int) -> None:
        self.number += 1
        name = SYNC if sync == 0 else f"guest-{self.number}"
        self.calls.append(self.session.submit(name))

    @precondition(lambda self: self.open_calls())
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        self.session.abandon(data.draw(st.sampled_from(self.open_calls())))

    @rule(size=st.integers(1, 40))
    def send(self, size: int) -> None:
        if self.session.outbox:
            data, _ = self.session.outbox[0]
            self.to_agent += data[:size]
            self.session.sent(min(size, len(data)))

    @rule()
    def answer(self) -> None:
        """The agent takes the next command, or forgets what is half."""
        line, end, rest = self.to_agent.partition(b"\n")
        if not end:
            return
        self.to_agent = rest
        _, sentinel, command = line.rpartition(SENTINEL)
        if sentinel:
            self.to_us += STRAY
        try:
            message = json.loads(command)
        except ValueError:
            self.to_us += STRAY
            return
        if message["execute"] == SYNC:
            self.to_us += SENTINEL + reply(message["arguments"]["id"])
        else:
            self.to_us += reply(message["execute"])

    @rule(size=st.integers(0, 60))
    def restart(self, size: int) -> None:
        """The agent ends: what it had read is lost, and half of what it was saying."""
        self.to_agent = self.to_agent[size:]
        self.to_us = self.to_us[: max(0, len(self.to_us) - size)]

    @rule(size=st.integers(1, 200))
    def receive(self, size: int) -> None:
        data, self.to_us = self.to_us[:size], self.to_us[size:]
        if data:
            self.session.receive(data)

    @invariant()
    def no_mix_up(self) -> None:
        for call in self.calls:
            if call.done and call.error is None and call.command != SYNC:
                assert call.value == call.command
        assert len(self.session.outbox) <= 1
        assert len(self.session._waiting) <= len(self.open_calls())

    def teardown(self) -> None:
        """It always gets going again: who asks now, of an agent that answers, is answered."""
        for call in self.open_calls():
            self.session.abandon(call)
        self.to_us = b""  # read, and dropped
        last = self.session.submit("guest-last")
        for turn in range(20):
            if turn == 10 and not last.done:  # an agent that ended may have taken the sync along: what a port does
                self.session.abandon(self.session.submit(SYNC))
            self.send(1 << 16)
            self.to_agent = self.to_agent if b"\n" in self.to_agent else self.to_agent.rpartition(SENTINEL)[2]
            self.answer()
            self.receive(1 << 16)
            if last.done:
                break
        assert last.outcome() == "guest-last"


TestChannel = Channel.TestCase


def test_a_late_reply_answers_nothing() -> None:
    session = ready()
    slow = session.submit("guest-get-fsinfo")
    send_all(session)
    session.abandon(slow)
    assert session.busy_with == "guest-get-fsinfo"
    assert session.state is State.UNSYNCED
    call = session.submit("guest-info")
    assert commands(send_all(session)) == [SYNC]
    session.receive(reply(["late"]) + step(2))
    assert session.busy_with == "guest-info"
    send_all(session)
    session.receive(reply("info"))
    assert call.outcome() == "info"


def test_half_a_command_is_never_run() -> None:
    """What was half sent when the caller gave up is cut off there: 0xFF makes the agent forget it."""
    session = ready()
    call = session.submit("guest-shutdown", {"mode": "halt"})
    session.sent(10)
    session.abandon(call)
    session.submit("guest-ping")
    assert send_all(session).startswith(SENTINEL)


def test_one_at_a_time_in_order() -> None:
    session = ready()
    first, second, third = (session.submit(f"guest-{name}") for name in "abc")
    assert commands(send_all(session)) == ["guest-a"]
    session.abandon(second)
    session.receive(reply(1))
    assert commands(send_all(session)) == ["guest-c"]
    session.receive(reply(3))
    assert (first.outcome(), third.outcome(), second.done) == (1, 3, False)


def test_unsent_is_withdrawn() -> None:
    session = ready()
    session.abandon(session.submit("guest-a"))
    assert not session.outbox
    call = session.submit("guest-b")
    session.refuse(call, ArgumentError("fd", 1, "none"))
    assert session.state is State.READY
    with pytest.raises(ArgumentError):
        call.outcome()


def test_refusals() -> None:
    session = ready()
    for name, kind in (("CommandNotFound", CommandNotSupported), ("GenericError", CommandError)):
        call = session.submit("guest-x")
        send_all(session)
        session.receive(b'{"error": {"class": "%s", "desc": "no"}}\n' % name.encode())
        with pytest.raises(kind, match="no"):
            call.outcome()
    assert session.state is State.READY


def test_refused_by_its_first_half() -> None:
    """An agent that cannot read the start of a command says so before it has all."""
    session = ready()
    call = session.submit("guest-file-write", {"buf-b64": "x" * 1000})
    session.sent(100)
    session.receive(b'{"error": {"class": "GenericError", "desc": "too long"}}\n')
    with pytest.raises(CommandError):
        call.outcome()
    session.submit("guest-ping")
    assert commands(send_all(session)) == [SYNC]


@pytest.mark.parametrize("line", [b"login:\n", b"[1]\n", b"{}\n", b'{"event": "STOP"}\n', b"\xff\xfe\n"])
def test_nonsense_costs_one_command(line: bytes) -> None:
    session = ready()
    call, other = session.submit("guest-a"), session.submit("guest-b")
    send_all(session)
    session.receive(line)
    with pytest.raises(ProtocolError, match="guest-a"):
        call.outcome()
    assert session.fault is None
    assert commands(send_all(session)) == [SYNC]
    session.receive(step(2))
    send_all(session)
    session.receive(reply("b"))
    assert other.outcome() == "b"


def test_unasked_bytes_cost_the_step() -> None:
    session = ready()
    session.receive(b"[    1.0] a kernel's mess")
    assert session.state is State.UNSYNCED
    assert session.stray > 0
    call = session.submit("guest-a")
    send_all(session)
    session.receive(step(2) + b"\n more")  # before the command was sent: its reply this is not
    assert not call.done
    assert commands(send_all(session)) == [SYNC]
    session.receive(b"and the rest\n" + step(3))
    assert commands(send_all(session)) == ["guest-a"]


def test_sync_is_a_wish() -> None:
    session = ready()
    call = session.submit(SYNC)
    assert commands(send_all(session)) == [SYNC]
    again = session.submit(SYNC)  # the first may be lost: sent anew, by another number
    assert commands(send_all(session)) == [SYNC]
    session.receive(step(2))
    assert not call.done
    session.receive(step(3))
    assert call.outcome() == again.outcome() == 3


def test_one_sync_in_the_outbox() -> None:
    """A channel that takes nothing must not collect syncs for ever."""
    session = fresh()
    for _ in range(100):
        session.abandon(session.submit("guest-ping"))
    assert len(session.outbox) == 1


def test_memory() -> None:
    """Megabytes of noise while a step is waited for, or for a reply that nobody wants, are held nowhere."""
    for noise in (b"x" * 65536, SENTINEL * 65536, SENTINEL + b"1" * 65535, b"xy\n" * 21845):
        session = fresh()
        session.submit("guest-ping")
        send_all(session)
        tracemalloc.start()
        for _ in range(10):
            session.receive(noise)
        assert tracemalloc.get_traced_memory()[0] < 65536
        tracemalloc.stop()
        assert session.stray > 9 * 43000


def test_too_long() -> None:
    session = fresh(limit=100)
    call = session.submit("guest-file-read")
    send_all(session)
    session.receive(step(1))
    send_all(session)
    for _ in range(11):
        session.receive(b'"aaaaaaaaa')
    with pytest.raises(ProtocolError, match="limit of 100"):
        call.outcome()
    assert session.fault is None


def test_end() -> None:
    session = ready()
    sent, waits = session.submit("guest-a"), session.submit("guest-b")
    send_all(session)
    session.close(ConnectionClosed("gone"))
    session.close(ConnectionClosed("twice"))
    for call in (sent, waits):
        with pytest.raises(ConnectionClosed, match="gone.*guest-a"):
            call.outcome()
    with pytest.raises(ConnectionClosed, match="gone"):
        session.submit("guest-c")
    assert session.ended.done
    session.receive(b"more")


def test_secrets_and_arguments(caplog: pytest.LogCaptureFixture) -> None:
    session = ready()
    with caplog.at_level(logging.DEBUG):
        session.submit("guest-set-user-password", {"username": "u", "password": "czNjcmV0"})
    assert "guest-set-user-password" in caplog.text
    assert "czNjcmV0" not in caplog.text
    with pytest.raises(ArgumentError):
        session.submit("guest-exec", {"path": object()})


def test_illegal_move() -> None:
    session = fresh()
    with pytest.raises(RuntimeError, match=r"'out of step' to 'waiting for the reply to a command'"):
        session._move(State.BUSY)
    assert set(MOVES) == set(State)


def test_numbers() -> None:
    def numbers() -> Iterator[int]:
        yield SYNC_IDS - 1

    session = AgentSession(numbers().__next__)
    session.submit(SYNC)
    assert json.loads(send_all(session)[1:]) == {"execute": SYNC, "arguments": {"id": SYNC_IDS - 1}}
    session.receive(step(SYNC_IDS - 1))
    assert session.state is State.READY
