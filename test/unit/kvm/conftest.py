"""Fixtures of this folder's tests."""

import os
import time
from collections.abc import Iterator

import pytest

from drover.kvm import cgroup
from drover.kvm.cgroup import Cgroup, Tree


@pytest.fixture
def tree() -> Iterator[Tree]:
    """A tree in a real group of our own."""
    mount = cgroup._mount_point()
    assert mount, "no control groups of version 2: mount -t cgroup2 none /sys/fs/cgroup/unified"
    above = mount / f"drover-test-{os.getpid()}"
    above.mkdir()
    tree = Tree.find(above)
    yield tree
    assert tree.path is not None
    for group in [*tree.path.glob("*.vm"), tree.path / "keepers", tree.path, above]:
        while not Cgroup(group).remove():
            time.sleep(0.01)


@pytest.fixture
def group(tree: Tree) -> Cgroup:
    """An empty one."""
    group = tree.make("cgroup.procs")  # is allowed as an instance's name
    assert group is not None
    return group
