"""Fuzzes the parsers, each for a while, guided by coverage (atheris, libFuzzer).

    test/fuzz/run.py                       each target for 60 seconds
    test/fuzz/run.py --seconds 5 human     one target, shortly
    test/fuzz/run.py human FILE            one input again, with its traceback

An input that breaks a promise is kept in build/fuzz. Once the fault is mended, it goes into test/fuzz/found.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[1]
sys.path[:0] = [str(TREE / "build" / "py"), str(HERE.parent)]

KEPT: Final = TREE / "build" / "fuzz"
# Megabytes of a process that fuzzes: Python, the instrumented code and the corpus take 200.
MEMORY: Final = 1000
# Seconds after which one input hangs; the target's own bound on processor time is lower.
HANG: Final = 60


def fuzz(name: str, seconds: int, seed: int) -> tuple[bool, str]:
    """Fuzz one target in a process of its own, as libFuzzer ends the one it runs in; tell how it went.

    :param seed: of the fuzzer's random choices; 0 lets it choose
    """
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        options = [f"-max_total_time={seconds}", f"-seed={seed}", f"-rss_limit_mb={MEMORY}", f"-timeout={HANG}"]
        options += [f"-artifact_prefix={KEPT}/{name}-", "-print_final_stats=1", corpus]
        command = [sys.executable, str(Path(__file__).resolve()), "--inside", name, *options]
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    inputs = re.search(r"number_of_executed_units: (\d+)", run.stderr)
    if run.returncode == 0 and inputs is not None:
        return True, f"{inputs[1]} inputs in {seconds} s"
    where = re.search(r"Test unit written to (\S+)", run.stderr)
    return False, f"{run.stdout[-3000:].strip() or run.stderr[-3000:]}\ninput: {where[1] if where else 'none'}"


def inside(name: str, options: list[str]) -> None:
    """What the process of its own does: it begins with the known inputs, and never returns."""
    import atheris

    with atheris.instrument_imports(include=["drover"]):
        from fuzz.targets import TARGETS, inputs, one_input
    target = TARGETS[name]
    for label, data in inputs(name):
        (Path(options[-1]) / label).write_bytes(data[: target.longest])
    atheris.Setup([sys.argv[0], f"-max_len={target.longest}", *options], lambda data: one_input(target, data))
    atheris.Fuzz()


def main() -> int:
    """Fuzz, or try one input again."""
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], sys.argv[3:])
    from fuzz.targets import TARGETS, one_input

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="for the same inputs again (default: others each time)")
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; all if none; FILE behind one")
    given = parser.parse_args()
    if len(given.targets) == 2 and given.targets[1] not in TARGETS:
        one_input(TARGETS[given.targets[0]], Path(given.targets[1]).read_bytes())
        return 0
    failed = False
    for name in given.targets or TARGETS:
        good, told = fuzz(name, given.seconds, given.seed)
        print(f"{name:12} {'ok' if good else 'FAILED'}  {told}", flush=True)
        failed |= not good
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
