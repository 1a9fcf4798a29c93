"""The HMP session: any cut of any stream gives the same outputs, and no output passes for a prompt."""

import logging
import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drover.errors import ArgumentError, CommandError, CommandNotSupported, ConnectionClosed, ProtocolError
from drover.qmp import hmp
from drover.qmp.hmp import (
    MAX_ARGUMENT,
    MAX_LINE,
    PROMPT,
    HmpSession,
    State,
    echo_of,
    name_of,
    plain,
    quote,
    refusal,
    shown,
)
from drover.qmp.life import Call

MARK = b"k3Yz"
ERASED = b"\x1b[D" * len(MARK) + b"\x1b[K"
END = PROMPT + echo_of(MARK) + ERASED
BANNER = b"QEMU 7.2.22 monitor - type 'help' for more information\r\n"

# What looks most like the real thing, and pieces of it.
TRICKY = [
    PROMPT,
    b"\r\n" + PROMPT,
    b"\x1b[K",
    b"\x1b[D",
    PROMPT + b"k\x1b[K",
    END[:-1],
    END.replace(MARK, b"k3Yy"),
    b"Password: ",
    b"Error: no\r\n",
    b"unknown command: 'x'\r\n",
    b"\n",
    b"\xff\x9b",
]
outputs = st.lists(st.one_of(st.sampled_from(TRICKY), st.binary(max_size=20)), max_size=8).map(b"".join)
lines = st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), max_size=30).filter(
    lambda line: not hmp._ASKS.fullmatch(line)
)


def answer(line: str, output: bytes) -> bytes:
    """What QEMU prints from the first byte of `line` to the end of the mark's echo."""
    return echo_of(line.encode()) + b"\r\n" + output + END


def send_all(session: HmpSession) -> bytes:
    """Empty the outbox, as a socket that takes everything."""
    data = b""
    while session.outbox:
        piece, _ = session.outbox[0]
        data += piece
        session.sent(len(piece))
    return data


def ready(limit: int = 1 << 20) -> HmpSession:
    """A session at its first prompt."""
    session = HmpSession(MARK, limit)
    assert send_all(session) == MARK + b"\x17"
    session.receive(BANNER + END)
    assert session.state is State.READY
    return session


def run(session: HmpSession, line: str, output: bytes) -> Call:
    """Submit, send and answer."""
    call = session.submit(line)
    send_all(session)
    session.receive(answer(line, output))
    return call


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """`data` in pieces."""
    marks = sorted(draw(st.sets(st.integers(0, len(data)), max_size=12)) | {0, len(data)})
    return [data[start:end] for start, end in pairwise(marks)]


@given(st.data(), st.lists(st.tuples(lines, outputs), max_size=4))
def test_any_cut(data: st.DataObject, commands: list[tuple[str, bytes]]) -> None:
    session = HmpSession(MARK)
    send_all(session)
    calls = [session.submit(line) for line, _ in commands]
    stream = BANNER + END + b"".join(answer(line, output) for line, output in commands)
    for piece in data.draw(cut(stream)):
        session.receive(piece)
        send_all(session)
    assert session.banner == "QEMU 7.2.22 monitor - type 'help' for more information"
    assert [call.outcome() for call in calls] == [plain(output.decode(errors="replace")) for _, output in commands]
    assert session.state is State.READY
    assert session.stray == 0


@given(st.data(), st.binary(max_size=300) | outputs)
def test_anything_never_breaks_it(data: st.DataObject, noise: bytes) -> None:
    """What a peer sends that is no monitor gives the same end in any cut, and never an exception."""
    ends = []
    for pieces in ([noise], data.draw(cut(noise))):
        session = HmpSession(MARK, limit=64)
        send_all(session)
        call = session.submit("info status")
        for piece in pieces:
            session.receive(piece)
            send_all(session)
        session.close(ConnectionClosed("over"))
        ends.append((repr(session.fault), call.done, call.value, repr(call.error)))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("output", TRICKY)
def test_no_output_is_a_prompt(output: bytes) -> None:
    session = ready()
    call = session.submit("x")
    send_all(session)
    session.receive(echo_of(b"x") + b"\r\n" + output)
    assert not call.done
    session.receive(END)
    assert call.outcome() == plain(output.decode(errors="replace"))


def test_byte_by_byte() -> None:
    session = ready()
    call = session.submit("info block")
    send_all(session)
    for byte in answer("info block", b"(qemu) a\r\nb\r\n"):
        session.receive(bytes([byte]))
    assert call.outcome() == "(qemu) a\nb"


