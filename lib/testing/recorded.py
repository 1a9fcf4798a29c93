"""Schemas recorded from real QEMUs, and checking a command's arguments against one.

A fake that takes any argument lets a wrong one pass every test until it meets a real
QEMU; so ours refuse what the recorded schema does not have.
"""

import lzma
from functools import cache
from importlib import resources
from typing import Any, Final

import msgspec

Entity = dict[str, Any]

# Versions that there is a recording of.
RECORDED: Final = ("7.2", "10.0")

# Commands whose further arguments depend on the device: QEMU checks them itself ('gen': false).
_OPEN: Final = frozenset({"device_add"})


class WrongArguments(AssertionError):
    """A command that the recorded QEMU would not understand: the code under test is wrong."""


@cache
def recorded_schema(version: str) -> tuple[Entity, ...]:
    """The reply to ``query-qmp-schema`` of QEMU `version`, one of :data:`RECORDED`."""
    data = resources.files(__package__).joinpath("data", f"qmp-schema-{version}.json.xz").read_bytes()
    return tuple(msgspec.json.decode(lzma.decompress(data)))


class Checker:
    """Checks arguments by the types of a recorded schema.

    :param version: one of :data:`RECORDED`
    """

    def __init__(self, version: str) -> None:
        self._types = {entity["name"]: entity for entity in recorded_schema(version)}

    def check(self, command: str, arguments: Any) -> None:
        """Pass if QEMU would understand `command` with `arguments`.

        :raises WrongArguments: it would not; says where and why
        """
        entity = self._types.get(command)
        if entity is None or entity["meta-type"] != "command":
            raise WrongArguments(f"there is no command '{command}'")
        self._object(self._types[entity["arg-type"]], {} if arguments is None else arguments, command, command in _OPEN)

    def _value(self, type_name: str, value: Any, path: str) -> None:
        entity = self._types[type_name]
        kind = entity["meta-type"]
        if kind == "builtin":
            _builtin(entity["json-type"], value, path)
        elif kind == "enum":
            allowed = entity["values"] if "values" in entity else [member["name"] for member in entity["members"]]
            if value not in allowed:
                raise WrongArguments(f"{path}: {value!r} is none of {allowed}")
        elif kind == "array":
            if not isinstance(value, list):
                raise WrongArguments(f"{path}: {value!r} is no list")
            for number, item in enumerate(value):
                self._value(entity["element-type"], item, f"{path}[{number}]")
        elif kind == "alternate":
            self._alternate(entity, value, path)
        else:
            self._object(entity, value, path)

    def _alternate(self, entity: Entity, value: Any, path: str) -> None:
        problems = []
        for member in entity["members"]:
            try:
                self._value(member["type"], value, path)
                return
            except WrongArguments as error:
                problems.append(str(error))
        raise WrongArguments(f"{path}: no alternative fits: {'; '.join(problems)}")

    def _object(self, entity: Entity, value: Any, path: str, is_open: bool = False) -> None:
        if not isinstance(value, dict):
            raise WrongArguments(f"{path}: {value!r} is no object")
        members = self._members(entity, value, path)
        for name, item in value.items():
            if name in members:
                self._value(members[name]["type"], item, f"{path}.{name}")
            elif not is_open:
                raise WrongArguments(f"{path}: no member '{name}'; there are {sorted(members)}")
        missing = [name for name, member in members.items() if "default" not in member and name not in value]
        if missing:
            raise WrongArguments(f"{path}: {', '.join(missing)} missing")

    def _members(self, entity: Entity, value: dict[str, Any], path: str) -> dict[str, Entity]:
        members = {member["name"]: member for member in entity["members"]}
        tag = value.get(entity.get("tag", ""))
        for variant in entity.get("variants", ()):
            if variant["case"] == tag:
                members |= self._members(self._types[variant["type"]], value, path)
        return members


_JSON: Final[dict[str, tuple[type, ...]]] = {
    "string": (str,),
    "boolean": (bool,),
    "int": (int,),
    "number": (int, float),
    "null": (type(None),),
}


def _builtin(kind: str, value: Any, path: str) -> None:
    if kind == "value":
        return
    if not isinstance(value, _JSON[kind]) or (kind in ("int", "number") and isinstance(value, bool)):
        raise WrongArguments(f"{path}: {value!r} is no {kind}")
