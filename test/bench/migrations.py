"""The figures of migration: how long a machine takes from node to node, and how long its guest stands still meanwhile.

Ours are two real node daemons with certificates, and a call to one of them. Beside them one process by itself: on the
monitors of both QEMUs, with the same words on their command lines, the same capabilities and parameters (as ours were
seen to set them), and nobody who would take it up if it died. The machine goes there and back, round by round.

When a guest stands still is QEMU's own word on both sides: from the STOP of the source to the RESUME of the target, by
the stamps of the events, on a monitor that nobody else uses.
"""

import json
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bare import BareMachine
from daemons_of import LIBVIRT, Ferries, has_libvirt
from figures import binaries
from frame import WALL_MS, Added, BenchError, Clock, Column, Result, Side, measure
from procs import cpu_of
from prompt import wait_for_prompt

sys.path.append(str(Path(__file__).resolve().parents[1]))

from lives import files_of

from drover.migration.credentials import issue
from instances import SHELL, bootable
from pairs import Pair, two_nodes
from people import Member

OURS: Final = "drover"
SCRIPT: Final = "a script"
VIRSH: Final = "virsh migrate"
CPU: Final = Column("CPU", "ms", 1e3)
TOTAL: Final = WALL_MS
BLACKOUT: Final = Column("blackout", "ms", 1e3)
TIMEOUT: Final = 60.0  # seconds for anything that is waited for
NAME: Final = "a"
TLS_NAME: Final = "bench"  # of whom the script's certificates are
PRIORITY: Final = "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+CHACHA20-POLY1305"  # as ours chooses it

Words = dict[str, Any]


def guest_of(version: str) -> Words:
    """The machine that goes.

    Where its kernel puts itself is no matter of chance: of some places 15 MB more of what was there stays to be sent.
    """
    return bootable(version, NAME, f"{SHELL} nokaslr")


@dataclass
class Settings:
    """What QEMU's migration was told, on one side."""

    capabilities: list[Words] = field(default_factory=list)
    parameters: Words = field(default_factory=dict)


class Watch:
    """A monitor on which nothing is done but to hear what happens, from as soon as it listens.

    :param asks: ask once for capabilities and parameters, as soon as a migration is under way
    """

    def __init__(self, path: Path, *, asks: bool = False) -> None:
        self.settings = Settings()
        self._path, self._asks = path, asks
        self._at: dict[str, float] = {}
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def wait(self, event: str) -> float:
        """When it came, by QEMU's stamp; it is waited for.

        :raises BenchError: it does not come
        """
        with self._changed:
            if not self._changed.wait_for(lambda: event in self._at, TIMEOUT):
                raise BenchError(f"{self._path}: {event} did not come")
            return self._at[event]

    def close(self) -> None:
        """Hear no more."""
        self._ended = True
        self._thread.join()

    def _listen(self) -> None:
        while not self._ended:
            with suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as monitor:
                monitor.settimeout(0.2)
                monitor.connect(str(self._path))
                monitor.sendall(b'{"execute": "qmp_capabilities"}')
                self._read(monitor)
            time.sleep(0.002)

    def _read(self, monitor: socket.socket) -> None:
        text = b""
        while not self._ended:
            try:
                data = monitor.recv(65536)
            except TimeoutError:
                continue
            if not data:
                return
            *lines, text = (text + data).split(b"\n")
            for line in lines:
                self._hear(json.loads(line), monitor)

    def _hear(self, message: Words, monitor: socket.socket) -> None:
        if "event" in message:
            stamp = message["timestamp"]
            with self._changed:
                self._at[message["event"]] = stamp["seconds"] + stamp["microseconds"] / 1e6
                self._changed.notify_all()
            if self._asks and message["event"] == "MIGRATION" and message["data"]["status"] == "active":
                self._asks = False
                for what in ("capabilities", "parameters"):
                    monitor.sendall(json.dumps({"execute": f"query-migrate-{what}", "id": what}).encode())
        elif "id" in message:
            setattr(self.settings, message["id"], message["return"])
            with self._changed:
                self._at[message["id"]] = 0.0
                self._changed.notify_all()


@dataclass
class Recorded:
    """What ours did, for whoever is to do the same: words of both command lines, and what both sides were told."""

    start: list[str]
    incoming: list[str]
    source: Settings
    target: Settings


