"""Ours and qemu.qmp itself, side by side: the same answers of the same real QEMU, and the same messages."""

import asyncio
import importlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from drover.errors import ArgumentError

pytest.importorskip("qemu.qmp")

Start = Callable[..., Path]
Loaded = tuple[ModuleType, ModuleType]


def load(root: str, module: str = "") -> ModuleType:
    return importlib.import_module(root + module)


def both(scenario: Callable[[ModuleType, Path], Any], start: Start) -> tuple[Any, Any]:
    return scenario(load("qemu.qmp"), start()), scenario(load("drover.compat.qmp"), start())


def told(error: BaseException) -> tuple[str, str]:
    return type(error).__name__, str(error)


async def client_scenario(qmp: ModuleType, path: Path) -> list[Any]:
    seen: list[Any] = []
    client = qmp.QMPClient("it")
    seen += [repr(client), client.name, client.readbuflen, client.greeting, client.await_greeting, client.negotiate]
    seen.append(client.logger.name.removeprefix(qmp.__name__))
    watcher = asyncio.create_task(client.runstate_changed())
    await asyncio.sleep(0)
    with pytest.raises(qmp.ConnectError) as refused:
        await client.connect(str(path) + "-nobody")
    seen += [told(refused.value), refused.value.error_message, type(refused.value.exc), (await watcher).name]
    with pytest.raises(qmp.StateError) as idle:
        await client.execute("query-status")
    seen += [idle.value.state.name, idle.value.required.name]
    await client.connect(str(path))
    seen += [repr(client), dict(client.greeting._asdict()), dict(client.greeting.QMP.version["qemu"])]
    seen += [list(client.greeting.QMP.capabilities), await client.execute("query-status")]
    seen += [await client.execute("query-name", {}), await client.execute_msg(qmp.Message({"execute": "query-name"}))]
    with pytest.raises(qmp.ExecuteError) as failed:
        await client.execute("blockdev-del", {"node-name": "none"})
    error = failed.value
    seen += [told(error), error.error_class, error.error.error.desc, error.error.id, dict(error.sent)]
    seen.append(dict(error.received))
    with pytest.raises(qmp.QMPError) as twice:
        await client.connect(str(path))
    seen.append(told(twice.value)[0])
    with pytest.raises(ValueError, match="Requires"):
        await client.execute_msg(qmp.Message({"id": "a"}))
    seen.append(dict(await client._raw({"execute": "query-name", "id": "mine"}, assign_id=False)))
    seen.append(dict(await client._raw({"execute": "no-such"}, assign_id=False)))
    seen.append(dict(await client._raw(b'{"exec-oob": "query-yank", "id": "x"}', assign_id=False)))
    seen.append(await client.execute("query-yank", oob=True))
    null = os.open(os.devnull, os.O_RDONLY)
    client.send_fd_scm(null)
    os.close(null)
    seen += [await client.execute("getfd", {"fdname": "f"}), await client.execute("closefd", {"fdname": "f"})]
    await client.disconnect()
    await client.disconnect()
    seen.append(client.runstate.name)
    return seen


@pytest.mark.live
def test_the_client_gives_the_same_answers(start: Start) -> None:
    peer, ours = both(lambda qmp, path: asyncio.run(client_scenario(qmp, path)), start)
    assert peer == ours


async def event_scenario(qmp: ModuleType, path: Path) -> list[Any]:
    seen: list[Any] = []
    client = qmp.QMPClient()
    await client.connect(str(path))
    stops = qmp.EventListener("STOP")
    odd = qmp.EventListener(("STOP", "RESUME"), lambda event: event["event"] == "RESUME")
    with client.listen(stops, odd), client.listener() as everything:
        await client.execute("cont")
        await client.execute("stop")
        seen += [repr(stops), (await stops.get())["event"], stops.empty(), [e["event"] for e in stops.history]]
        seen += [(await odd.get())["event"], odd.empty(), sorted((await everything.get()).keys())]
        with pytest.raises(qmp.events.ListenerError) as again:
            client.register_listener(stops)
        seen += [told(again.value), [e["event"] for e in everything.clear()]]
    with pytest.raises(qmp.events.ListenerError) as default:
        client.remove_listener(client.events)
    seen.append(told(default.value))
    async for event in client.events:
        seen.append(event["event"])
        if event["event"] == "STOP":
            break
    seen += [client.events.empty(), [event["event"] for event in client.events.history]]
    await client.disconnect()
    return seen


