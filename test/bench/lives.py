"""The figures of instances: what a start and an adoption cost beside QEMU's own share."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bare import BareMachine
from frame import CPU_MS, WALL_MS, Added, Bar, BenchError, Clock, Result, Side, Within, measure

sys.path.append(str(Path(__file__).resolve().parents[1]))

from prompt import wait_for_prompt

from drover.kvm.instance import Instance
from drover.kvm.node import Node
from drover.kvm.spec import parse
from instances import VERSIONS, bare, bootable, temporary_node

OURS: Final = "drover"
BARE: Final = "bare QEMU"
MANY: Final = 200


class OneInstance(Side):
    """A node with one instance; or the same QEMU, by the words of that instance.

    :param version: of QEMU
    """

    document: Callable[[str], dict[str, Any]] = staticmethod(bare)

    def __init__(self, name: str, version: str) -> None:
        super().__init__(name)
        self.version = version

    def setup(self) -> None:
        """A node of its own, that has looked at this QEMU before."""
        self._stack = ExitStack()
        self.node: Node = self._stack.enter_context(temporary_node())
        self.vm: Instance = self.node.create(parse(self.document(self.version)))
        self.vm.start(paused=True)
        runtime = self.vm.show().document.runtime
        assert runtime is not None
        self.vm.kill()
        self.bare: BareMachine | None = None
        if self.name != OURS:
            self.bare = BareMachine(runtime.argv, files_of(self.document(self.version)))
            self._stack.callback(self.bare.stop)

    @property
    def serial(self) -> Path:
        """Where the guest's console listens."""
        return self.bare.socket("serial") if self.bare else self.node.host.paths.instance("vm").socket("serial")

    def start(self, *, paused: bool = False) -> None:
        """Have it run."""
        if self.bare is None:
            self.vm.start(paused=paused)
        else:
            self.bare.start()
            if not paused:
                self.bare("cont")

    def teardown(self) -> None:
        """End what runs."""
        self._stack.close()


class Starts(OneInstance):
    """The call to a monitor that answers; the guest does not run yet."""

    def run(self, clock: Clock, count: int) -> None:
        """Once: then it runs."""
        with clock:
            self.start(paused=True)


class Boots(OneInstance):
    """The call to the prompt of a guest's shell."""

    document = staticmethod(bootable)

    def run(self, clock: Clock, count: int) -> None:
        """Once."""
        with clock:
            self.start()
            wait_for_prompt(self.serial)


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

    row: int
    name: str
    title: str
    what: str
    side: type[OneInstance]
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

    row: int = 11
    name: str = "adopt"
    title: str = f"adoption of {MANY} instances that run"
    what: str = "adoption"
    bar: Bar = field(default=Within(OURS, 3000 * MANY / 1000, WALL_MS))  # 3 s for a thousand

    def run(self, quick: bool, progress: Callable[[str], None]) -> Iterator[Result]:
        """Measure it."""
        yield _measure(self, [Adopts(VERSIONS[0])], 3 if quick else 7, VERSIONS[0], progress)


FIGURES: Final[Sequence[Life | Many]] = (
    Life(9, "start", "start of an instance, call to its monitor's answer", "start", Starts,
         Added(OURS, 30, WALL_MS, BARE)),
    Life(9, "boot", "start of an instance, call to the prompt of its guest", "boot", Boots,
         Added(OURS, 30, WALL_MS, BARE), rounds=(15, 3)),
    Many(),
)  # fmt: skip


def files_of(document: dict[str, Any]) -> dict[str, str]:
    """What an instance boots, by QEMU's options."""
    boot = document.get("boot", {})
    return {f"-{name}": boot[name] for name in ("kernel", "initrd") if name in boot}


def _measure(
    figure: Life | Many, sides: Sequence[Side], rounds: int, version: str, progress: Callable[[str], None]
) -> Result:
    title = f"{figure.title}, QEMU {version}"
    result = Result(figure.row, figure.name, title, figure.what, bars=[figure.bar], columns=(CPU_MS, WALL_MS))
    return measure(result, sides, rounds, 180.0, progress)
