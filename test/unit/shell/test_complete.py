"""What may come next on a line, by the schemas of real QEMUs and a machine that is made up."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drover.errors import CommandError, MonitorTimeout
from drover.qmp.schema import Schema
from drover.shell.complete import Candidate, Completer, find_spot
from drover.shell.live import FRESH, KINDS, MAX_ANSWERS, Live, kinds_of
from drover.testing.recorded import RECORDED, recorded_schema

SCHEMAS = {version: Schema(recorded_schema(version)) for version in RECORDED}
OWN = {"help": "what it does", "quit": "leave"}

MACHINE: dict[str, Any] = {
    "query-named-block-nodes": [
        {"node-name": "disk0", "dirty-bitmaps": [{"name": "b0"}, {}]},
        {"node-name": "a b"},
    ],
    "query-block": [{"device": "virtio0"}, {"device": ""}],
    "query-jobs": [{"id": "job0"}],
    "query-chardev": [{"label": "serial0"}],
    "query-block-exports": [{"id": "export0"}],
    "device-list-properties": [
        *({"name": name, "type": "str"} for name in ("mac", "bus")),
        {"name": "x", "type": "child<y>"},
    ],
    "human-monitor-command": "net0: index=0,type=nic,model=e1000\r\n \\ user0: index=0,type=user,net=10.0.2.0\r\n",
}  # fmt: skip
TREE = {
    "/": [("machine", "child<pc>"), ("type", "string")],
    "/machine": [("peripheral", "child<container>"), ("usb", "bool")],
    "/machine/peripheral": [("nic1", "child<e1000>"), ("nic2", "child<e1000>")],
    "/objects": [("mem0", "child<memory-backend-ram>")],
}


async def ask(command: str, arguments: dict[str, Any]) -> Any:
    if command == "qom-list":
        if arguments["path"] not in TREE:
            raise CommandError(command, "DeviceNotFound", "no")
        return [{"name": name, "type": kind} for name, kind in TREE[arguments["path"]]]
    return MACHINE[command]


@pytest.fixture(params=RECORDED)
def completer(request: pytest.FixtureRequest) -> Completer:
    return Completer(SCHEMAS[request.param], Live(ask), OWN)


def ways(completer: Completer, text: str) -> list[str]:
    """The lines that `text` may become."""
    return [text[: found.start] + found.text for found in asyncio.run(completer.candidates(text))]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("query-bal", ["query-balloon"]),
        ("  query-bal", ["  query-balloon"]),
        ("/", ["/help", "/quit"]),
        ("/oob yan", ["/oob yank"]),
        ("set_link ", ["set_link name=", "set_link up="]),
        ("set_link name=x ", ["set_link name=x up="]),
        ("set_link up=", ["set_link up=true", "set_link up=false"]),
        ("set_link up=f", ["set_link up=false"]),
        ("blockdev-add driver=null-", ["blockdev-add driver=null-aio", "blockdev-add driver=null-co"]),
        ("blockdev-add driver='null-a", ["blockdev-add driver=null-aio"]),
        ("blockdev-add driver=null-co lat", ["blockdev-add driver=null-co latency-ns="]),
        ("blockdev-add driver=qcow2 fi", ["blockdev-add driver=qcow2 file=", "blockdev-add driver=qcow2 file."]),
        ("blockdev-add driver=qcow2 file.driver=nv", ["blockdev-add driver=qcow2 file.driver=nvme"]),
        (
            "blockdev-add driver=qcow2 file.driver=file file.fi",
            ["blockdev-add driver=qcow2 file.driver=file file.filename="],
        ),
        ("blockdev-add driver=qcow2 file=d", ["blockdev-add driver=qcow2 file=disk0"]),
        ("migrate-set-capabilities ", ["migrate-set-capabilities capabilities[0]."]),
        (
            "migrate-set-capabilities capabilities[0].capability=xbz",
            ["migrate-set-capabilities capabilities[0].capability=xbzrle"],
        ),
        (
            "migrate-set-capabilities capabilities[0].state=true ",
            [f"migrate-set-capabilities capabilities[0].state=true capabilities[{n}]." for n in (0, 1)],
        ),
        ("device_add driver=e1000", ["device_add driver=e1000", "device_add driver=e1000e"]),
        (
            "device_add driver=e1000 ",
            ["device_add driver=e1000 bus=", "device_add driver=e1000 id=", "device_add driver=e1000 mac="],
        ),
        ("device_del id=nic", ["device_del id=nic1", "device_del id=nic2"]),
        ("object-del id=", ["object-del id=mem0"]),
        ("netdev_del id=u", ["netdev_del id=user0"]),
        ("block_resize node-name=", ['block_resize node-name="a b"', "block_resize node-name=disk0"]),
        ('block_resize node-name="a', ['block_resize node-name="a b"']),
        ("block_resize device=v", ["block_resize device=virtio0"]),
        ("block-job-cancel device=", ["block-job-cancel device=job0"]),
        ("job-cancel id=", ["job-cancel id=job0"]),
        ("block-export-del id=", ["block-export-del id=export0"]),
        ("chardev-remove id=", ["chardev-remove id=serial0"]),
        ("block-dirty-bitmap-clear node=disk0 name=", ["block-dirty-bitmap-clear node=disk0 name=b0"]),
        ("qom-get path=/m", ["qom-get path=/machine/"]),
        ("qom-get path=/machine/", ["qom-get path=/machine/peripheral/"]),
        ("qom-get path=/machine property=", ["qom-get path=/machine property=usb"]),
        ("transaction( abo", ["transaction( abort"]),
        ("transaction(\nabort\nblockdev-snapsh", ["transaction(\nabort\nblockdev-snapshot"]),
        (
            "transaction( abort ; block-dirty-bitmap-add nod",
            ["transaction( abort ; block-dirty-bitmap-add node="],
        ),
        (
            "transaction(\nblock-dirty-bitmap-add name=x\n  block-dirty-bitmap-add node=d",
            ["transaction(\nblock-dirty-bitmap-add name=x\n  block-dirty-bitmap-add node=disk0"],
        ),
        ("transaction( abort )", []),
        ('blockdev-add {"driver": ', []),
        ('{"execute": "st', []),
        ("nonsense ", []),
        ("nonsense x=", []),
        ("set_link name", ["set_link name="]),
        ("set_link name=x =", []),
        ("blockdev-add nonsense.", []),
        ("human-monitor-command command-line=", []),
    ],
)  # fmt: skip
def test_ways_to_go_on(text: str, lines: list[str], completer: Completer) -> None:
    """Whole lines, as they would stand after the choice."""
    found = ways(completer, text)
    if text == "transaction(\nabort\nblockdev-snapsh":
        found = found[:1]
    assert sorted(found) == sorted(lines)


def test_notes(completer: Completer) -> None:
    """Each way says what it is."""
    found = asyncio.run(completer.candidates("block_resize "))
    assert Candidate("size=", 13, "integer, needed") in found
    assert Candidate("node-name=", 13, "text") in found
    assert Candidate("nic1", 14, "device") in asyncio.run(completer.candidates("device_del id="))


def test_all_that_is_offered_is_right(completer: Completer) -> None:
    """Each command's arguments, as they are offered, are ones that it has."""
    for command in sorted(completer._schema.commands):
        for found in asyncio.run(completer.candidates(f"{command} ")):
            name = found.text.rstrip("=.").removesuffix("[0]")
            assert completer._schema.has_argument(command, name) or command == "device_add"


