"""`drover save`, `restore` and `discard`, as a person types them: with a node daemon, and without one."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import Host, host_with
from drover.kvm.node import Node
from instances import bare
from noded import Noded, job, later
from waiting import wait_for


@pytest.fixture(params=[False, True], ids=["alone", "daemon"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with host_with(daemon=request.param) as host:
        yield host


def shown(host: Host, name: str = "a") -> dict[str, Any]:
    told: dict[str, Any] = json.loads(host("show", name, "-o", "json"))
    return told


def test_a_machine_is_saved_and_goes_on(host: Host, tmp_path: Path) -> None:
    host("create", host.write(bare("10.0", "a", vnc={"password": "secret"})))
    assert host.run("save", "a").returncode == 4
    host("start", "a")
    assert "drover start a has it go on" in host("save", "a")
    assert shown(host)["state"] == "saved"
    assert "its memory is in" in host("list")
    assert "MiB" in host("show", "a")
    assert json.loads(host("list", "-o", "json"))[0]["state"] == "saved"
    assert (host.run("clone", "a", "b").returncode, host.run("reboot", "a").returncode) == (4, 4)
    assert "drover discard a" in host.run("clone", "a", "b").stderr
    assert "a is running" in host("start", "a")
    told = json.loads(host("save", "a", "--to", str(tmp_path / "m"), "-o", "json"))
    assert (told["path"], told["state"], told["form"]) == (str(tmp_path / "m"), "saved", "mapped-ram")
    os.rename(tmp_path / "m", tmp_path / "n")
    done = host.run("start", "a")
    assert (done.returncode, "--from" in done.stderr) == (4, True)
    assert "a is paused" in host("restore", "a", "--from", str(tmp_path / "n"), "--paused")
    assert os.listdir(tmp_path) == []
    host("resume", "a")
    assert shown(host)["state"] == "running"
    assert host.run("restore", "a").returncode == 4


def test_what_was_saved_is_not_forgotten_unasked(host: Host) -> None:
    host("create", host.write(bare("7.2", "a")))
    assert "do nothing" in host("discard", "a", "--dry-run")
    host("discard", "a")
    host("start", "a", "--fresh")
    host("save", "a")
    for words in (("discard", "a"), ("start", "a", "--fresh")):
        done = host.run(*words)
        assert (done.returncode, "--yes" in done.stderr) == (2, True)
        assert shown(host)["state"] == "saved"
    assert "forget what a had" in host("discard", "a", "--dry-run")
    host("discard", "a", "--yes")
    assert shown(host)["state"] == "stopped"
    host("start", "a")
    host("save", "a")
    host("start", "a", "--fresh", "--yes")
    assert shown(host)["state"] == "running"


def test_through_the_api(noded: Noded, node: Node) -> None:
    noded.create(bare("10.0", "a", vnc={"password": "secret"}))
    noded.do("start", "a")
    number = later(noded, "save", "a")
    done = job(noded, number, 30)
    assert (done["state"], done["result"]["saved"]["form"]) == ("done", "mapped-ram")
    assert [step["name"] for step in done["steps"]] == ["save", "write", "keep", "saved"]
    assert done["progress"]["unit"] == "bytes"
    assert "secret" not in json.dumps(done)
    status, answer = noded.call("GET", "/v1/instances/a")
    assert (status, answer["summary"]["state"]) == (200, "saved")
    assert "secret" not in json.dumps(answer)
    assert noded.call("POST", "/v1/instances/a/save", {"file": "relative"})[0] == 200  # it is saved already
    assert noded.do("restore", "a") == {"notices": []}
    assert noded.call("POST", "/v1/instances/a/save", {"file": "relative"})[1]["code"] == "argument-error"
    assert noded.call("POST", "/v1/instances/a/restore", {})[1]["code"] == "wrong-state"
    noded.do("save", "a")
    noded.do("discard", "a")
    assert noded.rows()["a"]["state"] == "stopped"


@pytest.mark.parametrize("verb", ["save", "restore"])
def test_a_daemon_that_is_killed_meanwhile_does_it_once(noded: Noded, node: Node, verb: str) -> None:
    noded.create(bare("10.0", "a"))
    noded.do("start", "a")
    if verb == "restore":
        noded.do("save", "a")
    number = later(noded, verb, "a")
    wait_for(lambda: bool(job(noded, number)["steps"]))
    noded.kill()
    noded.start()
    assert job(noded, number, 30)["state"] == "done"
    assert noded.rows()["a"]["state"] == ("saved" if verb == "save" else "running")
    assert node.instance("a").show().document.pending is None
    noded.do("kill", "a")
