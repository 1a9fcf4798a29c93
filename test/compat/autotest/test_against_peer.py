"""avocado-vt's monitors and ours, on the same QEMU: the same names, answers, and errors."""

import inspect
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compat.autotest.conftest import Machine
from compat.autotest.peer import load
from drover.compat import autotest

try:
    peer = load()
except ImportError as missing:
    if sys.version_info < (3, 12):
        raise  # ./bootstrap installs it
    pytest.skip(f"avocado-vt is not for this Python: {missing}", allow_module_level=True)


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virttest.utils_logfile._log_file_dir", str(tmp_path))


PUBLIC = sorted(
    name
    for name, value in vars(peer).items()
    if not name.startswith("_") and getattr(value, "__module__", None) == peer.__name__
)
KINDS = [name for name in PUBLIC if inspect.isclass(getattr(peer, name))]
USED = ("_has_command", "_build_args", "_recvall", "_data_available", "_acquire_lock", "_log_lines",
        "_get_migrate_capability", "_get_migrate_parameter", "_parse_info_block_old", "_parse_info_block_1_5",
        "_parse_info_block_qmp", "_build_cmd", "_send", "_has_hmp_command", "__init__", "__reduce__")  # fmt: skip


def shape(function: Any) -> list[tuple[Any, ...]]:
    return [(item.name, item.kind, item.default) for item in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", PUBLIC)
def test_name(name: str) -> None:
    theirs, mine = getattr(peer, name), getattr(autotest, name)
    assert inspect.isclass(theirs) == inspect.isclass(mine)
    if not inspect.isclass(theirs) or "__init__" in vars(theirs):
        assert shape(theirs) == shape(mine)


@pytest.mark.parametrize("name", KINDS)
def test_family(name: str) -> None:
    def family(kind: Any) -> list[str]:
        return [base.__name__ for base in kind.__mro__ if not base.__name__.startswith("_")]

    assert family(getattr(peer, name)) == family(getattr(autotest, name))


def members() -> Iterator[Any]:
    for kind in KINDS:
        for name in dir(getattr(peer, kind)):
            inherited = name in dir(Exception) and not issubclass(getattr(peer, kind), peer.Monitor)
            if (not name.startswith("_") or name in USED) and not inherited:
                yield pytest.param(kind, name, id=f"{kind}.{name}")


@pytest.mark.parametrize(("kind", "name"), list(members()))
def test_member(kind: str, name: str) -> None:
    theirs, mine = getattr(getattr(peer, kind), name), getattr(getattr(autotest, kind), name)
    if inspect.isroutine(theirs) and name != "__reduce__":
        assert shape(theirs) == shape(mine)
    elif not callable(theirs) and not hasattr(theirs, "pattern"):
        assert theirs == mine


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("MonitorConnectError", ("m",)),
        ("MonitorSocketError", ("m", OSError("x"))),
        ("MonitorNotSupportedCmdError", ("m", "c")),
        ("HumanCmdError", ("c", "o")),
        ("QMPCmdError", ("c", {"a": 1}, {"class": "x"})),
        ("QMPEventError", ("c", "E", "vm", "m")),
    ],
)
def test_error(name: str, arguments: tuple[Any, ...]) -> None:
    theirs, mine = getattr(peer, name)(*arguments), getattr(autotest, name)(*arguments)
    assert (str(theirs), theirs.args, vars(theirs)) == (str(mine), mine.args, vars(mine))


def outcome(act: Callable[[Any], Any], monitor: Any) -> Any:
    try:
        return act(monitor)
    except Exception as error:
        return type(error).__name__, str(error)


