"""An end by a signal, wherever in its loop it hits a program."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[3] / "build" / "py"

# Two tasks that wake one another all the time, as those of a shell do while something is printed.
BUSY = """
import asyncio
from drover.shell.signals import run_until_signal

async def main():
    queues = asyncio.Queue(), asyncio.Queue()
    async def pass_on(here, there):
        while True:
            await there.put(await here.get())
    both = [asyncio.create_task(pass_on(*queues)), asyncio.create_task(pass_on(*reversed(queues)))]
    try:
        queues[0].put_nowait(1)
        print("ready", flush=True)
        await asyncio.gather(*both)
    finally:
        print("in order", flush=True)

run_until_signal(main())
"""

STUBBORN = """
import asyncio
from drover.shell import signals
from drover.shell.signals import run_until_signal

signals._GRACE = 0.3

async def main():
    print("ready", flush=True)
    while True:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            pass

run_until_signal(main())
"""


def started(code: str) -> subprocess.Popen[str]:
    found = subprocess.Popen([sys.executable, "-c", code], env={"PYTHONPATH": str(PACKAGE)}, stdout=-1, text=True)
    assert found.stdout is not None
    assert found.stdout.readline() == "ready\n"
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_in_the_middle_of_anything(number: signal.Signals) -> None:
    """It ends at once, in good order, with the exit code that shells give it."""
    for wait in range(10):
        with started(BUSY) as program:
            time.sleep(wait / 500)
            program.send_signal(number)
            rest, _ = program.communicate(timeout=30)
            assert (rest, program.returncode) == ("in order\n", 128 + number)


def test_one_that_will_not_end() -> None:
    """Something within waits on: the signal does after a while what it does to any program."""
    with started(STUBBORN) as program:
        program.send_signal(signal.SIGHUP)
        program.communicate(timeout=30)
        assert program.returncode == -signal.SIGHUP


def test_what_was_ignored_stays_ignored() -> None:
    """As under nohup."""
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + BUSY
    with started(code) as program:
        program.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(0.3)
        program.send_signal(signal.SIGTERM)
        program.communicate(timeout=30)
        assert program.returncode == 128 + signal.SIGTERM
