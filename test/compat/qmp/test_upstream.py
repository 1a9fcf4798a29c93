"""qemu.qmp's own tests, as its source package has them, against our face."""

import os
import subprocess
import sys
from pathlib import Path

from compat.peers import ABSENT, QEMU_QMP

TREE = Path(__file__).resolve().parents[3]
# Seconds; they take one.
TIMEOUT = 50


def test_suite_passes(tmp_path: Path) -> None:
    """All that is changed is the name that they import."""
    assert QEMU_QMP.exists(), ABSENT
    ours = tmp_path / "test_protocol.py"
    theirs = (QEMU_QMP / "tests" / "test_protocol.py").read_text(encoding="utf-8")
    ours.write_text(theirs.replace("qemu.qmp", "drover.compat.qmp"), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, "-q", str(ours)]
    plain = {"PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    run = subprocess.run(
        command,
        env=os.environ | plain | {"PYTHONPATH": str(TREE / "build" / "py")},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "27 passed" in run.stdout
