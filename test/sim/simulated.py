"""A pair of simulated QEMUs, for the scenarios."""

from random import Random

from sim.clock import Clock
from sim.qemu import Qemu, Refused, Wire
from sim.scenarios import Pair, Setting, Side, State

LIMIT = 60.0  # virtual seconds
WHILE = 5.0


class SimulatedPair(Pair):
    """Two of them, and a wire."""

    def __init__(self, setting: Setting, versions: tuple[int, int], seed: int) -> None:
        rng = Random(seed)
        self.versions = versions
        self.clock = Clock()
        source, target = Qemu(versions[0], "running"), Qemu(versions[1], "inmigrate")
        self.qemus: dict[Side, Qemu] = {"source": source, "target": target}
        for qemu in (source, target):
            qemu.set(postcopy=setting.postcopy, multifd=setting.multifd)
            qemu.return_path = setting.return_path
        source.pause = setting.pause
        source.slow = setting.slow
        target.loads = not setting.unloadable
        self.wire = Wire(self.clock, source, target, lambda: rng.random() * 0.01)
        if setting.slow:
            self.wire.least = 1e9
        target.listen()

    def tell(self, side: Side, command: str) -> bool:
        qemu = self.qemus[side]
        try:
            match command:
                case "migrate":
                    qemu.migrate(self.wire)
                case "continue":
                    qemu.go_on()
                case "cancel":
                    qemu.cancel()
                case "cont":
                    qemu.cont()
                case "postcopy":
                    qemu.start_postcopy()
                case "reopen":
                    qemu.recover()
                case "rejoin":
                    qemu.rejoin()
                case "touch":
                    qemu.touch()
                case "hurry":
                    self.wire.least = 0.0
                    if not self.wire.broken:
                        self.wire.pages()
                case _:
                    raise AssertionError(command)
        except Refused:
            return False
        return True

    def _state(self, side: Side) -> State:
        return self.qemus[side].status, self.qemus[side].run

    def reach(self, side: Side, *states: State) -> State:
        end = self.clock.now + LIMIT
        while self._state(side) not in states:
            assert self.clock.now < end, f"the {side} is {self._state(side)}, and was to be {states}"
            assert self.clock.step(), f"the {side} is {self._state(side)} for ever, and was to be {states}"
        return self._state(side)

    def stay(self, side: Side, state: State) -> None:
        end = self.clock.now + WHILE
        while self.clock.now < end:
            assert self._state(side) == state
            self.clock.until(min(end, self.clock.now + 0.01))
        assert self._state(side) == state

    def end(self, side: Side) -> None:
        qemu = self.qemus[side]
        while qemu.alive and qemu.status != "failed":
            assert self.clock.step(), f"the {side} is {self._state(side)} for ever"

    def mute(self, side: Side) -> bool:
        return self.qemus[side].blocked

    def hold(self) -> None:
        self.wire.hold(forth=True, back=False)

    def cut(self) -> None:
        self.wire.cut()

    def kill(self, side: Side) -> None:
        self.qemus[side].die()
