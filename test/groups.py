"""A tree of control groups for a test."""

import contextlib
import os
import time
from collections.abc import Iterator

from drover.kvm import tree as trees
from drover.kvm.cgroup import Cgroup
from drover.kvm.tree import Tree


@contextlib.contextmanager
def own_tree() -> Iterator[Tree]:
    """A tree in a real group of our own, both gone afterwards; all that a test put there has to end."""
    mount = trees._mount_point()
    assert mount, "no control groups of version 2: mount -t cgroup2 none /sys/fs/cgroup/unified"
    above = mount / f"drover-test-{os.getpid()}"
    above.mkdir()
    tree = Tree.find(above)
    assert tree.path is not None, tree.notices
    yield tree
    for group in [*tree.path.glob("*.vm"), tree.path / "keepers", tree.path, above]:
        while not Cgroup(group).remove():
            time.sleep(0.01)
