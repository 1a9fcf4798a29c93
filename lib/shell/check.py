"""Arguments against QEMU's schema, before anything is sent: each bare word gets its type, each mistake its place.

Pure: a parsed command and a schema in, arguments as they go over the wire out.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final

from drover.qmp.schema import Entity, Schema

from .literal import CONSTANTS, LineError, read_integer, read_number
from .parse import Command, Path, Word, show

# Commands whose further arguments depend on the device: QEMU checks them itself ('gen': false).
OPEN: Final = frozenset({"device_add"})
# Of a long list, as many as fit into a few lines.
MAX_SHOWN: Final = 40

_JSON_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "boolean": (bool,),
    "int": (int,),
    "number": (int, float),
    "null": (type(None),),
}
_TYPE_NAMES: Final = {
    "string": "text",
    "boolean": "true or false",
    "int": "an integer",
    "number": "a number",
    "null": "null",
    "array": "a list",
    "object": "an object",
}


def plain(value: Any) -> Any:
    """`value` where nothing is known of its type: a word is an integer, a constant or text by its looks."""
    if isinstance(value, Word):
        integer = read_integer(value)
        if integer is not None:
            return integer
        return constant(value) if value.lower() in _LOWER else str(value)
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


_LOWER: Final = frozenset(word.lower() for word in CONSTANTS)


def constant(word: str) -> bool | None:
    """The constant that `word` is, in whatever case."""
    return {"true": True, "false": False}.get(word.lower())


def check(command: Command, schema: Schema) -> dict[str, Any]:
    """The arguments of `command` with their types.

    :raises LineError: QEMU would not take it; says what it takes, and where in the line the mistake is
    """
    kind = schema.argument_type(command.name)
    if kind is None:
        hint = suggestion(command.name, schema.commands)
        raise LineError(f"there is no command {command.name!r}{hint}", command.places.get((), 0))
    return _Checker(schema, command).object(kind, command.arguments, (), command.name in OPEN)


def suggestion(name: str, known: Iterable[str]) -> str:
    """What was probably meant by `name`, as the end of a message; empty where nothing is near."""
    near = get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""


class _Checker:
    """One walk along a command's arguments and their types."""

    def __init__(self, schema: Schema, command: Command) -> None:
        self._schema = schema
        self._command = command

    def object(self, kind: Entity, value: Mapping[str, Any], path: Path, is_open: bool = False) -> dict[str, Any]:
        """The members of an object as the schema wants them; each that is wrong is told with its place."""
        # the member that chooses the branch counts as the text that it will be
        known = {name: str(item) if isinstance(item, Word) else item for name, item in value.items()}
        members = self._schema.members_of(kind, known)
        done: dict[str, Any] = {}
        for name, item in value.items():
            if name in members:
                done[name] = self._value(self._schema.type_of(members[name]), item, (*path, name))
            elif is_open:
                done[name] = plain(item)
            else:
                self._unknown(kind, members, known, (*path, name))
        missing = [name for name, member in members.items() if "default" not in member and name not in value]
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            raise self._error(f"{' and '.join(show((*path, name)) for name in missing)} {verb} missing", path)
        return done

    def _unknown(self, kind: Entity, members: dict[str, Entity], given: Mapping[str, Any], path: Path) -> None:
        text = f"{self._command.name} has no argument {show(path)!r}"
        tag = kind.get("tag")
        if tag is not None and tag not in given:
            raise self._error(f"{text} without {tag!r}, which says what else there is", path)
        hint = suggestion(str(path[-1]), members)
        if not hint:
            others = sorted(members.keys() - given.keys())
            hint = f"; there {'is' if len(others) == 1 else 'are'} {_listed(others)}" if others else ""
        branch = f" for {tag} {given[tag]!r}" if tag is not None else ""
        raise self._error(text + branch + hint, path)

    def _value(self, kind: Entity, value: Any, path: Path) -> Any:
        meta = kind["meta-type"]
        if meta == "builtin":
            return self._builtin(kind["json-type"], value, path)
        if meta == "enum":
            return self._enum(kind, value, path)
        if meta == "array":
            return self._array(kind, value, path)
        if meta == "alternate":
            return self._alternate(kind, value, path)
        if not isinstance(value, dict):
            raise self._wrong("an object", value, path, f": {show(path)}.NAME=VALUE, or {{…}}")
        return self.object(kind, value, path)

    def _builtin(self, json_type: str, value: Any, path: Path) -> Any:
        if json_type == "value":
            return plain(value)
        if isinstance(value, Word):
            value = as_type(value, json_type)
        wanted = _JSON_TYPES[json_type]
        if not isinstance(value, wanted) or (isinstance(value, bool) and json_type in ("int", "number")):
            raise self._wrong(_TYPE_NAMES[json_type], value, path)
        return value

    def _enum(self, kind: Entity, value: Any, path: Path) -> str:
        allowed = self._schema.values_of(kind)
        if not isinstance(value, str):
            raise self._wrong("text", value, path, f": {_listed(allowed)}")
        if value not in allowed:
            hint = suggestion(value, allowed) or f"; allowed: {_listed(allowed)}"
            raise self._error(f"{show(path)} cannot be {str(value)!r}{hint}", path)
        return str(value)

    def _array(self, kind: Entity, value: Any, path: Path) -> list[Any]:
        if not isinstance(value, list):
            raise self._wrong("a list", value, path, f": {show(path)}[0]=VALUE, or […]")
        element = self._schema.element_type(kind)
        return [self._value(element, item, (*path, number)) for number, item in enumerate(value)]

    def _alternate(self, kind: Entity, value: Any, path: Path) -> Any:
        """A branch is told by its JSON type alone, which QEMU's own rules make unique."""
        branches = {_json_type(branch): branch for branch in map(self._schema.type_of, kind["members"])}
        for json_type in _candidates(value):
            if json_type in branches:
                return self._value(branches[json_type], value, path)
        wanted = " or ".join(_TYPE_NAMES.get(json_type, json_type) for json_type in branches)
        raise self._wrong(wanted, value, path)

    def _wrong(self, wanted: str, value: Any, path: Path, hint: str = "") -> LineError:
        seen = repr(str(value) if isinstance(value, Word) else value)
        seen = seen if len(seen) <= 60 else seen[:59] + "…"
        return self._error(f"{show(path)} wants {wanted}, not {seen}{hint}", path)

    def _error(self, problem: str, path: Path) -> LineError:
        places = self._command.places
        while path and path not in places:
            path = path[:-1]
        return LineError(problem, places.get(path, 0))


