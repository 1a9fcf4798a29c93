"""What the node daemon costs with many machines: its start over those that run, a list, memory and CPU at rest.

    python test/bench/thousand.py [--machines N] [--few N] [--clients N]

Machines are real QEMUs without a machine in them (11 MiB each of its own); those that fit are started. The bars are
those of the issue: a thousand adopted within 5 s, 1 MiB of memory for each, a list within 50 ms while one QEMU is under
SIGSTOP.
"""

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP / "build" / "py")]
sys.path.append(str(TOP / "test"))

from events import claim, cpu, memory, place, prepared  # noqa: E402
from servers import fitting  # noqa: E402

from drover.kvm.node import Node  # noqa: E402
from drover.node.client import UnixConnection  # noqa: E402
from machines import qemu_of  # noqa: E402
from noded import Noded  # noqa: E402

LONGEST = 120.0  # seconds for anything that is waited for
LISTS = 5  # of each client


@contextlib.contextmanager
def machines(node: Node, count: int) -> Iterator[list[int]]:
    """So many; their pids."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for name in prepared(node, count):
            paths = node.host.paths.instance(name)
            words = [str(qemu_of("10.0")), *["-machine", "none", "-nodefaults", "-display", "none"]]
            for what in ("control", "events", "people"):
                words += ["-qmp", f"unix:{paths.socket(what)},server=on,wait=off"]
            running.append(subprocess.Popen(words))
        for name in node.names:
            wait_for((node.host.paths.instance(name).socket("people")).exists)
        for name, process in zip([f"m{number}" for number in range(count)], running, strict=True):
            claim(node, name, process.pid)
        yield [process.pid for process in running]
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it is so."""
    deadline = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(0.01)


def listed(noded: Noded) -> float:
    """Seconds that a list takes, with its connection, read and not looked at: as far as the daemon goes."""
    begun = time.monotonic()
    connection = UnixConnection(noded.socket, LONGEST)
    connection.request("GET", "/v1/instances")
    response = connection.getresponse()
    assert response.status == 200, response.read()
    response.read()
    connection.close()
    return time.monotonic() - begun


def by_many(noded: Noded, clients: int) -> list[float]:
    """The same, by many at once, each a few times."""
    times: list[float] = []
    begin = threading.Barrier(clients)

    def client() -> None:
        begin.wait()
        times.extend([listed(noded) for _ in range(LISTS)])

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def told(what: str, times: list[float]) -> None:
    """Print the middle and the worst."""
    cuts = statistics.quantiles(times, n=100)
    worst = max(times)
    print(f"{what}: p50 {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.1f} ms, max {worst * 1e3:.1f} ms", flush=True)


def measured(count: int, clients: int, seconds: float) -> float:
    """Print what so many cost; MiB that the daemon has."""
    with place() as node, machines(node, count) as pids:
        noded = Noded(node.host.paths, node.host.paths.state / "log")
        begun = time.monotonic()
        noded.launch()
        wait_for(noded.socket.exists)
        wait_for(lambda: _answers(noded))
        answers = time.monotonic() - begun
        wait_for(lambda: sum(row["state"] == "running" for row in noded.rows().values()) == count)
        print(f"{count} machines: answers {answers:.2f} s after its start, all are known after "
              f"{time.monotonic() - begun:.2f} s, and {cpu(noded.pid):.2f} s of CPU", flush=True)  # fmt: skip
        try:
            time.sleep(5)
            told(f"{count} machines, lists one after the other", [listed(noded) for _ in range(200)])
            os.kill(pids[0], signal.SIGSTOP)
            wait_for(lambda: noded.rows()["m0"]["state"] == "unresponsive")
            told("the same, one QEMU under SIGSTOP", [listed(noded) for _ in range(200)])
            os.kill(pids[0], signal.SIGCONT)
            told(f"lists by {clients} clients at once", by_many(noded, clients))
            before, since = cpu(noded.pid), time.monotonic()
            time.sleep(seconds)
            share = (cpu(noded.pid) - before) / (time.monotonic() - since)
            print(f"at rest: {share:.2%} of a core, {memory(noded.pid):.1f} MiB", flush=True)
            return memory(noded.pid)
        finally:
            noded.end()


def _answers(noded: Noded) -> bool:
    with contextlib.suppress(OSError):
        return noded.call("GET", "/v1/node")[0] == 200
    return False


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", type=int, default=1000)
    parser.add_argument("--few", type=int, default=20, help="for the slope of memory")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0, help="at rest")
    options = parser.parse_args()
    count = min(options.machines, fitting())
    if count < options.machines:
        print(f"memory is there for {count} machines")
    base = measured(options.few, options.clients, options.seconds)
    many = measured(count, options.clients, options.seconds)
    each = (many - base) / (count - options.few) * 1024
    print(f"memory for each machine: {each:.0f} KiB, ({many:.1f} - {base:.1f}) MiB / {count - options.few}")


if __name__ == "__main__":
    main()
