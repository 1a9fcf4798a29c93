"""Values that are typed for the agent, and for properties of objects."""

from typing import Any

import pytest

from drover.errors import AgentFrozen, ArgumentError, CommandError, ConnectionClosed, MonitorTimeout, NotSupported
from drover.shell import qga_talk, qom
from drover.shell.literal import LineError
from drover.shell.parse import Command, parse
from drover.shell.talk import REFUSED, USAGE, exit_code


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("guest-exec path=5 arg[0]=1 arg[1]='a b'", {"path": "5", "arg": ["1", "a b"]}),
        ("guest-exec path=/bin/x arg=[1]", {"path": "/bin/x", "arg": [1]}),
        (
            "guest-set-user-password username=1 password=true crypted=false",
            {"username": "1", "password": "true", "crypted": False},
        ),
        ("guest-exec-status pid=7", {"pid": 7}),
        ("guest-exec-status pid=x", {"pid": "x"}),
        ("guest-file-seek handle=1 offset=-5 whence=end", {"handle": 1, "offset": -5, "whence": "end"}),
        ("guest-set-vcpus vcpus[0].logical-id=1 vcpus[0].online=true", {"vcpus": [{"logical-id": 1, "online": True}]}),
        ("guest-of-tomorrow a=1 b=true c='2'", {"a": 1, "b": True, "c": "2"}),
    ],
)  # fmt: skip
def test_for_the_agent(line: str, arguments: dict[str, Any]) -> None:
    """What its documentation says, and where it says nothing, what it looks like."""
    command = parse(line)
    assert isinstance(command, Command)
    found = qga_talk.typed(command)
    assert found == arguments
    assert all(type(value) in (str, int, bool, list) for value in found.values())


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("5", "int", 5),
        ("0x10", "uint64", 16),
        ("5", "string", "5"),
        ("true", "str", "true"),
        ("[1]", "string", "[1]"),
        ("on", "bool", True),
        ("False", "bool", False),
        ("5", "", 5),
        ("x y", "", "x y"),
        ("x", "OnOffAuto", "x"),
        ("'5'", "", "5"),
        ('{"a": 1}', "ThrottleLimits", {"a": 1}),
        ("/machine/a", "link<b>", "/machine/a"),
    ],
)
def test_for_a_property(text: str, kind: str, value: Any) -> None:
    """By its type."""
    found = qom.typed(text, kind)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "kind"), [("x", "int"), ("2", "bool"), ("{'a'", ""), ("[1] x", ""), ("1.5", "uint8"), ("none", "bool")]
)
def test_not_for_a_property(text: str, kind: str) -> None:
    """It is told before anything is set."""
    with pytest.raises(LineError):
        qom.typed(text, kind)


def test_paths_of_properties() -> None:
    """The last dot parts them."""
    assert qom.split_property("/a/b.c/d.e") == ("/a/b.c/d", "e")
    assert qom.split_property("mem0.size") == ("mem0", "size")
    for text in ("/a/b", "/a.b/c", "a.", "", ".a"):
        with pytest.raises(LineError, match=r"PATH\.PROPERTY"):
            qom.split_property(text)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LineError("x", 0), USAGE),
        (ArgumentError("x", 1, "y"), USAGE),
        (CommandError("x", "GenericError", "y"), REFUSED),
        (NotSupported("x"), REFUSED),
        (AgentFrozen("x"), REFUSED),
        (MonitorTimeout("x", 1), 3),
        (ConnectionClosed("x"), 3),
    ],
)
def test_exit_codes(error: Any, code: int) -> None:
    """By what kind of error it is."""
    assert exit_code(error) == code
