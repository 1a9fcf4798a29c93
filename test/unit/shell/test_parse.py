"""A typed line: what it means, where it is wrong, and that no line whatever does more harm than that."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drover.shell.literal import MAX_DEPTH, MAX_INT, MIN_INT, LineError, Unfinished, quote, read_value
from drover.shell.parse import MAX_LINE, Command, Own, Word, parse


def command(text: str) -> Command:
    found = parse(text)
    assert isinstance(found, Command)
    return found


ARGUMENTS: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("a=1 b=x", {"a": Word("1"), "b": Word("x")}),
    ("a= b=''", {"a": Word(""), "b": ""}),
    ("id='n 1'", {"id": "n 1"}),
    ('id="n 1"', {"id": "n 1"}),
    ("file='/a b'/c\" d\"", {"file": "/a b/c d"}),
    ("a='it\\'s' b=\"\\u00e9\\n\"", {"a": "it's", "b": "é\n"}),
    ("path=C:\\Windows", {"path": Word("C:\\Windows")}),
    ("url=http://a/?x=1&y=[2]", {"url": Word("http://a/?x=1&y=[2]")}),
    ("a.b.c=1 a.b.d=2 a.e=3", {"a": {"b": {"c": Word("1"), "d": Word("2")}, "e": Word("3")}}),
    ("a[0]=x a[1]=y", {"a": [Word("x"), Word("y")]}),
    ("a[0].b=x a[0].c=y a[1].b=z", {"a": [{"b": Word("x"), "c": Word("y")}, {"b": Word("z")}]}),
    ("'a.b'=1 \"c d\".e=2", {"a.b": Word("1"), "c d": {"e": Word("2")}}),
    ('a={"b": [1, 2.5, true, null]}', {"a": {"b": [1, 2.5, True, None]}}),
    ("a={'b': [True, False, None, 0x10,]}", {"a": {"b": [True, False, None, 16]}}),
    ("a={'x': 1} a.y=2", {"a": {"x": 1, "y": Word("2")}}),
    ('{"a": 1} b=2', {"a": 1, "b": Word("2")}),
    ('file=json:{"driver": "null co"}', {"file": Word('json:{"driver": "null co"}')}),
    ("a=[\n1,\n2\n]", {"a": [1, 2]}),
]


@pytest.mark.parametrize(("text", "arguments"), ARGUMENTS)
def test_arguments(text: str, arguments: dict[str, Any]) -> None:
    """What stands behind a command's name; a bare word is marked as one, text in quotes is text."""
    found = command(f"  do-it  {text} ")
    assert (found.name, found.arguments, found.oob) == ("do-it", arguments, False)
    assert _kinds(found.arguments) == _kinds(arguments)


def _kinds(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _kinds(item) for name, item in value.items()}
    return [_kinds(item) for item in value] if isinstance(value, list) else type(value)


@pytest.mark.parametrize("text", ["", "  \n\t", "# stop", "  #"])
def test_nothing(text: str) -> None:
    """An empty line, and a note."""
    assert parse(text) is None


def test_whole_messages() -> None:
    """A message as it goes over the wire, over several lines too."""
    assert command('{"execute": "stop"}').name == "stop"
    found = command('{"exec-oob":\n "yank", "id": 7,\n "arguments": {"instances": []}}')
    assert (found.name, found.arguments, found.oob) == ("yank", {"instances": []}, True)


def test_out_of_band_and_own_commands() -> None:
    """What begins with a slash."""
    found = command("/oob yank instances=[]")
    assert (found.name, found.arguments, found.oob) == ("yank", {"instances": []}, True)
    assert parse("/help  stop ") == Own("help", "stop")
    assert parse("/oobs") == Own("oobs", "")


ACTIONS = [{"type": "abort", "data": {}}, {"type": "b-add", "data": {"node": "n 1", "x": {"y": Word("2")}}}]


@pytest.mark.parametrize(
    "text",
    [
        "transaction( abort ; b-add node='n 1' x.y=2 )",
        "transaction(\nabort\nb-add node='n 1' x.y=2\n)",
        "transaction ( abort;b-add node='n 1' x.y=2 ;)".replace("abort;", "abort ; "),
        "transaction(abort\n\n  b-add\tnode='n 1' x.y=2)".replace("x.y=2)", "x.y=2 )"),
    ],
)
def test_transactions(text: str) -> None:
    """Actions on lines of their own, or between semicolons."""
    assert command(text).arguments == {"actions": ACTIONS}


def test_transaction_with_arguments_of_its_own() -> None:
    """They stand behind the bracket."""
    found = command("transaction( abort ) properties.completion-mode=grouped")
    assert found.arguments == {"actions": ACTIONS[:1], "properties": {"completion-mode": "grouped"}}


@pytest.mark.parametrize("text", ["a b={", "a b=[1,", "a b='x", 'a "b', "transaction(", "transaction( abort", '{"a": '])
def test_unfinished(text: str) -> None:
    """What more lines may make whole says so."""
    with pytest.raises(Unfinished):
        parse(text)


