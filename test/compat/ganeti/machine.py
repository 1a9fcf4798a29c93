"""A real QEMU as Ganeti starts it, less the guest."""

import subprocess
import tempfile
import time
from pathlib import Path

from drover.compat.ganeti import HypervisorError, QmpConnection

START_TIMEOUT = 30.0  # seconds; it takes 0.2, on a machine that does nothing else


class Qemu:
    """A QEMU as Ganeti starts it, less the guest, and its monitor's path."""

    def __init__(self, binary: Path, *extra: str) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="qemu-")
        self.path = f"{self.directory.name}/qmp"
        self.process = subprocess.Popen(
            [str(binary), "-machine", "pc,accel=tcg", "-nodefaults", "-display", "none", "-S", "-m", "64",
             "-device", "virtio-scsi-pci,id=scsi", "-device", "virtio-balloon-pci",
             "-qmp", f"unix:{self.path},server=on,wait=off", *extra],
        )  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                QmpConnection(self.path).GetVersion()
                return
            except HypervisorError:
                assert self.process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.directory.cleanup()
