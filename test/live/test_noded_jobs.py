"""Changes as jobs: taken on, waited for or not, asked for again, cancelled, and taken up after a restart."""

import json
import os
import signal
import time
from pathlib import Path

from drover.kvm.lock import locked
from drover.kvm.node import Node
from instances import bare
from noded import Noded, ask, job, later
from waiting import wait_for


def test_each_change_is_one(noded: Noded, version: str) -> None:
    """With its steps and its outcome, also one that failed; who did not wait is told the same."""
    noded.create(bare(version, "a"))
    number = later(noded, "start", "a")
    done = job(noded, number, 30)
    assert (done["state"], done["kind"], done["instance"]) == ("done", "start", "a")
    assert noded.rows()["a"]["state"] == "running"  # when the end of the job is told, the list is true
    assert [step["name"] for step in done["steps"]] == ["start", "run"]
    assert isinstance(done["result"]["notices"], list)
    assert done["created"] <= done["started"] <= done["ended"]
    status, headers, _ = ask(noded, "/v1/instances/a/pause", X_Request_Id="my-own-1")
    assert (status, headers["X-Request-Id"]) == (200, "my-own-1")
    assert job(noded, int(headers["Drover-Job"]))["caller"] == {"who": "root", "role": "admin", "request": "my-own-1"}
    status, headers, told = ask(noded, "/v1/instances/a/remove-disk", {"id": "none"})
    failed = job(noded, int(headers["Drover-Job"]))
    assert (status, failed["state"], failed["error"]["code"]) == (422, "failed", told["code"])
    assert failed["error"]["field"] == "id"
    listed = noded.call("GET", "/v1/jobs?state=failed&instance=a")[1]["jobs"]
    assert [each["id"] for each in listed] == [failed["id"]]
    assert [each["kind"] for each in noded.call("GET", "/v1/jobs?limit=2")[1]["jobs"]] == ["remove-disk", "pause"]
    assert [each["kind"] for each in noded.call("GET", f"/v1/jobs?before={number}")[1]["jobs"]] == ["create"]
    noded.do("kill", "a")


def test_asked_again_by_the_same_key(noded: Noded) -> None:
    """Whoever had no answer asks again, and it is not done again; also when it failed, and while it runs."""
    noded.create(bare("7.2", "a"))
    first = ask(noded, "/v1/instances/a/start", Idempotency_Key="one")
    assert first[0] == 200
    noded.do("kill", "a")
    again = ask(noded, "/v1/instances/a/start", Idempotency_Key="one")
    assert (again[0], again[2], again[1]["Drover-Job"]) == (200, first[2], first[1]["Drover-Job"])
    assert noded.rows()["a"]["state"] == "stopped"
    assert ask(noded, "/v1/instances/a/kill", Idempotency_Key="one")[2]["code"] == "idempotency-conflict"
    for _ in range(2):
        status, _, told = ask(noded, "/v1/instances/a/pause", Idempotency_Key="two")
        assert (status, told["code"]) == (409, "wrong-state")
    with locked(noded.paths.locks, "a", "test"):
        asked = [later(noded, "start", "a") for _ in range(2)]
        assert asked[0] != asked[1]
        for _ in range(2):
            ask(noded, "/v1/instances/a/start", Idempotency_Key="three", Prefer="respond-async")
    assert ask(noded, "/v1/instances/a/start", Idempotency_Key="three")[0] == 200
    starts = [each for each in noded.call("GET", "/v1/jobs")[1]["jobs"] if each["kind"] == "start"]
    assert len(starts) == 4
    noded.do("kill", "a")