def test_one_at_a_time() -> None:
    session = ready()
    first, second = session.submit("one"), session.submit("two")
    assert send_all(session) == b"one\n" + MARK + b"\x17"
    assert session.in_flight == ("one",)
    session.receive(answer("one", b"1\r\n"))
    assert first.outcome() == "1"
    assert not second.done
    assert send_all(session) == b"two\n" + MARK + b"\x17"
    session.receive(answer("two", b"2\r\n"))
    assert second.outcome() == "2"


def test_late_output_is_dropped() -> None:
    session = ready()
    late = session.submit("one")
    send_all(session)
    session.receive(answer("one", b"")[:20])
    session.abandon(late)
    session.abandon(late)
    call = session.submit("two")
    assert not session.outbox  # one is not through
    session.receive(answer("one", b"Error: late\r\n")[20:])
    assert late.done
    assert late.value is None
    send_all(session)
    session.receive(answer("two", b"2\r\n"))
    assert call.outcome() == "2"


def test_unsent_lines_are_taken_back() -> None:
    session = ready()
    first, second, third = (session.submit(line) for line in ("one", "two", "three"))
    session.abandon(second)
    session.abandon(first)
    assert send_all(session) == b"three\n" + MARK + b"\x17"
    session.receive(answer("three", b""))
    assert third.outcome() == ""
    session.abandon(third)
    assert session.state is State.READY


def test_half_sent_line_is_sent_to_its_end() -> None:
    session = ready()
    call = session.submit("one")
    session.sent(2)
    session.abandon(call)
    assert send_all(session) == b"e\n" + MARK + b"\x17"


def test_descriptor_goes_with_its_own_line() -> None:
    session = ready()
    session.submit("one")
    session.submit("getfd a", fd=7)
    assert [call.fd for _, call in session.outbox] == [None]
    send_all(session)
    session.receive(answer("one", b""))
    assert [(data[:7], call.fd) for data, call in session.outbox] == [(b"getfd a", 7)]


def test_text_before_the_echo_is_skipped() -> None:
    session = ready()
    call = session.submit("one")
    send_all(session)
    session.receive(b"somebody: a line\r\n" * 300 + answer("one", b"1\r\n"))
    assert call.outcome() == "1"


def test_stray_text_is_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    session = ready()
    with caplog.at_level(logging.INFO, "drover.hmp"):
        session.receive(b"abc")
        session.receive(b"def\r\n")
    assert session.stray == 8
    assert len(caplog.records) == 1
    assert run(session, "one", b"1\r\n").outcome() == "1"


def test_limit_is_on_the_output_alone() -> None:
    assert run(ready(limit=100), "x" * 200, b"y" * 100).outcome() == "y" * 100
    session = ready(limit=1000)
    call = run(session, "x", b"y" * 1001)
    with pytest.raises(ProtocolError, match="limit of 1000"):
        call.outcome()
    assert session.state is State.CLOSED
    with pytest.raises(ConnectionClosed):
        session.submit("y")


def test_dropped_output_has_no_limit_and_takes_no_memory() -> None:
    session = ready(limit=1000)
    session.submit("x")
    send_all(session)
    session.abandon(session._current or Call("", 0, b""))
    session.receive(echo_of(b"x") + b"\r\n")
    for _ in range(1000):
        session.receive(b"y" * 1000)
        assert len(session._output) < len(END) * 2
    session.receive(END)
    assert session.state is State.READY


def test_long_echo_takes_little_memory() -> None:
    line = "x" * MAX_LINE
    session = ready()
    call = session.submit(line)
    send_all(session)
    session.receive(b"")
    tracemalloc.start()
    for size in range(MAX_LINE):  # 33.5 MB in all
        session.receive(b"\x1b[D" * size + b"x" * (size + 1) + b"\x1b[K")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000
    session.receive(b"\r\nok\r\n" + END)
    assert call.outcome() == "ok"


def test_close_tells_everybody() -> None:
    session = ready()
    calls = [session.submit("set_password vnc secret"), session.submit("b")]
    send_all(session)
    session.close(ConnectionClosed("gone"))
    session.close(ConnectionClosed("again"))
    session.receive(b"late")
    for call in calls:
        with pytest.raises(ConnectionClosed, match=r"gone \(unanswered: set_password\)"):
            call.outcome()
    assert session.ended.done
    with pytest.raises(ConnectionClosed, match="gone"):
        session.submit("c")


def test_a_qmp_monitor_is_told() -> None:
    session = HmpSession(MARK)
    session.receive(b'{"QMP": {}}')
    with pytest.raises(ProtocolError, match="QMP"):
        session.greeted.outcome()


