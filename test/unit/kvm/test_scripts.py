"""Scripts for the host's network: what they find, what becomes of them, and that they never hold anything up."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drover.errors import NetworkError, ScriptFailed, ScriptSlow
from drover.kvm import scripts
from drover.kvm.scripts import OUTPUT_LIMIT, PLAIN_ENVIRONMENT, environment, nic_uuid, run
from drover.kvm.spec import Network, Nic

UUID = "6e7e5d9c-9d6f-4c39-8a4e-0d8ff1d1a6a1"
SOON = 5.0  # s: what is killed, or forgotten, is gone by then
Make = Callable[[str], list[str]]


@pytest.fixture
def script(tmp_path: Path) -> Make:
    """A function that makes a shell script, and says how to run it."""

    def make(text: str) -> list[str]:
        path = tmp_path / "script"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return [os.fspath(path)]

    return make


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """No test leaves a descriptor or a child."""
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def ended(pid: int) -> bool:
    """Whether a process is gone within a short time; a zombie is."""
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.002)
    return False


def test_the_environment_is_ganetis() -> None:
    nic = Nic(
        id="nic1", mode="bridge", link="br0", mac="52:54:00:12:34:56", vlan=7, ip="10.9.0.5", tags=("web", "dmz"),
        network=Network(
            name="lan", uuid="u", tags=("a", "b"), subnet="10.9.0.0/24", gateway="10.9.0.1", subnet6="fd00::/64",
            gateway6="fd00::1", mac_prefix="52:54:00",
        ),
    )  # fmt: skip
    found = environment(nic, "web1", uuid=UUID, index=1, interface="dr1", action="up")
    assert found == PLAIN_ENVIRONMENT | {
        "ACTION": "up", "INSTANCE": "web1", "INTERFACE": "dr1", "INTERFACE_INDEX": "1", "INTERFACE_NAME": "nic1",
        "INTERFACE_UUID": nic_uuid(UUID, "nic1"), "MODE": "bridged", "MAC": "52:54:00:12:34:56", "IP": "10.9.0.5",
        "LINK": "br0", "BRIDGE": "br0", "VLAN": "7", "TAGS": "web dmz", "NETWORK_NAME": "lan", "NETWORK_UUID": "u",
        "NETWORK_TAGS": "a b", "NETWORK_SUBNET": "10.9.0.0/24", "NETWORK_GATEWAY": "10.9.0.1",
        "NETWORK_SUBNET6": "fd00::/64", "NETWORK_GATEWAY6": "fd00::1", "NETWORK_MAC_PREFIX": "52:54:00",
    }  # fmt: skip


def test_what_is_not_known_is_not_there() -> None:
    nic = Nic(id="nic0", mode="ovs", link="br0", mac="52:54:00:12:34:56")
    found = environment(nic, "web1", uuid=UUID, index=0, interface="dr0", action="down")
    assert set(found) - set(PLAIN_ENVIRONMENT) == {
        "ACTION", "INSTANCE", "INTERFACE", "INTERFACE_INDEX", "INTERFACE_NAME", "INTERFACE_UUID", "LINK", "MAC",
        "MODE", "TAGS",
    }  # fmt: skip
    assert found["MODE"] == "openvswitch"


def test_a_nic_has_one_uuid() -> None:
    assert nic_uuid(UUID, "nic0") == nic_uuid(UUID, "nic0") != nic_uuid(UUID, "nic1")


def test_it_runs_with_nothing_of_ours(script: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        text = run(script("env; LC_ALL=C ls /proc/$$/fd; readlink /proc/$$/fd/0; pwd"), {"A": "1"})
    finally:
        os.close(reader)
        os.close(writer)
    assert "SECRET" not in text
    assert "A=1" in text
    # the shell has its script open as 10, and nothing else, of a pipe it would have an end for a moment
    assert text.splitlines()[-6:] == ["0", "1", "10", "2", "/dev/null", "/"]


def test_both_its_outputs_are_kept_and_the_end_counts(script: Make) -> None:
    assert run(script("echo out; echo error >&2"), {}) == "out\nerror"
    text = run(script("yes 0123456789 | head -c 1000000; echo; echo last"), PLAIN_ENVIRONMENT)
    assert len(text) < OUTPUT_LIMIT
    assert text.endswith("last")


def test_one_that_prints_faster_than_we_read(script: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has to wait, and is not told that its output is full."""
    read = os.read

    def slowly(fd: int, size: int) -> bytes:
        time.sleep(0.002)
        return read(fd, size)

    monkeypatch.setattr(os, "read", slowly)
    assert run(script("head -c 500000 /dev/zero | tr '\\0' x; echo; echo last"), PLAIN_ENVIRONMENT).endswith("last")


