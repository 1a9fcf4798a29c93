"""An index over the reply of ``query-qmp-schema`` (QEMU 2.5 and later).

The schema hides type names behind numbers, so everything is asked by the names
that a user sees: a command and the path to its argument, an event, a feature.
Paths go through nested objects by dots and through lists as if they were not
there: ``has_argument("migrate-set-capabilities", "capabilities.state")``.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Entity = Mapping[str, Any]


class Schema:
    """What one QEMU understands.

    :param entities: the list that ``query-qmp-schema`` returned
    """

    def __init__(self, entities: Iterable[Entity]) -> None:
        self._entities: dict[str, Entity] = {entity["name"]: entity for entity in entities}

    @property
    def commands(self) -> frozenset[str]:
        """Names of all commands."""
        return self._named("command")

    @property
    def events(self) -> frozenset[str]:
        """Names of all events."""
        return self._named("event")

    def has_command(self, command: str) -> bool:
        """Whether `command` exists."""
        return self._get(command, "command") is not None

    def has_event(self, event: str) -> bool:
        """Whether `event` exists."""
        return self._get(event, "event") is not None

    def allows_oob(self, command: str) -> bool:
        """Whether `command` may run out of band, past all that waits and whatever the main loop does."""
        entity = self._get(command, "command")
        return entity is not None and bool(entity.get("allow-oob"))

    def has_argument(self, command: str, path: str) -> bool:
        """Whether `command` takes the argument at `path`, in any variant of its type."""
        return any(True for _ in self._walk(command, "command", path))

    def has_event_member(self, event: str, path: str) -> bool:
        """Whether `event` carries the member at `path`."""
        return any(True for _ in self._walk(event, "event", path))

    def has_result_member(self, command: str, path: str) -> bool:
        """Whether the result of `command` has the member at `path`."""
        entity = self._get(command, "command")
        return entity is not None and any(True for _ in self._descend(entity["ret-type"], path.split(".")))

    def has_value(self, command: str, path: str, value: str) -> bool:
        """Whether the enumeration at `path` of `command` has the member `value`."""
        return value in self.values(command, path)

    def values(self, command: str, path: str) -> frozenset[str]:
        """All members of the enumeration at `path` of `command`; empty where there is none."""
        return frozenset(
            value
            for member in self._walk(command, "command", path)
            for target in self._objects(member["type"])
            for value in _enum_values(target)
        )

    def has_feature(self, name: str, feature: str, path: str = "") -> bool:
        """Whether the command or event `name`, or its member at `path`, has `feature` (such as ``deprecated``)."""
        if path:
            return any(feature in member.get("features", ()) for member in self._walk(name, None, path))
        entity = self._entities.get(name)
        return entity is not None and feature in entity.get("features", ())

    def arguments(self, command: str) -> dict[str, bool]:
        """Names of the top-level arguments of `command` in all variants, and whether each must be given."""
        entity = self._get(command, "command")
        if entity is None:
            return {}
        return {
            member["name"]: "default" not in member
            for target in self._objects(entity["arg-type"])
            for member in self._members(target)
        }

    # -- types, for whoever walks along a value ---------------------------

    def argument_type(self, command: str) -> Entity | None:
        """The object type of the arguments of `command`; None if there is no such command."""
        entity = self._get(command, "command")
        return None if entity is None else self._entities[entity["arg-type"]]

    def type_of(self, member: Entity) -> Entity:
        """The type of a member, as :meth:`members_of` gives it, or of an alternate's branch."""
        return self._entities[member["type"]]

    def element_type(self, array: Entity) -> Entity:
        """The type of what a list type holds."""
        return self._entities[array["element-type"]]

    def members_of(self, kind: Entity, value: Mapping[str, Any]) -> dict[str, Entity]:
        """The members that an object of this type may have, as far as what `value` holds of it decides.

        An object with variants has those of one branch, chosen by the value of another member.
        """
        members = {member["name"]: member for member in kind.get("members", ())}
        chosen = value.get(kind["tag"]) if "tag" in kind else None
        for variant in kind.get("variants", ()):
            if variant["case"] == chosen:
                members |= self.members_of(self._entities[variant["type"]], value)
        return members

    def values_of(self, kind: Entity) -> list[str]:
        """What an enumeration type allows, in QEMU's order; empty for another type."""
        return list(_enum_values(kind))

    # -- the graph of types ----------------------------------------------

    def _named(self, meta: str) -> frozenset[str]:
        return frozenset(name for name, entity in self._entities.items() if entity["meta-type"] == meta)

    def _get(self, name: str, meta: str | None) -> Entity | None:
        entity = self._entities.get(name)
        return entity if entity is not None and meta in (None, entity["meta-type"]) else None

    def _walk(self, name: str, meta: str | None, path: str) -> Iterator[Entity]:
        entity = self._get(name, meta)
        if entity is not None and "arg-type" in entity:
            yield from self._descend(entity["arg-type"], path.split("."))

    def _descend(self, type_name: str, path: list[str]) -> Iterator[Entity]:
        for target in self._objects(type_name):
            for member in self._members(target):
                if member["name"] != path[0]:
                    continue
                if len(path) == 1:
                    yield member
                else:
                    yield from self._descend(member["type"], path[1:])

    def _objects(self, type_name: str) -> Iterator[Entity]:
        """The types behind a name: through lists, and every branch of an alternate."""
        entity = self._entities[type_name]
        if entity["meta-type"] == "array":
            yield from self._objects(entity["element-type"])
        elif entity["meta-type"] == "alternate":
            for member in entity["members"]:
                yield from self._objects(member["type"])
        else:
            yield entity

    def _members(self, entity: Entity) -> Iterator[Entity]:
        if entity["meta-type"] != "object":
            return
        yield from entity.get("members", ())
        for variant in entity.get("variants", ()):
            yield from self._members(self._entities[variant["type"]])


def _enum_values(entity: Entity) -> Iterable[str]:
    if entity["meta-type"] != "enum":
        return ()
    # `members` (with features) came with QEMU 6.2; `values` says the same and stays for old clients.
    return [member["name"] for member in entity["members"]] if "members" in entity else list(entity["values"])