def as_type(word: Word, json_type: str) -> Any:
    """`word` as a value of this type, or itself where it is none."""
    if json_type == "string":
        return str(word)
    if json_type in ("int", "number"):
        number = read_number(word)
        return number if number is not None else word
    if word.lower() in _LOWER:
        return constant(word)
    return word


def _json_type(kind: Entity) -> str:
    meta: str = kind["meta-type"]
    if meta == "builtin":
        return str(kind["json-type"])
    return {"enum": "string"}.get(meta, meta)


def _candidates(value: Any) -> list[str]:
    """The JSON types that `value` may have, best first: a word may be several."""
    if isinstance(value, Word):
        guesses = ["null", "boolean"] if value.lower() in _LOWER else []
        fitting = [kind for kind in guesses if not isinstance(as_type(value, kind), Word)]
        fitting = [k for k in fitting if isinstance(as_type(value, k), _JSON_TYPES[k])]
        numbers = ["int", "number"] if read_number(value) is not None else []
        return [*fitting, *numbers, "string"]
    if isinstance(value, bool):
        return ["boolean"]
    for json_type in ("string", "int", "number", "null"):
        if isinstance(value, _JSON_TYPES[json_type]):
            return [json_type, "number"] if json_type == "int" else [json_type]
    return ["array" if isinstance(value, list) else "object"]


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(names[:MAX_SHOWN])
    return shown if len(names) <= MAX_SHOWN else f"{shown} … ({len(names)} in all)"
