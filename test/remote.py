"""A node daemon on the network, and an authority of a test's own that signs certificates, by openssl."""

import http.client
import json
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

from drover.kvm.node import Node
from noded import Noded


class Authority:
    """Signs certificates."""

    def __init__(self, folder: Path) -> None:
        assert shutil.which("openssl"), "no openssl here: apt-get install openssl"
        folder.mkdir()
        self.folder = folder
        # Python 3.13 and later want all that RFC 5280 does
        self._openssl("req", "-x509", "-days", "2", "-subj", "/CN=authority", "-newkey", "ec", "-pkeyopt",
                      "ec_paramgen_curve:P-256", "-addext", "keyUsage=critical,keyCertSign", "-nodes",
                      "-keyout", "ca.key", "-out", "ca.pem")  # fmt: skip

    def sign(self, name: str, subject: str, days: str = "2") -> tuple[Path, Path]:
        """A certificate and its key."""
        self._openssl("req", "-subj", subject, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                      "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        (self.folder / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n")
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", days,
                      "-extfile", "san", "-out", f"{name}.pem")  # fmt: skip
        (self.folder / f"{name}.key").chmod(0o600)
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.pem"

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)


class Remote:
    """A daemon on the network."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.ours = Authority(folder / "ours")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        certificate, key = self.ours.sign("daemon", "/CN=localhost")
        words = ["--listen", f"127.0.0.1:{self.port}", "--cert", str(certificate), "--key", str(key)]
        self.local = Noded(node.host.paths, folder / "log", [*words, "--ca", str(self.ours.certificate)])

    def call(self, signed: tuple[Path, Path] | None, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        context = ssl.create_default_context(cafile=str(self.ours.certificate))
        if signed is not None:
            context.load_cert_chain(*signed)
        connection = http.client.HTTPSConnection("localhost", self.port, context=context, timeout=20)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def serial(self) -> int:
        """Of the certificate that it shows."""
        context = ssl.create_default_context(cafile=str(self.ours.certificate))
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            with context.wrap_socket(sock, server_hostname="localhost") as tls:
                assert tls.version() == "TLSv1.3"
                found = tls.getpeercert()
                assert found
                return int(str(found["serialNumber"]), 16)
