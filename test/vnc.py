"""A VNC client that shows that it knows the password."""

import socket
import subprocess
from pathlib import Path


class Vnc:
    """A client that says hello and, where it is asked to, shows that it knows the password (RFB 3.8, 7.2.2)."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(path))

    def take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            assert part, "closed by QEMU"
            data += part
        return data

    def login(self, password: str) -> bool:
        assert self.take(12) == b"RFB 003.008\n"
        self.socket.sendall(b"RFB 003.008\n")
        assert 2 in self.take(self.take(1)[0]), "VNC authentication is offered"
        self.socket.sendall(b"\2")
        self.socket.sendall(des(password, self.take(16)))
        return self.take(4) == b"\0\0\0\0"


def des(password: str, challenge: bytes) -> bytes:
    """The challenge under the password, whose bits VNC takes in reverse."""
    key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in password.encode().ljust(8, b"\0"))
    command = ["openssl", "enc", "-provider", "legacy", "-provider", "default", "-des-ecb", "-nopad", "-K", key.hex()]
    return subprocess.run(command, input=challenge, capture_output=True, check=True).stdout


def login(path: Path, password: str) -> bool:
    client = Vnc(path)
    with client.socket:
        return client.login(password)