def test_how_it_failed_is_said(script: Make, tmp_path: Path) -> None:
    with pytest.raises(ScriptFailed, match=r"script: exit status 7: why") as caught:
        run(script("echo why; exit 7"), {})
    assert caught.value.output == "why"
    assert isinstance(caught.value, NetworkError)
    with pytest.raises(ScriptFailed, match=r"script: was killed by signal 9$"):
        run(script("kill -9 $$"), {})
    with pytest.raises(ScriptFailed, match="nothing: exit status 127: .*: No such file or directory"):
        run([os.fspath(tmp_path / "nothing")], {})
    (tmp_path / "data").write_text("data")
    with pytest.raises(ScriptFailed, match="data: exit status 126: .*: Permission denied"):
        run([os.fspath(tmp_path / "data")], {})


def test_one_that_hangs_is_killed_with_all_that_it_started(script: Make) -> None:
    text = "trap '' TERM INT HUP; sleep 1000 & echo $!; (trap '' TERM; echo $$; sleep 1000) & echo $!; wait"
    with pytest.raises(ScriptSlow, match=r"did not end within 0.3 s, and was killed: \d+") as caught:
        run(script(text), PLAIN_ENVIRONMENT, timeout=0.3)
    assert isinstance(caught.value, TimeoutError)
    pids = [int(word) for word in caught.value.output.split()]
    assert len(pids) == 3
    assert all(ended(pid) for pid in pids)


def test_one_that_fails_leaves_nothing_in_the_background(script: Make) -> None:
    with pytest.raises(ScriptFailed) as caught:
        run(script("sleep 1000 & echo $!; exit 1"), PLAIN_ENVIRONMENT)
    assert ended(int(caught.value.output))


def test_what_a_good_one_leaves_in_the_background_is_left_alone_and_not_waited_for(script: Make) -> None:
    begin = time.monotonic()
    pid = int(run(script("sleep 1000 & echo $!"), PLAIN_ENVIRONMENT))  # and holds the output open
    assert time.monotonic() - begin < SOON
    os.kill(pid, signal.SIGKILL)
    assert ended(pid)


def test_a_chatty_background_does_not_hold_us_up(script: Make) -> None:
    begin = time.monotonic()
    run(script("yes & sleep 0.1"), PLAIN_ENVIRONMENT)  # it ends by SIGPIPE
    assert time.monotonic() - begin < SOON


def test_one_that_closes_its_outputs_is_waited_for(script: Make, tmp_path: Path) -> None:
    run(script(f"exec >&- 2>&-; sleep 0.2; touch {tmp_path}/done"), PLAIN_ENVIRONMENT)
    assert (tmp_path / "done").exists()


def test_an_interrupt_kills_it(script: Make, tmp_path: Path) -> None:
    def interrupt() -> None:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith("\n"):
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(script(f"echo $$ >{tmp_path}/pid; sleep 1000"), PLAIN_ENVIRONMENT)
    thread.join()
    assert ended(int((tmp_path / "pid").read_text()))


def test_an_interrupt_at_its_very_start_kills_it(script: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    start = scripts._start

    def interrupted(*arguments: Any) -> Any:
        child = start(*arguments)
        signal.raise_signal(signal.SIGINT)
        return child

    monkeypatch.setattr(scripts, "_start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(script("sleep 1000"), PLAIN_ENVIRONMENT)


def test_it_ends_with_us(script: Make, tmp_path: Path) -> None:
    words = script(f"echo $$ >{tmp_path}/pid; exec sleep 1000")
    ours = os.fork()
    if not ours:
        with contextlib.suppress(BaseException):
            run(words, PLAIN_ENVIRONMENT)
        os._exit(0)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith("\n"):
        time.sleep(0.002)
    os.kill(ours, signal.SIGKILL)
    os.waitpid(ours, 0)
    assert ended(int((tmp_path / "pid").read_text()))


def test_many_at_once_each_have_their_own_end(script: Make) -> None:
    words = script("exit $1")
    wrong = []

    def run_some(status: int) -> None:
        for _ in range(10):
            try:
                run([*words, str(status)], {})
                got = 0
            except ScriptFailed as error:
                got = int(error.problem.split()[2])
            if got != status:
                wrong.append((status, got))

    threads = [threading.Thread(target=run_some, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