QMP: dict[str, Callable[[Any], Any]] = {
    "status": lambda m: (m.get_status(), m.verify_status("paused"), m.verify_status("running"), m.is_responsive()),
    "prelaunch": lambda m: m.verify_status("prelaunch"),
    "greeting": lambda m: m.get_greeting(),
    "commands": lambda m: m._supported_cmds,
    "refused": lambda m: m.cmd("blockdev-del", {"node-name": "none"}),
    "unknown": lambda m: m.cmd("no-such-command"),
    "obj": lambda m: m.cmd_obj({"execute": "query-name", "id": "a"}),
    "obj without id": lambda m: m.cmd_obj({"execute": "query-name"}),
    "raw refused": lambda m: m.cmd_obj({"execute": "no-such", "id": 7}),
    "raw no object": lambda m: m.cmd_raw("[1]"),
    "qmp": lambda m: m.cmd_qmp("query-kvm", q_id="x"),
    "hmp": lambda m: m.human_monitor_cmd("info version"),
    "hmp nothing": lambda m: m.human_monitor_cmd("no_such_thing"),
    "info falls back": lambda m: m.info("registers")[:20],
    "query": lambda m: m.query("kvm"),
    "workable": lambda m: [m.get_workable_cmd(c) for c in ("device-add", "block_commit", "exit_preconfig", "none")],
    "verify": lambda m: m.verify_supported_cmd("none"),
    "verify hmp": lambda m: (m.verify_supported_hmp_cmd("info"), m.verify_supported_hmp_cmd("none")),
    "args": lambda m: m.send_args_cmd("qom-get path=/machine,property=type;query-kvm"),
    "args hmp": lambda m: m.send_args_cmd("info name"),
    "args none": lambda m: m.send_args_cmd("no_such a=b"),
    "blocks": lambda m: m.info_block(),
    "job": lambda m: (m.query_block_job("drive0"), m.query_jobs()),
    "backing": lambda m: (m.get_backingfile("drive0"), m.get_backingfile("none")),
    "numa": lambda m: m.info_numa(),
    "capability": lambda m: (m.get_migrate_capability("xbzrle"), m.set_migrate_capability(False, "xbzrle")),
    "no capability": lambda m: m.get_migrate_capability("none"),
    "no capability with x": lambda m: m.set_migrate_capability(True, "none", False),
    "parameter": lambda m: (m.get_migrate_parameter("downtime-limit"), m.get_migrate_parameter("none")),
    "set parameter": lambda m: m.set_migrate_parameter("downtime-limit", 300),
    "no parameter": lambda m: m.set_migrate_parameter("none", 1, True, False),
    "speed": lambda m: m.migrate_set_speed("10M"),
    "cache": lambda m: m.get_migrate_cache_size(),
    "preconfig": lambda m: m.exit_preconfig(),
    "add and remove": lambda m: (m.netdev_add("user", "n0", restrict=True), m.netdev_del("n0")),
    "remove nothing": lambda m: m.netdev_del("n9"),
    "link": lambda m: m.set_link("n9", True),
    "change": lambda m: m.change_media("empty", "x"),
    "stream": lambda m: m.block_stream("none", cmd="block_stream"),
    "commit": lambda m: m.block_commit("none", cmd="none", correct=False),
    "speed of none": lambda m: m.set_block_job_speed("none", 5),
    "cancel": lambda m: m.cancel_block_job("none"),
    "resize": lambda m: m.block_resize("none", 1048576),
    "bitmap": lambda m: (m.block_dirty_bitmap_add("drive0", "b0"), m.block_dirty_bitmap_clear("drive0", "b0"),
                         m.block_dirty_bitmap_disable("drive0", "b0"), m.block_dirty_bitmap_remove("drive0", "b0")),
    "no bitmap": lambda m: m.block_dirty_bitmap_remove("drive0", "b9"),
    "x bitmap": lambda m: m.x_block_dirty_bitmap_enable("drive0", "b9"),
    "key": lambda m: (m.press_release_key("a"), m.press_release_key("a", False), m.sendkey("b")),
    "qom": lambda m: m.qom_get("/machine", "type"),
    "exports": lambda m: m.query_block_exports(),
    "nbd": lambda m: m.nbd_server_stop(),
    "sev": lambda m: m.query_sev(),
    "fd": lambda m: m.closefd("none"),
    "reset": lambda m: (m.system_reset(), m.get_event("RESET")["event"]),
    "no events": lambda m: (m.clear_events(), m.get_event("NONE")),
    "numa node": lambda m: m.set_numa_node("node", nodeid=0),
    "transaction": lambda m: m.transaction([]),
}  # fmt: skip