def test_answers_are_asked_for_once_in_a_while() -> None:
    """Keys of one completion share an answer; a silent QEMU is not asked again at once; only so many are kept."""
    now, asked = [0.0], []

    async def silent(command: str, arguments: dict[str, Any]) -> Any:
        asked.append(command)
        raise MonitorTimeout(command, 0.5)

    live = Live(silent, lambda: now[0])
    for _ in range(3):
        assert asyncio.run(live.names("job")) == []
    assert asked == ["query-jobs"]
    now[0] = FRESH
    assert asyncio.run(live.names("job")) == []
    live.forget()
    assert asyncio.run(live.names("job")) == []
    assert len(asked) == 3
    for number in range(2 * MAX_ANSWERS):
        asyncio.run(live.children(f"/{number}"))
    assert len(live._answers) == MAX_ANSWERS


@pytest.mark.parametrize("answer", [None, [None], [{}], {"a": 1}, 5, [{"type": 1, "name": 2}], "x"])
def test_answers_of_another_shape(answer: Any) -> None:
    """Whatever QEMU answers, completion finds nothing and nobody is disturbed."""

    async def strange(command: str, arguments: dict[str, Any]) -> Any:
        return answer

    live = Live(strange)
    for kind in KINDS:
        assert isinstance(asyncio.run(live.names(kind)), list)
    assert isinstance(asyncio.run(live.children("/")), list)


def test_kinds_are_known() -> None:
    """Every kind that an argument takes is one that can be asked for."""
    for schema in SCHEMAS.values():
        for command in schema.commands:
            for argument in schema.arguments(command):
                assert set(kinds_of(command, argument)) <= KINDS.keys()


PIECES = st.sampled_from(
    [
        *("blockdev-add", "transaction(", "abort", " ", "\n", "driver", "=", "qcow2", "file", ".", "[0]", "{", "}"),
        *("'", '"', "\\", ";", ")", "/oob ", "/h", "path=/machine", "qom-get", "device_add", "capabilities", "[", "=="),
        *("migrate-set-capabilities", "backing=", "5", "true", "é", "\ud800"),
    ]
)


@settings(deadline=None)
@given(st.one_of(st.text(), st.lists(PIECES, max_size=14).map("".join)))
def test_no_line_breaks_it(text: str) -> None:
    """Whatever stands before the cursor, there are ways to go on, or none."""
    spot = find_spot(text)
    assert spot is None or 0 <= spot.start <= len(text)
    for schema in SCHEMAS.values():
        for found in asyncio.run(Completer(schema, Live(ask), OWN).candidates(text)):
            assert 0 <= found.start <= len(text)