@pytest.mark.live
def test_listeners_hear_the_same(start: Start) -> None:
    peer, ours = both(lambda qmp, path: asyncio.run(event_scenario(qmp, path)), start)
    assert peer == ours


def legacy_scenario(qmp: ModuleType, path: Path) -> list[Any]:
    legacy = load(qmp.__name__, ".legacy")
    seen: list[Any] = []
    vm = legacy.QEMUMonitorProtocol(str(path), nickname="it")
    with vm:
        with pytest.raises(qmp.StateError):
            vm.cmd("query-status")
        seen += [vm.connect(), vm.cmd("query-status"), vm.cmd_raw("query-name", {}), vm.cmd_raw("no-such")]
        seen += [vm.cmd_obj({"execute": "query-name"}), vm.cmd_obj({"execute": "no-such", "id": "mine"})]
        with pytest.raises(qmp.ExecuteError) as failed:
            vm.cmd("blockdev-del", **{"node-name": "none"})
        seen += [told(failed.value), failed.value.error_class, dict(failed.value.sent), dict(failed.value.received)]
        seen += [vm.pull_event(), vm.get_events(), vm.cmd("cont"), vm.cmd("stop")]
        first = vm.pull_event(wait=5.0)
        seen += [first["event"], sorted(first), [event["event"] for event in vm.get_events(wait=True)]]
        vm.cmd("cont")
        vm.clear_events()
        seen.append(vm.get_events())
        with pytest.raises(TimeoutError):
            vm.pull_event(wait=0.05)
        vm.settimeout(5.0)
        null = os.open(os.devnull, os.O_RDONLY)
        vm.send_fd_scm(null)
        os.close(null)
        seen += [vm.cmd("getfd", fdname="f"), vm.connect.__name__]
        with pytest.raises(qmp.StateError):
            vm.connect()
    vm.close()
    # with ids: without one, the peer may take the greeting, which it does not wait for, for a reply
    seen += [vm.connect(negotiate=False), vm.cmd_obj({"execute": "query-status", "id": "a"})]
    seen.append(vm.cmd_obj({"execute": "qmp_capabilities", "id": "b"}))
    vm.close()
    for address in ("localhost:1", ":7", "/a/b", "file", "a:b:c"):
        seen.append(legacy.QEMUMonitorProtocol.parse_address(address))
    with pytest.raises(legacy.QMPBadPortError) as bad:
        legacy.QEMUMonitorProtocol.parse_address("host:http")
    seen.append(told(bad.value))
    end_loop(vm)
    return seen


def end_loop(vm: Any) -> None:
    """The peer's object made an event loop, set it for the whole thread, and leaves it open."""
    if hasattr(vm, "_aloop"):
        vm._aloop.close()
        asyncio.set_event_loop(None)


@pytest.mark.live
def test_the_blocking_client_gives_the_same_answers(start: Start) -> None:
    peer, ours = both(legacy_scenario, start)
    assert peer == ours


@pytest.mark.live
@pytest.mark.parametrize("root", ["qemu.qmp", "drover.compat.qmp"])
def test_qemu_calls_a_blocking_server(root: str, start: Start, tmp_path: Path) -> None:
    path = tmp_path / "listening"
    vm = load(root, ".legacy").QEMUMonitorProtocol(str(path), server=True)
    start(path)
    assert "QMP" in vm.accept(timeout=10)
    assert vm.cmd("query-status")["running"] is False
    vm.close()
    end_loop(vm)


