"""Talking HMP: to a text socket, or through QMP; which of the two is found out by what answers."""

import re
from collections.abc import AsyncIterator, Mapping
from typing import Final

from drover.errors import CommandError, ConnectTimeout, DroverError, ProtocolError
from drover.monitor.aio import AsyncQmpConnection
from drover.monitor.human import AsyncHumanMonitor, AsyncQmpHumanMonitor
from drover.qmp.messages import Event
from drover.qmp.redact import may_hold_secret

from .complete import Candidate
from .literal import check_text
from .live import DEADLINE
from .parse import Own
from .talk import OWN, Talker, tapped
from .view import View

_COMMAND: Final = re.compile(r"^(?!\t)(\S+)(?: (.*?))? ? ?-- (.*)$", re.MULTILINE)
_INFO: Final = re.compile(r"^info (\S+)(?: (.*?))? ? ?-- (.*)$", re.MULTILINE)
_CPU: Final = re.compile(r"\s*cpu\s+([0-9]{1,9})\s*")
_QUIT: Final = re.compile(r"\s*(q|quit)\s*")
_WORD: Final = re.compile(r"\S*\Z")

# Where the names of what is in the machine stand: the text of a command, and a pattern in it.
_LISTS: Final[Mapping[str, tuple[str, re.Pattern[str]]]] = {
    "device": ("info qtree", re.compile(r'^\s*dev: \S+, id "([^"]+)"', re.MULTILINE)),
    "block": ("info block", re.compile(r"^([^\s:]+)(?: \(#block[0-9]+\))?:", re.MULTILINE)),
    "node": ("info block -n", re.compile(r"^([^\s:]+):", re.MULTILINE)),
    "chardev": ("info chardev", re.compile(r"^([^\s:]+): filename=", re.MULTILINE)),
    "netdev": ("info network", re.compile(r"^[\s\\]*(\S+): index=", re.MULTILINE)),
}
_TAKES: Final[Mapping[str, tuple[str, ...]]] = {
    "device_del": ("device",),
    "set_link": ("device", "netdev"),
    "netdev_del": ("netdev",),
    "chardev-remove": ("chardev",),
    "chardev-change": ("chardev",),
    "chardev-send-break": ("chardev",),
    "ringbuf_read": ("chardev",),
    "ringbuf_write": ("chardev",),
    "info block": ("block",),
    "block_resize": ("block", "node"),
    "block_stream": ("block",),
    "block_job_cancel": ("block",),
    "block_job_pause": ("block",),
    "block_job_resume": ("block",),
    "block_job_complete": ("block",),
    "block_job_set_speed": ("block",),
    "block_set_io_throttle": ("block",),
    "change": ("block",),
    "commit": ("block",),
    "drive_backup": ("block",),
    "drive_del": ("block", "node"),
    "drive_mirror": ("block",),
    "eject": ("block",),
    "qemu-io": ("block", "node"),
    "snapshot_blkdev": ("block",),
    "snapshot_blkdev_internal": ("block",),
    "snapshot_delete_blkdev_internal": ("block",),
}


