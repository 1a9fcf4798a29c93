"""Talking to the agent in a guest. It tells the names of its commands, and of their arguments nothing."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from drover.errors import AgentError
from drover.monitor.agent import AsyncGuestAgent
from drover.qmp.messages import Event

from .check import as_type, plain, suggestion
from .complete import Candidate, find_spot
from .literal import LineError
from .parse import Command, Own, Word, parse
from .talk import LineTalker
from .view import View

# The arguments of qemu-ga's commands by their names, as its documentation has them (7.2 to 10.0), and what each is;
# a question mark: it may be left out.
ARGUMENTS: Final[Mapping[str, Mapping[str, str]]] = {
    "guest-exec": {
        "path": "string", "arg": "list?", "env": "list?", "input-data": "string?", "capture-output": "boolean?",
    },
    "guest-exec-status": {"pid": "int"},
    "guest-file-close": {"handle": "int"},
    "guest-file-flush": {"handle": "int"},
    "guest-file-open": {"path": "string", "mode": "string?"},
    "guest-file-read": {"handle": "int", "count": "int?"},
    "guest-file-seek": {"handle": "int", "offset": "int", "whence": "value"},
    "guest-file-write": {"handle": "int", "buf-b64": "string", "count": "int?"},
    "guest-fsfreeze-freeze-list": {"mountpoints": "list?"},
    "guest-fstrim": {"minimum": "int?"},
    "guest-set-memory-blocks": {"mem-blks": "list"},
    "guest-set-time": {"time": "int?"},
    "guest-set-user-password": {"username": "string", "password": "string", "crypted": "boolean"},
    "guest-set-vcpus": {"vcpus": "list"},
    "guest-shutdown": {"mode": "string?"},
    "guest-ssh-add-authorized-keys": {"username": "string", "keys": "list", "reset": "boolean?"},
    "guest-ssh-get-authorized-keys": {"username": "string"},
    "guest-ssh-remove-authorized-keys": {"username": "string", "keys": "list"},
    "guest-sync": {"id": "int"},
    "guest-sync-delimited": {"id": "int"},
}  # fmt: skip
VALUES: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("guest-shutdown", "mode"): ("powerdown", "halt", "reboot"),
    ("guest-file-open", "mode"): ("r", "r+", "w", "w+", "a", "a+"),
    ("guest-file-seek", "whence"): ("set", "cur", "end"),
}
# What the file systems are after a command.
_FREEZING: Final = {"guest-fsfreeze-freeze": True, "guest-fsfreeze-freeze-list": True, "guest-fsfreeze-thaw": False}
_HELP: Final = """\
COMMAND NAME=VALUE …     as in `drover qmp`: words, 'text', "text", JSON, literals of Python
guest-exec path=/bin/ls arg[0]=-l capture-output=true, then guest-exec-status pid=…"""


class QgaTalker(LineTalker):
    """Talks to a guest's agent.

    :param agent: connected or not
    """

    def __init__(self, agent: AsyncGuestAgent, view: View) -> None:
        super().__init__(view)
        self._agent = agent
        self._commands: dict[str, str] = {}
        self._frozen = False  # by us

    @property
    def prompt(self) -> str:
        return "(QGA frozen) " if self._frozen else "(QGA) "

    def is_connected(self) -> bool:
        return self._agent.is_connected()

    async def connect(self) -> str:
        await self._agent.connect()
        try:
            info = await self._agent.info()
        except AgentError:
            await self._agent.close()
            raise
        states = ((entry.name, "" if entry.enabled else "refused") for entry in info.supported_commands)
        self._commands = dict(sorted(states))
        return f"Connected to qemu-ga {info.version}"

    async def close(self) -> None:
        if self._frozen:
            self._frozen = False
            self.view.note("The guest's file systems are still frozen: guest-fsfreeze-thaw lets them go on.")
        await self._agent.close()

    def events(self) -> AsyncIterator[Event]:
        return self.until_lost()

    def help_text(self, about: str) -> str:
        if not about:
            return f"{_HELP}\n\n{super().help_text('')}"
        if about not in self._commands:
            raise LineError(f"the agent has no command {about!r}{suggestion(about, self._commands)}", len("/help "))
        known = ARGUMENTS.get(about, {})
        return "\n".join([about, *(f"  {name}={_note(kind)}" for name, kind in known.items())])

    async def run(self, text: str) -> None:
        """Have the agent run a line, checked before it is sent, or do what is ours."""
        line = parse(text)
        if isinstance(line, Own):
            await self.run_own(line)
        elif line is not None:
            if self._commands and line.name not in self._commands:
                hint = suggestion(line.name, self._commands)
                raise LineError(f"the agent has no command {line.name!r}{hint}", line.places.get((), 0))
            arguments = typed(line)
            await self.ready()
            self.view.sent(line.name, arguments)
            reply = await self._agent.execute(line.name, arguments)
            self._frozen = _FREEZING.get(line.name, self._frozen)
            self.view.reply(reply)

    async def candidates(self, text: str) -> list[Candidate]:
        """What may stand at the end of a line that is being typed."""
        spot = find_spot(text)
        if spot is None:
            return []
        ways: Mapping[str, str] = {}
        if spot.kind == "own":
            ways = self.own
        elif spot.kind == "command":
            ways = self._commands
        elif spot.kind == "name" and not spot.path:
            known = ARGUMENTS.get(spot.command, {})
            ways = {_way(name, kind): _note(kind) for name, kind in known.items() if name not in spot.given}
        elif spot.kind == "value":
            ways = dict.fromkeys(VALUES.get((spot.command, str(spot.path[0])), ()), "")
            if ARGUMENTS.get(spot.command, {}).get(str(spot.path[0]), "").startswith("boolean"):
                ways = {"true": "", "false": ""}
        return [Candidate(way, spot.start, note) for way, note in ways.items() if way.startswith(spot.typed)]


def _way(name: str, kind: str) -> str:
    return f"{name}[0]=" if kind.startswith("list") else f"{name}="


def _note(kind: str) -> str:
    return kind.removesuffix("?") + ("" if kind.endswith("?") else ", needed")


def typed(command: Command) -> dict[str, Any]:
    """The arguments of `command`, a bare word as what the agent is known to take there."""
    known = ARGUMENTS.get(command.name, {})
    return {
        name: _typed(value, known.get(name, "value").removesuffix("?")) for name, value in command.arguments.items()
    }


def _typed(value: Any, kind: str) -> Any:
    if isinstance(value, Word) and kind in ("string", "int", "boolean"):
        found = as_type(value, kind)
        return str(found) if isinstance(found, Word) else found
    if kind == "list" and isinstance(value, list):
        return [str(item) if isinstance(item, Word) else plain(item) for item in value]
    return plain(value)
