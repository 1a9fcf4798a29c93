"""What the event daemon costs: memory and CPU with many machines at rest, and a flood that must all be kept.

    python test/bench/events.py [--machines N] [--fakes N] [--rate EVENTS] [--seconds S]

Machines at rest are real QEMUs without a machine in them; floods, and the thousand, come from `many.py`, a process that
is taken for as many QEMUs. The daemon has one core.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP / "build" / "py")]
sys.path.append(str(TOP / "test"))

from drover.events.segment import LOST, read  # noqa: E402
from drover.kvm.node import Node  # noqa: E402
from drover.kvm.paths import Paths  # noqa: E402
from drover.kvm.process import _stat, current_boot  # noqa: E402
from drover.kvm.record import Runtime, load, save  # noqa: E402
from drover.kvm.spec import parse  # noqa: E402
from kvmd import Kvmd  # noqa: E402
from machines import qemu_of  # noqa: E402

LONGEST = 60.0  # seconds for anything that is waited for
TICKS = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def place() -> Iterator[Node]:
    """A node with nothing in it."""
    top = Path(tempfile.mkdtemp(prefix="drover-"))
    try:
        yield Node(Paths(top / "state", top / "run"))
    finally:
        shutil.rmtree(top)


def prepared(node: Node, count: int) -> list[str]:
    """Instances with the folders of a run, and nobody in it."""
    names = [f"m{number}" for number in range(count)]
    for name in names:
        node.create(parse({"name": name, "memory": {"size": "64MiB"}}))
        node.host.paths.instance(name).run.mkdir(parents=True)
    return names


def claim(node: Node, name: str, pid: int) -> None:
    """Have an instance's document say that this process is its QEMU."""
    path = node.host.paths.instance(name).document
    document = load(path)
    document.generation = 1
    document.runtime = Runtime(
        generation=1, boot_id=current_boot(), spec=document.spec, pid=pid, start_time=int(_stat(pid)[19])
    )
    save(path, document)


@contextlib.contextmanager
def qemus(node: Node, count: int) -> Iterator[None]:
    """Real ones."""
    running = []
    try:
        for name in prepared(node, count):
            path = node.host.paths.instance(name).socket("events")
            words = [str(qemu_of("10.0")), *["-machine", "none", "-nodefaults", "-display", "none", "-S", "-qmp"]]
            running.append(subprocess.Popen([*words, f"unix:{path},server=on,wait=off"]))
            claim(node, name, running[-1].pid)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


@contextlib.contextmanager
def fakes(node: Node, count: int, rate: int, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """One process that is taken for many."""
    names = prepared(node, count)
    words = [sys.executable, str(Path(__file__).with_name("many.py")), str(rate), str(seconds)]
    words += [str(node.host.paths.instance(name).socket("events")) for name in names]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        for name in names:
            claim(node, name, process.pid)
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def daemon(node: Node, sockets: int) -> Iterator[Kvmd]:
    """The daemon on one core, connected to so many."""
    kvmd = Kvmd(node.host.paths, node.host.paths.state / "log", "--journal-size", "4GiB")
    try:
        kvmd.start()
        os.sched_setaffinity(kvmd.pid, {0})
        for thread in os.listdir(f"/proc/{kvmd.pid}/task"):
            os.sched_setaffinity(int(thread), {0})
        deadline = time.monotonic() + LONGEST
        while kvmd.sockets() < sockets:
            assert time.monotonic() < deadline, f"only {kvmd.sockets()} connections; {kvmd.log[-3:]}"
            time.sleep(0.1)
        yield kvmd
    finally:
        kvmd.close()


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has had."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory(pid: int) -> float:
    """MiB that a process has of its own."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def at_rest(kvmd: Kvmd, what: str, seconds: float) -> None:
    """Print what it costs when nothing happens."""
    time.sleep(3)  # the connections' own work is over
    before, since = cpu(kvmd.pid), time.monotonic()
    time.sleep(seconds)
    share = (cpu(kvmd.pid) - before) / (time.monotonic() - since)
    print(f"{what}: {memory(kvmd.pid):.1f} MiB, {share:.2%} of a core at rest", flush=True)


def flooded(node: Node, kvmd: Kvmd, process: "subprocess.Popen[str]") -> None:
    """Print what a flood costs, and check that every event of it is in a journal."""
    assert process.stdin is not None
    assert process.stdout is not None
    before, since = cpu(kvmd.pid), time.monotonic()
    process.stdin.write("go\n")
    process.stdin.flush()
    sent = [int(word) for word in process.stdout.readline().split()]
    took = time.monotonic() - since
    time.sleep(1)  # the last ones are written
    spent, peak = cpu(kvmd.pid) - before, memory(kvmd.pid)
    os.kill(kvmd.pid, signal.SIGTERM)
    time.sleep(1)
    kept = [counted(node, name) for name in node.names]
    total = sum(sent)
    missing, lost = total - sum(count for count, _ in kept), sum(gaps for _, gaps in kept)
    print(
        f"flood: {total} events of {len(sent)} sockets in {took:.1f} s, {total / took:,.0f}/s: "
        f"{spent / took:.0%} of a core, {peak:.1f} MiB, {missing} missing, {lost} gaps told",
        flush=True,
    )


def counted(node: Node, name: str) -> tuple[int, int]:
    """QEMU's events in a journal, and the gaps that are told of, but for that before the connection."""
    folder = node.host.paths.events(load(node.host.paths.instance(name).document).spec.uuid)
    events, gaps, after = 0, 0, 0
    while page := read(folder, after=after, limit=50_000).events:
        gaps += sum(it.name == LOST for it in page)
        events += sum(it.name.isupper() for it in page)
        after = page[-1].number
    return events, gaps - 1


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", type=int, default=200, help="real QEMUs at rest")
    parser.add_argument("--fakes", type=int, default=1000, help="machines at rest of one process")
    parser.add_argument(
        "--rate", type=int, default=100_000, help="events/s of 50 sockets together; 0: as fast as taken"
    )
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    for count in (20, options.machines) if options.machines else ():
        with place() as node, qemus(node, count), daemon(node, count) as kvmd:
            at_rest(kvmd, f"{count} QEMUs", options.seconds)
    if options.fakes:
        with place() as node, fakes(node, options.fakes, 0, 0), daemon(node, options.fakes) as kvmd:
            at_rest(kvmd, f"{options.fakes} fakes", 4 * options.seconds)
    with place() as node, fakes(node, 50, options.rate, options.seconds) as process, daemon(node, 50) as kvmd:
        flooded(node, kvmd, process)


if __name__ == "__main__":
    main()
