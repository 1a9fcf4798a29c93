"""The guest's agent through the node daemon: what it tells, and what it does, in a real guest."""

import base64
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drover.node.guest import MAX_OUTPUT
from drover.testing.agent_image import agent_image
from instances import bare, bootable, temporary_node
from noded import Noded, UnixConnection, running


@pytest.fixture(scope="module", params=["7.2", "10.0"])
def noded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Noded]:
    """A daemon with a guest that has an agent."""
    with temporary_node() as node, running(node.host.paths, tmp_path_factory.mktemp("agent") / "log") as daemon:
        image = agent_image()
        spec = bootable(request.param, "a")
        spec["boot"] |= {"kernel": str(image.kernel), "initrd": str(image.initrd)}
        daemon.create(spec)
        daemon.do("start", "a")
        deadline = time.monotonic() + 120
        while daemon.call("GET", "/v1/instances/a/agent")[0] != 200:
            assert time.monotonic() < deadline, daemon.call("GET", "/v1/instances/a/agent")
        yield daemon
        daemon.do("kill", "a")


def run(noded: Noded, *args: str, **more: Any) -> dict[str, Any]:
    done: dict[str, Any] = noded.do("agent-exec", "a", path=args[0], args=args[1:], **more)
    return done


def file(noded: Noded, path: str) -> tuple[int, bytes]:
    connection = UnixConnection(noded.socket, 60)
    try:
        connection.request("GET", f"/v1/instances/a/agent/file?path={path}")
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_what_it_tells(noded: Noded) -> None:
    told = noded.call("GET", "/v1/instances/a/agent")[1]
    assert told["osinfo"]["id"] == "drover"
    assert told["info"]["version"]
    assert any(each["name"] == "lo" for each in told["network_interfaces"])


def test_a_program(noded: Noded) -> None:
    done = run(noded, "/bin/sh", "-c", "cat; echo $WHO; echo no >&2; exit 3", input="aGk=", env={"WHO": "me"})
    assert done["exit_code"] == 3
    assert base64.b64decode(done["stdout"]) == b"hime\n"
    assert base64.b64decode(done["stderr"]) == b"no\n"
    job = noded.call("GET", "/v1/jobs?instance=a&limit=1")[1]["jobs"][0]
    assert (job["kind"], job["params"]["input"], job["params"]["env"]) == ("agent-exec", "<hidden>", "<hidden>")
    assert job["result"] == done
    loud = run(noded, "/bin/sh", "-c", f"head -c {MAX_OUTPUT + 1} /dev/zero")
    assert loud["stdout_truncated"] is True
    assert len(base64.b64decode(loud["stdout"])) == MAX_OUTPUT
    status, told = noded.call("POST", "/v1/instances/a/agent-exec", {"path": "/bin/none"})
    assert (status, told["code"]) == (409, "command-error")
    status, told = noded.call("POST", "/v1/instances/a/agent-exec", {"path": "/bin/cat", "input": "?"})
    assert (status, told["errors"][0]["field"]) == (422, "input")


def test_by_the_command_line(noded: Noded) -> None:
    """With the daemon, and without one: the program's own output and exit status."""
    drover = Path(sys.executable).with_name("drover")

    def typed(*words: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        done = subprocess.run([drover, "exec", *words], env=noded.env, input=stdin, capture_output=True, check=False)
        return done.returncode, done.stdout, done.stderr

    for again in range(2):
        assert typed("a", "/bin/sh", "-c", "echo out; echo err >&2; exit 5") == (5, b"out\n", b"err\n")
        said = typed("-i", "-e", "A=1 2", "a", "/bin/sh", "-c", 'cat; echo "$A"', stdin=b"in\0")
        assert said == (0, b"in\x001 2\n", b"")
        assert typed("a", "/bin/sh", "-c", "kill -TERM $$")[0] == 128 + 15
        status, out, _ = typed("-o", "json", "a", "/bin/true")
        assert (status, json.loads(out)["exit_code"]) == (0, 0)
        status, _, err = typed("a", "/bin/none")
        assert status == 1
        assert b"/bin/none" in err or b"No such file" in err
        assert typed("-e", "A", "a", "/bin/true")[0] == 1
        if not again:
            noded.end()
    noded.start()


def test_files(noded: Noded) -> None:
    data = bytes(range(256)) * 1000
    said = base64.b64encode(data).decode()
    assert noded.do("agent-write-file", "a", path="/tmp/it", data=said) == {"size": len(data)}
    assert noded.do("agent-write-file", "a", path="/tmp/it", data="AAA=", append=True) == {"size": 2}
    assert file(noded, "/tmp/it") == (200, data + b"\0\0")
    assert file(noded, "/tmp/none")[0] == 409
    assert file(noded, "")[0] == 422


def test_a_command_of_its_own(noded: Noded) -> None:
    seconds = noded.do("agent", "a", execute="guest-get-time")["result"] / 1e9
    assert seconds > 0
    status, told = noded.call("POST", "/v1/instances/a/agent", {"execute": "guest-dance"})
    assert (status, told["code"]) == (422, "not-supported")


def test_what_is_done_to_the_machine_does_not_wait_for_it(noded: Noded) -> None:
    sleeper = threading.Thread(target=run, args=(noded, "/bin/sleep", "5"))
    sleeper.start()
    begun = time.monotonic()
    noded.do("pause", "a")
    noded.do("resume", "a")
    assert time.monotonic() - begun < 4
    sleeper.join()


def test_where_there_is_none(noded: Noded, tmp_path: Path) -> None:
    noded.create(bare("7.2", "b"))
    assert noded.call("GET", "/v1/instances/b/agent")[1]["code"] == "wrong-state"
    noded.do("start", "b")
    assert noded.call("GET", "/v1/instances/b/agent")[1]["code"] == "agent-not-there"
    noded.do("kill", "b")
    noded.create(bare("7.2", "c", agent=False))
    noded.do("start", "c")
    assert noded.call("POST", "/v1/instances/c/agent", {"execute": "guest-ping"})[1]["code"] == "not-supported"
    noded.do("kill", "c")
