"""The node daemon, killed at any time under a workload: no machine dies, no job is lost or done twice, all is true."""

import http.client
import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from drover.kvm.node import Node
from instances import bare
from noded import Noded, UnixConnection

NAMES = ("a", "b", "c")
NICS = 6  # in one run: there is a slot for each


class Worker(threading.Thread):
    """Does one thing after another to an instance that is its own, asks again until it is told, and knows the truth.

    :ivar asked: how many things it has asked for
    """

    def __init__(self, noded: Noded, name: str, seed: int) -> None:
        super().__init__(name=name)
        self.asked = 0
        self.wrong: BaseException | None = None
        self._noded = noded
        self._dice = random.Random(seed)
        self._over = threading.Event()
        self._state, self._generation, self._nics = "stopped", 0, 0

    def run(self) -> None:
        try:
            while not self._over.is_set():
                self._act(*self._choose())
                self._check()
        except BaseException as error:
            self.wrong = error

    def end(self) -> None:
        self._over.set()
        self.join(60)
        assert not self.is_alive()
        if self.wrong is not None:
            raise self.wrong

    def _choose(self) -> tuple[str, dict[str, Any]]:
        if self._state == "stopped":
            return "start", {}
        choices: list[tuple[str, dict[str, Any]]] = [("kill", {}), ("stop", {"timeout": 0.2})]
        choices += [("reboot", {"timeout": 0.1}), *[("pause", {}), ("resume", {})] * 2]
        if self._nics < NICS:
            choices += [("add-nic", {"mode": "user"})] * 4
        return self._dice.choice(choices)

    def _act(self, verb: str, body: dict[str, Any]) -> None:
        self.asked += 1
        path, key = f"/v1/instances/{self.name}/{verb}", f"{self.name} {self.asked}"
        status, told = self._call("POST", path, body, {"Idempotency-Key": key})
        assert status == 200, (verb, told)
        if verb in ("start", "reboot"):
            self._generation += 1
            self._state = "running"
        elif verb in ("kill", "stop"):
            self._state = "stopped"
        elif verb in ("pause", "resume"):
            self._state = "paused" if verb == "pause" else "running"
        else:
            self._nics += 1  # it stays in the specification

    def _check(self) -> None:
        """What the daemon says is what was done, each thing once."""
        status, shown = self._call("GET", f"/v1/instances/{self.name}")
        assert status == 200, shown
        row, spec = shown["summary"], shown["document"]["spec"]
        # a start that was cut off before its QEMU was up is undone, and its number is not given again
        undone = sum("start-failed" in line["text"] for line in self._noded.log if line.get("instance") == self.name)
        found = (row["generation"], len(spec["nics"]))
        assert found == (self._generation + undone, self._nics), (found, self._generation, undone, self._nics)
        deadline = time.monotonic() + 5
        while row["state"] != self._state:
            assert time.monotonic() < deadline, (row, self._state)
            row = self._call("GET", f"/v1/instances/{self.name}")[1]["summary"]

    def _call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """A call that is made again until a daemon answers it."""
        deadline = time.monotonic() + 60
        while True:
            connection = UnixConnection(self._noded.socket, 60)
            try:
                connection.request(method, path, json.dumps(body).encode() if body is not None else None, headers or {})
                response = connection.getresponse()
                return response.status, json.loads(response.read())
            except (OSError, http.client.HTTPException, json.JSONDecodeError):
                assert time.monotonic() < deadline, "no daemon answers"
                time.sleep(0.02)
            finally:
                connection.close()


@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_any_time(node: Node, noded: Noded, kills: int) -> None:
    dice = random.Random(seed := random.randrange(1 << 30))
    print(f"seed {seed}")
    for name in ("steady", *NAMES):
        noded.create(bare("7.2", name))
    noded.do("start", "steady")
    first = noded.rows()["steady"]["pid"]
    workers = [Worker(noded, name, dice.randrange(1 << 30)) for name in NAMES]
    for worker in workers:
        worker.start()
    slowest = 0.0
    for _ in range(kills):
        time.sleep(dice.random() * 1.5)
        noded.kill()
        begun = time.monotonic()
        noded.start()
        slowest = max(slowest, time.monotonic() - begun)
        row = noded.rows()["steady"]
        assert (row["pid"], row["state"]) == (first, "running")
        assert all(worker.wrong is None for worker in workers), [worker.wrong for worker in workers]
    for worker in workers:
        worker.end()
    print(f"{sum(worker.asked for worker in workers)} changes; up again within {slowest:.1f} s")
    for name in ("steady", *NAMES):
        runtime = node.instance(name).show().document.runtime
        assert qemus(name, node) == ([runtime.pid] if runtime else [])
        assert node.instance(name).verify().agrees
    check_jobs(noded, {f"{worker.name} {number}" for worker in workers for number in range(1, worker.asked + 1)})


def check_jobs(noded: Noded, keys: set[str]) -> None:
    """Each thing that was asked for is one job, and has been done."""
    asked, before = [], ""
    while page := noded.call("GET", f"/v1/jobs?limit=1000{before}")[1]["jobs"]:
        asked += [each for each in page if each["idempotency_key"]]
        before = f"&before={page[-1]['id']}"
    assert len(asked) == len(keys)
    assert {each["idempotency_key"] for each in asked} == keys
    assert {each["state"] for each in asked} == {"done"}


def qemus(name: str, node: Node) -> list[int]:
    """The processes that are this instance's QEMU."""
    uuid = node.instance(name).show().document.spec.uuid.encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if uuid in words and b"qemu" in words[0]:
            found.append(int(folder.name))
    return found
