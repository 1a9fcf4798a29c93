"""What may come next on a line: commands, names of arguments, values, ids of what is in the machine.

Where the cursor stands is found by the parser's own functions; what fits there comes from the schema, and from
:class:`~.live.Live`. Nothing here knows a terminal.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Final

from msgspec import Struct

from drover.qmp.schema import Entity, Schema

from .check import OPEN
from .literal import LineError, quote, read_string, skip_blanks
from .live import Live, kinds_of
from .parse import OOB, TRANSACTION, Path, read_item, read_name, read_path

_PLAIN: Final = re.compile(r"[^\s\"'{}\[\]]+")
# What stands for an argument before and at the cursor: up to its first =, outside of quotes.
_KEY: Final = re.compile(r"[^\s=\"'{}]*")


class Candidate(Struct, frozen=True):
    """One way to go on.

    :ivar text: replaces what is typed from `start` on
    :ivar start: position in the line
    :ivar note: what it is, for the reader
    """

    text: str
    start: int
    note: str = ""


class Spot(Struct, frozen=True):
    """Where the cursor stands.

    :ivar kind: what is typed there: a `command`, an `action` of a transaction, an argument's `name`, a `value`
        or one of the shell's `own` commands
    :ivar start: where it begins
    :ivar typed: what of it is there, quotes taken off
    :ivar command: the command, or action, that an argument is for
    :ivar path: of the value; or what a name is behind, with dots
    :ivar given: the arguments before it
    """

    kind: str
    start: int
    typed: str
    command: str = ""
    path: Path = ()
    given: dict[str, Any] = {}
    action: bool = False


def find_spot(text: str) -> Spot | None:
    """Where the end of `text` stands; None where nothing can be told, as inside of JSON."""
    try:
        return _find_spot(text)
    except LineError:
        return None


def _find_spot(text: str) -> Spot | None:
    start = skip_blanks(text, 0)
    oob = OOB.match(text, start)
    if oob is not None and oob.end() < len(text):
        start = skip_blanks(text, oob.end())
    elif text[start : start + 1] == "/":
        word = text[start + 1 :]
        return None if " " in word else Spot("own", start + 1, word)
    opened = TRANSACTION.match(text, start)
    if opened is not None:
        return _in_transaction(text, opened.end())
    return _in_command(text, start, "command")


def _in_transaction(text: str, position: int) -> Spot | None:
    while True:
        position = skip_blanks(text, position)
        if text[position : position + 1] == ")":
            return None
        if text[position : position + 1] == ";":
            position += 1
            continue
        end = _end_of_action(text, position)
        if end is None:
            return _in_command(text, position, "action")
        position = end


def _end_of_action(text: str, position: int) -> int | None:
    """The position behind the action that starts at `position`; None if the cursor is in it."""
    if position >= len(text):
        return None
    _, position = read_name(text, position)
    while position < len(text):
        following = skip_blanks(text, position)
        if "\n" in text[position:following] or text[following : following + 1] in (";", ")"):
            return following
        if following >= len(text):
            return None
        try:
            position = read_item(text, following).end
        except LineError:
            return None
    return None


def _in_command(text: str, start: int, kind: str) -> Spot | None:
    if start >= len(text):
        return Spot(kind, start, "")
    name, position = read_name(text, start)
    if position >= len(text):
        return Spot(kind, start, name)
    given: dict[str, Any] = {}
    while True:
        following = skip_blanks(text, position)
        if following >= len(text):
            return Spot("name", following, "", name, (), given, kind == "action")
        try:
            item = read_item(text, following)
        except LineError:
            return _in_item(text, following, name, given, kind)
        if item.end >= len(text):
            return _in_item(text, following, name, given, kind)
        _put(given, item.path, item.value)
        position = item.end


def _in_item(text: str, start: int, command: str, given: dict[str, Any], kind: str) -> Spot | None:
    found = _KEY.match(text, start)
    assert found is not None
    if found.end() >= len(text):
        prefix, dot, typed = found[0].rpartition(".")
        path = read_path(prefix, 0)[0] if prefix else ()
        return Spot("name", start + len(prefix) + len(dot), typed, command, path, given, kind == "action")
    path, end = read_path(text, start)
    if text[end : end + 1] != "=":
        return None
    value = text[end + 1 :]
    if value.startswith(('"', "'")):
        try:
            typed, _ = read_string(text + value[0], end + 1)
        except LineError:
            return None
    elif value.startswith(("{", "[")):
        return None
    else:
        typed = value
    return Spot("value", end + 1, typed, command, path, given, kind == "action")


def _put(given: dict[str, Any], path: Path, value: Any) -> None:
    """Keep what was given, as far as it makes sense: who completes a line need not have got all of it right."""
    if not path:
        given.update(value)
        return
    target: Any = given
    for step, following in pairwise(path):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(step, str) and isinstance(target, dict):
            target = target.setdefault(step, empty)
        elif isinstance(step, int) and isinstance(target, list) and step <= len(target):
            if step == len(target):
                target.append(empty)
            target = target[step]
        else:
            return
    last = path[-1]
    if isinstance(last, str) and isinstance(target, dict):
        target[last] = value
    elif isinstance(last, int) and isinstance(target, list):
        target.append(value)


# -- what fits there ---------------------------------------------------------


class Completer:
    """Ways to go on, by what one QEMU understands and has.

    :param schema: what it understands
    :param live: what it has
    :param own: the shell's own commands, and what each does
    """

    def __init__(self, schema: Schema, live: Live, own: Mapping[str, str]) -> None:
        self._schema = schema
        self._live = live
        self._own = own

    async def candidates(self, text: str) -> list[Candidate]:
        """All ways to go on at the end of `text`."""
        spot = find_spot(text)
        if spot is None:
            return []
        if spot.kind == "own":
            return _fitting(spot, self._own.items())
        if spot.kind == "command":
            return _fitting(spot, ((name, "") for name in sorted(self._schema.commands)))
        if spot.kind == "action":
            kind = self._schema.argument_type("transaction")
            found = None if kind is None else self._follow(kind, {}, ("actions", 0, "type"))
            return [] if found is None else _fitting(spot, ((v, "") for v in self._schema.values_of(found[0])))
        return await (self._names(spot) if spot.kind == "name" else self._values(spot))

    def _follow(self, kind: Entity, value: Any, path: Path) -> tuple[Entity, Any] | None:
        """The type at `path` below `kind`, and what is given there."""
        for step in path:
            inner: Any = {}
            if isinstance(step, int):
                array = _branch(self._schema, kind, "array")
                if array is None:
                    return None
                kind = self._schema.element_type(array)
                inner = value[step] if isinstance(value, list) and step < len(value) else {}
            else:
                members = self._members(kind, value)
                if step not in members:
                    return None
                kind = self._schema.type_of(members[step])
                inner = value.get(step, {}) if isinstance(value, dict) else {}
            value = inner
        return kind, value

    def _members(self, kind: Entity, value: Any) -> dict[str, Entity]:
        found = _branch(self._schema, kind, "object")
        return {} if found is None else self._schema.members_of(found, value if isinstance(value, dict) else {})

    def _root(self, spot: Spot) -> tuple[Entity, Any] | None:
        if not spot.action:
            kind = self._schema.argument_type(spot.command)
            return None if kind is None else (kind, spot.given)
        kind = self._schema.argument_type("transaction")
        if kind is None:
            return None
        action = {"type": spot.command, "data": spot.given}
        return self._follow(kind, {"actions": [action]}, ("actions", 0, "data"))

    async def _names(self, spot: Spot) -> list[Candidate]:
        root = self._root(spot)
        found = None if root is None else self._follow(*root, spot.path)
        if found is None:
            return []
        kind, value = found
        given = value if isinstance(value, dict) else {}
        ways = [
            way
            for name, member in self._members(kind, given).items()
            if not isinstance(given.get(name), str | int | float)
            for way in self._ways(name, member, given.get(name))
        ]
        if spot.command in OPEN and not spot.path and "driver" in given:
            known = {text.rstrip("=.") for text, _ in ways} | given.keys()
            options = await self._live.options(str(given["driver"]))
            ways += [(f"{name}=", note) for name, note in options if name not in known]
        return _fitting(spot, ways)

    def _ways(self, name: str, member: Entity, given: Any) -> Iterable[tuple[str, str]]:
        kind = self._schema.type_of(member)
        note = describe(self._schema, kind) + ("" if "default" in member else ", needed")
        branches = _branches(self._schema, kind)
        if any(branch["meta-type"] not in ("object", "array") for branch in branches):
            yield f"{name}=", note
        if any(branch["meta-type"] == "object" for branch in branches):
            yield f"{name}.", note
        if any(branch["meta-type"] == "array" for branch in branches):
            objects, count = _holds_objects(self._schema, branches), len(given) if isinstance(given, list) else 0
            if objects and count:  # there may be more to say of the last one
                yield f"{name}[{count - 1}].", note
            yield f"{name}[{count}]" + ("." if objects else "="), note

    async def _values(self, spot: Spot) -> list[Candidate]:
        root = self._root(spot)
        found = None if root is None else self._follow(*root, spot.path)
        branches = [] if found is None else _branches(self._schema, found[0])
        ways: list[tuple[str, str]] = []
        for branch in branches:
            ways += [(value, "") for value in self._schema.values_of(branch)]
            if branch.get("json-type") == "boolean":
                ways += [("true", ""), ("false", "")]
        texts = found is None or any(branch.get("json-type") in ("string", "value") for branch in branches)
        return _fitting(spot, ways + (await self._ids(spot) if texts else []))

    async def _ids(self, spot: Spot) -> list[tuple[str, str]]:
        argument = str(spot.path[-1])
        if spot.command.startswith("qom-") and argument == "path":
            parent = spot.typed.rpartition("/")[0]
            return [(f"{parent}/{name}", note) for name, note in await self._live.children(parent)]
        if spot.command in ("qom-get", "qom-set") and argument == "property":
            return await self._live.properties(str(spot.given.get("path", "")))
        ways: list[tuple[str, str]] = []
        for kind in kinds_of(spot.command, argument):
            ways += [way for way in await self._live.names(kind) if way not in ways]
        return ways


def _fitting(spot: Spot, ways: Iterable[tuple[str, str]]) -> list[Candidate]:
    return [
        Candidate(text if spot.kind != "value" or _PLAIN.fullmatch(text) else quote(text), spot.start, note)
        for text, note in ways
        if text.startswith(spot.typed)
    ]


def _branches(schema: Schema, kind: Entity) -> list[Entity]:
    """The types that a value of this one may be of: the branches of an alternate, else itself."""
    return [schema.type_of(branch) for branch in kind["members"]] if kind["meta-type"] == "alternate" else [kind]


def _branch(schema: Schema, kind: Entity, meta: str) -> Entity | None:
    return next((branch for branch in _branches(schema, kind) if branch["meta-type"] == meta), None)


def _holds_objects(schema: Schema, branches: list[Entity]) -> bool:
    arrays = [branch for branch in branches if branch["meta-type"] == "array"]
    return any(schema.element_type(array)["meta-type"] == "object" for array in arrays)


def describe(schema: Schema, kind: Entity) -> str:
    """A type in a few words."""
    meta = kind["meta-type"]
    if meta == "enum":
        values = schema.values_of(kind)
        return "|".join(values) if len(values) <= 4 else "|".join([*values[:3], "…"])
    if meta == "array":
        return f"list of {describe(schema, schema.element_type(kind))}"
    if meta == "alternate":
        return " or ".join(describe(schema, branch) for branch in _branches(schema, kind))
    names = {"string": "text", "boolean": "true|false", "int": "integer", "value": "any value"}
    json_type = kind.get("json-type", meta)
    return str(names.get(json_type, json_type))
