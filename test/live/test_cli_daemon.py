"""A node daemon that `drover run` starts for its user."""

import json
import os
from pathlib import Path

from commands import host_with
from instances import bare


def test_run_starts_one() -> None:
    """It says so, serves from then on, outlives the command, and is ended by a command; the machine outlives it."""
    with host_with(daemon=False) as host:
        assert host.run("daemon", "status").returncode == 1
        assert "No node daemon runs." in host("daemon", "stop")
        assert host.run("run", "nosuch.toml", "--detach").returncode == 1
        assert host.run("daemon").returncode == 1
        path = host.write(bare("10.0", "a"))
        try:
            done = host.run("run", path, "--detach")
            assert (done.returncode, "a node daemon was started for you" in done.stderr) == (0, True), done.stderr
            told = json.loads(host("daemon", "status", "-o", "json"))
            assert (told["instances"], told["run_by"], told["states"]) == (1, "itself", {"running": 1})
            assert os.getsid(told["pid"]) == told["pid"]
            assert Path(told["log"]).stat().st_size > 0
            assert [job["kind"] for job in json.loads(host("jobs", "-o", "json"))] == ["start", "create"]
            again = host.run("run", path, "--detach")
            assert (again.returncode, "was started" in again.stderr) == (0, False)
            assert f"process {told['pid']}" in host("daemon", "start")
        finally:
            host("daemon", "stop")
        assert not Path(f"/proc/{told['pid']}").exists()
        assert json.loads(host("show", "a", "-o", "json"))["state"] == "running"
        done = host.run("run", "a", "--detach", "--no-daemon")
        assert (done.returncode, done.stderr) == (0, "")
        assert host.run("daemon", "status").returncode == 1
        assert "as process" in host("daemon", "start")
        host("daemon", "stop")


def test_one_that_does_not_come_up() -> None:
    """Is told of, and the machine starts all the same."""
    with host_with(daemon=False) as host:
        path = host.write(bare("10.0", "a"))
        (host.top / "run" / "noded.sock").mkdir(parents=True)
        done = host.run("run", path, "--detach")
        assert (done.returncode, "no node daemon came up" in done.stderr) == (0, True), done.stderr
        (host.top / "run" / "noded.sock").rmdir()
        assert json.loads(host("show", "a", "-o", "json"))["state"] == "running"
