"""The session: states, ids, what is in flight, what is late, and what nobody asked for."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from drover.errors import ArgumentError, CommandError, CommandNotSupported, ConnectionClosed, ProtocolError
from drover.qmp.events import EventLog
from drover.qmp.life import Call
from drover.qmp.session import MAX_IN_BAND, MOVES, QmpSession, State

GREETING = {
    "QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "p"}, "capabilities": ["oob"]}
}


def feed(session: QmpSession, *messages: Any) -> None:
    for message in messages:
        session.receive(json.dumps(message).encode() + b"\r\n")


def sent(session: QmpSession) -> list[dict[str, Any]]:
    """Send all of the outbox, and return it."""
    out = []
    while session.outbox:
        data, _ = session.outbox[0]
        out.append(json.loads(data))
        session.sent(len(data))
    return out


def ready(**options: Any) -> QmpSession:
    session = QmpSession(**options)
    feed(session, GREETING)
    (capabilities,) = sent(session)
    feed(session, {"return": {}, "id": capabilities["id"]})
    assert session.state is State.READY
    return session


def reply(session: QmpSession, call: Call, value: Any = None) -> None:
    feed(session, {"return": {} if value is None else value, "id": call.id})


def test_greeting_negotiates_oob_and_tells_the_version() -> None:
    session = QmpSession()
    feed(session, {"event": "EARLY", "timestamp": {"seconds": 1, "microseconds": 500000}}, GREETING)
    assert session.state is State.NEGOTIATING
    assert sent(session) == [{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}, "id": 1}]
    feed(session, {"event": "BETWEEN", "data": {"a": 1}}, {"return": {}, "id": 1})
    assert session.negotiation.done
    assert (session.state, session.version, session.oob) == (State.READY, (7, 2, 22), True)
    assert [(event.name, event.number, event.timestamp) for event in session.events] == [
        ("EARLY", 1, 1.5),
        ("BETWEEN", 2, -1.0),
    ]


def test_oob_is_not_negotiated_when_not_wanted_or_not_offered() -> None:
    session = QmpSession(oob=False)
    feed(session, GREETING)
    assert sent(session) == [{"execute": "qmp_capabilities", "id": 1}]
    call = ready(oob=False).submit("yank", oob=True)
    assert not call.oob


def test_oob_commands_pass_the_queue() -> None:
    session = ready()
    for _ in range(MAX_IN_BAND + 3):
        session.submit("query-status")
    call = session.submit("yank", {"instances": []}, oob=True)
    assert sent(session)[-1] == {"exec-oob": "yank", "arguments": {"instances": []}, "id": call.id}


def test_at_most_eight_in_band_and_the_rest_in_order() -> None:
    session = ready()
    calls = [session.submit(f"c{n}") for n in range(20)]
    assert [command["execute"] for command in sent(session)] == [f"c{n}" for n in range(8)]
    for n, call in enumerate(calls):
        reply(session, call, n)
        assert call.outcome() == n
        following = [command["execute"] for command in sent(session)]
        assert following == ([f"c{n + 8}"] if n + 8 < 20 else [])


def test_one_descriptor_in_flight_at_a_time() -> None:
    session = ready()
    first, plain, second = session.submit("getfd", fd=3), session.submit("x"), session.submit("getfd", fd=4)
    last = session.submit("y")
    assert [command["execute"] for command in sent(session)] == ["getfd", "x"]
    reply(session, first)
    assert [command["execute"] for command in sent(session)] == ["getfd", "y"]
    assert not plain.done
    assert not second.done
    assert not last.done


def test_replies_are_told_by_id_in_any_order() -> None:
    session = ready()
    calls = [session.submit("x") for _ in range(5)]
    sent(session)
    for call in reversed(calls):
        reply(session, call, call.id)
    assert [call.outcome() for call in calls] == [call.id for call in calls]


def test_replies_without_ids_are_told_by_order() -> None:
    session = QmpSession()
    feed(session, GREETING)
    sent(session)
    feed(session, {"return": {}})
    calls = [session.submit("a"), session.submit("b"), session.submit("c")]
    sent(session)
    session.abandon(calls[1])
    feed(session, {"return": 1}, {"return": 2}, {"error": {"class": "GenericError", "desc": "no"}})
    assert calls[0].outcome() == 1
    assert session.stray == 1
    with pytest.raises(CommandError, match="no"):
        calls[2].outcome()


def test_a_late_reply_is_dropped_and_never_answers_the_next_command() -> None:
    session = ready()
    slow = session.submit("slow")
    sent(session)
    session.abandon(slow)
    following = session.submit("next")
    sent(session)
    reply(session, slow, "late")
    assert not following.done
    reply(session, following, "mine")
    assert following.outcome() == "mine"
    assert session.stray == 1


def test_an_abandoned_call_keeps_its_place_until_its_reply() -> None:
    session = ready()
    calls = [session.submit("x") for _ in range(9)]
    sent(session)
    session.abandon(calls[0])
    assert sent(session) == []
    reply(session, calls[0])
    assert len(sent(session)) == 1


def test_a_call_abandoned_before_it_was_sent_never_is() -> None:
    session = ready()
    calls = [session.submit(f"c{n}") for n in range(9)]
    session.abandon(calls[3])
    session.abandon(calls[8])
    assert [command["execute"] for command in sent(session)] == ["c0", "c1", "c2", "c4", "c5", "c6", "c7"]


def test_a_call_of_which_a_byte_was_sent_is_sent_to_its_end() -> None:
    session = ready()
    call = session.submit("x")
    data, _ = session.outbox[0]
    session.sent(1)
    session.abandon(call)
    assert session.outbox[0][0] == data[1:]


def test_errors_carry_class_text_and_command() -> None:
    session = ready()
    refused, unknown = session.submit("device_add"), session.submit("nope")
    sent(session)
    feed(session, {"error": {"class": "DeviceNotFound", "desc": "gone"}, "id": refused.id})
    feed(session, {"error": {"class": "CommandNotFound", "desc": "what?"}, "id": unknown.id})
    with pytest.raises(CommandError) as caught:
        refused.outcome()
    assert (caught.value.error_class, caught.value.desc, caught.value.command) == (
        "DeviceNotFound",
        "gone",
        "device_add",
    )
    with pytest.raises(CommandNotSupported):
        unknown.outcome()


def test_an_error_without_id_goes_to_the_only_command_in_flight() -> None:
    session = ready()
    call = session.submit("x")
    sent(session)
    feed(session, *[{"error": {"class": "GenericError", "desc": f"parse error {n}"}} for n in range(1000)])
    with pytest.raises(CommandError, match="parse error 0"):
        call.outcome()
    assert session.stray == 999
    following = session.submit("y")
    sent(session)
    feed(session, {"error": {"class": "GenericError", "desc": "the rest of the burst"}})
    assert not following.done
    reply(session, following)
    assert following.outcome() == {}


def test_an_error_without_id_that_could_be_for_several_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    session = ready()
    calls = [session.submit("x"), session.submit("y")]
    sent(session)
    with caplog.at_level("INFO"):
        feed(session, {"error": {"class": "GenericError", "desc": "JSON parse error"}})
    assert not any(call.done for call in calls)
    assert "JSON parse error" in caplog.text
    assert session.state is State.READY


@pytest.mark.parametrize("stray", [{"return": {}, "id": "x"}, {"return": {}, "id": [1]}, {"return": {}, "id": 999}])
def test_replies_to_nobody_are_dropped(stray: dict[str, Any]) -> None:
    session = ready()
    call = session.submit("x")
    sent(session)
    feed(session, stray)
    assert not call.done
    assert session.stray == 1


def test_close_fails_everything_and_says_what_was_in_flight() -> None:
    session = ready()
    calls = [session.submit(f"c{n}") for n in range(10)]
    sent(session)
    watch, stream = session.watch(["STOP"], None), session.stream([], None)
    session.close(ConnectionClosed("QEMU closed the connection"))
    for call in calls:
        with pytest.raises(ConnectionClosed) as caught:
            call.outcome()
        assert caught.value.in_flight == tuple(f"c{n}" for n in range(8))
    assert watch.done
    assert isinstance(watch.error, ConnectionClosed)
    assert isinstance(stream.closed, ConnectionClosed)
    for late in (lambda: session.submit("x"), lambda: session.watch([], None), lambda: session.stream([], None)):
        with pytest.raises(ConnectionClosed):
            late()


def test_garbage_fails_those_who_wait_with_what_came() -> None:
    session = ready()
    call = session.submit("x")
    sent(session)
    session.receive(b"HTTP/1.1 400 Bad Request\r\n")
    with pytest.raises(ProtocolError, match=r"HTTP/1\.1 400"):
        call.outcome()
    assert session.state is State.CLOSED
    with pytest.raises(ConnectionClosed, match=r"HTTP/1\.1 400"):
        session.submit("y")


@pytest.mark.parametrize("message", [GREETING, {"id": 5}, {}])
def test_messages_out_of_place_end_the_session(message: dict[str, Any]) -> None:
    session = ready()
    feed(session, message)
    assert isinstance(session.fault, ProtocolError)


def test_refused_capabilities_end_the_session() -> None:
    session = QmpSession()
    feed(session, GREETING)
    sent(session)
    feed(session, {"error": {"class": "GenericError", "desc": "not today"}, "id": 1})
    with pytest.raises(ProtocolError, match="not today"):
        session.negotiation.outcome()
    assert isinstance(session.fault, ProtocolError)


def test_arguments_that_are_no_json_are_refused_before_anything_is_sent() -> None:
    session = ready()
    with pytest.raises(ArgumentError, match="device_add"):
        session.submit("device_add", {"x": object()})
    assert not session.outbox


@pytest.mark.parametrize("big", [[0] * 1_100_000, ["a,b"] * 1_100_000, {"a": "x" * (64 << 20)}])
def test_what_would_make_qemu_abort_is_not_sent(big: Any) -> None:
    """Beyond the limits of its parser QEMU answers each token with an error, and runs into an assertion."""
    session = ready()
    with pytest.raises(ArgumentError, match="QEMU takes"):
        session.submit("query-status", {"x": big})
    assert not session.outbox
    assert session.submit("x", {"data": "a,:[" * 1_000_000}).error is None


def test_secrets_do_not_reach_the_log(caplog: pytest.LogCaptureFixture) -> None:
    session = ready()
    with caplog.at_level("DEBUG"):
        session.submit("set_password", {"protocol": "vnc", "password": "hunter2"})
        session.submit("object-add", {"qom-type": "secret", "id": "s", "data": "hunter2"})
        session.submit("human-monitor-command", {"command-line": "set_password vnc hunter2"})
        session.submit("human-monitor-command", {"command-line": "sendkey h-u-n-t-e-r-2 hunter2"})
        session.submit("send-key", {"keys": [{"type": "qcode", "data": "hunter2"}]})
    assert "set_password" in caplog.text
    assert "hunter2" not in caplog.text


def test_downstream_names_and_members_nobody_knows_yet_pass() -> None:
    """Names that begin with two underscores are a distributor's own; new members come with any new QEMU."""
    session = QmpSession()
    known: dict[str, Any] = GREETING["QMP"]
    feed(session, {"QMP": {**known, "capabilities": ["oob", "__com.redhat_more"], "newer": 1}, "__com.example_x": 2})
    assert sent(session)[0]["arguments"] == {"enable": ["oob"]}
    feed(session, {"return": {"newer": 3}, "id": 1, "__com.example_y": 4})
    call = session.submit("__com.redhat_drive_add", {"__com.example_arg": 5})
    (command,) = sent(session)
    assert command == {"execute": "__com.redhat_drive_add", "arguments": {"__com.example_arg": 5}, "id": call.id}
    feed(session, {"event": "__com.redhat_EVENT", "data": {"__com.example_z": 6}, "newer": 7})
    feed(session, {"return": {"__com.example_a": 8}, "id": call.id, "newer": [9]})
    (event,) = session.events
    assert (event.name, event.data) == ("__com.redhat_EVENT", {"__com.example_z": 6})
    assert call.outcome() == {"__com.example_a": 8}
    call = session.submit("x")
    sent(session)
    feed(session, {"error": {"class": "__com.example_Class", "desc": "no", "newer": 10}, "id": call.id})
    with pytest.raises(CommandError) as refused:
        call.outcome()
    assert refused.value.error_class == "__com.example_Class"


