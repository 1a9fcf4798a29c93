"""What the design of lib/migration rests on: real QEMUs pass the scenarios that the simulated ones do."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest

from blocks import Lab, lab
from drover.errors import CommandError, ConnectionClosed, MonitorTimeout
from sim.scenarios import REFUSED, SCENARIOS, SOURCE, TARGET, Pair, Scenario, Setting, Side, State

pytestmark = pytest.mark.live

SIZE = 64 << 20  # as `lab` gives a machine
PATIENCE = 30.0
WHILE = 0.7  # s; what a QEMU does by itself it does within some ms
KINDS = {7: "7.2", 10: "10.0"}
MACHINE = "pc-i440fx-7.2"
CASES = [(scenario, setting, pair) for scenario, setting, pairs in SCENARIOS for pair in pairs]


class Line:
    """One connection that goes through us."""

    def __init__(self, front: socket.socket, back: socket.socket, relay: "Relay") -> None:
        self.ends = (front, back)
        ways = ((front, back, False), (back, front, True))
        self.threads = [threading.Thread(target=self._pump, args=(a, b, relay, answers)) for a, b, answers in ways]
        for thread in self.threads:
            thread.start()

    def _pump(self, one: socket.socket, other: socket.socket, relay: "Relay", answers: bool) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                if answers:
                    relay.flows.wait()
                try:
                    other.sendall(data)
                except OSError:
                    if relay.flows.is_set():
                        break
        relay.flows.wait()  # the end of a connection is an answer, too
        self.cut()

    def cut(self) -> None:
        """Break it."""
        for end in self.ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Break it, and wait until nobody has it any more."""
        self.cut()
        for thread in self.threads:
            thread.join(10)
        for end in self.ends:
            end.close()


class Relay:
    """Stands between the two, so that answers can be held back and everything cut.

    :ivar flows: whether answers of the target's are let through
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.behind = folder / "relay", folder / "incoming"
        self.flows = threading.Event()
        self.flows.set()
        self.lines: list[Line] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(16)
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                front, _ = self._listener.accept()
                back = socket.socket(socket.AF_UNIX)
                try:
                    back.connect(str(self.behind))
                except OSError:
                    front.close()
                    back.close()
                    continue
                self.lines.append(Line(front, back, self))

    def cut(self) -> None:
        """Break all connections there are; what was held back is gone with them."""
        for line in self.lines:
            line.cut()
        self.flows.set()

    def close(self) -> None:
        """Break all, and take no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()
        self.flows.set()
        for line in self.lines:
            line.close()


