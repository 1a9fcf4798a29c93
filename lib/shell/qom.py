"""`drover qom`: look at the objects of a machine (QOM), and set their properties."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import click

from drover.errors import ArgumentError, DroverError
from drover.monitor.aio import AsyncQmpConnection
from drover.qmp.timeouts import DEFAULT_TIMEOUT

from .check import as_type, plain
from .literal import LineError, read_value
from .parse import Word
from .start import find_address, leave
from .talk import exit_code
from .view import as_json, harmless

F = TypeVar("F", bound=Callable[..., Any])
Action = Callable[[AsyncQmpConnection], Coroutine[Any, Any, None]]

_INTEGERS: Final = ("int", "uint", "size", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


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
    return value if isinstance(value, str) else as_json(value)


def _echo(text: str) -> None:
    click.echo(harmless(text))


@command.command("list")
@click.argument("path", default="/")
@_options
def list_command(path: str, socket: str | None, timeout: float, json: bool) -> None:
    """List what is at PATH: objects end in /, links in @."""

    async def action(vm: AsyncQmpConnection) -> None:
        found = sorted(await vm.qom_list(path), key=lambda entry: (entry.is_child, entry.name))
        if json:
            _echo(as_json([{"name": entry.name, "type": entry.type} for entry in found]))
            return
        for entry in found:
            mark = "/" if entry.is_child else "@" if entry.is_link else ""
            _echo(f"{entry.name}{mark} ({entry.inner if mark else entry.type})")

    _run(socket, timeout, action)


@command.command("get")
@click.argument("property", metavar="PATH.PROPERTY")
@_options
def get_command(property: str, socket: str | None, timeout: float, json: bool) -> None:
    """Print the value of a property."""

    async def action(vm: AsyncQmpConnection) -> None:
        path, name = split_property(property)
        value = await vm.qom_get(path, name)
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
        kinds = {entry.name: entry.type for entry in await vm.qom_list(path)}
        await vm.qom_set(path, name, typed(value, kinds.get(name, "")))
        if json:
            _echo("{}")

    _run(socket, timeout, action)


@command.command("tree")
@click.argument("path", default="/")
@click.option("-d", "--depth", type=click.IntRange(min=0), help="Levels below PATH; all unless said.")
@click.option("-b", "--brief", is_flag=True, help="Objects only, without their properties.")
@_options
def tree_command(path: str, depth: int | None, brief: bool, socket: str | None, timeout: float, json: bool) -> None:
    """Print the objects from PATH down, and their properties. With --json, one object a line."""

    async def action(vm: AsyncQmpConnection) -> None:
        tree = await vm.qom_tree(path, depth=depth, values=not brief)
        for node in tree.walk():
            values = dict.fromkeys(node.unreadable) | dict(node.values)
            if json:
                _echo(as_json({"path": node.path, "type": node.type, "properties": dict(sorted(values.items()))}))
                continue
            _echo(f"{node.path} ({node.type})" if node.type else node.path)
            for name in sorted(values):
                text = f"<{node.unreadable[name]}>" if name in node.unreadable else _text(node.values[name])
                _echo(f"  {name}: {text} ({node.properties[name].type})")

    _run(socket, timeout, action)