@pytest.mark.parametrize(
    ("text", "position", "problem"),
    [
        ("stop x", 6, "NAME=VALUE"),
        ("stop =1", 5, "name is missing"),
        ("stop a.=1", 7, "name is missing"),
        ("stop a=1 a=2", 9, "a is given twice"),
        ("stop a=1 a.b=2", 9, "two different things"),
        ("stop a.b=1 a=2", 11, "a is given twice"),
        ("stop a[1]=1", 5, r"a[0] is missing before a[1]"),
        ("stop a[0]=1 a[0]=2", 12, "a[0] is given twice"),
        ("stop a={'b' 1}", 12, "a : is missing"),
        ("stop a={b: 1}", 8, "name in quotes"),
        ("stop a={'b': c}", 13, "text needs quotes"),
        ("stop a={'b': 1, 'b': 2}", 16, "'b' is given twice"),
        ("stop a=[1 2]", 10, "a , or ] is missing"),
        ("stop a=[1]x", 10, "a blank is missing"),
        ("stop a='\\q'", 8, "is no escape"),
        ("stop a='\\ud800'", 7, "half a character"),
        ("stop a='\\u12'", 8, "4 hexadecimal digits"),
        ("stop a=[99999999999999999999]", 8, "is no value"),
        ("stop a=[1e999]", 8, "is no value"),
        ("'stop'", 0, "command's name"),
        ("stop \ud800", 5, "no UTF-8"),
        ('{"execute": "stop"} x', 20, "behind the message"),
        ('{"execute": "stop", "x": 1}', 0, "no member 'x'"),
        ('{"arguments": {}}', 0, "names one command"),
        ('{"execute": "a", "arguments": []}', 0, "is an object"),
        ("transaction( a b )", 16, "NAME=VALUE"),
        ("transaction( ) )", 16, "NAME=VALUE"),
    ],
)
def test_mistakes(text: str, position: int, problem: str) -> None:
    """Each is told, with its place."""
    with pytest.raises(LineError) as caught:
        parse(text)
    assert not isinstance(caught.value, Unfinished)
    assert problem in caught.value.problem
    assert caught.value.position == position


def test_places() -> None:
    """Each argument knows where it stands, in a transaction too."""
    assert command("x a.b=1 c=2").places == {(): 0, ("a",): 2, ("a", "b"): 2, ("c",): 8}
    places = command("transaction( abort ; b-add node=n )").places
    assert places["actions", 1] == 21
    assert places["actions", 1, "data", "node"] == 27


def test_bounds() -> None:
    """Depth and length end somewhere, and neither takes long."""
    for text in ("a b=" + "[" * 100_000, "a b=" + '{"a":' * 100_000, "a " + ".".join("b" * 100_000) + "=1"):
        with pytest.raises(LineError, match="deeper"):
            parse(text)
    with pytest.raises(LineError, match="longer"):
        parse("a" * (MAX_LINE + 1))
    assert command("a b=" + "[" * MAX_DEPTH + "]" * MAX_DEPTH)
    began = time.monotonic()
    for filler in ("a=1 ", "'", '"\\"', "[0]", "{", "\\", "a.b[0].", "x={} ", "; ", " "):
        try:
            parse("transaction( a " + filler * (500_000 // len(filler)))
        except LineError:
            pass
    assert time.monotonic() - began < 30  # 0.5 s on an idle machine


# -- any line, any value -----------------------------------------------------

PIECES = st.sampled_from(
    [
        *("a", "b-c", "=", " ", "\n", "'", '"', "{", "}", "[", "]", "[0]", "[1]", ".", ",", ":", ";", "(", ")", "\\"),
        *("\\u12", "transaction(", "/oob ", "/", "#", "true", "None", "1", "-2.5e3", '{"execute": "x"}'),
        *("\ud800", "é", "\x1b", "\0"),
    ]
)


@settings(deadline=None)
@given(st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join)))
def test_no_line_breaks_it(text: str) -> None:
    """Whatever is typed is a command, nothing, or an error whose place is in the text; and can be sent if it parses."""
    found, place = None, 0
    try:
        found = parse(text)
    except LineError as error:
        place = error.position
    assert 0 <= place <= len(text)
    if isinstance(found, Command):
        assert all(0 <= place <= len(text) for place in found.places.values())
        json.dumps([found.name, found.arguments], allow_nan=False, ensure_ascii=False).encode()


WORDS = st.text(st.characters(codec="utf-8"))
NUMBERS = st.integers(MIN_INT, MAX_INT) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(VALUES, st.booleans())
def test_values_come_back(value: Any, as_python: bool) -> None:
    """JSON as a program writes it, and Python's own way, give the value back."""
    text = repr(value) if as_python and not isinstance(value, str) else json.dumps(value)
    found, end = read_value(text, 0)
    assert (found, end) == (value, len(text))


@settings(deadline=None)
@given(st.dictionaries(WORDS.filter(bool), WORDS, max_size=4))
def test_quoted_text_comes_back(arguments: dict[str, str]) -> None:
    """Names and values in quotes may be anything."""
    line = " ".join(["x", *(f"{quote(name)}={quote(value)}" for name, value in arguments.items())])
    assert command(line).arguments == arguments


@settings(deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z][a-z-]{0,8}", fullmatch=True), VALUES, max_size=4))
def test_arguments_come_back(arguments: dict[str, Any]) -> None:
    """Any arguments can be given as one JSON object."""
    assert command(f"x {json.dumps(arguments)}").arguments == arguments
