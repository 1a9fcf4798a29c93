"""Jobs and logs from the command line: waited for, left to go on, cancelled, not waited for."""

import json
import re
from collections.abc import Iterator

import pytest

from commands import Host, host_with
from instances import bare, bootable
from terminal import terminal


@pytest.fixture
def host() -> Iterator[Host]:
    """With a node daemon."""
    with host_with(daemon=True) as found:
        yield found


def test_not_waited_for(host: Host) -> None:
    host("create", host.write(bare("10.0", "a")))
    job = json.loads(host("start", "a", "--no-wait", "-o", "json"))
    assert (job["kind"], job["instance"], job["caller"]["who"]) == ("start", "a", "root")
    number = str(job["id"])
    assert host("jobs", "wait", number) == f"Job {number}, start a, is done.\n"
    shown = json.loads(host("jobs", "show", number, "-o", "json"))
    assert (shown["state"], [step["name"] for step in shown["steps"]]) == ("done", ["start", "run"])
    assert "stop a, is queued" in host("stop", "a", "--timeout", "0.1", "--no-wait")
    listed = json.loads(host("jobs", "--instance", "a", "-o", "json"))
    assert [each["kind"] for each in listed] == ["stop", "start", "create"]
    assert "start a" in host("jobs", "list", "--state", "done", "--limit", "1000", "-o", "wide")
    host("jobs", "wait", str(listed[0]["id"]))
    assert json.loads(host("show", "a", "-o", "json"))["state"] == "stopped"


def test_what_fails(host: Host) -> None:
    """It is told, and exits, as if there had been no job."""
    host("create", host.write(bare("10.0", "a", disks=[{"source": "/nowhere", "format": "raw"}])))
    failed = host.run("start", "a")
    assert (failed.returncode, failed.stderr) == (1, "drover: /nowhere: No such file or directory\n")
    [job] = json.loads(host("jobs", "--state", "failed", "-o", "json"))
    again = host.run("jobs", "wait", str(job["id"]))
    assert (again.returncode, again.stderr) == (1, failed.stderr)
    for words in (("jobs", "show", "9999"), ("jobs", "cancel", "9999"), ("start", "nosuch")):
        done = host.run(*words)
        assert (done.returncode, "what there is" in done.stderr) == (3, True), done.stderr
    assert host.run("jobs", "cancel", str(job["id"])).returncode == 4


def test_ctrl_c(host: Host) -> None:
    """The first one leaves the job, a second one within two seconds cancels it; the guest runs on."""
    host("create", host.write(bare("10.0", "a")))
    host("start", "a")
    with terminal(["stop", "a", "--timeout", "60"], host.top, **host.env) as screen:
        screen.see("stop a", "Ctrl-C leaves it to go on")
        screen.press("C-c")
        found = re.search(r"Job (\d+), stop a, goes on", screen.see("goes on. Ctrl-C again cancels it"))
        assert found is not None
        screen.see("EXIT 130")
    assert json.loads(host("jobs", "show", found[1], "-o", "json"))["state"] == "running"
    with terminal(["jobs", "wait", found[1]], host.top, **host.env) as screen:
        screen.see("Ctrl-C leaves it to go on")
        screen.press("C-c")
        screen.see("goes on. Ctrl-C again cancels it")
        screen.press("C-c")
        screen.see("has ended: cancelled", "EXIT 130")
    cancelled = host.run("jobs", "wait", found[1])
    assert (cancelled.returncode, "cancelled" in cancelled.stderr) == (1, True)
    assert json.loads(host("show", "a", "-o", "json"))["state"] == "running"


def test_a_clone_is_a_job(host: Host) -> None:
    (host.top / "a.raw").write_bytes(bytes(1 << 20))
    disks = [{"id": "d", "source": str(host.top / "a.raw"), "format": "raw"}]
    host("create", host.write(bare("7.2", "a", disks=disks)))
    job = json.loads(host("clone", "a", "b", "--no-wait", "-o", "json"))
    host("jobs", "wait", str(job["id"]))
    assert json.loads(host("jobs", "show", str(job["id"]), "-o", "json"))["progress"]["unit"] == "bytes"
    assert json.loads(host("show", "b", "-o", "json"))["spec"]["disks"][0]["source"] == str(host.top / "b.raw")


def test_without_a_daemon() -> None:
    with host_with(daemon=False) as host:
        refused = host.run("jobs")
        assert (refused.returncode, "no node daemon" in refused.stderr) == (1, True), refused.stderr
        host("create", host.write(bare("7.2", "a")))
        refused = host.run("start", "a", "--no-wait")
        assert (refused.returncode, "needs the node daemon" in refused.stderr) == (2, True)


@pytest.mark.parametrize("daemon", [False, True])
def test_logs(daemon: bool) -> None:
    """What the guest wrote, to its end; followed, what it writes now."""
    with host_with(daemon=daemon) as host:
        host("create", host.write(bootable("10.0", "a")))
        with terminal(["run", "--no-daemon", "a"], host.top, **host.env) as screen:
            screen.see("guest#")
            screen.enter("echo one; echo two")
            screen.see("\ntwo")
            with terminal(["logs", "a", "-f", "-n", "1"], host.top, **host.env) as reader:
                reader.see("guest#")
                screen.enter("echo th''ree")
                reader.see("\nthree")
                reader.press("C-c")
                reader.see("EXIT 130")
            screen.press("C-]")
            screen.see("EXIT 0")
        assert "This is Linux" in host("logs", "a")
        assert host("logs", "a", "-n", "4").splitlines()[0].endswith("two")
        assert "run 1 begins" in host("logs", "a", "--kind", "qemu")
        log = host.top / "state" / "instances" / "a" / "console.log"
        log.write_bytes(b"\x1b[31mred\r\n" + b"x" * 600_000 + b"\nend\n")
        assert len(host("logs", "a")) == log.stat().st_size - 1  # its \r\n is a line end to whoever reads text
        assert host("logs", "a", "-n", "1") == "end\n"
        with terminal(["logs", "a", "-n", "1"], host.top, **host.env) as screen:
            screen.see("end", "EXIT 0")
        assert host.run("logs", "nosuch").returncode == 3
