"""What goes wrong in a world, when, for how long; and what must be so when all is over."""

from collections.abc import Callable
from random import Random
from typing import Final

from drover.migration import alarms
from drover.migration.arrival import Arrived
from drover.migration.knowledge import Plan
from drover.migration.machine import Machine
from drover.migration.states import ENDS, State
from drover.migration.words import Cancel, Confirmed, GoPostcopy, Result
from drover.store.owner import Phase
from sim.world import World, Wrong

Fault = Callable[[World, float], None]  # and for how long, in seconds


def _kill_here(world: World, seconds: float) -> None:
    world.here.kill()
    world.clock.after(seconds, world.here.start)


def _kill_there(world: World, seconds: float) -> None:
    world.there.kill()
    world.clock.after(seconds, world.there.start)


def _kill_both(world: World, seconds: float) -> None:
    _kill_here(world, seconds)
    _kill_there(world, seconds * world.random() * 2)


def _kill_source(world: World, _: float) -> None:
    if world.source.alive:
        world.killed.add("source")
        world.source.die()


def _kill_target(world: World, _: float) -> None:
    if world.target.alive:
        world.killed.add("target")
        world.target.die()


def _freeze_source(world: World, seconds: float) -> None:
    world.here.freeze()
    world.clock.after(seconds, world.here.thaw)


def _freeze_target(world: World, seconds: float) -> None:
    world.there.freeze()
    world.clock.after(seconds, world.there.thaw)


def _cut(forth: bool, back: bool, *, wire: bool, breaks: bool) -> Fault:
    """Cut the network, one way or both; the connection between the QEMUs with it, which may break over it or not."""

    def cut(world: World, seconds: float) -> None:
        world.forth_cut |= forth
        world.back_cut |= back
        if wire:
            world.wire.hold(forth=world.wire.forth and not forth, back=world.wire.back and not back)
            if breaks:
                world.clock.after(seconds * world.random(), world.wire.cut)

        def mend() -> None:
            world.forth_cut = world.back_cut = False
            world.wire.hold(forth=True, back=True)

        world.clock.after(seconds, mend)

    return cut


def _break_wire(world: World, _: float) -> None:
    world.wire.cut()


def _cut_store(world: World, seconds: float) -> None:
    world.here.store_cut = True
    world.there.store_cut = world.random() < 0.5

    def mend() -> None:
        world.here.store_cut = world.there.store_cut = False

    world.clock.after(seconds, mend)


def _cut_store_there(world: World, seconds: float) -> None:
    world.there.store_cut = True

    def mend() -> None:
        world.there.store_cut = False

    world.clock.after(seconds, mend)


def _cancel(world: World, _: float) -> None:
    if world.here.alive:
        world.here.hear(Cancel())


def _postcopy(world: World, _: float) -> None:
    if world.here.alive:
        world.here.hear(GoPostcopy())


def _lose_there(world: World, _: float) -> None:
    """The other node is gone for ever."""
    world.forever = True
    world.there.kill()
    world.there.start = lambda: None  # type: ignore[method-assign]
    world.launched = True  # what was about to be started is not
    _kill_target(world, 0)


def _lose_here(world: World, _: float) -> None:
    """The node that drives is gone for ever."""
    world.forever = True
    world.here.kill()
    world.here.start = lambda: None  # type: ignore[method-assign]
    _kill_source(world, 0)


def obey(world: World) -> None:
    """A person looks now and then, and types what they are told to; but that it is dead they only say if it is."""
    here, target = world.here, world.target
    command = here.alarm.command if here.alive and here.alarm is not None else ""
    if command == alarms.TARGET_IS_DEAD.format("vm") and not target.alive:
        here.hear(Confirmed())
    elif command == alarms.KILL.format("vm") and here.ended is None:
        world.killed.add("target")
        target.die()
    if here.ended is None:
        world.clock.after(LOOKS, obey, world)


LOOKS: Final = 300.0  # s; longer than anything that mends itself
FAULTS: Final[dict[str, Fault]] = {
    "kill the source's daemon": _kill_here,
    "kill the target's daemon": _kill_there,
    "kill both daemons": _kill_both,
    "kill the source's QEMU": _kill_source,
    "kill the target's QEMU": _kill_target,
    "stop the source's QEMU": _freeze_source,
    "stop the target's QEMU": _freeze_target,
    "cut the network": _cut(True, True, wire=True, breaks=True),
    "cut the network for a while": _cut(True, True, wire=True, breaks=False),
    "cut it one way": _cut(True, False, wire=True, breaks=True),
    "cut it the other way": _cut(False, True, wire=True, breaks=True),
    "cut the daemons' network": _cut(True, True, wire=False, breaks=False),
    "break the migration's connection": _break_wire,
    "cut the store": _cut_store,
    "cut the store from the target": _cut_store_there,
    "cancel": _cancel,
    "go postcopy": _postcopy,
    "lose the target's node": _lose_there,
    "lose the source's node": _lose_here,
}
_NAMES: Final = tuple(FAULTS)
# How often each is drawn, beside the others.
_WEIGHTS: Final = (6, 6, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 2, 3, 0, 1, 1)
MOST_FAULTS: Final = 3
LAST: Final = 90  # things that happen in a migration where nothing goes wrong


