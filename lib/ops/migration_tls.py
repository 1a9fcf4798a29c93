"""TLS of a migration, as one QEMU sees it: its memory, and the disks that go along by NBD, under the same keys.

Without :data:`AUTHORIZED` QEMU lets anybody load a machine who has a certificate of the same authority. So the target
is told by name whom it takes one from.

- QEMU shakes hands for a migration in its main loop, and waits there: a target that takes the call and stays silent
  stops the guest for ever (7.2 and 10.0). So it is asked first (:func:`check_tls_target`).
- GnuTLS takes a new key after 2^24 records, which in QEMU are pages, or so: after some 32 GiB. Before QEMU 10.1 that
  goes wrong where one thread sends on a connection while another one waits for what comes back. With ChaCha20 there is
  no new key. The connections of multifd go one way.
"""

import os
import secrets
from collections.abc import Iterable
from typing import Any, Final

from ..errors import ConnectError, MigrationError, MonitorTimeout
from ..qmp.tls import RANDOM, TlsProbe
from .migration_settings import get_migration_parameters, set_migration_parameters
from .port import Port
from .undo import Revert, Undo

CREDENTIALS: Final = "migration-tls"
"""Id of QEMU's object with the keys: for ``tls-creds`` of a migration, of an NBD server and of its client."""
AUTHORIZED: Final = "migration-peer"
"""Id of the object that says from whom a target takes a machine: for ``tls-authz``, of an NBD server, too."""
HELLO_TIMEOUT: Final = 5.0
"""Seconds for a target that waits for its machine to answer: it has nothing else to do."""

_ONE_WAY: Final = "NORMAL:-VERS-ALL:+VERS-TLS1.3"
_BOTH_WAYS: Final = f"{_ONE_WAY}:-CIPHER-ALL:+CHACHA20-POLY1305"
# What `arm` sets, and what it is without.
_PARAMETERS: Final = ("tls-creds", "tls-hostname", "tls-authz")


async def arm_tls_server(port: Port, folder: str | os.PathLike[str], peer: str, *, multifd: bool = False) -> None:
    """Have a target take its machine by TLS 1.3 alone, and from nobody but one. What was armed before goes.

    :param folder: with ``ca-cert.pem``, ``server-cert.pem`` and ``server-key.pem``, where QEMU may read them; it does
        so now, and not again
    :param peer: whom the source's certificate has to name, as GnuTLS writes it: ``CN=source``
    :param multifd: memory goes over several connections, each one way
    :raises CommandError: the files are not as QEMU wants them
    """
    allowed = {"qom-type": "authz-simple", "id": AUTHORIZED, "identity": peer}
    parameters = {"tls-creds": CREDENTIALS, "tls-authz": AUTHORIZED}
    await _arm(port, [_credentials(folder, "server", multifd), allowed], parameters)


async def arm_tls_client(port: Port, folder: str | os.PathLike[str], peer: str, *, multifd: bool = False) -> None:
    """Have a source send its machine by TLS 1.3 alone, and to nobody but one. What was armed before goes.

    :param folder: with ``ca-cert.pem``, ``client-cert.pem`` and ``client-key.pem``, as of :func:`arm_tls_server`
    :param peer: the host that the target's certificate has to name, wherever it listens
    :param multifd: memory goes over several connections, each one way
    :raises CommandError: the files are not as QEMU wants them
    """
    parameters = {"tls-creds": CREDENTIALS, "tls-hostname": peer}
    await _arm(port, [_credentials(folder, "client", multifd)], parameters)


def _credentials(folder: str | os.PathLike[str], endpoint: str, multifd: bool) -> dict[str, Any]:
    return {
        "qom-type": "tls-creds-x509", "id": CREDENTIALS, "dir": os.fspath(folder), "endpoint": endpoint,
        "verify-peer": True, "priority": _ONE_WAY if multifd else _BOTH_WAYS,
    }  # fmt: skip


async def _arm(port: Port, objects: Iterable[dict[str, Any]], parameters: dict[str, str]) -> None:
    await disarm_tls(port)
    async with Undo(port) as undo:
        added = [undo.send("object-add", it, undo=Revert("object-del", {"id": it["id"]})) for it in objects]
        await undo.results(*added)
        await set_migration_parameters(port, parameters)
        undo.keep()


async def disarm_tls(port: Port) -> None:
    """Forget the keys of a migration; the next one goes without TLS. May be repeated.

    A connection that stands keeps them until its end.

    :raises MigrationError: QEMU keeps them
    """
    # first the keys, without which nothing goes where they are still named; it is the rule that there are none
    dropped = [("object-del", {"id": name}) for name in (AUTHORIZED, CREDENTIALS)]
    *_, now = await port.ask_many([*dropped, ("query-migrate-parameters", None)])
    if now is None:  # refused, which is to be said in QEMU's words
        now = await get_migration_parameters(port)
    if armed := {name: "" for name in _PARAMETERS if now.get(name)}:
        await set_migration_parameters(port, armed)


async def check_tls_target(port: Port, address: str, *, timeout: float = HELLO_TIMEOUT) -> None:
    """See that a target answers, before QEMU is told to send its machine there: else QEMU would hang.

    It hears a hello, answers it, and is left; it waits on.

    :param address: any of :mod:`drover.monitor.address`; so is what QEMU takes: ``tcp:HOST:PORT``, ``unix:PATH``
    :param timeout: seconds for all of it
    :raises MigrationError: it does not answer, or not by TLS 1.3
    """
    probe = TlsProbe(secrets.token_bytes(RANDOM))
    try:
        await port.converse(address, probe, timeout)
    except MonitorTimeout as error:
        raise MigrationError(f"the target at {address} does not answer within {timeout:g} s") from error
    except ConnectError as error:
        raise MigrationError(f"the target at {address} is not to be reached: {error.reason}") from error
    if probe.error:
        raise MigrationError(f"the target at {address}: {probe.error}")
