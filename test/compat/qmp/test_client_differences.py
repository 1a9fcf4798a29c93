"""Where QMPClient differs from the peer on purpose: one test for each line of doc/switch-from-qemu-qmp.md."""

import asyncio
import gc
import json
import logging
import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import drover.compat.qmp as package
from drover.compat.qmp import EventListener, ExecInterruptedError, ExecuteError, QMPClient, QMPError, Runstate
from drover.compat.qmp.error import ProtocolError
from drover.compat.qmp.events import HISTORY_SIZE, QUEUE_SIZE, ListenerEndedError
from drover.compat.qmp.protocol import ConnectError, StateError
from drover.compat.qmp.qmp_client import BadReplyError, GreetingError, NegotiationError
from drover.testing.fake import Do, FakeQemu

SOON = 5.0
Scenario = Callable[[QMPClient, FakeQemu], Coroutine[Any, Any, None]]


def run(scenario: Scenario, fake: FakeQemu, client: QMPClient | None = None) -> None:
    """Run `scenario` with a client that is connected to `fake`."""

    async def main() -> None:
        qmp = client or QMPClient("test")
        await asyncio.wait_for(qmp.connect(str(fake.path)), SOON)
        try:
            await asyncio.wait_for(scenario(qmp, fake), SOON * 2)
        finally:
            try:
                await qmp.disconnect()
            except (EOFError, ProtocolError):
                pass

    with fake:
        asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_listeners_end_when_the_server_goes() -> None:
    async def scenario(qmp: QMPClient, fake: FakeQemu) -> None:
        waiting = asyncio.create_task(qmp.events.get())
        with qmp.listener("STOP") as stops:
            looped = asyncio.create_task(collect(stops))
            fake.event("STOP")
            await waiting
            waiting = asyncio.create_task(qmp.events.get())
            await asyncio.sleep(0)
            fake.hang_up()
            with pytest.raises(ListenerEndedError) as ended:
                await waiting
            assert isinstance(ended.value.__cause__, EOFError)
            assert await looped == ["STOP"]

    async def collect(listener: EventListener) -> list[object]:
        return [event["event"] async for event in listener]

    run(scenario, FakeQemu())


def test_listeners_end_when_we_disconnect_and_a_new_session_opens_them_empty() -> None:
    async def scenario(qmp: QMPClient, fake: FakeQemu) -> None:
        fake.event("STOP")
        await until(lambda: not qmp.events.empty())
        waiting = asyncio.create_task(QMPClient().events.get())  # never connected: nothing ends it
        await qmp.disconnect()
        assert not waiting.done()
        waiting.cancel()
        await qmp.connect(str(fake.path))
        assert qmp.events.empty()
        await qmp.disconnect()
        with pytest.raises(ListenerEndedError):
            await qmp.events.get()

    run(scenario, FakeQemu())


def test_queue_and_history_are_bounded_and_the_loss_is_counted() -> None:
    async def main() -> None:
        listener = EventListener()
        for number in range(QUEUE_SIZE + 3):
            await listener.put(package.Message({"event": str(number)}))
        assert listener.lost == 3
        assert (await listener.get())["event"] == "3"
        assert len(listener.history) == HISTORY_SIZE
        assert listener.history_lost == QUEUE_SIZE + 3 - HISTORY_SIZE

    asyncio.run(main())


def test_a_filter_that_fails_ends_its_listener_only() -> None:
    async def scenario(qmp: QMPClient, fake: FakeQemu) -> None:
        with qmp.listener((), lambda event: bool(event["nothing"])) as broken:
            fake.event("STOP")
            assert (await qmp.events.get())["event"] == "STOP"
            with pytest.raises(ListenerEndedError) as ended:
                await broken.get()
            assert isinstance(ended.value.__cause__, KeyError)
            assert await qmp.execute("query-status")

    run(scenario, FakeQemu())


def test_a_listener_of_ones_own_may_wait_in_put() -> None:
    class Slow(EventListener):
        async def put(self, event: package.Message) -> None:
            await asyncio.sleep(0.01)
            await super().put(event)

    async def scenario(qmp: QMPClient, fake: FakeQemu) -> None:
        slow = Slow()
        with qmp.listen(slow):
            fake.event("STOP")
            assert (await slow.get())["event"] == "STOP"

    run(scenario, FakeQemu())


