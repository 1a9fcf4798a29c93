"""The QEMUs that the tests run."""

from pathlib import Path

import pytest

from drover.testing.machine import qemu_binaries


def qemu_of(kind: str) -> Path:
    """The binary for a kind such as ``7.2-q35``."""
    version = kind.split("-", maxsplit=1)[0]
    found = qemu_binaries().get(version)
    if found is None:
        pytest.fail(f"no QEMU {version} here: run ./bootstrap, which installs 7.2 and unpacks 10.0 beside it")
    return found
