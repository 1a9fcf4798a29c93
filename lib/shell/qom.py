"""`drover qom`: look at the objects of a machine (QOM), and set their properties."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final, TypeVar

import click
from msgspec import Struct

from drover.errors import ArgumentError, CommandError, DroverError
from drover.monitor.aio import AsyncQmpConnection
from drover.qmp.redact import HIDDEN
from drover.qmp.timeouts import DEFAULT_TIMEOUT

from .check import as_type, plain
from .literal import LineError, read_value
from .parse import Word
from .start import find_address, leave
from .talk import exit_code
from .view import as_json, harmless

F = TypeVar("F", bound=Callable[..., Any])
Action = Callable[[AsyncQmpConnection], Coroutine[Any, Any, None]]

_CHILD: Final = "child<"
_LINK: Final = "link<"
# Properties asked for at once; the connection itself sends eight of them on.
_ABREAST: Final = 64
_INTEGERS: Final = ("int", "uint", "size", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


class Property(Struct, frozen=True):
    """A property as ``qom-list`` tells it."""

    name: str
    type: str

    @property
    def is_child(self) -> bool:
        """Whether it is an object of its own, below this one."""
        return self.type.startswith(_CHILD)

    @property
    def inner(self) -> str:
        """The type of the object that it is, or leads to."""
        return self.type.partition("<")[2].removesuffix(">")


async def properties(vm: AsyncQmpConnection, path: str) -> list[Property]:
    """What there is at `path`, objects last, each kind by its names."""
    found = [Property(entry["name"], entry["type"]) for entry in await vm.execute("qom-list", {"path": path})]
    return sorted(found, key=lambda entry: (entry.is_child, entry.name))


async def value_of(vm: AsyncQmpConnection, path: str, name: str) -> Any:
    """The value of a property, or the `CommandError` that tells why there is none."""
    try:
        return await vm.execute("qom-get", {"path": path, "property": name})
    except CommandError as error:
        return error


class Node(Struct, frozen=True):
    """An object of the tree.

    :ivar values: of its properties that are no objects, or the errors in their places
    """

    path: str
    type: str
    properties: list[Property]
    values: dict[str, Any]


async def walk(vm: AsyncQmpConnection, path: str, depth: int | None, brief: bool) -> AsyncIterator[Node]:
    """The objects from `path` down, parents before their children.

    :param depth: levels below `path`; None is all
    :param brief: leave out the values
    """
    waiting = [(path, "", 0)]
    while waiting:
        here, kind, level = waiting.pop()
        try:
            found = await properties(vm, here)
        except CommandError:
            if level == 0:
                raise
            continue  # it was unplugged meanwhile
        plain_ones = [] if brief else [entry for entry in found if not entry.is_child]
        values: dict[str, Any] = {}
        for start in range(0, len(plain_ones), _ABREAST):
            part = plain_ones[start : start + _ABREAST]
            results = await asyncio.gather(*(value_of(vm, here, entry.name) for entry in part))
            values |= {entry.name: value for entry, value in zip(part, results, strict=True)}
        if str(kind or values.get("type")).startswith("secret") and "data" in values:
            values["data"] = HIDDEN
        yield Node(here, kind, found, values)
        if depth is None or level < depth:
            below = [entry for entry in found if entry.is_child]
            waiting += [(f"{here.rstrip('/')}/{entry.name}", entry.inner, level + 1) for entry in reversed(below)]


def split_property(text: str) -> tuple[str, str]:
    """A path and the property behind its last dot.

    :raises LineError: there is none
    """
    path, _, name = text.rpartition(".")
    if not path or not name or "/" in name:
        raise LineError(f"{text!r} names no property: it is PATH.PROPERTY", 0)
    return path, name


def typed(text: str, kind: str) -> Any:
    """What was typed, as a value for a property of this type; without a type, what it looks like.

    :raises LineError: it is none
    """
    if text.startswith(("{", "[", '"', "'")) and kind not in ("string", "str"):
        value, end = read_value(text, 0)
        if end < len(text):
            raise LineError("something stands behind the value", end)
        return value
    word = Word(text)
    if kind == "bool":
        value = {"on": True, "yes": True, "off": False, "no": False}.get(text.lower(), as_type(word, "boolean"))
        if not isinstance(value, bool):
            raise LineError(f"this property is true or false, not {text!r}", 0)
        return value
    if kind in _INTEGERS:
        value = as_type(word, "int")
        if not isinstance(value, int):
            raise LineError(f"this property is an integer, not {text!r}", 0)
        return value
    return plain(word) if not kind else text


# -- the commands --------------------------------------------------------------

_EPILOG = """\b
Examples:
  export QMP_SOCKET=/run/vm.qmp
  drover qom list /machine/peripheral
  drover qom get /machine/peripheral/disk1.serial
  drover qom set /machine/peripheral/balloon0.guest-stats-polling-interval 2
  drover qom tree --brief /machine