def test_password_prompt_ends_it() -> None:
    session = ready()
    call = run(session, "x", b"Password: " + echo_of(MARK, b"****") + ERASED)
    with pytest.raises(ProtocolError, match="password"):
        call.outcome()


def test_moves_are_checked() -> None:
    with pytest.raises(RuntimeError, match="from 'at a prompt' to 'reading a command's output'"):
        ready()._move(State.OUTPUT)


@pytest.mark.parametrize("mark", [b"", b"a b", b"\x17", b"x" * 17])
def test_bad_marks(mark: bytes) -> None:
    with pytest.raises(ArgumentError):
        HmpSession(mark)


@pytest.mark.parametrize(
    "line",
    ["a\nb", "a\tb", "a\x1bb", "\x7f", "Û", "x" * (MAX_LINE + 1), "change vnc password", ' change vnc "passwd" '],
)
def test_lines_that_cannot_be_typed(line: str) -> None:
    session = ready()
    with pytest.raises(ArgumentError):
        session.submit(line)
    assert session.state is State.READY


@pytest.mark.parametrize("line", ["set_password vnc s3cret", "object_add secret,id=x,data=s3cret", "sendkey s3cret"])
def test_no_secret_in_a_log(line: str, caplog: pytest.LogCaptureFixture) -> None:
    session = ready()
    with caplog.at_level(logging.DEBUG):
        call = run(session, line, b"")
        session.abandon(session.submit(line))
        with pytest.raises(ArgumentError) as caught:
            session.submit(line + "\n")
    assert "s3cret" not in caplog.text + repr(caught.value) + call.command + shown(line)
    assert call.command in caplog.text


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("tcp:a:1", "tcp:a:1"),
        ("", '""'),
        ("a b", '"a b"'),
        ("-d", '"-d"'),
        ('a"b\\', '"a\\"b\\\\"'),
        ("a\nb\r", '"a\\nb\\r"'),
        ("x" * MAX_ARGUMENT, "x" * MAX_ARGUMENT),
    ],
)
def test_quote(text: str, quoted: str) -> None:
    assert quote(text) == quoted


def test_quote_refuses_what_qemu_cuts() -> None:
    with pytest.raises(ArgumentError, match="1023"):
        quote("x" * (MAX_ARGUMENT + 1))


@pytest.mark.parametrize(
    "output",
    [
        "Error: Device 'x' not found",
        "warning: old\nwarning: older\nError: no",
        "Error opening logfile /nosuch/x: No such file or directory",
        "Could not open '/nosuch': No such file or directory",
        "Device 'x' not found",
        "invalid parameter: foo",
        "invalid CPU index",
        "Invalid boot device 'z'",
        "Invalid host forwarding rule 'x' (No : separators)",
        "host forwarding rule for tcp::1 not found",
        "user mode network stack not in use",
        "invalid format",
        "Mouse at index '9' not found",
        'unknown event "foo"',
        'unknown register\nTry "help p" for more information',
        'sendkey: string expected\nTry "help sendkey" for more information',
        "terminal does not support password prompting",
    ],
)
def test_refusals(output: str) -> None:
    error = refusal("set_link x on", output)
    assert type(error) is CommandError
    assert (error.command, error.error_class) == ("set_link", "GenericError")
    assert error.desc == output.removeprefix("Error: ")


@pytest.mark.parametrize("output", ["unknown command: 'info x'", "Command 'x' not available with preconfig"])
def test_no_such_command(output: str) -> None:
    error = refusal("info x y", output)
    assert isinstance(error, CommandNotSupported)
    assert (error.command, error.error_class) == ("info x", "CommandNotFound")


@pytest.mark.parametrize(
    "output",
    [
        "",
        "VM status: running",
        "no block device can store vmstate for snapshot",
        "1: 'Error: foo'",
        "ok\nError: in a later line",
        "SEV is not enabled",
        "Disabled gdbserver",
        'Use "log trace:help" to get a list',
        "warning: that is all\n",
    ],
)
def test_no_refusals(output: str) -> None:
    assert refusal("info x", output) is None


@pytest.mark.parametrize(
    ("line", "name"), [("", ""), (" info  status x", "info status"), ("x y", "x"), ("info", "info")]
)
def test_names(line: str, name: str) -> None:
    assert name_of(line) == name


@given(st.text(max_size=200))
@example("warning: \n" * 20)
def test_any_text_is_judged(text: str) -> None:
    judge: Callable[[str, str], object] = refusal
    judge(text, text)
    assert plain(plain(text)) is not None
    name_of(text)
