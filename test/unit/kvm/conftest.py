"""Fixtures of this folder's tests."""

from collections.abc import Iterator

import pytest

from drover.kvm.cgroup import Cgroup
from drover.kvm.tree import Tree
from groups import own_tree


@pytest.fixture
def tree() -> Iterator[Tree]:
    """A tree of control groups."""
    with own_tree() as tree:
        yield tree


@pytest.fixture
def group(tree: Tree) -> Cgroup:
    """An empty one of its groups."""
    group = tree.make("cgroup.procs")  # is allowed as an instance's name
    assert group is not None
    return group
