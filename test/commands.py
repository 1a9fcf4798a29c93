"""A host of a test's own, and `drover` on it, as a person types it."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from drover.kvm.paths import Paths
from noded import running

TOP = Path(__file__).resolve().parents[1]
DROVER = [sys.executable, "-c", "from drover.cli.main import main; main()"]


class Host:
    """The folders of a host of one's own, and the program on it."""

    def __init__(self, top: Path, daemon: bool) -> None:
        self.top = top
        self.daemon = daemon
        self.env = {"DROVER_STATE_DIR": str(top / "state"), "DROVER_RUN_DIR": str(top / "run")}
        self.env["PYTHONPATH"] = str(TOP / "build" / "py")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Type a command."""
        return subprocess.run(
            [*DROVER, *words], env=os.environ | self.env, capture_output=True, text=True, timeout=120, check=False
        )

    def __call__(self, *words: str) -> str:
        """Type a command that must succeed; what it answers."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def tidy_up(self) -> None:
        """Nothing of it runs any more."""
        for row in json.loads(self("list", "-o", "json")):
            self("kill", row["name"])
            self("delete", "--yes", row["name"])

    def write(self, spec: dict[str, object]) -> str:
        """A specification, in a file."""
        path = self.top / f"{spec['name']}.json"
        path.write_text(json.dumps(spec))
        return str(path)


@contextlib.contextmanager
def host_with(daemon: bool) -> Iterator[Host]:
    """A host, with a node daemon or without one; at the end nothing of it runs."""
    host = Host(Path(tempfile.mkdtemp(prefix="drover-")), daemon)
    host.top.chmod(0o711)  # QEMU's own user has to pass
    paths = Paths(host.top / "state", host.top / "run")
    with running(paths, host.top / "log") if host.daemon else contextlib.nullcontext():
        yield host
        host.tidy_up()
    shutil.rmtree(host.top)
