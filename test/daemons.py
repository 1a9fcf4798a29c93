"""A daemon of a test's own: a real process, with the folders of a test's node."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drover.kvm.paths import Paths


class Daemon:
    """One program, started and ended.

    :ivar program: its path
    :ivar paths: its folders
    """

    name = ""

    def __init__(self, paths: Paths, log: Path, options: Sequence[str] = ()) -> None:
        self.program = str(Path(sys.executable).with_name(self.name))
        self.paths = paths
        self.options = options
        self.log_path = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def env(self) -> dict[str, str]:
        """What it finds in its environment."""
        return os.environ | {"DROVER_STATE_DIR": str(self.paths.state), "DROVER_RUN_DIR": str(self.paths.run)}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]

    def launch(self, **env: str) -> None:
        """Start the process, and wait for nothing."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen([self.program, *self.options], env=self.env | env, stderr=log)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Have it end; its exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(20)

    def kill(self) -> None:
        self.end(signal.SIGKILL)