def test_disconnect_after_an_announced_end_is_quiet() -> None:
    async def scenario(qmp: QMPClient, fake: FakeQemu) -> None:
        await qmp.execute("quit")
        await until(lambda: qmp.runstate is Runstate.DISCONNECTING)
        await qmp.disconnect()
        assert qmp.runstate is Runstate.IDLE

    run(scenario, FakeQemu())


def test_disconnect_after_any_other_end_says_it_once() -> None:
    async def scenario(qmp: QMPClient, fake: FakeQemu) -> None:
        task = asyncio.create_task(qmp.execute("query-status"))
        with pytest.raises(ExecInterruptedError) as interrupted:
            await task
        assert isinstance(interrupted.value.__cause__, EOFError)
        with pytest.raises(StateError) as state:
            await qmp.execute("query-status")
        assert isinstance(state.value.__cause__, EOFError)
        with pytest.raises(EOFError):
            await qmp.disconnect()
        await qmp.disconnect()
        await qmp.connect(str(fake.path))

    run(scenario, FakeQemu(script=lambda command, arguments: Do.HANG_UP if command == "query-status" else None))


def test_a_reply_that_is_too_long_is_a_protocol_error() -> None:
    async def scenario(qmp: QMPClient, fake: FakeQemu) -> None:
        fake.raw(b'{"event": "X", "data": {"a": "' + b"x" * 5000)
        await until(lambda: qmp.runstate is Runstate.DISCONNECTING)
        with pytest.raises(ProtocolError, match="limit of 4096"):
            await qmp.disconnect()

    run(scenario, FakeQemu(), QMPClient(readbuflen=4096))


def test_what_is_no_json_is_told_by_disconnect() -> None:
    async def scenario(qmp: QMPClient, fake: FakeQemu) -> None:
        fake.raw(b"garbage\n")
        await until(lambda: qmp.runstate is Runstate.DISCONNECTING)
        with pytest.raises(package.message.DeserializationError) as error:
            await qmp.disconnect()
        assert error.value.raw == b"garbage"

    run(scenario, FakeQemu())


