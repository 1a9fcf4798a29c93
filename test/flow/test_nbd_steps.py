"""Flows on NBD servers and exports, failed and cancelled at each of their steps."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from drover.errors import (
    ArgumentError,
    CommandError,
    DroverError,
    MonitorTimeout,
    NbdError,
    NbdRefused,
    NbdTimeout,
    NbdUnreachable,
    NotSupported,
)
from drover.monitor.drive import drive
from drover.ops import exports, nbd, nodes, rescue
from drover.ops.port import Port
from drover.testing.model import QemuModel
from drover.testing.nbd_model import NbdServerModel
from drover.testing.scripted import Fault, ScriptedPort

Flow = Callable[[Port], Coroutine[Any, Any, object]]

THERE = "storage:10809"
NODE = {"driver": "nbd", "node-name": "n", "server": {"type": "inet", "host": "storage", "port": "10809"}}


def prepare(version: str = "7.2") -> QemuModel:
    model = QemuModel(version=version)
    for address in (THERE, f"tcp:{THERE}"):
        model.nbd_servers[address] = NbdServerModel({"disk": (1 << 20, False), "cd": (1 << 20, True)})
    model.nodes["disk1"] = {"driver": "null-co"}
    model.sizes["disk1"] = 1 << 20
    return model


def run(flow: Flow, port: ScriptedPort) -> BaseException | None:
    try:
        drive(flow(port))
    except (DroverError, asyncio.CancelledError) as error:
        return error
    return None


def count(flow: Flow, before: Flow | None = None) -> int:
    model = prepare()
    if before is not None:
        drive(before(ScriptedPort(model)))
    port = ScriptedPort(model)
    drive(flow(port))
    return len(port.steps)


def add(port: Port) -> Coroutine[Any, Any, object]:
    return nbd.blockdev_add_nbd(port, "n", THERE, "disk")


@pytest.mark.parametrize("fault", Fault)
def test_a_node_is_opened_or_nothing_stays(fault: Fault) -> None:
    for step in range(count(add)):
        model = prepare()
        before = model.left()
        port = ScriptedPort(model, fault, step)
        error = run(add, port)
        assert (error is not None) == port.struck
        assert not port.reservations._held
        if error is None:
            assert model.nodes["n"]["export"] == "disk"
        elif fault is not Fault.CLOSED:
            assert model.left() == before, f"{fault.name} at step {step} of {port.steps}"
            assert not getattr(error, "__notes__", [])


@pytest.mark.parametrize("export", ["disk", "cd", "none"])
def test_qemu_is_told_only_of_a_server_that_will_do(export: str) -> None:
    port = ScriptedPort(prepare())
    if export == "disk":
        node = drive(nbd.blockdev_add_nbd(port, "n", THERE, export))
        assert (node.node, node.size, node.export.preferred_block) == ("n", 1 << 20, 4096)
        return
    with pytest.raises(NbdRefused) as caught:
        drive(nbd.blockdev_add_nbd(port, "n", THERE, export))
    assert caught.value.code == {"cd": "read-only", "none": "unknown-export"}[export]
    assert port.steps == ["dial"]


@pytest.mark.parametrize(
    ("fault", "kind"), [(Fault.REFUSED, NbdUnreachable), (Fault.LOST, NbdTimeout), (Fault.CANCELLED, None)]
)
def test_each_way_not_to_reach_a_server(fault: Fault, kind: type[NbdError] | None) -> None:
    for flow in (add, lambda port: nodes.blockdev_add(port, NODE), lambda port: nbd.check_nbd_server(port, THERE)):
        port = ScriptedPort(prepare(), fault, 0)
        assert type(run(flow, port)) is (kind or asyncio.CancelledError)
        assert port.steps == ["dial"]


def test_every_nbd_server_in_a_tree_is_asked_before_qemu_is() -> None:
    port = ScriptedPort(prepare())
    deep = {"driver": "raw", "node-name": "top", "file": {"driver": "throttle", "throttle-group": "g", "file": NODE}}
    with pytest.raises(NbdRefused):
        drive(nodes.blockdev_add(port, deep))
    with pytest.raises(NbdRefused, match="no-tls"):
        drive(nodes.blockdev_add(port, NODE | {"export": "disk", "tls-creds": "tls0"}))
    assert port.steps == ["dial", "dial"]
    drive(nodes.blockdev_add(port, NODE | {"export": "disk"}))
    assert port.steps[2:] == ["dial", "blockdev-add"]


@pytest.mark.parametrize(
    ("server", "address"),
    [
        ({"type": "unix", "path": "/a:b"}, "unix:/a:b"),
        ({"type": "unix", "path": "a", "abstract": True}, "@a"),
        ({"type": "inet", "host": "fd00::1", "port": "1"}, "[fd00::1]:1"),
        ({"type": "inet", "host": "unix", "port": "1"}, "tcp:unix:1"),
        ({"type": "vsock", "cid": "3", "port": "1"}, "vsock:3:1"),
        ({"type": "fd", "str": "f"}, None),
        ({"type": "inet", "host": 3}, None),
        (None, None),
    ],
)
def test_qemus_addresses_are_ours(server: Any, address: str | None) -> None:
    port = ScriptedPort(QemuModel())
    error = run(lambda port: nbd.check_nbd_nodes(port, {"driver": "nbd", "server": server}), port)
    assert port.steps == ([] if address is None else ["dial"])
    if address is not None:
        assert isinstance(error, NbdUnreachable)
        assert error.address == address
        assert port.locate(address) == {"type": server["type"], **server}


def test_arguments_of_a_node() -> None:
    port = ScriptedPort(prepare())
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("id", {"id": "1"}),
        ("id", {"id": "n" * 32}),
        ("address", {"address": ""}),
        ("export", {"export": "x" * 4097}),
        ("export", {"export": "\udc80"}),
        ("cache", {"cache": "most"}),
        ("discard", {"discard": "on"}),
        ("tls_hostname", {"tls_hostname": "x"}),
        ("reconnect_delay", {"reconnect_delay": -1}),
    ]
    for field, change in wrong:
        with pytest.raises(ArgumentError) as caught:
            drive(nbd.blockdev_add_nbd(port, **({"id": "n", "address": THERE, "export": "disk"} | change)))
        assert caught.value.field == field
    assert port.steps == []


# -- exports ---------------------------------------------------------------------------------------------------------


def give_out(port: Port) -> Coroutine[Any, Any, object]:
    async def flow() -> None:
        await exports.nbd_server_start(port, "@here")
        await exports.block_export_add(port, "e", "disk1", writable=True)

    return flow()


def take_back(port: Port) -> Coroutine[Any, Any, object]:
    return exports.block_export_del(port, "e")


@pytest.mark.parametrize("fault", Fault)
def test_taking_an_export_back_can_be_repeated_to_its_end(fault: Fault) -> None:
    for step in range(count(take_back, give_out)):
        model = prepare()
        drive(give_out(ScriptedPort(model)))
        port = ScriptedPort(model, fault, step)
        error = run(take_back, port)
        if port.steps[step].startswith("event") and fault in (Fault.LOST, Fault.LATE):
            assert error is None, "the event was lost, and a look shows that it has gone"
        drive(take_back(ScriptedPort(model)))
        assert model.exports.exports == {}


def test_an_export_in_use() -> None:
    model = prepare()
    port = ScriptedPort(model)
    drive(give_out(port))
    model.exports.used.add("e")
    with pytest.raises(CommandError, match="in use"):
        drive(take_back(port))
    assert drive(exports.query_block_exports(port))[0].node == "disk1"
    assert drive(exports.block_export_del(port, "e", mode="hard"))
    assert not drive(exports.block_export_del(port, "e", mode="hard"))


def test_an_export_that_stays_is_told() -> None:
    model = prepare()
    port = ScriptedPort(model)
    drive(give_out(port))
    model.exports._delete = lambda name: None  # type: ignore[method-assign]
    with pytest.raises(MonitorTimeout):
        drive(take_back(port))


def test_what_an_older_qemu_lacks_names_the_version() -> None:
    for version in ("7.2", "10.0"):
        model = prepare(version)
        port = ScriptedPort(model)
        flows: list[Flow] = [
            lambda port: exports.nbd_server_start(port, "@here", handshake_seconds=5),
            lambda port: exports.block_export_add(port, "e", "disk1", allow_inactive=True),
        ]
        for flow in flows:
            if version == "7.2":
                with pytest.raises(NotSupported) as caught:
                    drive(flow(port))
                assert caught.value.needs == "QEMU 10.0 or later"
                assert port.steps == []
            else:
                drive(flow(port))


def test_arguments_of_exports() -> None:
    port = ScriptedPort(prepare("10.0"))
    wrong: list[tuple[str, Flow]] = [
        ("address", lambda port: exports.nbd_server_start(port, "127.0.0.1:0")),
        ("max_connections", lambda port: exports.nbd_server_start(port, "@x", max_connections=-1)),
        ("handshake_seconds", lambda port: exports.nbd_server_start(port, "@x", handshake_seconds=1 << 32)),
        ("tls_authz", lambda port: exports.nbd_server_start(port, "@x", tls_authz="a")),
        ("name", lambda port: exports.block_export_add(port, "e", "n", name="x" * 5000)),
        ("mode", lambda port: exports.block_export_del(port, "e", mode="soft")),
        ("instances", lambda port: rescue.yank(port, [rescue.YankInstance("disk", "x")])),
    ]
    for field, flow in wrong:
        error = run(flow, port)
        assert isinstance(error, ArgumentError)
        assert error.field == field
    assert port.steps == []
