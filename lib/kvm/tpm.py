"""A TPM beside a QEMU: swtpm, under the same user, joined with it by a pair of sockets that nobody else can reach."""

import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from ..errors import NotSupported, ProcessGone, SpawnFailed
from .cgroup import Cgroup
from .identity import Identity
from .ledger import Ledger
from .paths import Paths
from .process import Process, spawn
from .record import Runtime

SWTPM: Final = "swtpm"


def start_tpm(
    lent: ExitStack, paths: Paths, ledger: Ledger, identity: Identity | None, group: Cgroup | None, log: int
) -> int:
    """Start it; it ends when QEMU does.

    :param log: descriptor of the file for what it prints
    :returns: the descriptor for QEMU; `lent` closes our copy
    :raises NotSupported: the host has no swtpm
    """
    runtime = _runtime(ledger)
    folder = paths.tpm(runtime.spec.uuid)
    _make_folder(folder, identity)
    ours, theirs = socket.socketpair()
    lent.enter_context(ours)
    with theirs:
        words = [SWTPM, "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--terminate"]
        words += ["--ctrl", f"type=unixio,clientfd={theirs.fileno()}"]

        def record(process: Process) -> None:
            runtime.tpm_pid, runtime.tpm_start_time = process.pid, process.start_time
            ledger.step("tpm")

        try:
            spawn(
                words, status_path=ledger.paths.tpm_status, log_fd=log, fds=[theirs.fileno()], identity=identity,
                cgroup=group, before=record,
            ).close()  # fmt: skip
        except SpawnFailed as error:
            raise NotSupported("a TPM", f"{SWTPM} (Debian: swtpm): {error.reason}", by="this host") from error
    return ours.fileno()


def end_tpm(ledger: Ledger) -> None:
    """End it, if it runs still. May be repeated.

    :raises ProcessStuck: it has not ended yet
    """
    runtime = _runtime(ledger)
    if not runtime.tpm_pid:
        return
    status = ledger.paths.tpm_status
    try:
        with Process.attach(runtime.tpm_pid, runtime.tpm_start_time, runtime.boot_id, status) as process:
            process.kill()
    except ProcessGone:
        pass  # it goes with QEMU
    status.unlink(missing_ok=True)


def _make_folder(folder: Path, identity: Identity | None) -> None:
    """Its state is its user's own; who only passes through sees the uuids of instances, and nothing in them."""
    folder.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if identity is not None:
        os.chown(folder, identity.uid, identity.gid)


def _runtime(ledger: Ledger) -> Runtime:
    assert ledger.document.runtime is not None
    return ledger.document.runtime