@pytest.mark.live
@pytest.mark.parametrize("root", ["qemu.qmp", "drover.compat.qmp"])
def test_qemu_calls_a_client_that_listens(root: str, start: Start, tmp_path: Path) -> None:
    path = tmp_path / "listening"

    async def scenario() -> None:
        client = load(root).QMPClient()
        with pytest.raises(load(root).StateError):
            await client.accept()
        await client.start_server(str(path))
        assert client.runstate.name == "CONNECTING"
        start(path)
        await asyncio.wait_for(client.accept(), 10)
        assert client.greeting.QMP.capabilities == ["oob"]
        await client.execute("query-status")
        await client.disconnect()

    asyncio.run(scenario())


@pytest.mark.parametrize("value", [b'{"a": [1, "\\u00e4"]}', {"b": {"c": None}}, b"{}"])
def test_messages_are_the_same(value: Any) -> None:
    peer, ours = load("qemu.qmp").Message(value), load("drover.compat.qmp").Message(value)
    assert (bytes(peer), str(peer), repr(peer), dict(peer)) == (bytes(ours), str(ours), repr(ours), dict(ours))
    for message in (peer, ours):
        message["id"] = "x"
        message.pop("b", None)
    assert (bytes(peer), len(peer), list(peer)) == (bytes(ours), len(ours), list(ours))


@pytest.mark.parametrize("value", [b"{", b"[1]", b'"x"'])
def test_wrong_messages_fail_the_same(value: bytes) -> None:
    errors = []
    for root in ("qemu.qmp", "drover.compat.qmp"):
        with pytest.raises(load(root, ".error").ProtocolError) as failed:
            load(root).Message(value)
        errors.append((*told(failed.value), failed.value.error_message))
        load(root).Message(value, eager=False)
    assert errors[0] == errors[1]


@pytest.mark.parametrize("raw", [{}, {"QMP": 1}, {"QMP": {"version": {}}}, {"QMP": {"version": {}, "capabilities": 1}}])
def test_wrong_greetings_fail_the_same(raw: Any) -> None:
    errors = []
    for root in ("qemu.qmp", "drover.compat.qmp"):
        with pytest.raises((KeyError, TypeError)) as failed:
            load(root, ".models").Greeting(raw)
        errors.append(told(failed.value))
    assert errors[0] == errors[1]


def test_importing_it_says_nothing() -> None:
    logger = logging.getLogger("drover.compat.qmp")
    assert any(isinstance(handler, logging.NullHandler) for handler in logger.handlers)


@pytest.mark.live
def test_what_qemu_cannot_parse_costs_one_command(start: Start) -> None:
    """QEMU answers it with errors that have no id; of those, the peer's session dies."""
    legacy = load("drover.compat.qmp", ".legacy")
    with legacy.QEMUMonitorProtocol(str(start())) as vm:
        vm.connect()
        vm.settimeout(10.0)
        with pytest.raises(load("drover.compat.qmp").ExecuteError, match="JSON"):
            vm.cmd("query-status", x="\ud800")  # half a character
        assert vm.cmd("query-status")["running"] is False


@pytest.mark.live
@pytest.mark.slow  # QEMU takes ten seconds to read it
def test_qemu_takes_what_we_let_pass(start: Start) -> None:
    """QEMU's parser takes 2,097,152 tokens; with more, and `oob`, it aborts."""
    legacy = load("drover.compat.qmp", ".legacy")
    with legacy.QEMUMonitorProtocol(str(start())) as vm:
        vm.connect()
        vm.settimeout(60.0)
        with pytest.raises(load("drover.compat.qmp").ExecuteError, match="Parameter 'x' is unexpected"):
            vm.cmd("query-status", x=[0] * 1_048_500)
        with pytest.raises(ArgumentError, match="QEMU takes"):
            vm.cmd("query-status", x=[0] * 1_048_600)
        assert vm.cmd("query-status")["running"] is False
