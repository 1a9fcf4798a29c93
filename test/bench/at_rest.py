"""What the node daemon costs when nothing happens: real QEMUs without a machine in them, and nobody, one who looks at
what they use every second, or Prometheus every fifteen.
"""

import argparse
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP / "build" / "py")]
sys.path.append(str(TOP / "test"))

from events import claim, cpu, memory, place, prepared  # noqa: E402

from drover.kvm.node import Node  # noqa: E402
from drover.node.client import UnixConnection  # noqa: E402
from machines import qemu_of  # noqa: E402
from noded import running  # noqa: E402

SETTLED = 15.0  # s after the start: each has been looked at more than once


@contextlib.contextmanager
def qemus(node: Node, count: int) -> Iterator[None]:
    """Real ones, whose control socket the daemon will hold."""
    processes = []
    try:
        for name in prepared(node, count):
            path = node.host.paths.instance(name).socket("control")
            words = [str(qemu_of("10.0")), *["-machine", "none", "-nodefaults", "-display", "none", "-S", "-qmp"]]
            processes.append(subprocess.Popen([*words, f"unix:{path},server=on,wait=off"]))
            claim(node, name, processes[-1].pid)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def rest(pid: int, what: str, seconds: float, act: Callable[[], None], every: float) -> None:
    """Print what a while costs."""
    before, since = cpu(pid), time.monotonic()
    while (left := since + seconds - time.monotonic()) > 0:
        act()
        time.sleep(min(every, left))
    share = (cpu(pid) - before) / (time.monotonic() - since)
    print(f"  {what:28}{share:7.2%} of a core, {memory(pid):.1f} MiB", flush=True)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--seconds", type=float, default=30.0, help="for each figure")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended too
    for count in options.counts:
        with place() as node, qemus(node, count), running(node.host.paths, node.host.paths.state / "log") as noded:

            def get(path: str, socket: Path = noded.socket) -> None:
                connection = UnixConnection(socket, 30)
                connection.request("GET", path)
                assert connection.getresponse().read()
                connection.close()

            states = [row["state"] for row in noded.rows().values()]
            print(f"{count} machines, {states.count('prelaunch') or len(states)} of them there", flush=True)
            time.sleep(SETTLED)
            rest(noded.pid, "nobody asks", options.seconds, lambda: None, options.seconds)
            rest(noded.pid, "/metrics every 15 s", options.seconds, lambda: get("/metrics"), 15)
            rest(noded.pid, "/v1/stats every second", options.seconds, lambda: get("/v1/stats"), 1)


if __name__ == "__main__":
    main()
