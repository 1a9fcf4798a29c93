"""The host as an instance's life sees it: its folders, binaries and users, and what a run leaves on it."""

import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import Final

from ..errors import ArgumentError
from .acceleration import Verdict, acceleration
from .binary import Binary, probe_binary
from .cgroup import Cgroup
from .identity import Identity, UidPool
from .paths import InstancePaths, Paths, default_paths
from .process import current_boot
from .spec import Spec
from .tree import Tree

_KVM: Final = Path("/dev/kvm")


class Host:
    """One host, for one user of it.

    :param paths: where everything lies; None for this user's own folders
    :ivar boot_id: of the host's present boot
    :ivar rootless: what needs root is out of reach: users of their own, taps
    """

    def __init__(self, paths: Paths | None = None) -> None:
        self.paths = paths or default_paths()
        self.boot_id = current_boot()
        self.rootless = os.geteuid() != 0
        self._tree: Tree | None = None

    @cached_property
    def uids(self) -> UidPool:
        """The users that QEMUs run as."""
        return UidPool(self.paths.uids)

    @property
    def tree(self) -> Tree:
        """The control groups of all instances; looked for again where none could be had, as of a systemd that hung."""
        if self._tree is None or self._tree.path is None:
            self._tree = Tree.find()
        return self._tree

    def binary(self, emulator: str) -> Binary:
        """What a QEMU can do."""
        return probe_binary(emulator, self.paths.cache)

    def acceleration(self, binary: Binary, wanted: str) -> Verdict:
        """Whether to run under KVM, and if not, why."""
        return acceleration(binary, wanted, self.paths.cache, self.boot_id)

    def identity(self, uuid: str, accelerator: str) -> Identity | None:
        """The user that an instance's QEMU runs as, who may open ``/dev/kvm`` if it needs to; None: ours."""
        if self.rootless:
            return None
        groups = (_KVM.stat().st_gid,) if accelerator == "kvm" else ()
        return self.uids.lend(uuid, groups)

    def check(self, spec: Spec) -> None:
        """See that we may do what an instance needs, as far as that is not to be had in another way.

        :raises ArgumentError: we may not; names the field
        """
        if self.rootless and spec.chroot:
            allowed = "only root can make a root directory; for an ordinary user it has to be false"
            raise ArgumentError("chroot", True, allowed)

    def make_folders(self, paths: InstancePaths, identity: Identity | None) -> None:
        """Make the folders of a run. Who is not root or the instance's user sees nothing of them."""
        for folder in (self.paths.run, paths.run.parent, paths.private.parent):
            folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        for folder in (paths.run, paths.private):
            folder.mkdir(mode=0o700, exist_ok=True)
        if identity is not None:
            os.chown(paths.private, identity.uid, identity.gid)

    def remove_folders(self, paths: InstancePaths) -> None:
        """Remove the folders of a run, and all sockets in them."""
        for folder in (paths.run, paths.private):
            shutil.rmtree(folder, ignore_errors=True)

    def group(self, name: str, uuid: str) -> tuple[Cgroup | None, list[str]]:
        """The control group of an instance, and what it lacks, in words.

        :param uuid: of the instance: another state folder of this host may have one of the same name
        """
        try:
            tree = self.tree
            return tree.make(f"{name}-{uuid[:8]}"), [] if tree.path else list(tree.notices)
        except OSError as error:
            return None, [f"no control group: {error.filename}: {error.strerror}"]
