"""The node daemon, from outside: a real process over real QEMUs."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from drover.kvm.lock import locked
from drover.kvm.node import Node
from instances import bare, bootable, wait_for_shell
from noded import Noded, UnixConnection
from waiting import wait_for


def test_life(noded: Noded, version: str) -> None:
    """Every verb; what the list says is true when the verb has answered."""
    noded.create(bare(version, "a"))
    assert noded.rows()["a"]["state"] == "stopped"
    steps = "start running, start running, pause paused, resume running, reset running, mend running, kill stopped"
    for verb, state in (step.split() for step in f"{steps}, kill stopped".split(", ")):
        noded.do(verb, "a")
        assert noded.rows()["a"]["state"] == state, verb
    noded.do("rename", "a", to="b")
    noded.do("clone", "b", to="c")
    assert sorted(noded.rows()) == ["b", "c"]
    status, shown = noded.call("GET", "/v1/instances/b")
    document = shown["document"]
    assert (status, document["last_stop"]["reason"], document["spec"]["name"]) == (200, "request", "b")
    for name in ("b", "c"):
        assert noded.call("DELETE", f"/v1/instances/{name}")[0] == 200
    assert noded.rows() == {}


def test_devices(noded: Noded, version: str, tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    noded.create(bare(version, "a", cpu={"count": 1, "max": 2}))
    noded.do("start", "a", paused=True)
    assert noded.rows()["a"]["state"] == "starting"
    noded.do("resume", "a")
    disk = noded.do("add-disk", "a", source=str(image), format="raw")
    assert noded.do("resize-disk", "a", id=disk["id"], size="2MiB") == {"size": 2 << 20}
    noded.do("set-throttle", "a", id=disk["id"], limits={"iops_total": 100})
    nic = noded.do("add-nic", "a", mode="user")
    noded.do("set-link", "a", id=nic["id"], up=False)
    assert noded.rows()["a"]["disks"] == noded.rows()["a"]["nics"] == 1
    assert noded.do("qmp", "a", execute="query-status")["running"] is True
    assert noded.call("GET", "/v1/instances/a/verify")[1]["agrees"] is True
    noded.do("kill", "a")


def test_what_others_do_is_seen(node: Node, noded: Noded) -> None:
    """The library in another process takes the monitor that the daemon holds, and the daemon comes back."""
    noded.create(bare("7.2", "a"))
    vm = node.instance("a")
    vm.start()
    wait_for(lambda: noded.rows()["a"]["state"] == "running")
    for _ in range(20):
        vm.pause()
        wait_for(lambda: noded.rows()["a"]["state"] == "paused", 2)
        vm.resume()
        wait_for(lambda: noded.rows()["a"]["state"] == "running", 2)
    runtime = vm.show().document.runtime
    assert runtime is not None
    os.kill(runtime.pid, signal.SIGKILL)
    wait_for(lambda: noded.rows()["a"]["state"] == "stopped")  # it takes note by itself
    assert noded.rows()["a"]["last_stop"]["reason"] == "crash"
    node.delete("a")
    wait_for(lambda: noded.rows() == {}, 2)


def test_an_end_while_somebody_works_on_it(node: Node, noded: Noded) -> None:
    """The daemon is not at the monitor then, and comes back to one where nobody listens."""
    noded.create(bare("10.0", "a"))
    noded.do("start", "a")
    with locked(node.host.paths.locks, "a", "test"):
        os.kill(pid := noded.rows()["a"]["pid"], signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{pid}/exe").exists())
    wait_for(lambda: noded.rows()["a"]["state"] == "stopped", 5)
    assert noded.rows()["a"]["last_stop"]["reason"] == "crash"


def test_a_guest_shuts_down_and_is_started_again(node: Node, noded: Noded) -> None:
    noded.create(bootable("10.0", "a", restart="always"))
    noded.do("start", "a")
    wait_for_shell(node.instance("a"))
    noded.do("qmp", "a", execute="system_powerdown")
    wait_for(lambda: noded.rows()["a"]["generation"] == 2)
    wait_for(lambda: noded.rows()["a"]["state"] == "running")
    assert noded.do("stop", "a", timeout=0.1)["stop"]["forced"] is True


def test_one_that_hangs_delays_nobody(noded: Noded) -> None:
    for name in ("stuck", "well"):
        noded.create(bare("7.2", name))
        noded.do("start", name)
    pid = noded.rows()["stuck"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        hung = threading.Thread(target=noded.call, args=("POST", "/v1/instances/stuck/pause", {}))
        hung.start()
        for verb in ("pause", "resume"):
            noded.do(verb, "well")
        times = []
        for _ in range(50):
            begun = time.monotonic()
            noded.rows()
            times.append(time.monotonic() - begun)
        assert max(times) < 0.5  # not of the time that a call has to wait for it, 10 s
        wait_for(lambda: noded.rows()["stuck"]["state"] == "unresponsive")
        assert noded.rows()["stuck"]["since"] <= time.time()
    finally:
        os.kill(pid, signal.SIGCONT)
    hung.join()
    wait_for(lambda: noded.rows()["stuck"]["state"] in ("running", "paused"))


def test_events(noded: Noded) -> None:
    """Numbered, in order, and from a number on for who comes back."""
    connection = UnixConnection(noded.socket, 20)
    connection.request("GET", "/v1/events?kind=instance")
    stream = connection.getresponse()
    noded.create(bare("7.2", "a"))
    noded.do("start", "a")
    noded.do("kill", "a")
    states = []
    while not states or states[-1] != "stopped" or "running" not in states:
        line = stream.readline().decode()
        if line.startswith("id: "):
            number = int(line[4:])
        elif line.startswith("data: "):
            told = json.loads(line[6:])
            states += [told["summary"]["state"]] if "summary" in told else []
    assert states[0] == "stopped"
    connection.close()
    again = UnixConnection(noded.socket, 20)
    again.request("GET", "/v1/events?kind=instance", headers={"Last-Event-ID": str(number - 1)})
    assert again.getresponse().readline() == f"id: {number}\n".encode()
    again.close()


def test_figures(noded: Noded) -> None:
    noded.create(bare("7.2", "a"))
    noded.do("start", "a")
    noded.call("POST", "/v1/instances/none/start", {})
    connection = UnixConnection(noded.socket, 20)
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    assert response.getheader("Content-Type", "").startswith("text/plain")
    lines = dict(line.rsplit(" ", 1) for line in response.read().decode().splitlines() if not line.startswith("#"))
    connection.close()
    assert lines['drover_instances{state="running"}'] == "1.0"
    assert lines['drover_calls_total{operation="start",outcome="done"}'] == "1.0"
    assert lines['drover_calls_total{operation="start",outcome="instance-not-found"}'] == "1.0"
    assert lines['drover_call_seconds_count{operation="start"}'] == "2.0"
    assert 0 < float(lines['drover_monitor_seconds{instance="a"}']) < 5
    assert float(lines['drover_instance_resident_bytes{instance="a"}']) > 10 << 20
    assert float(lines['drover_instance_cpu_seconds_total{instance="a"}']) > 0
    assert float(lines['drover_instance_memory_bytes{instance="a"}']) == 64 << 20


def test_what_is_wrong_is_told(noded: Noded) -> None:
    noded.create(bare("7.2", "web1"))
    for method, path, body, status, code in (
        ("POST", "/v1/instances", {"name": "x", "memory": {"size": "fast"}}, 422, "spec-error"),
        ("POST", "/v1/instances", bare("7.2", "web1"), 409, "instance-exists"),
        ("POST", "/v1/instances", [], 422, "argument-error"),
        ("POST", "/v1/instances/web2/start", {}, 404, "instance-not-found"),
        ("POST", "/v1/instances/web1/pause", {}, 409, "wrong-state"),
        ("POST", "/v1/instances/web1/start", {"pause": True}, 422, "spec-error"),
        ("POST", "/v1/instances/web1/start", {"paused": 1}, 422, "spec-error"),
        ("POST", "/v1/instances/web1/dance", {}, 404, "no-such-operation"),
        ("GET", "/v1/instances/..%2f..%2fetc", None, 422, "argument-error"),
        ("PUT", "/v1/instances", {}, 405, "method-not-allowed"),
        ("GET", "/v2", None, 404, "not-found"),
    ):
        found, told = noded.call(method, path, body)
        assert (found, told["code"]) == (status, code), (path, told)
        assert told["detail"]
    noded.do("start", "web1")
    for verb, body, field in (
        ("add-nic", {"mode": "user", "fds": [3]}, "fds"),
        ("add-disk", {"self": 1}, "self"),
        ("add-nic", {"mod": "user"}, "nics[0].mod"),
        ("change-nic", {"id": "n", "fields": {"fds": [3]}}, "fields.fds"),
        ("set-throttle", {"id": "d", "limits": {"id": 1}}, "limits.id"),
    ):
        status, told = noded.call("POST", f"/v1/instances/web1/{verb}", body)
        assert (status, told["errors"][0]["field"]) == (422, field), told
    for text in (b"{", b"\xff", b"[" * 100_000):
        assert noded.call("POST", "/v1/instances", data=text)[1]["code"] == "bad-json"
    assert noded.call("POST", "/v1/instances", data=b" " * (1 << 21))[0] == 413
    told = noded.call("POST", "/v1/instances", bare("7.2", "y", vnc={"password": ""}))[1]
    assert "vnc.password" in json.dumps(told)


def test_what_is_none_of_ours_or_cannot_be_read(node: Node, noded: Noded) -> None:
    """A stranger's file among the instances is passed over; a broken document is shown, and said to be."""
    noded.create(bare("7.2", "a"))
    (node.host.paths.instances / "not_a_name").mkdir()
    document = node.host.paths.instance("a").document
    good = document.read_bytes()
    document.write_bytes(b"{")
    noded.end()
    noded.start()
    row = noded.rows()["a"]
    assert (row["state"], "cannot be read" in row["detail"]) == ("unknown", True)
    assert list(noded.rows()) == ["a"]
    document.write_bytes(good)
    wait_for(lambda: noded.rows()["a"]["state"] == "stopped", 10)
    (node.host.paths.instances / "not_a_name").rmdir()