Schedule = list[tuple[int, str, float]]  # after how many things, what goes wrong, and for how many seconds


def world_of(seed: int, make_machine: Callable[[Plan], Machine] = Machine) -> tuple[World, Schedule]:
    """A world and what goes wrong in it; all from the seed."""
    rng = Random(seed)
    random = rng.random
    kind = int(random() * 64)
    world = World(
        rng,
        versions=(7 if kind & 1 else 10, 7 if kind & 2 else 10),
        storage=kind & 12 == 12,
        postcopy=kind & 16 != 0,
        journal=kind & 32 != 0,
        make_machine=make_machine,
    )
    if random() < 0.25:
        world.loss = 0.1
    if random() < 0.25:
        world.slow = 0.2
    many = int(random() * (MOST_FAULTS + 1))
    names = rng.choices(_NAMES, _WEIGHTS, k=many)
    if kind & 16 and random() < 0.7:
        names.append("go postcopy")
    faults = []
    for name in names:
        length = random()
        # mostly a moment, sometimes longer than anybody has patience
        faults.append((int(random() * LAST) + 1, name, length * 0.5 if length < 0.6 else length**4 * 60))
    if world.plan.postcopy:
        faults = [(20 + at % 10, name, 0.0) if name == "go postcopy" else (at, name, s) for at, name, s in faults]
    return world, sorted(faults)


def run(world: World, faults: Schedule) -> None:
    """Let a world happen, with what goes wrong in it, and see that it ended well.

    :raises Wrong: it did not, or was as it must never be
    """

    def fault(name: str, seconds: float) -> Callable[[World], None]:
        return lambda world: FAULTS[name](world, seconds)

    world.clock.after(LOOKS, obey, world)
    world.run([(at, fault(name, seconds)) for at, name, seconds in faults])
    check_end(world)


def check_end(world: World) -> None:
    """All that can be mended was: the migration has ended, and nothing of it is left.

    :raises Wrong: it is not so
    """
    here, there, owner = world.here, world.there, world.owner
    state = here.machine.state
    if not world.forever:
        if here.ended is None:
            raise Wrong(f"it has not ended: {state}, owner {owner}")
        if there.arrival is not None and there.arrival.state not in (Arrived.MOVED, Arrived.GONE):
            raise Wrong(f"the target has not ended: {there.arrival.state}, owner {owner}")
    if not (world.source.running or world.target.running):
        _check_still(world)
    if here.ended is None:
        if here.alive and (state is not State.DOUBT or here.alarm is None):
            raise Wrong(f"it hangs without an alarm: {state}")
        return
    if state not in ENDS:
        raise Wrong(f"it has ended, and is {state}")
    _check_result(world, here.ended.result)


def _check_still(world: World) -> None:
    """No copy runs: somebody has killed one, or somebody is told."""
    alarmed = world.here.alarm is not None or world.there.alarm is not None
    if not world.killed and not alarmed and not (world.here.ended and world.here.ended.result is Result.LOST):
        raise Wrong(f"the machine does not run, and nobody is told: {world.here.machine.state}, {world.owner}")
    if world.killed and not alarmed and (world.source.alive or world.target.alive):
        # what is left of it must be on its way to an end
        raise Wrong(f"a QEMU is left that does not run, and nobody is told: {world.here.machine.state}, {world.owner}")


def _check_result(world: World, result: Result) -> None:
    owner = world.owner
    if owner.phase is not Phase.RUNNING:
        raise Wrong(f"{result}, and the owner is {owner}")
    if result is Result.DONE:
        if owner.node != "b" or world.source.alive:
            raise Wrong(f"done, and the owner is {owner}, or the source is left")
        if not world.target.running and "target" not in world.killed:
            raise Wrong("done, and the target does not run")
    elif result is Result.FAILED:
        if owner.node != "a" or (world.target.alive and not world.forever):
            raise Wrong(f"failed, and the owner is {owner}, or the target is left")
        if not world.source.running and "source" not in world.killed:
            raise Wrong("failed, and the source does not run")
    elif not world.killed and not world.source.started_postcopy:
        raise Wrong("lost, and nobody was killed")
    elif owner.node == "b" and _never_had_it(world):
        raise Wrong("lost, and it belongs to a node that never had it, and keeps nothing of it")


def _never_had_it(world: World) -> bool:
    """By what the other node knows."""
    arrival = world.there.arrival
    return arrival is not None and arrival.known.ran is False and not arrival.known.named
