"""Arguments by QEMU's own schema: what gets which type, and what is told before anything is sent."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drover.qmp.schema import Schema
from drover.shell.check import check, plain
from drover.shell.literal import LineError
from drover.shell.parse import Command, Word, parse
from drover.testing.recorded import RECORDED, Checker, recorded_schema

ABORT = {"type": "abort", "data": {}}
SCHEMAS = {version: Schema(recorded_schema(version)) for version in RECORDED}


@pytest.fixture(params=RECORDED)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def checked(text: str, version: str) -> dict[str, Any]:
    command = parse(text)
    assert isinstance(command, Command)
    return check(command, SCHEMAS[version])


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("query-status", {}),
        ("block_resize node-name=5 size=5", {"node-name": "5", "size": 5}),
        ("set_link name=true up=True", {"name": "true", "up": True}),
        ("set_link name=n up=FALSE", {"name": "n", "up": False}),
        ("blockdev-add driver=null-co node-name=n size=0x10", {"driver": "null-co", "node-name": "n", "size": 16}),
        (
            "blockdev-add driver=qcow2 file.driver=file file.filename='/a b' backing=null",
            {"driver": "qcow2", "file": {"driver": "file", "filename": "/a b"}, "backing": None},
        ),
        (
            'blockdev-add driver=qcow2 file=null backing="null"',
            {"driver": "qcow2", "file": "null", "backing": "null"},
        ),
        (
            "migrate-set-capabilities capabilities[0].capability=xbzrle capabilities[0].state=true",
            {"capabilities": [{"capability": "xbzrle", "state": True}]},
        ),
        (
            "transaction( abort ; block-dirty-bitmap-add node=n name=1 )",
            {"actions": [ABORT, {"type": "block-dirty-bitmap-add", "data": {"node": "n", "name": "1"}}]},
        ),
        # no schema says what a device takes: by its looks then, and 1.0 or 0x5 is what QEMU calls a slot
        (
            "device_add driver=e1000 id=1 addr=1.0 bus=0 mac=1 y=true z=null w=0x5",
            {"driver": "e1000", "id": "1", "addr": "1.0", "bus": "0", "mac": 1, "y": True, "z": None, "w": "0x5"},
        ),
        ("qom-set path=/a property=b value=-7", {"path": "/a", "property": "b", "value": -7}),
        ("qom-set path=/a property=b value='-7'", {"path": "/a", "property": "b", "value": "-7"}),
        ("balloon value=1048576", {"value": 1048576}),
    ],
)  # fmt: skip
def test_types(text: str, arguments: dict[str, Any], version: str) -> None:
    """A bare word becomes what the schema asks for, and QEMU would take all of it."""
    found = checked(text, version)
    assert found == arguments
    assert not _words(found)
    Checker(version).check(text.partition(" ")[0].partition("(")[0], found)


def _words(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_words, value.values()))
    return any(map(_words, value)) if isinstance(value, list) else isinstance(value, Word)


@pytest.mark.parametrize(
    ("text", "position", "problem"),
    [
        ("query-statu", 0, "no command 'query-statu'; did you mean query-status"),
        ("set_link name=n", 0, "up is missing"),
        ("block_resize", 0, "size is missing"),
        ("set_link", 0, "name and up are missing"),
        ("set_link name=n up=yes", 16, "up wants true or false, not 'yes'"),
        ("block_resize node-name=n size=1G", 25, "size wants an integer, not '1G'"),
        ("block_resize node-nam=n size=1", 13, "no argument 'node-nam'; did you mean node-name?"),
        ("query-status x=1", 13, "query-status has no argument 'x'"),
        ("blockdev-add node-name=n filename=x", 25, "without 'driver', which says what else there is"),
        ("blockdev-add driver=qcow3 file=x", 13, "driver cannot be 'qcow3'; did you mean qcow"),
        ("set-action panic=zzz", 11, "allowed: pause, shutdown"),
        ("blockdev-add driver=qcow2 file.driver=file file.filenam=x", 43, "'file.filenam' for driver 'file'"),
        ("blockdev-add driver=qcow2 file.driver=file", 26, "file.filename is missing"),
        ("blockdev-add driver=qcow2 file=x cache=y", 33, "cache wants an object, not 'y': cache.NAME=VALUE"),
        ("migrate-set-capabilities capabilities=x", 25, "wants a list, not 'x': capabilities[0]=VALUE"),
        ("blockdev-add driver=qcow2 file=[1]", 26, "file wants "),
        ("blockdev-add driver=[1]", 13, "driver wants text"),
        ("transaction( abor )", 13, "'abor'; did you mean abort?"),
        ("transaction( abort ; block-dirty-bitmap-add node=n nam=1 )", 51, "did you mean name?"),
        ("set_link name=5 up=1.5", 16, "up wants true or false"),
        ('balloon value="5"', 8, "value wants an integer, not '5'"),
    ],
)
def test_mistakes(text: str, position: int, problem: str, version: str) -> None:
    """Each is told with its place, and with what would be right."""
    with pytest.raises(LineError) as caught:
        checked(text, version)
    assert problem in caught.value.problem
    assert caught.value.position == position


def test_without_a_schema() -> None:
    """A word is what it looks like."""
    words = {"a": Word("1"), "b": Word("TRUE"), "c": Word("none"), "d": [Word("x"), {"e": Word("-1")}], "f": "1"}
    assert plain(words) == {"a": 1, "b": True, "c": None, "d": ["x", {"e": -1}], "f": "1"}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.text(max_size=5).map(Word),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["driver", "file", "type"]), inner),
)
NAMES = ["blockdev-add", "transaction", "migrate-set-capabilities", "device_add", "qom-set", "x", "netdev_add"]


@settings(deadline=None)
@given(st.sampled_from(NAMES), st.dictionaries(st.sampled_from(["driver", "file", "actions", "value"]), VALUES))
def test_any_arguments(name: str, arguments: dict[str, Any]) -> None:
    """Whatever was given is right, or an error of the line."""
    for version, schema in SCHEMAS.items():
        try:
            found = check(Command(name, arguments), schema)
        except LineError:
            continue
        Checker(version).check(name, found)