class Ours(Side):
    """Two daemons, and a machine.

    :param params: of the migration
    """

    def __init__(self, version: str, params: Words) -> None:
        super().__init__(OURS)
        self._version, self._params = version, params
        self._stack = ExitStack()
        self._pair: Pair | None = None
        self._back = False

    def setup(self) -> None:
        """The first time: two nodes, and a guest that has booted."""
        if self._pair is None:
            top = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="drover-bench-")))
            self._pair = pair = self._stack.enter_context(two_nodes(top))
            pair.here.daemon.create(guest_of(self._version))
            pair.here.daemon.do("start", NAME)
            wait_for_prompt(self._socket(pair.here, "serial"))

    def run(self, clock: Clock, count: int) -> None:
        """There, or back."""
        source, target = self._watched()
        try:
            before = self._cpu()
            begun = time.perf_counter()
            self._move()
            clock.add(self._cpu() - before, time.perf_counter() - begun)
            clock.notes[BLACKOUT.name] = target.wait("RESUME") - source.wait("STOP")
        finally:
            source.close()
            target.close()

    def record(self) -> Recorded:
        """Move it once, and note how."""
        self.setup()
        here, there = self._sides()
        start = self._argv(here)
        source, target = self._watched(asks=True)
        try:
            self._move()
            for side in (source, target):
                side.wait("parameters")
        finally:
            source.close()
            target.close()
        return Recorded(start, self._argv(there), source.settings, target.settings)

    def teardown(self) -> None:
        """It stays where it is."""

    def close(self) -> None:
        """End all."""
        self._pair = None
        self._stack.close()

    def _move(self) -> None:
        assert self._pair is not None
        self._pair.move(NAME, back=self._back, **self._params)
        self._back = not self._back

    def _sides(self) -> tuple[Member, Member]:
        assert self._pair is not None
        here, there = self._pair.both
        return (there, here) if self._back else (here, there)

    def _watched(self, *, asks: bool = False) -> tuple[Watch, Watch]:
        here, there = self._sides()
        return Watch(self._socket(here, "events"), asks=asks), Watch(self._socket(there, "events"), asks=asks)

    def _cpu(self) -> float:
        return sum(cpu_of(member.daemon.pid) for member in self._sides())

    @staticmethod
    def _socket(member: Member, name: str) -> Path:
        return member.paths.instance(NAME).socket(name)

    @staticmethod
    def _argv(member: Member) -> list[str]:
        runtime = member.node.instance(NAME).show().document.runtime
        assert runtime is not None
        return list(runtime.argv)