"""


@click.group(epilog=_EPILOG)
def command() -> None:
    """Look at the objects of a machine (QOM), and set their properties."""


def _options(function: F) -> F:
    for option in (
        click.option("--json", is_flag=True, help="Print JSON."),
        click.option("-t", "--timeout", type=click.FloatRange(min=0, min_open=True), default=DEFAULT_TIMEOUT,
                     show_default=True, help="Seconds for connecting, and for each command."),
        click.option("-s", "--socket", metavar="ADDRESS", help="A QMP socket; $QMP_SOCKET unless given."),
    ):  # fmt: skip
        function = option(function)
    return function


def _run(socket: str | None, timeout: float, action: Action) -> None:
    place = find_address(socket)

    async def connected() -> None:
        async with AsyncQmpConnection(place, timeout=timeout) as vm:
            await action(vm)

    try:
        asyncio.run(connected())
    except ArgumentError as error:
        raise click.UsageError(str(error)) from error
    except DroverError as error:
        click.echo(str(error), err=True)
        leave(exit_code(error))


def _text(value: Any) -> str:
    if isinstance(value, CommandError):
        return f"<{value.desc}>"
    return value if isinstance(value, str) else as_json(value)


def _echo(text: str) -> None:
    click.echo(harmless(text))


@command.command("list")
@click.argument("path", default="/")
@_options
def list_command(path: str, socket: str | None, timeout: float, json: bool) -> None:
    """List what is at PATH: objects end in /, links in @."""

    async def action(vm: AsyncQmpConnection) -> None:
        found = await properties(vm, path)
        if json:
            _echo(as_json([{"name": entry.name, "type": entry.type} for entry in found]))
            return
        for entry in found:
            mark = "/" if entry.is_child else "@" if entry.type.startswith(_LINK) else ""
            _echo(f"{entry.name}{mark} ({entry.inner if mark else entry.type})")

    _run(socket, timeout, action)


@command.command("get")
@click.argument("property", metavar="PATH.PROPERTY")
@_options
def get_command(property: str, socket: str | None, timeout: float, json: bool) -> None:
    """Print the value of a property."""

    async def action(vm: AsyncQmpConnection) -> None:
        path, name = split_property(property)
        value = await vm.execute("qom-get", {"path": path, "property": name})
        _echo(as_json(value) if json else _text(value))

    _run(socket, timeout, action)


@command.command("set")
@click.argument("property", metavar="PATH.PROPERTY")
@click.argument("value")
@_options
def set_command(property: str, value: str, socket: str | None, timeout: float, json: bool) -> None:
    """Set a property; VALUE is what the property's type makes of it."""

    async def action(vm: AsyncQmpConnection) -> None:
        path, name = split_property(property)
        kinds = {entry.name: entry.type for entry in await properties(vm, path)}
        new = typed(value, kinds.get(name, ""))
        result = await vm.execute("qom-set", {"path": path, "property": name, "value": new})
        if json:
            _echo(as_json(result))

    _run(socket, timeout, action)


@command.command("tree")
@click.argument("path", default="/")
@click.option("-d", "--depth", type=click.IntRange(min=0), help="Levels below PATH; all unless said.")
@click.option("-b", "--brief", is_flag=True, help="Objects only, without their properties.")
@_options
def tree_command(path: str, depth: int | None, brief: bool, socket: str | None, timeout: float, json: bool) -> None:
    """Print the objects from PATH down, and their properties. With --json, one object a line."""

    async def action(vm: AsyncQmpConnection) -> None:
        async for node in walk(vm, path, depth, brief):
            if json:
                values = {name: None if isinstance(v, CommandError) else v for name, v in node.values.items()}
                _echo(as_json({"path": node.path, "type": node.type, "properties": values}))
                continue
            _echo(f"{node.path} ({node.type})" if node.type else node.path)
            kinds = {entry.name: entry.type for entry in node.properties}
            for name, value in node.values.items():
                _echo(f"  {name}: {_text(value)} ({kinds[name]})")

    _run(socket, timeout, action)
