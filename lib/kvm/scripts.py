"""Programs that set up a host's network, and Ganeti's environment for them.

What Ganeti's ``kvm-ifup`` scripts read is there under the same names, so they run as they are.
"""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Final, Literal
from uuid import UUID, uuid5

from ..errors import ScriptFailed, ScriptSlow
from ..monitor.interrupt import interrupt_later
from .spec import Nic

TIMEOUT: Final = 30.0  # s; a script asks a daemon or two. A spanning tree's 30 s are not for it to wait for
KILL_TIMEOUT: Final = 5.0  # s from SIGKILL to the end
OUTPUT_LIMIT: Final = 4096  # bytes of its output that are kept: the last ones
_READ_SIZE: Final = 65536  # bytes: what a pipe holds
PLAIN_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
# Killed with us: whoever takes over from us runs the script for the way down, and this one must not go on then.
_WITH_US: Final = ("setpriv", "--pdeathsig", "KILL", "--")
# Ganeti's names of modes
_MODES: Final = {"bridge": "bridged", "ovs": "openvswitch"}


def nic_uuid(uuid: str, nic: str) -> str:
    """A name for a NIC that no other NIC anywhere has.

    :param uuid: of its instance
    :param nic: its id
    """
    return str(uuid5(UUID(uuid), nic))


def environment(
    nic: Nic, instance: str, *, uuid: str, index: int, interface: str, action: Literal["up", "down"]
) -> dict[str, str]:
    """All that a script finds in its environment.

    :param instance: its name
    :param uuid: the instance's
    :param index: which of the instance's NICs it is
    :param interface: on the host
    """
    network = nic.network
    optional = {
        "IP": nic.ip,
        "LINK": nic.link,
        "BRIDGE": nic.link if nic.mode == "bridge" else "",
        "VLAN": str(nic.vlan or ""),
        "NETWORK_NAME": network and network.name,
        "NETWORK_UUID": network and network.uuid,
        "NETWORK_TAGS": network and " ".join(network.tags),
        "NETWORK_SUBNET": network and network.subnet,
        "NETWORK_GATEWAY": network and network.gateway,
        "NETWORK_SUBNET6": network and network.subnet6,
        "NETWORK_GATEWAY6": network and network.gateway6,
        "NETWORK_MAC_PREFIX": network and network.mac_prefix,
    }
    return {
        **PLAIN_ENVIRONMENT,
        "ACTION": action,
        "INSTANCE": instance,
        "INTERFACE": interface,
        "INTERFACE_INDEX": str(index),
        "INTERFACE_NAME": nic.id,
        "INTERFACE_UUID": nic_uuid(uuid, nic.id),
        "MAC": nic.mac,
        "MODE": _MODES.get(nic.mode, nic.mode),
        "TAGS": " ".join(nic.tags),
        **{name: value for name, value in optional.items() if value},
    }


def run(words: Sequence[str], env: Mapping[str, str], *, timeout: float = TIMEOUT) -> str:
    """Run a program to its end, or ours, in a session of its own, without any descriptor of ours.

    What it leaves in the background when it succeeds is left alone. When it fails or hangs, all of its
    process group is killed.

    :param words: the program and its arguments
    :param env: all its environment
    :param timeout: in seconds
    :returns: the end of what it printed, on both its outputs
    :raises ScriptFailed: it cannot be executed, or did not exit with 0
    :raises ScriptSlow: it did not end in time. What it did meanwhile holds
    """
    output = bytearray()
    fate = child = None
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reader, False)  # not the other end: a program's writes would fail when it is quicker than we are
    try:
        try:
            with interrupt_later():  # else it could run, and nobody would know of it
                child = _start(words, env, writer)
        finally:
            os.close(writer)
        fate = _watch(child, reader, output, time.monotonic() + timeout)
    finally:
        try:
            if child is not None:
                _end(child, kill=fate is None or fate.si_status != 0)
        finally:
            os.close(reader)
    text = output.decode(errors="replace").strip()
    if fate is None:
        raise ScriptSlow(words[0], timeout, text)
    if fate.si_code != os.CLD_EXITED:
        raise ScriptFailed(words[0], f"was killed by signal {fate.si_status}", text)
    if fate.si_status:
        raise ScriptFailed(words[0], f"exit status {fate.si_status}", text)
    return text


def _start(words: Sequence[str], env: Mapping[str, str], output: int) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            [*_WITH_US, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise ScriptFailed(words[0], f"{error.filename} cannot be executed: {error.strerror}") from error


def _watch(
    child: "subprocess.Popen[bytes]", reader: int, output: bytearray, deadline: float
) -> "os.waitid_result | None":
    """Keep the end of its output until it ends; it stays a zombie, so that its number is not another's yet.

    :returns: how it ended; None at the deadline
    """
    pidfd = os.pidfd_open(child.pid)
    try:
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = {fd for fd, _ in poll.poll(left * 1000)}
            # whoever it left behind may hold the pipe: its own end counts, not the pipe's
            if reader in ready and not _read(reader, output):
                poll.unregister(reader)
            if pidfd in ready:
                with contextlib.suppress(BlockingIOError):
                    _read(reader, output)  # what it wrote since its output was looked at
                return os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        return None
    finally:
        os.close(pidfd)


def _read(reader: int, output: bytearray) -> bool:
    chunk = os.read(reader, _READ_SIZE)
    output += chunk
    del output[:-OUTPUT_LIMIT]
    return bool(chunk)


def _end(child: "subprocess.Popen[bytes]", *, kill: bool) -> None:
    if kill:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # in the kernel, never to run again; reaped later
        child.wait(KILL_TIMEOUT)
