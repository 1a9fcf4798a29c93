"""NBD servers of an instance that is about to start: asked by us first, under a deadline.

QEMU opens its disks before it greets. A server that takes the call and stays silent would keep it from ever doing so,
and nothing frees it (:mod:`drover.ops.nbd`).
"""

import time
from collections.abc import Iterator
from typing import Final

from ..errors import ConnectError, MonitorTimeout, NbdError, NbdRefused, NbdTimeout, NbdUnreachable, StartFailed
from ..monitor.address import parse_address
from ..monitor.connection import BlockingWaits
from ..monitor.converse import converse
from ..monitor.drive import drive
from ..ops.nbd import HANDSHAKE_TIMEOUT, Nbd, parse_nbd
from ..qmp.nbd import NbdProbe
from .spec import Spec

# Seconds for all servers of an instance together: each answers within a round trip.
TIMEOUT: Final = HANDSHAKE_TIMEOUT


def check_servers(name: str, spec: Spec) -> None:
    """Do the handshake with each NBD server that a QEMU would dial for this specification.

    :param name: the instance's
    :raises StartFailed: one is of no use; names the field
    """
    for field, uri, error in useless_servers(spec):
        raise StartFailed(name, f"{field} '{uri}': {error}") from error


def useless_servers(spec: Spec) -> Iterator[tuple[str, str, NbdError]]:
    """Do the same, and tell of each that is of no use: the field, what it says, and why."""
    deadline = time.monotonic() + TIMEOUT
    for field, uri, read_only in _sources(spec):
        try:
            _shake_hands(parse_nbd(uri), read_only, max(0.0, deadline - time.monotonic()))
        except NbdError as error:
            yield field, uri, error


def _sources(spec: Spec) -> Iterator[tuple[str, str, bool]]:
    for number, disk in enumerate(spec.disks):
        if disk.source.startswith("nbd"):
            yield f"disks[{number}].source", disk.source, disk.read_only or disk.cdrom
        for depth, image in enumerate(disk.backing):
            if image.source.startswith("nbd"):
                yield f"disks[{number}].backing[{depth}].source", image.source, True


def _shake_hands(server: Nbd, read_only: bool, timeout: float) -> None:
    probe, waits = NbdProbe(server.address, server.export, False), BlockingWaits()
    try:
        drive(converse(parse_address(server.address), probe, timeout, waits.now, waits.ready))
    except MonitorTimeout as error:
        raise NbdTimeout(server.address, TIMEOUT) from error
    except ConnectError as error:
        raise NbdUnreachable(server.address, error.reason) from error
    if probe.outcome().read_only and not read_only:
        raise NbdRefused(server.address, server.export, "read-only", "say read_only = true of this disk")
