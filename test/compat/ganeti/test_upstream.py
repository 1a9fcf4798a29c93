"""Ganeti's own tests, unchanged, against our face: those of 3.1 and later, and those about QMP of 3.0."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
VENDOR = HERE / "vendor"
TREE = HERE.parents[2]

# Seconds; they take two.
TIMEOUT = 50


@pytest.mark.parametrize("suite", sorted(path.name for path in VENDOR.glob("test_*.py")))
def test_suite_passes(suite: str) -> None:
    """In a process of its own, where `ganeti` is ours and its fakes' threads end with it."""
    path = os.pathsep.join([str(TREE / "build" / "py"), str(HERE / "shim")])
    command = [sys.executable, "-m", "pytest", "-p", "ganeti_shim", "-p", "no:cacheprovider", "-c", os.devnull]
    run = subprocess.run(
        [*command, f"--rootdir={VENDOR}", "-q", str(VENDOR / suite)],
        env=os.environ | {"PYTHONPATH": path, "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "passed" in run.stdout


def test_the_tests_are_ganetis() -> None:
    """Their licence stands in each."""
    for path in VENDOR.glob("test_*.py"):
        text = path.read_text()
        assert "the Ganeti project" in text or "Google Inc." in text
        assert "Redistribution and use in source and binary forms" in text