def test_who_may(node: Node, noded: Noded) -> None:
    """Root may do anything; a stranger does not even get in."""
    script = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(noded.socket)!r})"
    drop = ["setpriv", "--reuid=65534", "--clear-groups"]
    stranger = subprocess.run([*drop, sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "PermissionError" in stranger.stderr
    noded.create(bare("7.2", "a"))
    noded.do("start", "a")
    said = [line for line in noded.log if line["logger"] == "drover.audit"]
    assert [(line["caller"], line["operation"], line["outcome"]) for line in said] == [
        ("root", "create", "done"), ("root", "start", "done"),
    ]  # fmt: skip
    os.chmod(noded.socket, 0o666)  # as a member of its group
    ask = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from drover.node.client import Daemon; from drover.errors import CallFailed\n"
        "daemon = Daemon(Path(sys.argv[2])); print(daemon.call('POST', '/v1/instances/a/pause', {}))\n"
        "try: daemon.call('POST', '/v1/instances/a/qmp', {'execute': 'stop'})\n"
        "except CallFailed as error: print(error.code, error)"
    )
    path = str(Path(__file__).resolve().parents[2] / "build/py")
    words = [*drop, sys.executable, "-c", ask, path, str(noded.socket)]
    member = subprocess.run(words, capture_output=True, text=True, check=False)
    said = ["{'result': None}", "not-allowed nobody is operator: this takes admin"]
    assert member.stdout.splitlines() == said, member


def test_there_is_one(node: Node, noded: Noded) -> None:
    second = subprocess.run([noded.program], env=noded.env, capture_output=True, text=True, timeout=20, check=False)
    assert (second.returncode, f"process {noded.pid}" in second.stderr) == (1, True)
    assert noded.rows() == {}


def test_it_ends_when_told_and_machines_run_on(node: Node, noded: Noded) -> None:
    noded.create(bare("7.2", "a"))
    noded.do("start", "a")
    pid = noded.rows()["a"]["pid"]
    assert noded.end() == 0
    assert node.instance("a").show().state == "running"
    noded.start()
    assert noded.rows()["a"]["pid"] == pid


def test_pages_of_others_are_kept_out(noded: Noded) -> None:
    """A browser would show its user's certificate to any page that asks for a call, or for a console."""
    noded.create(bare("7.2", "a"))
    for method, path in (
        ("GET", "/v1/instances"), ("POST", "/v1/instances/a/start"), ("GET", "/v1/events"),
        ("GET", "/v1/instances/a/console"), ("GET", "/v1/instances/a/vnc"),
    ):  # fmt: skip
        connection = UnixConnection(noded.socket, 20)
        connection.request(method, path, headers={"Origin": "https://elsewhere", "Host": "node1:8443"})
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["code"]) == (403, "other-origin"), path
        connection.close()
    connection = UnixConnection(noded.socket, 20)
    connection.request("GET", "/v1/instances", headers={"Origin": "https://node1:8443", "Host": "node1:8443"})
    assert connection.getresponse().status == 200
    connection.close()
    assert noded.rows()["a"]["state"] == "stopped"
