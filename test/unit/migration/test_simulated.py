"""Migrations in a simulated world (test/sim): some thousand here, 100,000 by `make check-sim`."""

from random import Random

import pytest

from drover.migration.arrival import Arrived
from drover.migration.states import State
from drover.migration.words import Cancel, GoPostcopy, Result
from drover.store.owner import Phase
from sim import steps
from sim.faults import check_end, run, world_of
from sim.world import World, Wrong

pytestmark = pytest.mark.once  # tables and pure functions
MANY = 3000
FIRST = 20_261_127  # from one seed on, so that a run here is the same everywhere


def test_whatever_goes_wrong() -> None:
    for seed in range(FIRST, FIRST + MANY):
        world, faults = world_of(seed)
        try:
            run(world, faults)
        except AssertionError as error:
            pytest.fail(f"seed {seed} (test/sim/run.py 1 {seed}): {error}: {faults}")


@pytest.mark.parametrize("way", steps.WAYS, ids=lambda way: way.name)
def test_blows_at_each_moment(way: steps.Way) -> None:
    """Each blow at each fifth moment; at each one by `make check-sim`."""
    fallen = steps.walk((way,), every=5)
    assert len({blow for _, blow in fallen}) == len({name for name, _ in steps.BLOWS})


def test_the_ways_lead_through_every_state() -> None:
    """So that each blow falls in each state: each falls at each moment of each way."""
    assert {state for way in steps.WAYS for state in steps.laid(way)[1]} >= set(State) - {State.LOST}


@pytest.mark.parametrize("versions", [(7, 7), (7, 10), (10, 7), (10, 10)])
@pytest.mark.parametrize("storage", [False, True], ids=["", "storage"])
@pytest.mark.parametrize("postcopy", [False, True], ids=["", "postcopy"])
@pytest.mark.parametrize("journal", [False, True], ids=["store", "journal"])
def test_nothing_goes_wrong(versions: tuple[int, int], storage: bool, postcopy: bool, journal: bool) -> None:
    world = World(Random(1), versions=versions, storage=storage, postcopy=postcopy, journal=journal)
    world.run([(at, lambda world: world.here.hear(GoPostcopy())) for at in range(20, 50)] if postcopy else [])
    check_end(world)
    assert world.here.ended is not None
    assert world.here.ended.result is Result.DONE
    assert world.here.machine.state is State.DONE
    assert world.there.arrival is not None
    assert world.there.arrival.state is Arrived.MOVED
    assert (world.owner.node, world.owner.epoch, world.owner.phase) == ("b", 3, Phase.RUNNING)
    assert (world.source.alive, world.target.run, world.target.resumes) == (False, "running", 1)
    assert world.source.started_postcopy == postcopy


@pytest.mark.parametrize("at", range(1, 60))
def test_cancelled_at_each_moment(at: int) -> None:
    """It comes back, or it was too late; never anything else."""
    world = World(Random(at))
    world.run([(at, lambda world: world.here.hear(Cancel()))])
    check_end(world)
    assert world.here.ended is not None
    if world.here.ended.result is Result.FAILED:
        assert world.source.running
        assert world.here.ended.why == "cancelled"
        assert world.owner.phase is Phase.RUNNING
    else:
        assert world.target.running


def test_the_world_tells_two_copies() -> None:
    world = World(Random(1))
    world.target.alive, world.target.run = True, "running"
    with pytest.raises(Wrong, match="two copies"):
        world.check()


def test_the_world_tells_a_lost_write() -> None:
    world = World(Random(1))
    world.acked = 1
    with pytest.raises(Wrong, match="without what was written"):
        world.check()
