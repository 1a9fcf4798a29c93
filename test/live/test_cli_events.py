"""`drover events`: through the daemon and past it, as it was and as it comes; as a person would type it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drover.kvm.node import Node
from drover.kvm.spec import parse
from instances import bare
from kvmd import journal, running, wait_event
from noded import Noded
from people import Member, joined


class Command:
    """`drover events`, that runs."""

    def __init__(self, node: Node, folder: Path, *words: str) -> None:
        env = os.environ | {"DROVER_STATE_DIR": str(node.host.paths.state), "DROVER_RUN_DIR": str(node.host.paths.run)}
        env["DROVER_CONFIG_DIR"] = str(folder / "config")
        self._path = folder / f"{time.monotonic_ns()}"
        program = str(Path(sys.executable).with_name("drover"))
        with self._path.with_suffix(".out").open("wb") as out, self._path.with_suffix(".err").open("wb") as err:
            self._process = subprocess.Popen([program, "events", *words], env=env, stdout=out, stderr=err)

    @property
    def out(self) -> str:
        return self._path.with_suffix(".out").read_text()

    @property
    def err(self) -> str:
        return self._path.with_suffix(".err").read_text()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]

    def wait(self, condition: Callable[["Command"], bool], timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while not condition(self):
            assert time.monotonic() < deadline, (self.out[-2000:], self.err)
            time.sleep(0.05)

    def end(self, number: int = signal.SIGINT) -> int:
        self._process.send_signal(number)
        return self._process.wait(20)

    def result(self) -> int:
        return self._process.wait(30)


@pytest.fixture
def drover(node: Node, tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Runs it."""
    started = []

    def run(*words: str) -> Command:
        started.append(Command(node, tmp_path, *words))
        return started[-1]

    yield run
    for command in started:
        with contextlib.suppress(ProcessLookupError):
            command.end(signal.SIGKILL)


def test_through_the_daemon(node: Node, noded: Noded, tmp_path: Path, drover: Callable[..., Command]) -> None:
    """What is kept; what comes, over the daemon's death; one machine's."""
    noded.create(bare("7.2", "a"))
    follower = drover("-f", "-o", "json")
    text = drover("-f", "--after", "0")
    text.wait(lambda it: "a is stopped" in it.out)
    with running(node.host.paths, tmp_path / "kvmd-log"):
        machine = drover("a", "-f", "-o", "json")
        noded.do("start", "a")
        follower.wait(lambda it: '"running"' in it.out)
        machine.wait(lambda it: "RESUME" in it.kinds)
        noded.kill()
        follower.wait(lambda it: "waiting until it is there again" in it.err)
        noded.start()
        noded.do("pause", "a")
        follower.wait(lambda it: '"paused"' in it.out)
        machine.wait(lambda it: it.kinds[-1] == "STOP")
        assert [it["number"] for it in follower.events] == sorted({it["number"] for it in follower.events})
        assert "began" in follower.kinds
        assert machine.kinds == ["RESUME", "STOP"]
        number = follower.events[-1]["number"]
        noded.do("kill", "a")
        more = drover("--after", str(number), "--kind", "instance", "-o", "json")
        assert more.result() == 0
        assert more.events
        assert {event["kind"] for event in more.events} == {"instance"}
        assert more.events[-1]["summary"]["state"] == "stopped"
        machine.wait(lambda it: it.kinds[-1] == "ended")
        assert noded.call("DELETE", "/v1/instances/a")[0] == 200
        assert machine.result() == 0
        assert machine.kinds[-1] == "gone"
    text.wait(lambda it: "a is gone" in it.out)
    for each in (text, follower):
        assert each.end() == 0
        assert "Traceback" not in each.err
    assert drover("nobody").result() == 3