def test_errors_without_an_id_do_not_end_the_session() -> None:
    async def scenario(qmp: QMPClient, fake: FakeQemu) -> None:
        await qmp.execute("query-status")
        fake.raw(b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n' * 1000)
        fake.event("STOP")
        await qmp.events.get()
        assert await qmp.execute("query-status")

    run(scenario, FakeQemu())


def test_a_server_that_echoes_no_ids() -> None:
    async def scenario(qmp: QMPClient, fake: FakeQemu) -> None:
        values = await asyncio.gather(qmp.execute("query-status"), qmp.execute("query-pci"))
        assert "status" in dict(values[0])  # type: ignore[call-overload]

    run(scenario, FakeQemu(echo_ids=False))


@pytest.mark.parametrize("own", [7, "__qmp#00000", ["a"], {"b": 1}])
def test_any_id_of_ones_own(own: object) -> None:
    async def scenario(qmp: QMPClient, fake: FakeQemu) -> None:
        replies = await asyncio.gather(*(qmp._raw({"execute": "query-status", "id": own}, False) for _ in range(2)))
        assert [reply["id"] for reply in replies] == [own, own]

    run(scenario, FakeQemu())


def test_a_cancelled_command_leaves_the_others_alone() -> None:
    held = iter([Do.HOLD])

    async def scenario(qmp: QMPClient, fake: FakeQemu) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(qmp.execute("query-status"), 0.05)
        fake.release()
        assert await qmp.execute("query-status")

    run(scenario, FakeQemu(script=lambda command, arguments: next(held, None) if command == "query-status" else None))


def test_a_descriptor_arrives_with_the_next_command() -> None:
    async def scenario(qmp: QMPClient, fake: FakeQemu) -> None:
        for name in ("a", "b"):
            null = os.open(os.devnull, os.O_RDONLY)
            qmp.send_fd_scm(null)
            os.close(null)
            await qmp.execute("getfd", {"fdname": name})
        assert fake.fds == [("getfd", 1), ("getfd", 1)]

    run(scenario, FakeQemu())


def test_secrets_stay_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def scenario(qmp: QMPClient, fake: FakeQemu) -> None:
        with pytest.raises(ExecuteError):
            await qmp.execute("set_password", {"protocol": "vnc", "password": "sesame"})

    run(scenario, FakeQemu(script=lambda command, arguments: Do.REFUSE if command == "set_password" else None))
    assert "set_password" in caplog.text
    assert "sesame" not in caplog.text


def test_arguments_without_json_fail_their_command_only() -> None:
    async def scenario(qmp: QMPClient, fake: FakeQemu) -> None:
        with pytest.raises(TypeError):
            await qmp.execute("query-status", {"a": object()})
        assert await qmp.execute("query-status")

    run(scenario, FakeQemu())


def test_a_descriptor_waits_its_turn_behind_commands() -> None:
    held = iter([Do.HOLD])

    async def scenario(qmp: QMPClient, fake: FakeQemu) -> None:
        asked = [asyncio.create_task(qmp.execute("query-status")) for _ in range(12)]  # more than are in flight at once
        await until(lambda: len(fake.commands) > 8)
        null = os.open(os.devnull, os.O_RDONLY)
        qmp.send_fd_scm(null)
        os.close(null)
        asked.append(asyncio.create_task(qmp.execute("getfd", {"fdname": "a"})))
        await asyncio.sleep(0.05)
        assert fake.commands.count("query-status") == 8
        fake.release()
        await asyncio.gather(*asked)
        assert fake.commands[-1] == "getfd"
        assert fake.fds == [("getfd", 1)]

    run(scenario, FakeQemu(script=lambda command, arguments: next(held, None) if command == "query-status" else None))


def test_nobody_complains_of_an_end_that_nobody_asks_for() -> None:
    complaints: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        with FakeQemu() as fake:
            qmp = QMPClient()
            await qmp.connect(str(fake.path))
            waiting = asyncio.create_task(qmp.events.get())
            fake.hang_up()
            with pytest.raises(ListenerEndedError):
                await waiting
            del qmp, waiting
            gc.collect()
            await asyncio.sleep(0.05)

    asyncio.run(main())
    assert not complaints


OPTIMISED = """
import asyncio, sys
from drover.compat.qmp import ConnectError, QMPClient
async def main():
    async def serve(reader, writer):
        writer.write(b'{"QMP": {"version": {}, "capabilities": []}}\\n')
        await reader.readline()
        writer.write(b'{"error": {"class": "GenericError", "desc": "no"}, "id": 1}\\n')
        await reader.read()
        writer.close()
    async with await asyncio.start_unix_server(serve, sys.argv[1]):
        try:
            await QMPClient().connect(sys.argv[1])
        except ConnectError as error:
            print(type(error.exc).__name__)
        await asyncio.sleep(0.05)
asyncio.run(main())
"""


def test_negotiation_is_checked_under_python_o(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3] / "build" / "py")}
    command = [sys.executable, "-O", "-c", OPTIMISED, str(tmp_path / "s")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.stdout == "NegotiationError\n", run.stderr


def test_pretty_servers_are_understood() -> None:
    async def scenario(qmp: QMPClient, fake: FakeQemu) -> None:
        assert qmp.greeting is not None
        assert qmp.greeting.QMP.capabilities == ["oob"]
        assert await qmp.execute("query-status")

    run(scenario, FakeQemu(pretty=True, cut=lambda data: (data[i : i + 7] for i in range(0, len(data), 7))))


def test_legacy_comes_with_the_package() -> None:
    assert package.legacy.QEMUMonitorProtocol


# -- servers that are no QEMU: lines said in turn, one for each line that came -------


Talk = Callable[[QMPClient, list[bytes]], Awaitable[None]]


async def talk(lines: list[bytes], scenario: Talk, **options: bool) -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=theirs)
    came: list[bytes] = []

    async def serve() -> None:
        if options.get("await_greeting", True):
            writer.write(lines.pop(0))
        while lines and (line := await reader.readline()):
            came.append(line)
            answer, number = lines.pop(0), json.loads(line).get("id")
            writer.write(answer.replace(b"ID", json.dumps(number).encode()))

    server = asyncio.create_task(serve())
    client = QMPClient()
    for name, value in options.items():
        setattr(client, name, value)
    try:
        await client.connect(ours)
        await scenario(client, came)
        await client.disconnect()
    finally:
        ours.close()
        server.cancel()
        writer.close()


GREETING = b'{"QMP": {"version": {}, "capabilities": [], "x-extra": 1}}\n'
READY = b'{"event": "EARLY"}\n{"return": {}, "id": ID}\n'  # an event may come before the capabilities' reply