def test_illegal_moves_name_both_states() -> None:
    session = ready()
    with pytest.raises(RuntimeError, match="'ready' to 'negotiating"):
        session._move(State.NEGOTIATING)
    assert set(MOVES) == set(State)


class Conversation(RuleBasedStateMachine):
    """Commands, replies, abandonments and partial sends in any order, against a server that echoes ids."""

    def __init__(self) -> None:
        super().__init__()
        self.session = ready()
        self.calls: list[Call] = []
        self.at_server: list[int] = []
        self.answered: dict[int, int] = {}
        self.buffer = b""

    @rule()
    def submit(self) -> None:
        self.calls.append(self.session.submit("x"))

    @rule(count=st.integers(1, 60))
    def send(self, count: int) -> None:
        if self.session.outbox:
            data, _ = self.session.outbox[0]
            self.buffer += data[:count]
            self.session.sent(min(count, len(data)))
            *whole, self.buffer = self.buffer.split(b"\n")
            self.at_server += [json.loads(line)["id"] for line in whole]

    @rule(pick=st.randoms(use_true_random=False))
    def answer(self, pick: Any) -> None:
        if self.at_server:
            number = self.at_server.pop(pick.randrange(len(self.at_server)))
            self.answered[number] = number * 10
            feed(self.session, {"return": number * 10, "id": number})

    @rule(pick=st.randoms(use_true_random=False))
    def abandon(self, pick: Any) -> None:
        if self.calls:
            self.session.abandon(pick.choice(self.calls))

    @invariant()
    def outcomes_are_the_servers(self) -> None:
        assert len(self.at_server) <= MAX_IN_BAND
        for call in self.calls:
            if call.done and not call.abandoned:
                assert call.outcome() == self.answered[call.id]
            if call.id in self.answered:
                assert call.done


TestConversation = Conversation.TestCase


@given(st.lists(st.sampled_from(["A", "B"]), max_size=30), st.integers(0, 30), st.integers(1, 10))
def test_a_watch_finds_the_first_event_after_its_mark(names: list[str], since: int, size: int) -> None:
    log = EventLog(size)
    for name in names:
        log.add(name, {}, 0.0)
    kept = [(number, name) for number, name in enumerate(names, 1)][-size:]
    expected = [number for number, name in kept if number > since and name == "B"]
    watch = log.watch(["B"], since)
    assert (watch.event.number if watch.event else None) == (expected[0] if expected else None)
    stream = log.stream(["B"], since)
    taken = []
    while event := stream.take():
        taken.append(event.number)
    assert taken == expected
    assert log.dropped == max(0, len(names) - size)
