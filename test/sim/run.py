"""Runs many simulated migrations, each from its seed, and each blow at each moment of the ways of steps.py.

    test/sim/run.py                      100,000 from a new seed, and the ways
    test/sim/run.py HOW_MANY FIRST_SEED  so many from this seed, without the ways
"""

import sys
import time
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    TREE = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(TREE / "build" / "py"), str(TREE / "test")]

from sim import steps
from sim.faults import run, world_of


def main(argv: list[str]) -> int:
    """Run them."""
    many = int(argv[0]) if argv else 100_000
    ways = 0 if argv else go_ways()
    first = int(argv[1]) if len(argv) > 1 else int(time.time())
    begun = time.process_time()
    ends: Counter[str] = Counter()
    wrong = happened = 0
    for seed in range(first, first + many):
        world, faults = world_of(seed)
        try:
            run(world, faults)
        except AssertionError as error:
            wrong += 1
            if wrong <= 20:
                print(f"seed {seed}: {error}: {faults}")
        happened += world.happened
        ends[str(world.here.ended.result) if world.here.ended else f"{world.here.machine.state}, with an alarm"] += 1
    spent = time.process_time() - begun
    print(f"{many} migrations from seed {first}: {wrong} went wrong; {happened} things happened; {spent:.1f} s of CPU")
    print(", ".join(f"{end}: {count}" for end, count in ends.most_common()))
    return int(wrong + ways > 0)


def go_ways() -> int:
    """Each blow at each moment of each way; how many went wrong."""
    begun, wrong, many = time.process_time(), 0, 0
    for many, case in enumerate(steps.cases(), 1):  # noqa: B007
        try:
            run(steps.world(case.way), case.faults)
        except AssertionError as error:
            wrong += 1
            print(f"{case.way.name}, {case.blow} in {case.state}: {error}: {case.faults}")
    print(f"{many} migrations step by step: {wrong} went wrong; {time.process_time() - begun:.1f} s of CPU")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