def test_each_message_is_a_line_and_the_greeting_is_kept_as_it_came() -> None:
    async def scenario(client: QMPClient, came: list[bytes]) -> None:
        assert client.greeting is not None
        assert client.greeting._asdict()["QMP"] == {"version": {}, "capabilities": [], "x-extra": 1}
        assert dict(await client.events.get()) == {"event": "EARLY"}
        assert await client.execute("x") == 5
        assert [json.loads(line)["execute"] for line in came] == ["qmp_capabilities", "x"]

    asyncio.run(talk([GREETING, READY, b'{"return": 5, "id": ID}\n'], scenario))


def test_a_reply_that_is_none_fails_its_command_only() -> None:
    async def scenario(client: QMPClient, came: list[bytes]) -> None:
        with pytest.raises(BadReplyError) as bad:
            await client.execute("x")
        assert dict(bad.value.msg) == {"id": bad.value.sent["id"]}
        assert await client.execute("y") == []

    asyncio.run(talk([GREETING, READY, b'{"id": ID}\n', b'{"return": [], "id": ID}\n'], scenario))


def test_an_agent_without_greeting_and_negotiation() -> None:
    async def scenario(client: QMPClient, came: list[bytes]) -> None:
        assert client.greeting is None
        assert await client.execute("guest-ping") == {}

    asyncio.run(talk([b'{"return": {}}\n'], scenario, await_greeting=False, negotiate=False))


def test_a_greeting_without_negotiation() -> None:
    async def scenario(client: QMPClient, came: list[bytes]) -> None:
        assert client.greeting is not None
        assert await client.execute("qmp_capabilities") == {}

    asyncio.run(talk([GREETING, b'{"return": {}, "id": ID}\n'], scenario, negotiate=False))


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ([b'{"hello": 1}\n'], GreetingError),
        ([b"hello\n"], GreetingError),
        ([GREETING, b'{"error": {"class": "GenericError", "desc": "no"}, "id": ID}\n'], NegotiationError),
    ],
)
def test_what_is_no_qmp_server_is_told_apart(lines: list[bytes], cause: type[Exception]) -> None:
    async def never(client: QMPClient, came: list[bytes]) -> None:
        raise AssertionError

    with pytest.raises(ConnectError, match="Failed to establish session") as error:
        asyncio.run(talk(list(lines), never))
    assert isinstance(error.value.exc, cause)


# -- listening ---------------------------------------------------------


def test_a_server_takes_no_ones_place_and_one_caller_only(tmp_path: Path) -> None:
    path = str(tmp_path / "qmp")

    async def main() -> None:
        first, second = QMPClient(), QMPClient()
        await first.start_server(path)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with pytest.raises(ConnectError) as taken:
            await second.start_server(path)
        assert isinstance(taken.value.exc, OSError)
        assert second.runstate is Runstate.IDLE
        accepting = asyncio.create_task(first.accept())
        _, caller = await asyncio.open_unix_connection(path)
        await asyncio.sleep(0.05)
        with pytest.raises(FileNotFoundError):  # it goes with the listening, as with asyncio's from Python 3.13 on
            await asyncio.open_unix_connection(path)
        accepting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await accepting
        assert first.runstate is Runstate.IDLE
        caller.close()
        await second.start_server(path)  # what is left of the first one is no obstacle
        await second.disconnect()

    asyncio.run(main())


def test_descriptors_need_a_unix_socket() -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(GREETING)
            await reader.readline()
            writer.write(b'{"return": {}}\n')
            await reader.read()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            client = QMPClient()
            await client.connect(("127.0.0.1", server.sockets[0].getsockname()[1]))
            with pytest.raises(QMPError, match="UNIX"):
                client.send_fd_scm(0)
            await client.disconnect()

    asyncio.run(main())


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS for a server at localhost, and for a client that trusts it."""
    if shutil.which("openssl") is None:
        pytest.fail("no openssl here: apt-get install openssl")
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    make += f" -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout {key} -out {certificate}"
    subprocess.run(make.split(), check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=str(certificate))


def test_tls_when_connecting_and_not_when_listening(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        while await reader.readline():
            writer.write(b'{"return": {}}\n')
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=contexts[0], family=socket.AF_INET) as server:
            address = ("127.0.0.1", server.sockets[0].getsockname()[1])
            client = QMPClient()
            await asyncio.wait_for(client.connect(address, contexts[1]), SOON)
            assert await client.execute("x") == {}
            await client.disconnect()
            with pytest.raises(ConnectError):
                await client.connect(address, ssl.create_default_context())
            with pytest.raises(ConnectError, match="TLS"):
                await client.start_server(("127.0.0.1", 0), contexts[0])
            await asyncio.sleep(0.05)  # the server ends its side

    asyncio.run(main())
