"""Talking QMP."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from drover.errors import DroverError, ProtocolError
from drover.monitor.aio import AsyncQmpConnection
from drover.qmp.messages import Event
from drover.qmp.schema import Schema

from .check import check, plain, suggestion
from .complete import Candidate, Completer, describe
from .literal import LineError
from .live import DEADLINE, Live
from .parse import Command, Own, parse
from .talk import OWN, LineTalker, tapped
from .view import View

# What a human monitor says first.
_TEXT_BANNER: Final = b"QEMU "
_HELP: Final = """\
COMMAND NAME=VALUE …     VALUE: a word, 'text', "text", JSON or a literal of Python
NAME.NAME=VALUE          inside of an object; NAME[0]=VALUE in a list
COMMAND {JSON}           all arguments at once; {"execute": …} a whole message
transaction( … )         each line, or what ends in ' ; ', an action
Tab completes, Ctrl-R searches what was typed, Ctrl-C ends waiting, Ctrl-D leaves."""


class QmpTalker(LineTalker):
    """Talks to a QMP monitor.

    :param vm: connected or not
    :param verify: check arguments by the schema before they are sent
    """

    own = OWN | {"oob": "/oob COMMAND …: out of band, past whatever QEMU is busy with"}

    def __init__(self, vm: AsyncQmpConnection, view: View, *, verify: bool = True) -> None:
        super().__init__(view)
        self._vm = vm
        self._verify = verify
        self._schema: Schema | None = None
        self._live = Live(self._ask)

    @property
    def prompt(self) -> str:
        return "(QEMU) "

    def is_connected(self) -> bool:
        return self._vm.is_connected()

    async def connect(self) -> str:
        try:
            await self._vm.connect()
        except ProtocolError as error:
            if not error.excerpt.startswith(_TEXT_BANNER):
                raise
            raise ProtocolError("this is a human monitor: `drover hmp`, or -H, talks to it", error.excerpt) from error
        self._schema = await self._vm.query_schema()
        self._live.forget()
        return f"Connected to QEMU {'.'.join(map(str, self._vm.version))}"

    async def close(self) -> None:
        await self._vm.close()

    def events(self) -> AsyncIterator[Event]:
        return tapped(self._vm)

    async def run(self, text: str) -> None:
        """Have the machine run a line, checked before it is sent, or do what is ours."""
        line = parse(text)
        if isinstance(line, Own):
            await self.run_own(line)
        elif line is not None:
            arguments, schema = self._checked(line), self._schema
            await self.ready()
            if self._schema is not schema:  # another QEMU answers now
                arguments = self._checked(line)
            self.view.sent(line.name, arguments, "exec-oob" if line.oob else "execute")
            self._live.forget()
            # the one property by which QEMU tells a secret: that of a `secret` object
            secret = line.name == "qom-get" and arguments.get("property") == "data"
            self.view.reply(await self._vm.execute(line.name, arguments, oob=line.oob), secret)

    def _checked(self, command: Command) -> dict[str, Any]:
        if self._verify and self._schema is not None:
            return check(command, self._schema)
        return {name: plain(value) for name, value in command.arguments.items()}

    def help_text(self, command: str) -> str:
        if not command:
            return f"{_HELP}\n\n{super().help_text('')}"
        schema = self._schema
        kind = None if schema is None else schema.argument_type(command)
        if schema is None or kind is None:
            known: frozenset[str] = frozenset() if schema is None else schema.commands
            raise LineError(f"there is no command {command!r}{suggestion(command, known)}", len("/help "))
        return "\n".join([_title(schema, command), *_members(schema, kind)])

    # -- completion --------------------------------------------------------

    async def _ask(self, command: str, arguments: Mapping[str, Any]) -> Any:
        return await self._vm.execute(command, arguments, timeout=DEADLINE)

    async def candidates(self, text: str) -> list[Candidate]:
        if self._schema is None or not self.is_connected():
            return []
        try:
            return await Completer(self._schema, self._live, self.own).candidates(text)
        except DroverError:
            return []


def _title(schema: Schema, command: str) -> str:
    marks = [mark for mark in ("deprecated", "unstable") if schema.has_feature(command, mark)]
    return command + (f" ({', '.join(marks)})" if marks else "")


def _members(schema: Schema, kind: Mapping[str, Any]) -> list[str]:
    lines = [
        f"  {name}={describe(schema, schema.type_of(member))}{'' if 'default' in member else ' (needed)'}"
        for name, member in sorted(schema.members_of(kind, {}).items(), key=lambda item: "default" in item[1])
    ]
    if "tag" in kind:
        lines.append(f"  … and what {kind['tag']} brings with it")
    return lines or ["  no arguments"]