HUMAN: dict[str, Callable[[Any], Any]] = {
    "status": lambda m: (m.get_status(), m.verify_status("paused"), m.is_responsive()),
    "commands": lambda m: m._supported_cmds,
    "cmd": lambda m: m.cmd("info version"),
    "unknown": lambda m: m.cmd("no_such_command"),
    "empty": lambda m: m.human_monitor_cmd(""),
    "error": lambda m: m.cmd("netdev_del none"),
    "info": lambda m: (m.info("name"), m.query("kvm")),
    "args": lambda m: m.send_args_cmd("info name;info kvm"),
    "no convert": lambda m: m.send_args_cmd("info kvm;info name", convert=False),
    "args named": lambda m: m.send_args_cmd("block_resize device=none,size=5"),
    "blocks": lambda m: m.info_block()["empty"],
    "numa": lambda m: m.info_numa(),
    "capability": lambda m: (m.get_migrate_capability("xbzrle"), m.set_migrate_capability(False, "xbzrle")),
    "no capability": lambda m: m.get_migrate_capability("none"),
    "set no capability": lambda m: m.set_migrate_capability(True, "none"),
    "parameter": lambda m: (m.get_migrate_parameter("downtime-limit"), m.get_migrate_parameter("none")),
    "speed": lambda m: m.migrate_set_speed(5),
    "progress": lambda m: m.get_migrate_progress(),
    "verify": lambda m: m.verify_supported_cmd("none"),
    "workable": lambda m: [m.get_workable_cmd(c) for c in ("device-add", "block-job-cancel", "none")],
    "stream": lambda m: m.block_stream("none"),
    "commit": lambda m: m.block_commit("none"),
    "cancel": lambda m: m.cancel_block_job("none"),
    "job": lambda m: m.query_block_job("none"),
    "backing": lambda m: m.get_backingfile("drive0"),
    "keys": lambda m: (m.sendkey("a"), m.mouse_move(1, 1), m.mouse_button(0)),
    "reset": lambda m: m.system_reset(),
    "eject": lambda m: m.eject_cdrom("empty"),
    "not here": lambda m: m.job_dismiss("a"),
    "bitmap": lambda m: m.block_dirty_bitmap_merge("a", [], "b"),
}


def both(machine: Machine, kind: str) -> tuple[Any, Any]:
    name = "QMPMonitor" if kind == "qmp" else "HumanMonitor"
    theirs = getattr(peer, name)(machine, "m", machine.params(kind, "theirs"))
    return theirs, getattr(autotest, name)(machine, "m", machine.params(kind, "mine"))


@pytest.mark.parametrize(("kind", "acts"), [("qmp", QMP), ("human", HUMAN)])
def test_answers(machine: Machine, kind: str, acts: dict[str, Callable[[Any], Any]]) -> None:
    theirs, mine = both(machine, kind)
    different = {}
    for name, act in acts.items():
        expected, got = outcome(act, theirs), outcome(act, mine)
        if expected != got:
            different[name] = (expected, got)
    theirs.close()
    mine.close()
    assert not different


def test_descriptors(machine: Machine) -> None:
    reading, writing = os.pipe()
    for monitor in both(machine, "qmp") + both(machine, "human"):
        assert monitor.getfd(reading, "p") in ({}, "")
        assert monitor.closefd("p") in ({}, "")
        monitor.close()
    os.close(reading)
    os.close(writing)


def test_events_stay_until_they_are_cleared(machine: Machine) -> None:
    for monitor in both(machine, "qmp"):
        monitor.cmd("cont")
        monitor.cmd("stop")
        names = [event["event"] for event in monitor.get_events()]
        assert names.index("RESUME") < names.index("STOP")
        assert [event["event"] for event in monitor.get_events()] == names
        monitor.clear_event("RESUME")
        assert monitor.get_event("RESUME") is None
        assert monitor.get_event("STOP")["event"] == "STOP"
        monitor.clear_events()
        assert monitor.get_events() == []
        monitor.close()


@pytest.mark.parametrize("kind", ["qmp", "human"])
def test_pickled(machine: Machine, kind: str) -> None:
    for monitor in both(machine, kind):
        packed = pickle.dumps(monitor)
        monitor.close()
        again = pickle.loads(packed)
        assert again.is_responsive()
        assert (again.vm.name, again.name, again.protocol) == ("vm1", "m", kind)
        again.close()


@pytest.mark.parametrize("name", ["QMPMonitor", "HumanMonitor"])
def test_nobody_there(machine: Machine, name: str) -> None:
    for side in (peer, autotest):
        with pytest.raises(side.MonitorConnectError):
            getattr(side, name)(machine, "m", {"monitor_filename": "/nowhere"})
        quiet = getattr(side, name)(machine, "m", {"monitor_filename": "/nowhere"}, suppress_exceptions=True)
        assert quiet.is_responsive() is False


def test_created(machine: Machine) -> None:
    for kind, name in (("qmp", "QMPMonitor"), ("human", "HumanMonitor")):
        monitor = autotest.wait_for_create_monitor(machine, "m", machine.params(kind, "mine"), 20)
        assert type(monitor).__name__ == name
        monitor.close()
    with pytest.raises(autotest.MonitorConnectError):
        autotest.wait_for_create_monitor(machine, "m", {"monitor_filename": "/nowhere"}, 0.01)


def test_the_end(machine: Machine) -> None:
    theirs, mine = both(machine, "qmp")
    theirs.close()
    assert mine.quit() == {}
    assert mine.is_responsive() is False
    with pytest.raises(autotest.MonitorError):
        mine.cmd("query-status")
    mine.close()
    with pytest.raises(autotest.MonitorSocketError):  # the peer: ValueError
        mine.cmd("query-status")
