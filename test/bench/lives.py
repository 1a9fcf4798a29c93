"""The figures of instances: what a start, a plug and an adoption cost beside QEMU's own share."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bare import BareMachine
from frame import Added, Bar, BenchError, Clock, Result, Side, Within, measure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drover import QmpConnection
from drover.kvm.instance import Instance
from drover.kvm.node import Node
from drover.kvm.spec import parse
from drover.ops.slots import enumerated
from instances import VERSIONS, bare, temporary_node

OURS: Final = "drover"
BARE: Final = "bare QEMU"
MANY: Final = 200
FIRMWARE_TIMEOUT: Final = 60.0  # seconds


class _Side(Side):
    """A node with one instance.

    :param version: of QEMU
    """

    def __init__(self, name: str, version: str) -> None:
        super().__init__(name)
        self.version = version

    def setup(self) -> None:
        """A node of its own, that has looked at this QEMU before; for the one by hand, the words of its instance."""
        self._stack = ExitStack()
        self.node: Node = self._stack.enter_context(temporary_node())
        self.vm: Instance = self.node.create(parse(bare(self.version)))
        self.image = self.node.host.paths.state / "image"
        self.image.touch()
        os.truncate(self.image, 8 << 20)
        self.vm.start(paused=True)
        runtime = self.vm.show().document.runtime
        assert runtime is not None
        self.vm.kill()
        if self.name == BARE:
            self.bare = BareMachine(runtime.argv)
            self._stack.callback(self.bare.stop)

    def teardown(self) -> None:
        """End what runs."""
        self._stack.close()


class Starts(_Side):
    """The call to a monitor that answers; the guest does not run yet."""

    def run(self, clock: Clock, count: int) -> None:
        """Once: then it runs."""
        with clock:
            if self.name == BARE:
                self.bare.start()
            else:
                self.vm.start(paused=True)


class Plugs(_Side):
    """A disk into a machine whose firmware has numbered its buses."""

    def setup(self) -> None:
        """Start it."""
        super().setup()
        if self.name == BARE:
            self.bare.start()
            self.bare("cont")
            self._wait(lambda: self.bare("query-pci"))
        else:
            self.vm.start()
            with QmpConnection(self.node.host.paths.instance("vm").socket("people")) as people:
                self._wait(people.query_pci)

    def run(self, clock: Clock, count: int) -> None:
        """Once."""
        with clock:
            if self.name == BARE:
                self.bare.plug(str(self.image), "rp0")
            else:
                self.vm.add_disk(id="x", source=str(self.image), format="raw", cache="writeback")

    def _wait(self, ask: Callable[[], list[dict[str, Any]]]) -> None:
        deadline = time.monotonic() + FIRMWARE_TIMEOUT
        while not enumerated(ask()):
            if time.monotonic() > deadline:
                raise BenchError("the firmware has not numbered the buses")
            time.sleep(0.1)


class Adopts(Side):
    """All instances of a host, found again by whoever comes next. They run on from round to round."""

    def __init__(self, version: str) -> None:
        super().__init__(OURS)
        self._version = version
        self._stack = ExitStack()
        self._node: Node | None = None

    def setup(self) -> None:
        """Start all of them, the first time."""
        if self._node is None:
            self._node = self._stack.enter_context(temporary_node())
            lean: dict[str, Any] = {"memory": {"size": "16MiB", "balloon": False}, "rng": False, "agent": False}
            lean["machine"] = {"type": "pc", "scsi_controllers": 0}
            for number in range(MANY):
                self._node.create(parse(bare(self._version, f"vm{number}") | lean)).start(paused=True)

    def run(self, clock: Clock, count: int) -> None:
        """Adopt them."""
        assert self._node is not None
        with clock:
            reports = Node(self._node.host.paths).adopt()
        if [report.error for report in reports] != [None] * MANY:
            raise BenchError("not all of them were adopted")

    def teardown(self) -> None:
        """They run on."""

    def close(self) -> None:
        """End them."""
        self._stack.close()


@dataclass(frozen=True)
class Life:
    """A figure of one act in an instance's life."""

    name: str
    title: str
    what: str
    side: type[_Side]
    bar: Bar
    rounds: tuple[int, int] = (21, 5)  # and when in a hurry

    def run(self, quick: bool, progress: Callable[[str], None]) -> Iterator[Result]:
        """Measure it, with each QEMU."""
        for version in VERSIONS:
            sides = [self.side(name, version) for name in (OURS, BARE)]
            yield _measure(self, sides, self.rounds[quick], version, progress)


@dataclass(frozen=True)
class Many:
    """The figure of many instances."""

    name: str = "adopt"
    title: str = f"adoption of {MANY} instances that run"
    what: str = "adoption"
    bar: Bar = field(default=Within(OURS, OURS, 2000))

    def run(self, quick: bool, progress: Callable[[str], None]) -> Iterator[Result]:
        """Measure it."""
        side = Adopts(VERSIONS[0])
        try:
            yield _measure(self, [side], 3 if quick else 7, VERSIONS[0], progress)
        finally:
            side.close()


FIGURES: Final[Sequence[Life | Many]] = (
    Life("start", "start of an instance, call to its monitor's answer", "start", Starts, Added(OURS, BARE, 50)),
    Life("plug", "a disk plugged in, call to return", "plug", Plugs, Added(OURS, BARE, 10)),
    Many(),
)


def _measure(
    figure: Life | Many, sides: Sequence[Side], rounds: int, version: str, progress: Callable[[str], None]
) -> Result:
    result = Result(figure.name, f"{figure.title}, QEMU {version}", figure.what, 1, False, [figure.bar])
    return measure(result, sides, rounds, 120.0, progress)
