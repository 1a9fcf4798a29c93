"""The shells as a script runs them: what goes where, and the exit code, on real QEMUs."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shells import bare

pytestmark = pytest.mark.live

PACKAGE = Path(__file__).resolve().parents[2] / "build" / "py"
LIMIT = 60.0  # seconds for one command: 0.2 on an idle machine


@pytest.fixture(scope="module", params=["7.2", "10.0"])
def qemu(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The folder of a bare QEMU with two QMP sockets, `qmp` and `qmp2`, and an HMP socket `hmp`."""
    with bare(request.param) as process:
        yield process.folder


def drover(*words: object, given: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from drover.cli.main import main; main()", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)} | env
    return subprocess.run(
        program, check=False, input=given, env=environment, capture_output=True, text=True, timeout=LIMIT
    )


def documents(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_one_command(qemu: Path) -> None:
    """Its reply is on standard output, in the words of QEMU."""
    done = drover("qmp", qemu / "qmp", "-c", "query-name")
    assert (done.returncode, done.stdout, done.stderr) == (0, '{"return": {"name": "a b"}}\n', "")


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        ("block_resize node-name='no such' size=512", 1, "no such"),
        ("block_resize node-name=x size=1G", 2, "size wants an integer"),
        ("block_resize node-name='x", 2, "not closed"),
        ("query-stat", 2, "did you mean query-stats"),
    ],
)
def test_exit_codes(line: str, code: int, told: str, qemu: Path) -> None:
    """By who said no: QEMU, or the check before it. The check shows the place; with --json all is on one stream."""
    done = drover("qmp", qemu / "qmp", "-c", line)
    assert done.returncode == code
    assert told in (done.stdout if code == 1 else done.stderr)
    if code == 2:
        assert done.stdout == ""
        assert done.stderr.startswith(line + "\n")
    done = drover("qmp", qemu / "qmp", "--json", "-c", line)
    (error,) = documents(done.stdout)
    assert (done.returncode, done.stderr) == (code, "")
    assert told in error["error"]["desc"]


def test_nobody_there(tmp_path: Path) -> None:
    """3, with a reason; 2 where it is no address."""
    done = drover("qmp", tmp_path / "none", "--timeout", 0.2, "-c", "stop")
    assert (done.returncode, done.stdout) == (3, "")
    assert "cannot connect" in done.stderr
    assert drover("qmp", "host:port", "-c", "stop").returncode == 2
    done = drover("qmp", "-c", "stop", QMP_SOCKET="")
    assert done.returncode == 2
    assert "QMP_SOCKET" in done.stderr


def test_quoting_arrives(qemu: Path) -> None:
    """A blank in an id is QEMU's to judge, and the quotes around it are not."""
    node = "a 'b' \\\"c\\\" {d} é"
    lines = [f'object-add qom-type=secret id=s1 data="{node}"', 'qom-get path=/objects/s1 property="data"']
    done = drover("qmp", qemu / "qmp", "--json", *(word for line in lines for word in ("-c", line)))
    assert documents(done.stdout) == [{"return": {}}, {"return": "a 'b' \"c\" {d} é"}]
    assert drover("qmp", qemu / "qmp", "-c", "object-del id=s1").returncode == 0


def test_lines_from_standard_input(qemu: Path) -> None:
    """They come in the same way; a line that fails is the last one, unless told otherwise."""
    given = "# a note\n\ntransaction(\n  abort\n)\nquery-name\nset_link name=\nquery-name"
    done = drover("qmp", qemu / "qmp", "--json", given=given)
    assert done.returncode == 1
    assert [list(document) for document in documents(done.stdout)] == [["error"]]
    done = drover("qmp", "--json", "--keep-going", given=given, QMP_SOCKET=str(qemu / "qmp"))
    assert done.returncode == 1
    assert [list(document) for document in documents(done.stdout)] == [["error"], ["return"], ["error"], ["return"]]


def test_log_hides_secrets(qemu: Path, tmp_path: Path) -> None:
    """All messages are in the log, which is for its owner; what must not be read is not."""
    log = tmp_path / "log"
    done = drover("qmp", qemu / "qmp", "-v", "-l", log, "-c", "object-add qom-type=secret id=s2 data=hush")
    assert drover("qmp", qemu / "qmp", "-c", "object-del id=s2").returncode == 0
    written = log.read_text()
    assert [line.split()[1] for line in written.splitlines()] == ["->", "<-"]
    assert "object-add" in written
    assert "hush" not in written + done.stdout + done.stderr
    assert log.stat().st_mode & 0o777 == 0o600


def test_unchecked(qemu: Path) -> None:
    """Whoever wants QEMU's own answer to something wrong can have it."""
    done = drover("qmp", qemu / "qmp", "--no-check", "-c", "query-statu")
    assert (done.returncode, documents(done.stdout)[0]["error"]["class"]) == (1, "CommandNotFound")
