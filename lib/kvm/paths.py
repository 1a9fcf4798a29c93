"""Where everything of an instance lies: what must survive the host's boot under *state*, sockets under *run*.

As root ``/var/lib/drover`` and ``/run/drover``; for another user the folders that the XDG base directory
specification names. ``$DROVER_STATE_DIR`` and ``$DROVER_RUN_DIR`` override both.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import ArgumentError

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")
# sun_path of unix(7) holds 108 bytes with the final NUL.
_SOCKET_PATH: Final = 107
_NEXT: Final = "next"  # what a second QEMU's are called
_ROOT_STATE: Final = Path("/var/lib/drover")


def check_name(name: str) -> str:
    """Return `name` if an instance may bear it.

    :raises ArgumentError: it may not
    """
    if not _NAME.fullmatch(name):
        raise ArgumentError("name", name, "a letter or digit, then at most 62 letters, digits, '.' or '-'")
    return name


@dataclass(frozen=True, slots=True)
class InstancePaths:
    """The folders of one instance, and what lies in them.

    :ivar state: its durable folder
    :ivar run: its folder of this boot, which only we may enter: for the sockets that we bind
    :ivar private: the only folder that QEMU itself may write to: for the sockets that it binds
    """

    name: str
    state: Path
    run: Path
    private: Path

    @property
    def document(self) -> Path:
        """Specification, runtime record and pending intent."""
        return self.state / "instance.json"

    @property
    def log(self) -> Path:
        """What QEMU prints."""
        return self.state / "qemu.log"

    @property
    def console_log(self) -> Path:
        """What the guest wrote to its first serial port."""
        return self.state / "console.log"

    @property
    def memory(self) -> Path:
        """The memory of a machine that was saved, unless that was to be elsewhere."""
        return self.state / "memory"

    @property
    def nvram(self) -> Path:
        """UEFI's variable store."""
        return self.state / "nvram.fd"

    @property
    def exit_status(self) -> Path:
        """How QEMU ended."""
        return self.state / "exit-status"

    @property
    def seed(self) -> Path:
        """The disk from which cloud-init reads."""
        return self.state / "seed.iso"

    @property
    def tpm_status(self) -> Path:
        """How its TPM ended."""
        return self.state / "tpm-status"

    @property
    def beside(self) -> "InstancePaths":
        """Those of a second QEMU of the same instance, until it is the only one."""
        return _Beside(self.name, self.state, self.run / _NEXT, self.private / _NEXT)

    def socket(self, what: str) -> Path:
        """A socket that is bound here: ``control``, ``events``, ``people``, ``serial``, ``agent``."""
        return self.run / what


class _Beside(InstancePaths):
    __slots__ = ()

    @property
    def exit_status(self) -> Path:
        return self.state / f"exit-status-{_NEXT}"


@dataclass(frozen=True, slots=True)
class Paths:
    """The folders of all instances of one user on one host."""

    state: Path
    run: Path

    @property
    def instances(self) -> Path:
        """A folder for each instance."""
        return self.state / "instances"

    @property
    def names(self) -> list[str]:
        """Of all instances that there are."""
        if not self.instances.is_dir():
            return []
        return sorted(entry.name for entry in self.instances.iterdir() if not entry.name.startswith("."))

    @property
    def cache(self) -> Path:
        """What can be found out again."""
        return self.state / "cache"

    @property
    def runs(self) -> Path:
        """A folder for each instance that runs."""
        return self.run / "instances"

    @property
    def locks(self) -> Path:
        """A lock for each instance's name."""
        return self.run / "locks"

    @property
    def uids(self) -> Path:
        """Which user id belongs to which instance."""
        return self.state / "uids"

    @property
    def pki(self) -> Path:
        """Certificates and keys: root's are configuration, which survives a reset of the state."""
        return Path("/etc/drover/pki") if self.state == _ROOT_STATE else self.state / "pki"

    @property
    def along(self) -> Path:
        """What is kept of disks that come with machines from other nodes, until those have come."""
        return self.state / "along"

    def tpm(self, uuid: str) -> Path:
        """The state of an instance's TPM."""
        return self.state / "tpm" / uuid

    def events(self, uuid: str) -> Path:
        """What an instance's machine has told; by uuid, so that a rename changes nothing, and no namesake reads on."""
        return self.state / "events" / uuid

    @property
    def feed(self) -> Path:
        """What the node daemon has told of all instances; no uuid begins so."""
        return self.state / "events" / ".node"

    @property
    def shutdowns(self) -> Path:
        """For Ganeti's tools: a file for each instance whose user has shut it down."""
        return self.run / "ctrl"

    def instance(self, name: str) -> InstancePaths:
        """The folders of one instance.

        :raises ArgumentError: no instance can bear this name, or its sockets' paths would be too long
        """
        check_name(name)
        paths = InstancePaths(name, self.instances / name, self.runs / name, self.run / "qemu" / name)
        longest = paths.socket("control")
        if len(os.fsencode(longest)) > _SOCKET_PATH:
            raise ArgumentError("name", name, f"shorter: a socket's path has {_SOCKET_PATH} bytes at most: {longest}")
        return paths


def default_paths() -> Paths:
    """The folders of this user."""
    if os.geteuid() == 0:
        state, run = _ROOT_STATE, Path("/run/drover")
    else:
        home = Path.home()
        state = Path(os.environ.get("XDG_STATE_HOME") or home / ".local" / "state") / "drover"
        # where no session manager made one, there is no folder that goes at the end of the session
        run = Path(os.environ.get("XDG_RUNTIME_DIR") or state / "run") / "drover"
    return Paths(
        Path(os.environ.get("DROVER_STATE_DIR") or state).absolute(),
        Path(os.environ.get("DROVER_RUN_DIR") or run).absolute(),
    )
