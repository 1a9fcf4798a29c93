"""A daemon of a test's own: a real process, with the folders of a test's node."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from drover.kvm.paths import Paths
from netns import Network


class Daemon:
    """One program, started and ended.

    :ivar program: its path
    :ivar paths: its folders
    :ivar more_env: what else it is to find in its environment
    :ivar under: a command that starts it, such as prlimit
    :ivar network: the network that it is in; None: that of whoever starts it
    """

    name = ""

    def __init__(self, paths: Paths, log: Path, options: Sequence[str] = ()) -> None:
        self.program = str(Path(sys.executable).with_name(self.name))
        self.paths = paths
        self.options = options
        self.log_path = log
        self.more_env: dict[str, str] = {}
        self.under: Sequence[str] = ()
        self.network: Network | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def env(self) -> dict[str, str]:
        """What it finds in its environment."""
        folders = {"DROVER_STATE_DIR": str(self.paths.state), "DROVER_RUN_DIR": str(self.paths.run)}
        return os.environ | folders | self.more_env

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
        with self.log_path.open("ab") as log, self.network.entered() if self.network else nullcontext():
            self._process = subprocess.Popen([*self.under, self.program, *self.options], env=self.env | env, stderr=log)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Have it end; its exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(20)

    def kill(self) -> None:
        self.end(signal.SIGKILL)
