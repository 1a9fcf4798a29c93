"""All that runs on a node goes to another one by one command."""

import json
import signal
import subprocess
from functools import partial

import waiting
from instances import bare
from pairs import Pair, ended

wait_for = partial(waiting.wait_for, timeout=60)


def running(pair: Pair, *names: str) -> None:
    for name in names:
        pair.here.daemon.create(bare("10.0", name))
        pair.here.daemon.do("start", name)


def test_all_go_that_can(pair: Pair) -> None:
    """What does not run stays and is no fault; what is in the way of one keeps no other; what is paused stays so."""
    here, there = pair.here, pair.there
    running(pair, "a", "b", "c", "taken", "paused")
    here.daemon.do("pause", "paused")
    here.daemon.create(bare("10.0", "stopped"))
    there.daemon.create(bare("10.0", "taken"))
    looked = here.root.run("migrate-all", there.address, "--check", "-o", "json")
    found = {row["name"]: [each["code"] for each in row["blockers"]] for row in json.loads(looked.stdout)}
    assert (looked.returncode, found) == (1, {"a": [], "b": [], "c": [], "paused": [], "taken": ["name"]})
    assert "1 of 5 stay: taken" in looked.stderr
    assert {row["state"] for row in there.daemon.rows().values()} == {"stopped"}

    said = here.root.run("migrate-all", there.address, "--at-once", "2")
    lines = said.stdout.splitlines()
    assert (said.returncode, lines[-1]) == (1, "5 instances, 1 stay.")
    assert {line.split()[0] for line in lines if " runs on b now, after " in line} == {"a", "b", "c"}
    assert any(line.startswith("paused stands still on b now, after ") for line in lines)
    assert any(line.startswith("taken stays: ") for line in lines)
    assert {name for name, row in there.daemon.rows().items() if row["state"] == "running"} == {"a", "b", "c"}
    wait_for(lambda: there.daemon.rows()["paused"]["state"] == "paused")
    assert here.daemon.rows()["taken"]["state"] == "running"

    back = json.loads(there.root("migrate-all", here.address, "-o", "json"))
    assert {row["name"]: (row["node"], row["error"]) for row in back} == dict.fromkeys((*"abc", "paused"), ("a", None))
    wait_for(lambda: {here.daemon.rows()[name]["state"] for name in "abc"} == {"running"})


def test_ctrl_c_begins_no_more(pair: Pair) -> None:
    running(pair, "a", "b", "c")
    root, daemon = pair.here.root, pair.here.daemon
    words = [root.program, "migrate-all", pair.there.address, "--at-once", "1", "--bandwidth", "64KiB"]
    at_work = subprocess.Popen(words, env=root.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(row["state"] == "migrating" for row in daemon.rows().values()))
    at_work.send_signal(signal.SIGINT)
    _, said = at_work.communicate(timeout=60)
    assert at_work.returncode == 130
    (job,) = daemon.call("GET", "/v1/jobs?state=running")[1]["jobs"]
    assert f"Jobs that go on: {job['id']} ({job['instance']})" in said
    daemon.call("POST", f"/v1/jobs/{job['id']}/cancel")
    assert ended(daemon, job["id"])["state"] == "cancelled"
    wait_for(lambda: {row["state"] for row in daemon.rows().values()} == {"running"})
    assert pair.there.daemon.rows().keys() <= {job["instance"]}