class Script(Side):
    """One process that tells both QEMUs what to do, as fast as they can do it.

    :param files: for the command line
    """

    def __init__(self, recorded: Recorded, files: dict[str, str]) -> None:
        super().__init__(SCRIPT)
        self._recorded, self._files = recorded, files
        self._source: BareMachine | None = None
        self._keys: tempfile.TemporaryDirectory[str] | None = None
        self._times = 0

    def setup(self) -> None:
        """The first time: boot the guest."""
        if self._source is None:
            self._source = BareMachine(self._recorded.start, self._files)
            self._source.start()
            self._source("cont")
            wait_for_prompt(self._source.socket("serial"))
            self._to_set = [self._changes(side) for side in (self._recorded.source, self._recorded.target)]
            if self._recorded.source.parameters.get("tls-creds"):
                self._make_keys()

    def _make_keys(self) -> None:
        """Once for all: the script uses the same certificates each time, ours makes them for each migration."""
        self._keys = tempfile.TemporaryDirectory(prefix="drover-bench-")
        for half in issue(TLS_NAME, 1, 86_400):
            for file, text in half.files.items():
                (Path(self._keys.name) / file).write_text(text.secret, encoding="ascii")

    def _secure(self, source: BareMachine, target: BareMachine) -> None:
        """Objects with the keys, of a new name: what came by TLS has one of its own already."""
        assert self._keys is not None
        self._times += 1
        for machine, endpoint in ((source, "client"), (target, "server")):
            name = f"tls{self._times}{endpoint}"
            machine("object-add", qom_type="tls-creds-x509", id=name, dir=self._keys.name, endpoint=endpoint,
                    verify_peer=True, priority=PRIORITY)  # fmt: skip
            host = {"tls_hostname": f"1.{TLS_NAME}.drover"} if endpoint == "client" else {}
            machine("migrate-set-parameters", tls_creds=name, **host)

    def _changes(self, wanted: Settings) -> Settings:
        """What is not so by itself."""
        assert self._source is not None
        usual = self._source("query-migrate-parameters")
        capabilities = self._source("query-migrate-capabilities")
        return Settings(
            [each for each in wanted.capabilities if each not in capabilities],
            {name: value for name, value in wanted.parameters.items()
             if usual.get(name) != value and not name.startswith("tls-")},
        )

    def run(self, clock: Clock, count: int) -> None:
        """There; what came is what goes next."""
        source = self._source
        assert source is not None
        target = BareMachine(self._recorded.incoming, self._files)
        watches = Watch(source.socket("events")), Watch(target.socket("events"))
        try:
            with clock:
                self._move(source, target)
            clock.notes[BLACKOUT.name] = watches[1].wait("RESUME") - watches[0].wait("STOP")
            self._source = target
        finally:
            for watch in watches:
                watch.close()
            (source if self._source is target else target).stop()

    def _move(self, source: BareMachine, target: BareMachine) -> None:
        target.start()
        for machine, settings in zip((source, target), self._to_set, strict=True):
            machine("migrate-set-capabilities", capabilities=settings.capabilities)
            machine("migrate-set-parameters", **settings.parameters)
        if self._keys is not None:
            self._secure(source, target)
        target("migrate-incoming", uri="tcp:127.0.0.1:0")
        port = target("query-migrate")["socket-address"][0]["port"]
        source("migrate", uri=f"tcp:127.0.0.1:{port}")
        source.wait_event("MIGRATION", status="pre-switchover")
        source("migrate-continue", state="pre-switchover")
        source.wait_event("MIGRATION", status="completed")
        target("cont")
        source("quit")
        source.wait_end()

    def teardown(self) -> None:
        """It stays where it is."""

    def close(self) -> None:
        """End it."""
        if self._source is not None:
            self._source.stop()
            self._source = None
        if self._keys is not None:
            self._keys.cleanup()


class Virsh(Side):
    """Two libvirtds, and a call by which a client has them move the machine; the libvirt of `tools/libvirt`."""

    def __init__(self) -> None:
        super().__init__(VIRSH)
        self._stack = ExitStack()
        self._both: Ferries | None = None

    def setup(self) -> None:
        """The first time: boot the guest."""
        if self._both is None:
            self._both = self._stack.enter_context(Ferries(LIBVIRT))
            self._both.begin()

    def run(self, clock: Clock, count: int) -> None:
        """There, or back."""
        assert self._both is not None
        before = self._both.cpu()
        took, clock.notes[BLACKOUT.name] = self._both.move()
        clock.add(self._both.cpu() - before, took)

    def teardown(self) -> None:
        """It stays where it is."""

    def close(self) -> None:
        """End all."""
        self._both = None
        self._stack.close()


@dataclass(frozen=True)
class Moving:
    """One way of going."""

    name: str
    title: str
    params: Words
    row: int = 12

    def run(self, quick: bool, progress: Callable[[str], None]) -> Iterator[Result]:
        """Measure it, with each QEMU."""
        for version in binaries():
            title = f"migration of 256 MiB, an idle guest, {self.title}, QEMU {version}"
            bars = (Added(OURS, 50, TOTAL, SCRIPT), Added(OURS, 5, BLACKOUT, SCRIPT))
            result = Result(self.row, self.name, title, "migration", bars=bars, columns=(TOTAL, BLACKOUT, CPU))
            ours = Ours(version, self.params)
            progress(f"{title}: a guest boots")
            try:
                recorded = ours.record()
                script = Script(recorded, files_of(guest_of(version)))
                sides: list[Side] = [ours, script]
                # the QEMU of that libvirt; to have it go by TLS takes certificates at fixed places, once for all
                if version == "7.2" and self.name == "migrate" and has_libvirt(VIRSH):
                    sides.append(Virsh())
                yield measure(result, sides, 4 if quick else 20, 180.0, progress)
            finally:
                ours.close()


FIGURES: Final = (
    Moving("migrate", "plain", {"tls": False}),
    Moving("multifd", "multifd 4", {"multifd": 4, "tls": False}),
    Moving("tls", "TLS 1.3", {"tls": True}),
)
