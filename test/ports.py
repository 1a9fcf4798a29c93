"""Ports for servers of tests."""

import random
import socket
from typing import Final

# Below those that the kernel gives to whoever dials: it may hand out any of them between our look and the server's.
_FROM: Final = range(10_000, 32_000)
_TRIES: Final = 100


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody has, and that is still free when its server is killed and starts again."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in random.sample(_FROM, _TRIES):
        with socket.socket(family) as sock:
            try:
                sock.bind((host, port))
            except OSError:
                continue
            return port
    raise OSError(f"{_TRIES} ports of {host}, and none is free")
