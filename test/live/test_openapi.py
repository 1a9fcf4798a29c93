"""The API's document, and whatever it allows and forbids, sent to a real daemon with a real machine."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from instances import bare, temporary_node
from netns import own_network
from noded import Noded, running

# These would leave nothing to send the others to; and each of those waits for a guest as long as it is told to.
END = ["delete", "rename", "kill", "clone", "save", "discard"]
WAIT = ["stop", "reboot", "balloon", "resize-memory", "set-vcpus", "wait-driver"]


@pytest.fixture
def noded(tmp_path: Path) -> Iterator[Noded]:
    """In a network of its own, where taps may come and go."""
    with own_network(), temporary_node() as node, running(node.host.paths, tmp_path / "log") as daemon:
        yield daemon
        for name in daemon.rows():
            daemon.do("kill", name)


@contextlib.contextmanager
def over_tcp(path: Path) -> Iterator[int]:
    """A port of this host that leads to a unix socket."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_accept, args=(server, path), daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        # each relay has ended by then: whoever called has closed its end
        for thread in threading.enumerate():
            if thread.name.startswith("relay"):
                thread.join(10)


def _accept(server: socket.socket, path: Path) -> None:
    with contextlib.suppress(OSError):
        while True:
            near, _ = server.accept()
            far = socket.socket(socket.AF_UNIX)
            far.connect(str(path))
            threading.Thread(target=_relay_both, args=(near, far), name="relay", daemon=True).start()


def _relay_both(near: socket.socket, far: socket.socket) -> None:
    with near, far:
        back = threading.Thread(target=_relay, args=(far, near))
        back.start()
        _relay(near, far)
        back.join()


def _relay(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def test_the_document_names_every_call(noded: Noded) -> None:
    status, document = noded.call("GET", "/v1/openapi.json")
    assert (status, document["openapi"]) == (200, "3.1.0")
    assert {"/v1/instances", "/v1/instances/{name}", "/v1/instances/{name}/start"} <= document["paths"].keys()
    assert {"/v1/events", "/v1/instances/{name}/events"} <= document["paths"].keys()
    disk = document["components"]["schemas"]["Disk"]
    assert "qcow2" in str(disk["properties"]["format"])


def test_whatever_is_sent(noded: Noded, tmp_path: Path) -> None:
    """schemathesis: good and bad requests for each call, on a machine that runs. The daemon has a fault in none."""
    noded.create(bare("7.2", "a"))
    noded.do("start", "a")
    (tmp_path / "schemathesis.toml").write_text('[parameters]\n"path.name" = "a"\n"query.follow" = "0"\n')
    checks = "not_a_server_error,content_type_conformance,response_schema_conformance"
    with over_tcp(noded.socket) as port:
        words = [str(Path(sys.executable).with_name("schemathesis")), "run", f"http://127.0.0.1:{port}/v1/openapi.json"]
        words += ["--checks", checks, "--max-examples", "8", "--phases", "examples,coverage,fuzzing"]
        words += [word for name in (*WAIT, *END) for word in ("--exclude-operation-id", name)]
        env = os.environ | {"NO_PROXY": "*", "NO_COLOR": "1"}
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert not [line["traceback"] for line in noded.log if "traceback" in line and line["logger"] != "aiohttp.server"]
    assert noded.rows()["a"]["uuid"]