def test_one_is_cancelled(noded: Noded, node: Node) -> None:
    """One that waits never begins; one that waits for its guest ends there, and the guest runs on."""
    noded.create(bare("10.0", "a"))
    noded.do("start", "a")
    stops = later(noded, "stop", "a", timeout=300)
    waits = later(noded, "kill", "a")
    wait_for(lambda: bool(job(noded, stops)["steps"]))
    assert noded.call("POST", f"/v1/jobs/{waits}/cancel")[1]["state"] == "cancelled"
    assert noded.call("POST", f"/v1/jobs/{stops}/cancel")[0] == 200
    ended = job(noded, stops, 10)
    assert (ended["state"], ended["error"]) == ("cancelled", None)
    assert job(noded, waits)["started"] == 0
    assert noded.rows()["a"]["state"] == "running"
    assert node.instance("a").show().document.pending is None
    assert noded.call("POST", f"/v1/jobs/{stops}/cancel")[1]["state"] == "cancelled"  # twice is once
    assert noded.call("POST", "/v1/jobs/1234/cancel")[0] == 404
    noded.do("kill", "a")


def test_no_secret_is_kept(noded: Noded, node: Node) -> None:
    noded.create(bare("7.2", "a", vnc={"password": "Unspoken"}))
    noded.do("start", "a")
    noded.do("qmp", "a", execute="set_password", arguments={"protocol": "vnc", "password": "Unspoken"})
    noded.do("kill", "a")
    assert "Unspoken" not in json.dumps(noded.call("GET", "/v1/jobs")[1])
    kept = b"".join(path.read_bytes() for path in node.host.paths.state.glob("jobs.db*"))
    assert b"set_password" in kept
    assert b"Unspoken" not in kept
    assert "Unspoken" not in noded.log_path.read_text()


def test_a_daemon_that_is_stopped_leaves_its_jobs_to_the_next(noded: Noded) -> None:
    """It waits for no guest. What it was at goes on, what waited is done, and whoever waits is told."""
    noded.create(bare("7.2", "a"))
    noded.do("start", "a")
    stops = later(noded, "stop", "a", timeout=300)
    pauses = later(noded, "pause", "a")
    wait_for(lambda: bool(job(noded, stops)["steps"]))
    begun = time.monotonic()
    assert noded.end() == 0
    assert time.monotonic() - begun < 9
    noded.start()
    assert (job(noded, stops)["state"], job(noded, pauses)["state"]) == ("running", "queued")
    noded.call("POST", f"/v1/jobs/{stops}/cancel")
    assert job(noded, pauses, 10)["state"] == "done"
    assert noded.rows()["a"]["state"] == "paused"
    noded.do("kill", "a")


def test_a_daemon_that_is_killed(noded: Noded, tmp_path: Path) -> None:
    """Each kind of job, cut off: it is done once, or told that nobody knows."""
    for name in ("a", "b", "c"):
        noded.create(bare("7.2", name))
    noded.do("start", "a")
    noded.do("start", "c")
    pid = noded.rows()["c"]["pid"]
    os.kill(pid, signal.SIGSTOP)  # so that what is done to it is under way when the daemon is killed
    try:
        reset = later(noded, "reset", "c")
        stop = later(noded, "stop", "a", timeout=1)
        wait_for(lambda: bool(job(noded, reset)["started"] and job(noded, stop)["steps"]))
        noded.kill()
    finally:
        os.kill(pid, signal.SIGCONT)
    noded.start()
    assert job(noded, stop, 20)["state"] == "done"
    lost = job(noded, reset, 20)
    assert (lost["state"], lost["error"]["code"]) == ("lost", "job-lost")
    assert noded.rows()["a"]["state"] == "stopped"
    assert noded.call("GET", "/v1/jobs?state=running,queued")[1]["jobs"] == []
    noded.do("kill", "c")


def test_the_store_cannot_be_opened(noded: Noded, node: Node) -> None:
    """What can be read is read; changes are refused until it is there."""
    noded.create(bare("7.2", "a"))
    noded.end()
    path = node.host.paths.state / "jobs.db"
    good = path.read_bytes()
    path.write_bytes(b"no store of ours")
    noded.start()
    assert noded.rows()["a"]["state"] == "stopped"
    status, told = noded.call("POST", "/v1/instances/a/start", {})
    assert (status, told["code"]) == (500, "record-error")
    path.write_bytes(good)
    assert noded.call("POST", "/v1/instances/a/start", {})[0] == 200
    noded.do("kill", "a")
