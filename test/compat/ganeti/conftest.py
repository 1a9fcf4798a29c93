"""Fixtures for the tests of Ganeti's face. Ganeti's own tests run in a process of their own (test_upstream.py)."""

from collections.abc import Iterator

import pytest

from compat.ganeti.machine import Qemu
from machines import qemu_of

collect_ignore = ["vendor", "shim"]


@pytest.fixture(params=["7.2-pc", "10.0-pc"], scope="module")
def qemu(request: pytest.FixtureRequest) -> Iterator[Qemu]:
    qemu = Qemu(qemu_of(request.param))
    yield qemu
    qemu.close()
