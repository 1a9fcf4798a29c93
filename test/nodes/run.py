"""Runs cases of the matrix by hand: ``PYTHONPATH=test:build/py python test/nodes/run.py [--all] [--lanes N] WORD…``.

Those whose text has all the words; chosen by the dice, whose seed is ``DROVER_SEED``, or with ``--all`` each of them.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from nodes.cases import WAYS, every, some
from nodes.pool import Pool, dice_for, states_of


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--lanes", type=int, default=3)
    parser.add_argument("words", nargs="*")
    chosen = parser.parse_args()
    found = [
        case
        for way, state in states_of(WAYS)
        for case in (every(WAYS[way], state) if chosen.all else some(WAYS[way], state, dice_for(way, state)))
        if all(word in str(case) for word in chosen.words)
    ]
    top, began = Path(tempfile.mkdtemp(prefix="drover-matrix-")), time.monotonic()
    pool = Pool(lambda: Path(tempfile.mkdtemp(dir=top)), chosen.lanes)
    wrong = pool.run(found)
    pool.close()
    print(f"{len(found)} cases, {len(wrong)} wrong, {time.monotonic() - began:.0f} s; logs in {top}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
