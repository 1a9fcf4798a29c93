"""Nodes with certificates, and people who join them, by the programs as they are typed."""

import http.client
import json
import os
import ssl
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from drover.kvm.node import Node
from drover.kvm.paths import Paths
from drover.node.link import TlsConnection, calling
from drover.node.pki.folder import Folder
from netns import Network
from noded import Noded
from ports import free_port


class Person:
    """Somebody with a command line, and a configuration of their own."""

    def __init__(self, top: Path, paths: Paths | None = None) -> None:
        self.config = top / "config"
        self.paths = paths or Paths(top / "state", top / "run")
        self.program = str(Path(sys.executable).with_name("drover"))
        self.network: Network | None = None

    def run(self, *words: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        """:param more: environment"""
        command, env = [self.program, *words], os.environ | self.env | more
        with self.network.entered() if self.network else nullcontext():
            return subprocess.run(
                command, env=env, input=stdin, capture_output=True, text=True, timeout=60, check=False
            )

    def __call__(self, *words: str, stdin: str = "") -> str:
        """What a command says that has to succeed."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def env(self) -> dict[str, str]:
        return {
            "DROVER_CONFIG_DIR": str(self.config),
            "DROVER_STATE_DIR": str(self.paths.state),
            "DROVER_RUN_DIR": str(self.paths.run),
        }

    def folder(self, context: str = "first") -> Folder:
        """Of their certificate."""
        return Folder(self.config / "contexts" / context)

    def refused(self, *words: str) -> str:
        """What one says that has to fail."""
        done = self.run(*words)
        assert done.returncode == 1, done
        assert "Traceback" not in done.stderr
        return done.stderr


class Member:
    """A node: a daemon on the network, and its host's root.

    :param network: that they are in; None: that of the test
    :param host: the node's address there
    """

    def __init__(self, paths: Paths, top: Path, network: Network | None = None, host: str = "127.0.0.1") -> None:
        self.paths = paths
        self.pki = self.paths.pki
        self.address = f"{host}:{free_port() if network is None else 7000}"
        self.root = Person(top, self.paths)
        self.daemon = Noded(self.paths, top / "log", ["--listen", self.address])
        self.root.network = self.daemon.network = network

    def token(self, *words: str) -> str:
        return self.root("node", "token", *words).strip()

    @property
    def log(self) -> list[dict[str, Any]]:
        return self.daemon.log

    @property
    def node(self) -> Node:
        """Its instances, past its daemon."""
        return Node(self.paths)


def joined(first: Member, top: Path, role: str, name: str) -> Person:
    """A person who has joined, by the context `first`."""
    person = Person(top)
    person("context", "add", "first", "--token", "-", "--use", stdin=first.token("--role", role, "--name", name))
    return person


class Line:
    """A connection that is kept open, with somebody's certificate.

    :param folder: of the certificate; or what to connect with
    """

    def __init__(self, address: str, folder: Folder | ssl.SSLContext) -> None:
        context = folder if isinstance(folder, ssl.SSLContext) else calling(folder)
        self._connection = TlsConnection([address], context, 20)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        self._connection.request(method, path, None if body is None else json.dumps(body).encode())
        response = self._connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text else None

    def close(self) -> None:
        self._connection.close()


def call(address: str, folder: Folder | ssl.SSLContext, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One call by a connection of its own."""
    line = Line(address, folder)
    try:
        return line.call(method, path, body)
    finally:
        line.close()


REFUSED = (ssl.SSLError, ConnectionError, http.client.HTTPException)