class HmpTalker(Talker):
    """Talks to a human monitor.

    :param address: of a text socket, or of a QMP socket
    :param timeout: seconds for connecting, and for each command that is not slow by nature
    """

    own: Mapping[str, str] = {name: what for name, what in OWN.items() if name not in ("pretty", "verbose")}

    def __init__(self, address: str, timeout: float, view: View) -> None:
        super().__init__(view)
        self._qmp = AsyncQmpConnection(address, timeout=timeout)
        self._text = AsyncHumanMonitor(address, timeout=timeout)
        self._through_qmp = AsyncQmpHumanMonitor(self._qmp)
        self._monitor: AsyncHumanMonitor | AsyncQmpHumanMonitor = self._text
        self._cpu = 0
        self._commands: list[tuple[str, str]] = []
        self._infos: list[tuple[str, str]] = []

    @property
    def prompt(self) -> str:
        return f"(qemu cpu {self._cpu}) " if self._cpu else "(qemu) "

    def is_connected(self) -> bool:
        return (self._qmp if self._monitor is self._through_qmp else self._text).is_connected()

    async def connect(self) -> str:
        self._cpu, self._through_qmp.cpu_index = 0, None
        try:
            await self._qmp.connect()
            self._monitor, version, how = self._through_qmp, self._qmp.version, ", through its QMP monitor"
        except ConnectTimeout:
            raise
        except ProtocolError:
            await self._text.connect()
            self._monitor, version, how = self._text, self._text.version, ""
        await self._learn()
        return f"Connected to QEMU {'.'.join(map(str, version))}{how}"

    async def _learn(self) -> None:
        """Ask what there is to type; who cannot be told that can still type it."""
        self._commands, self._infos = [], []
        try:
            for name, arguments, what in _COMMAND.findall(await self._monitor.help()):
                self._commands += [(word, f"{arguments}: {what}" if arguments else what) for word in name.split("|")]
            self._infos = [(name, what) for name, _, what in _INFO.findall(await self._monitor.help("info"))]
        except CommandError:
            pass

    async def close(self) -> None:
        await self._qmp.close()
        await self._text.close()

    def events(self) -> AsyncIterator[Event]:
        return tapped(self._qmp) if self._monitor is self._through_qmp else self.until_lost()

    def is_secret(self, text: str) -> bool:
        return may_hold_secret(text)

    def refused(self, error: CommandError) -> None:
        self.view.failed(error)

    def help_text(self, about: str) -> str:
        more = "Everything else is HMP: `help` lists its commands, `help NAME` and `info` tell more."
        return f"{super().help_text(about)}\n{more}"

    async def run(self, text: str) -> None:
        """Have the monitor run a line, or do what is ours if it begins with a slash."""
        check_text(text)
        line = text.strip()
        if line.startswith("/"):
            name, _, rest = line[1:].partition(" ")
            await self.run_own(Own(name, rest.strip()))
            return
        if not line:
            return
        await self.ready()
        self.view.typed(line)
        cpu = _CPU.fullmatch(line)
        if cpu is not None:
            await self._choose_cpu(int(cpu[1]), line)
        elif _QUIT.fullmatch(line):
            await self._monitor.quit()
        else:
            self.view.output((await self._monitor.cmd(line)).rstrip("\n"))

    async def _choose_cpu(self, index: int, line: str) -> None:
        before, self._through_qmp.cpu_index = self._through_qmp.cpu_index, index
        try:
            self.view.output(await self._monitor.cmd(line))
        except DroverError:
            self._through_qmp.cpu_index = before
            raise
        self._cpu = index

    # -- completion --------------------------------------------------------

    async def candidates(self, text: str) -> list[Candidate]:
        found = _WORD.search(text)
        words = text.split()
        start, typed = (len(text), "") if found is None else (found.start(), found[0])
        before = words[:-1] if typed else words
        return [
            Candidate(name, start, note) for name, note in await self._ways(before, typed) if name.startswith(typed)
        ]

    async def _ways(self, before: list[str], typed: str) -> list[tuple[str, str]]:
        if not before:
            if typed.startswith("/"):
                return [(f"/{name}", what) for name, what in self.own.items()]
            return self._commands
        if before in (["help"], ["?"]):
            return self._commands
        if before in (["info"], ["help", "info"]):
            return self._infos
        name = " ".join(before[:2]) if before[0] == "info" else before[0]
        arguments = [word for word in before[len(name.split()) :] if not word.startswith("-")]
        ways: list[tuple[str, str]] = []
        for kind in () if arguments else _TAKES.get(name, ()):
            ways += await self._names(kind)
        return ways

    async def _names(self, kind: str) -> list[tuple[str, str]]:
        line, pattern = _LISTS[kind]
        try:
            return [(name, kind) for name in pattern.findall(await self._monitor.cmd(line, DEADLINE))]
        except DroverError:
            return []
