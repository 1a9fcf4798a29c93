"""Does what it is told, and says how long that took: runs beside a daemon, in the root directory that has it.

It reads JSON lines and answers each: ``{"type": [WORDS], "times": 3}`` runs a program, ``{"call": NAME, "with": [...],
"times": 3}`` makes a call over a connection that is held. With a guest's ``"console"`` what is told is how long it took
until the guest ``"sees"`` a file, or until its shell has a prompt. The standard library alone, and libvirt's where that
is.
"""

import http.client
import json
import os
import socket
import sys
import time
from typing import Any

from prompt import Lookout, wait_for_prompt


class Libvirt:
    """Calls to libvirtd."""

    def __init__(self) -> None:
        import libvirt  # type: ignore[import-not-found,unused-ignore]

        self._libvirt: Any = libvirt
        self._connection: Any = libvirt.open("qemu:///system")

    def names(self) -> int:
        """As virsh does: all domains, and then the state of each."""
        domains = self._connection.listAllDomains(self._libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        return len([(domain.name(), domain.ID(), domain.state()) for domain in domains])

    def states(self) -> int:
        """The state of all in one call, which libvirt has since 1.2.8."""
        return len(self._connection.getAllDomainStats(self._libvirt.VIR_DOMAIN_STATS_STATE))

    def stats(self) -> int:
        """All that it tells."""
        return len(self._connection.getAllDomainStats())

    def stats_alike(self) -> int:
        """What the other side tells, too."""
        of = self._libvirt
        kinds = of.VIR_DOMAIN_STATS_STATE | of.VIR_DOMAIN_STATS_CPU_TOTAL | of.VIR_DOMAIN_STATS_BALLOON
        kinds |= of.VIR_DOMAIN_STATS_VCPU | of.VIR_DOMAIN_STATS_INTERFACE | of.VIR_DOMAIN_STATS_BLOCK
        return len(self._connection.getAllDomainStats(kinds))

    def define(self, text: str) -> int:
        """Make one that does not run."""
        self._connection.defineXML(text)
        return 1

    def start(self, name: str) -> int:
        """Start it; its guest stands still."""
        self._domain(name).createWithFlags(self._libvirt.VIR_DOMAIN_START_PAUSED)
        return 1

    def run(self, name: str) -> int:
        """Start it."""
        self._domain(name).create()
        return 1

    def attach(self, name: str, text: str) -> int:
        """Plug a disk in, or a card."""
        self._domain(name).attachDevice(text)
        return 1

    def detach(self, name: str, text: str) -> int:
        """Take it away."""
        self._domain(name).detachDevice(text)
        return 1

    def forget(self, name: str) -> int:
        """End it, and forget it."""
        self._domain(name).destroy()
        self._domain(name).undefine()
        return 1

    def _domain(self, name: str) -> Any:
        return self._connection.lookupByName(name)


class Drover:
    """Calls to drover-noded.

    :param path: of its socket
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._connect()

    def names(self) -> int:
        """All machines."""
        return len(self._call("GET", "/v1/instances")["instances"])

    states = names

    def stats(self) -> int:
        """What all use."""
        return len(self._call("GET", "/v1/stats")["stats"])

    stats_alike = stats

    def define(self, document: Any) -> int:
        """Make one that does not run."""
        self._call("POST", "/v1/instances", document)
        return 1

    def start(self, name: str) -> int:
        """Start it; its guest stands still."""
        self._call("POST", f"/v1/instances/{name}/start", {"paused": True})
        return 1

    def run(self, name: str) -> int:
        """Start it."""
        self._call("POST", f"/v1/instances/{name}/start", {})
        return 1

    def attach(self, name: str, device: Any) -> int:
        """Plug a disk in, or a card."""
        self._call("POST", f"/v1/instances/{name}/add-{_kind(device)}", device)
        return 1

    def detach(self, name: str, device: Any) -> int:
        """Take it away."""
        self._call("POST", f"/v1/instances/{name}/remove-{_kind(device)}", {"id": device["id"]})
        return 1

    def forget(self, name: str) -> int:
        """End it, and forget it."""
        self._call("POST", f"/v1/instances/{name}/kill", {})
        self._call("DELETE", f"/v1/instances/{name}")
        return 1

    def _connect(self) -> None:
        self._connection = http.client.HTTPConnection("localhost")
        self._connection.sock = socket.socket(socket.AF_UNIX)
        self._connection.sock.connect(self._path)

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        try:
            self._connection.request(method, path, data)
        except BrokenPipeError:  # the server closes one that was silent for a minute, while the other side had its turn
            self._connect()
            self._connection.request(method, path, data)
        response = self._connection.getresponse()
        answer = json.loads(response.read() or b"null")
        if response.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer}")
        return answer


def _kind(device: Any) -> str:
    return "disk" if "source" in device else "nic"


def typed(words: list[str]) -> int:
    """Run a program, and return how many lines it printed; its output goes through a pipe, as to whoever reads it."""
    reading, writing = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, writing, 1), (os.POSIX_SPAWN_DUP2, writing, 2)]
    actions += [(os.POSIX_SPAWN_CLOSE, reading), (os.POSIX_SPAWN_CLOSE, writing)]  # type: ignore[list-item]
    pid = os.posix_spawn(words[0], words, os.environ, file_actions=actions)
    os.close(writing)
    with open(reading, "rb") as pipe:
        output = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise RuntimeError(f"{' '.join(words)}: {status}: {output.decode(errors='replace')[-500:]}")
    return output.count(b"\n")


class Watch:
    """Measures."""

    def __init__(self, side: Any) -> None:
        self._side = side
        self._lookouts: dict[str, Lookout] = {}

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """How long each time took, and what the last one told of."""
        seconds, count = [], 0
        for _ in range(asked.get("times", 1)):
            took, count = self._once(asked)
            seconds.append(took)
        return {"seconds": seconds, "count": count}

    def _once(self, asked: dict[str, Any]) -> tuple[float, int]:
        if "gone" in asked:
            count = self._act(asked)
            self._lookouts[asked["console"]].wait_gone(asked["gone"])
            return 0.0, count
        if "sees" in asked:
            lookout = self._lookout(asked["console"])
            lookout.look_for(asked["sees"])
            begun = time.perf_counter()
            count = self._act(asked)
            return lookout.seen() - begun, count
        begun = time.perf_counter()
        count = self._act(asked)
        if "console" in asked:
            wait_for_prompt(asked["console"])
        return time.perf_counter() - begun, count

    def _act(self, asked: dict[str, Any]) -> int:
        if "type" in asked:
            return typed(asked["type"])
        return int(getattr(self._side, asked["call"])(*asked.get("with", [])))

    def _lookout(self, console: str) -> Lookout:
        if console not in self._lookouts:
            self._lookouts[console] = Lookout(console)
        return self._lookouts[console]


def main() -> None:
    """Serve."""
    watch = Watch(Drover(sys.argv[2]) if sys.argv[1] == "drover" else Libvirt())
    print("{}", flush=True)
    for line in sys.stdin:
        try:
            print(json.dumps(watch.answer(json.loads(line))), flush=True)
        except Exception as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)


if __name__ == "__main__":
    main()