class RealPair(Pair):
    """Two QEMUs, each with a firmware that finds nothing to start."""

    def __init__(self, versions: tuple[int, int], labs: dict[Side, Lab], relay: Relay, folder: Path) -> None:
        self.versions, self.labs, self.relay, self.folder = versions, labs, relay, folder
        self.listened = 0

    def set(self, setting: Setting) -> None:
        """Make the settings on both sides; the source runs, the target listens."""
        for side, each in self.labs.items():
            here = side == SOURCE
            each.vm.set_migration_capabilities(
                {
                    "events": True,
                    "return-path": setting.return_path,
                    "postcopy-ram": setting.postcopy,
                    "multifd": setting.multifd,
                    **({"pause-before-switchover": setting.pause} if here else {"late-block-activate": True}),
                }
            )
        source, target = self.labs[SOURCE].vm, self.labs[TARGET].vm
        if setting.slow:
            source.set_migration_parameters({"max-bandwidth": 1 << 20, "max-postcopy-bandwidth": 1 << 20})
        listen: dict[str, Any] = {"uri": f"unix:{self.relay.behind}"}
        if self.versions[1] > 7:
            listen["exit-on-error"] = False
        target.execute("migrate-incoming", listen)
        source.cont()

    def tell(self, side: Side, command: str) -> bool:
        vm = self.labs[side].vm
        try:
            match command:
                case "migrate":
                    vm.execute("migrate", {"uri": f"unix:{self.relay.path}"})
                case "continue":
                    vm.execute("migrate-continue", {"state": "pre-switchover"})
                case "cancel":
                    vm.execute("migrate_cancel")
                case "cont":
                    vm.execute("cont")
                case "postcopy":
                    vm.execute("migrate-start-postcopy")
                case "reopen":
                    self.relay.behind.unlink()
                    vm.migrate_recover(f"unix:{self.relay.behind}")
                case "rejoin":
                    vm.execute("migrate", {"uri": f"unix:{self.relay.path}", "resume": True})
                case "touch":
                    # it reads where nothing has come, and waits for that; so nobody waits for it
                    vm._port.submit("human-monitor-command", {"command-line": f"xp /x {SIZE - (1 << 20):#x}"})
                case "hurry":
                    vm.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40, "max-postcopy-bandwidth": 0})
                case _:
                    raise AssertionError(command)
        except CommandError:
            return False
        return True

    def _state(self, side: Side) -> State:
        vm = self.labs[side].vm
        try:
            status = vm.execute("query-migrate", timeout=1).get("status", "none")
            return status, vm.execute("query-status", timeout=1)["status"]
        except MonitorTimeout:  # its events tell
            changes = [event for event in vm.event_log if event.name in ("MIGRATION", "RESUME", "STOP")]
            status = next(event.data["status"] for event in reversed(changes) if event.name == "MIGRATION")
            run = next(event.name for event in reversed(changes) if event.name != "MIGRATION")
            return status, "running" if run == "RESUME" else "paused"

    def reach(self, side: Side, *states: State) -> State:
        deadline = time.monotonic() + PATIENCE
        while (state := self._state(side)) not in states:
            assert time.monotonic() < deadline, f"the {side} is {state}, and was to be {states}"
            time.sleep(0.02)
        return state

    def stay(self, side: Side, state: State) -> None:
        deadline = time.monotonic() + WHILE
        while time.monotonic() < deadline:
            assert self._state(side) == state
            time.sleep(0.05)

    def end(self, side: Side) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.labs[side].process.poll() is None:
            with suppress(ConnectionClosed):
                if self._state(side)[0] == "failed":
                    return
            assert time.monotonic() < deadline, f"the {side} lives, and is {self._state(side)}"
            time.sleep(0.02)

    def mute(self, side: Side) -> bool:
        try:
            self.labs[side].vm.execute("query-status", timeout=2)
        except MonitorTimeout:
            return True
        return False

    def hold(self) -> None:
        self.relay.flows.clear()

    def cut(self) -> None:
        self.relay.cut()

    def kill(self, side: Side) -> None:
        self.labs[side].process.kill()
        self.labs[side].process.wait(PATIENCE)
        self.relay.cut()  # as the kernel would, were nobody in between


@contextmanager
def real_pair(versions: tuple[int, int], setting: Setting, folder: Path) -> Iterator[RealPair]:
    """Both started."""
    with ExitStack() as stack:
        labs: dict[Side, Lab] = {}
        for side, version in zip((SOURCE, TARGET), versions, strict=True):
            memory = stack.enter_context(NamedTemporaryFile(dir="/dev/shm", prefix="drover-test-"))
            # noise, which cannot be sent as "a page of zeroes": it takes as long as the bandwidth says
            memory.write(os.urandom(SIZE) if side == SOURCE and setting.slow else bytes(SIZE))
            memory.flush()
            (folder / side).mkdir()
            words = ["-object", f"memory-backend-file,id=m,size={SIZE},mem-path={memory.name},share=on"]
            words += ["-incoming", "defer"] if side == TARGET else []
            words += ["-device", "virtio-rng-pci"] if side == SOURCE and setting.unloadable else []
            qemu = lab(KINDS[version], "blocking", folder / side, *words, machine=f"{MACHINE},memory-backend=m")
            labs[side] = stack.enter_context(qemu)
        relay = Relay(folder)
        stack.callback(relay.close)
        pair = RealPair(versions, labs, relay, folder)
        pair.set(setting)
        yield pair


@pytest.mark.parametrize(
    ("scenario", "setting", "versions"), CASES, ids=[f"{each[0].__name__}-{each[2][0]}-{each[2][1]}" for each in CASES]
)
def test_real(scenario: Scenario, setting: Setting, versions: tuple[int, int], tmp_path: Path) -> None:
    with real_pair(versions, setting, tmp_path) as pair:
        scenario(pair)


@pytest.mark.parametrize(("setting", "versions"), REFUSED)
def test_settings_that_are_refused(setting: Setting, versions: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(CommandError), real_pair(versions, setting, tmp_path):
        pass
