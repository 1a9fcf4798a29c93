"""QEMU's object model (QOM): what objects there are, their properties, and objects made and removed at run time."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from msgspec import Struct, convert

from ..errors import ArgumentError, CommandError
from ..qmp.ready import ready
from ..qmp.redact import HIDDEN
from .nic import check_id
from .port import Port

_CHILD: Final = "child<"
_LINK: Final = "link<"
# Properties that are asked for at once; the connection itself sends eight of them on.
_ABREAST: Final = 64
# More levels than any machine has: /machine/unattached/device[3]/pcie.0/child[7] is one of the deep ones, with five.
MAX_DEPTH: Final = 64


class Property(Struct, frozen=True, rename="kebab"):
    """A property of an object, or of a type.

    :ivar type: QEMU's name of it, such as ``bool``, ``child<VGA>`` or ``link<memory-backend>``
    """

    name: str
    type: str
    description: str = ""
    default_value: Any = None

    @property
    def is_child(self) -> bool:
        """Whether it is an object of its own, below this one."""
        return self.type.startswith(_CHILD)

    @property
    def is_link(self) -> bool:
        """Whether it leads to an object elsewhere."""
        return self.type.startswith(_LINK)

    @property
    def inner(self) -> str:
        """The type of the object that it is, or leads to; empty for a plain value."""
        return self.type.partition("<")[2].removesuffix(">")


class TypeInfo(Struct, frozen=True):
    """A type of objects (``qom-list-types``)."""

    name: str
    abstract: bool = False
    parent: str = ""


class Object(Struct, frozen=True, kw_only=True):
    """An object, and what is below it.

    :ivar type: its type; empty where QEMU did not tell
    :ivar properties: all of them, by name
    :ivar values: of those that are no objects, as far as they were asked for and can be read
    :ivar unreadable: why the others could not be read, by name
    :ivar children: the objects below, as far as they were asked for
    """

    path: str
    type: str
    properties: Mapping[str, Property]
    values: Mapping[str, Any] = {}
    unreadable: Mapping[str, str] = {}
    children: tuple["Object", ...] = ()

    def walk(self) -> Iterator["Object"]:
        """This object and all below it, parents before their children."""
        yield self
        for child in self.children:
            yield from child.walk()


async def qom_list(port: Port, path: str) -> list[Property]:
    """Return the properties of the object at `path`, children among them (``qom-list``).

    :raises CommandError: there is no such object (class ``DeviceNotFound``)
    """
    return convert(await port.execute("qom-list", {"path": path}), list[Property])


async def qom_get(port: Port, path: str, property: str) -> Any:
    """Return the value of a property (``qom-get``).

    :raises CommandError: there is no such object (class ``DeviceNotFound``) or property, or it cannot be read
    """
    return await port.execute("qom-get", {"path": path, "property": property})


async def qom_set(port: Port, path: str, property: str, value: Any) -> None:
    """Set a property (``qom-set``).

    :param value: a JSON value of the property's own type: QEMU takes ``"2"`` for no number
    :raises CommandError: there is no such object or property, it cannot be set, or not to this value
    """
    await port.execute("qom-set", {"path": path, "property": property, "value": value})


async def qom_tree(port: Port, path: str = "/machine", *, depth: int | None = None, values: bool = True) -> Object:
    """Return the object at `path` with all below it. What is unplugged meanwhile is left out.

    What a ``secret`` holds is left out, too.

    :param depth: levels below `path`; None is all
    :param values: read the values of all properties, which takes a command for each
    :raises CommandError: there is no object at `path`
    """
    if depth is not None and depth < 0:
        raise ArgumentError("depth", depth, "0 or more levels, or None for all")
    return await _read(port, path, "", min(MAX_DEPTH, MAX_DEPTH if depth is None else depth), values)


async def _read(port: Port, path: str, kind: str, depth: int, with_values: bool) -> Object:
    properties = {entry.name: entry for entry in await qom_list(port, path)}
    plain = [entry.name for entry in properties.values() if not entry.is_child]
    values, unreadable = await _values(port, path, plain if with_values else [])
    kind = kind or str(values.get("type", ""))
    if kind.startswith("secret") and "data" in values:
        values["data"] = HIDDEN
    children = []
    for entry in properties.values() if depth else ():
        if entry.is_child:
            try:
                below = f"{path.rstrip('/')}/{entry.name}"
                children.append(await _read(port, below, entry.inner, depth - 1, with_values))
            except CommandError as error:
                if error.error_class != "DeviceNotFound":
                    raise
    return Object(
        path=path, type=kind, properties=properties, values=values, unreadable=unreadable, children=tuple(children)
    )


async def _values(port: Port, path: str, names: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    values: dict[str, Any] = {}
    unreadable: dict[str, str] = {}
    for start in range(0, len(names), _ABREAST):
        part = names[start : start + _ABREAST]
        calls = [port.submit("qom-get", {"path": path, "property": name}) for name in part]
        try:
            for name, call in zip(part, calls, strict=True):
                try:
                    values[name] = await port.result(call)
                except CommandError as error:
                    unreadable[name] = error.desc
        finally:
            for call in calls:
                port.abandon(call)
    return values, unreadable


async def find_objects(port: Port, types: Iterable[str], path: str = "/machine") -> list[str]:
    """Return the paths of all objects of these very types below `path`."""
    wanted = frozenset(types)
    tree = await qom_tree(port, path, values=False)
    return [found.path for found in tree.walk() if found.type in wanted]


# -- types -----------------------------------------------------------------------------------------------------------


async def qom_list_types(port: Port, implements: str | None = None, *, abstract: bool = False) -> list[TypeInfo]:
    """Return the types that this QEMU has (``qom-list-types``).

    Not for machines that must live: QEMU loads all its modules for it, and aborts where they are of another build,
    as after an upgrade of its package (tried on 7.2 and 10.0).

    :param implements: only those that are of this type or interface, such as ``device``
    :param abstract: those too of which no object can be made
    """
    arguments: dict[str, Any] = {"abstract": abstract}
    if implements is not None:
        arguments["implements"] = implements
    return convert(await port.execute("qom-list-types", arguments), list[TypeInfo])


async def qom_list_properties(port: Port, type: str) -> list[Property]:
    """Return the properties that objects of a type have (``qom-list-properties``).

    :raises CommandError: there is no such type
    """
    return convert(await port.execute("qom-list-properties", {"typename": type}), list[Property])


async def device_list_properties(port: Port, driver: str) -> list[Property]:
    """Return the properties that ``device_add`` of a driver takes (``device-list-properties``).

    :raises CommandError: there is no such driver
    """
    return convert(await port.execute("device-list-properties", {"typename": driver}), list[Property])


# -- objects made at run time ----------------------------------------------------------------------------------------


async def object_add(port: Port, type: str, id: str, properties: Mapping[str, Any] | None = None) -> None:
    """Make an object, as ``-object`` does (``object-add``): a secret, an I/O thread, a memory backend, TLS keys …

    :param properties: by QEMU's names, as JSON values of their own types
    :raises CommandError: there is no such type or property, or there is an object of this id
    """
    check_id(id)
    taken = {"qom-type", "id"} & (properties or {}).keys()
    if taken:
        raise ArgumentError("properties", sorted(taken), "all but qom-type and id, which are arguments of their own")
    await port.execute("object-add", {"qom-type": type, "id": id} | dict(properties or {}))


async def object_del(port: Port, id: str) -> None:
    """Remove an object that was made by ``-object`` or :func:`object_add` (``object-del``).

    :raises CommandError: there is none, or it is in use
    """
    await port.execute("object-del", {"id": id})


ready(Property, TypeInfo)