def test_another_nodes(node: Node, tmp_path: Path) -> None:
    """By its context, over TLS, as somebody who only reads."""
    first = Member(node.host.paths, tmp_path / "first")
    first.root.config.parent.mkdir()
    first.root("node", "init", "--name", "first", "--address", first.address)
    first.daemon.start()
    try:
        viewer = joined(first, tmp_path / "me", "viewer", "alice")
        first.daemon.create(bare("7.2", "a"))
        found = [json.loads(line) for line in viewer("events", "-o", "json", "--kind", "instance").splitlines()]
        assert [(event["instance"], event["summary"]["state"]) for event in found] == [("a", "stopped")]
        assert "drover-kvmd" in viewer("events", "a")
    finally:
        first.daemon.end()


def test_past_the_daemon(node: Node, tmp_path: Path, drover: Callable[..., Command]) -> None:
    """Straight from the journals: all machines' by time, one's; those of one that is new, renamed, deleted."""
    for name in ("a", "b"):
        node.create(parse(bare("7.2", name)))
    everything = drover("-f", "-o", "json")
    everything.wait(lambda it: it.kinds == ["kvmd-absent"])
    with running(node.host.paths, tmp_path / "kvmd-log") as kvmd:
        for name in ("a", "b"):
            node.instance(name).start()
            wait_event(node.instance(name), "RESUME")
        one = drover("a", "-f", "-o", "json", "--after", "0")
        one.wait(lambda it: it.kinds == ["RESUME"])
        node.create(parse(bare("7.2", "c")))
        node.instance("c").start()
        everything.wait(lambda it: it.kinds.count("RESUME") == 3)
        node.instance("a").kill()
        wait_event(node.instance("a"), "ended")
        node.rename("a", "z")
        node.instance("z").start()
        node.instance("z").kill()
        one.wait(lambda it: it.kinds.count("ended") == 2)
        everything.wait(lambda it: "z" in [event.get("instance") for event in it.events])
        text = drover("z")
        assert text.result() == 0
        assert [line.split(" ", 3)[3] for line in text.out.splitlines()] == [
            "RESUME", "has ended: admin (request)", "RESUME", "has ended: admin (request)",
        ]  # fmt: skip
        found = drover("-o", "json", "--kind", "RESUME")
        assert found.result() == 0
        assert [event["instance"] for event in found.events] == ["z", "b", "c", "z"]
        node.delete("z")
        assert one.result() == 0
        assert one.kinds == ["RESUME", "ended", "RESUME", "ended", "gone"]
        assert drover("--after", "3").result() == 1
        kvmd.kill()
        absent = drover("b", "--after", "1", "-o", "json")
        assert absent.result() == 0
        assert absent.kinds == ["kvmd-absent"]
    assert everything.end() == 0
    assert everything.err == ""


def test_what_was_kept_is_as_the_daemon_tells_it(
    node: Node, tmp_path: Path, drover: Callable[..., Command], noded: Noded
) -> None:
    """With and without a node daemon a program gets the same."""
    noded.create(bare("10.0", "a"))
    with running(node.host.paths, tmp_path / "kvmd-log"):
        noded.do("start", "a")
        noded.do("kill", "a")
        wait_event(node.instance("a"), "ended")
        with_it = drover("a", "-o", "json")
        assert with_it.result() == 0
        noded.end()
        without = drover("a", "-o", "json")
        assert without.result() == 0
    assert without.out == with_it.out
    assert len(without.events) == len(journal(node.instance("a")))


def test_a_pipe_that_nobody_reads(node: Node, noded: Noded, tmp_path: Path) -> None:
    noded.create(bare("7.2", "a"))
    for _ in range(20):
        noded.do("start", "a")
        noded.do("kill", "a")
    env = os.environ | {"DROVER_STATE_DIR": str(node.host.paths.state), "DROVER_RUN_DIR": str(node.host.paths.run)}
    program = Path(sys.executable).with_name("drover")
    done = subprocess.run(
        ["bash", "-c", f"'{program}' events -o json | head -n 2; exit ${{PIPESTATUS[0]}}"],
        env=env, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2
