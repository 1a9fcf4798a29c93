"""The shells as a script runs them: what goes where, and the exit code, on real QEMUs."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drover import QmpConnection
from machines import qemu_of
from shells import agent, bare

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


def test_another_kind_of_monitor(qemu: Path) -> None:
    """It is told what talks to it."""
    done = drover("qmp", qemu / "hmp", "-c", "stop")
    assert done.returncode == 3
    assert "`drover hmp`" in done.stderr


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
    again = drover("qmp", qemu / "qmp", "-l", log, "-c", "qom-get path=/objects/s2 property=data")
    assert again.stdout == '{"return": "hush"}\n'
    assert drover("qmp", qemu / "qmp", "-c", "object-del id=s2").returncode == 0
    written = log.read_text()
    assert [line.split()[1] for line in written.splitlines()] == ["->", "<-"] * 2
    assert "object-add" in written
    assert "hush" not in written + done.stdout + done.stderr
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_program_at_the_other_end(qemu: Path) -> None:
    """It hears of events while it says nothing, and goes on afterwards; the log has no secret that was asked for."""
    program = [sys.executable, "-c", "from drover.cli.main import main; main()", "qmp", "--json", "-e", qemu / "qmp"]
    options = {"env": os.environ | {"PYTHONPATH": str(PACKAGE)}, "text": True}
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None

        def ask(line: str) -> None:
            print(line, file=shell.stdin, flush=True)

        try:
            ask("query-name")
            assert json.loads(shell.stdout.readline()) == {"return": {"name": "a b"}}
            with QmpConnection(qemu / "qmp2", timeout=LIMIT) as vm:
                vm.cont()
                vm.stop()
            seen = [json.loads(shell.stdout.readline()) for _ in range(2)]
            assert [document["event"] for document in seen] == ["RESUME", "STOP"]
            assert seen[0]["timestamp"] > 1e9
            ask('{"execute":\n"query-name"}')
            assert json.loads(shell.stdout.readline()) == {"return": {"name": "a b"}}
            shell.stdin.close()
            assert shell.wait(LIMIT) == 0
        finally:
            shell.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_by_a_signal(qemu: Path, number: int) -> None:
    """Also while it waits for a line."""
    program = [sys.executable, "-c", "from drover.cli.main import main; main()", "qmp", qemu / "qmp"]
    options = {"env": os.environ | {"PYTHONPATH": str(PACKAGE)}, "text": True}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(program, **pipes, **options) as shell:
        try:
            assert shell.stdin is not None
            assert shell.stdout is not None
            print("query-name", file=shell.stdin, flush=True)
            assert "a b" in shell.stdout.readline()
            shell.send_signal(number)
            assert shell.wait(LIMIT) == 128 + number
            assert shell.stderr is not None
            assert "Traceback" not in shell.stderr.read()
        finally:
            shell.kill()


def test_unchecked(qemu: Path) -> None:
    """Whoever wants QEMU's own answer to something wrong can have it."""
    done = drover("qmp", qemu / "qmp", "--no-check", "-c", "query-statu")
    assert (done.returncode, documents(done.stdout)[0]["error"]["class"]) == (1, "CommandNotFound")


# -- the other shells ----------------------------------------------------------


@pytest.mark.parametrize("how", [("hmp", "hmp"), ("hmp", "qmp"), ("qmp", "-H", "qmp")])
def test_the_human_monitor(qemu: Path, how: tuple[str, ...]) -> None:
    """By its own socket and through QMP, the same: what it prints, what it refuses, and `cpu N`."""
    words = [*how[:-1], qemu / how[-1]]
    done = drover(*words, "-c", "info name", "-c", "cpu 1", "-c", "info cpus", "-c", "nonsense")
    assert done.returncode == 1
    assert done.stdout.startswith("a b\n")
    assert "* CPU #1" in done.stdout
    assert done.stderr == "unknown command: 'nonsense'\n"
    done = drover(*words, "--json", "-k", given="cpu 7\ninfo name\n")
    assert done.returncode == 1
    error, reply = documents(done.stdout)
    assert "CPU" in error["error"]["desc"]
    assert reply == {"return": "a b"}
    assert drover(*words, "-c", "a\x1b[A").returncode == (2 if how[-1] == "hmp" else 1)  # there it would be a key


@pytest.mark.parametrize("words", [("qga",), ("qmp", "-N")])
def test_the_agent(words: tuple[str, ...]) -> None:
    """It answers, refuses, and is not sent what it does not have."""
    lines = ["guest-ping", "guest-exec-status pid=999999", "guest-pong", "guest-info"]
    with agent() as process:
        done = drover(*words, process.path, "--json", "-k", given="\n".join(lines))
    pong, refused, wrong, info = documents(done.stdout)
    assert done.returncode == 1
    assert pong == {"return": {}}
    assert "pid" in refused["error"]["desc"]
    assert "did you mean guest-ping" in wrong["error"]["desc"]
    assert info["return"]["version"]


def test_no_agent(tmp_path: Path) -> None:
    """3: nobody answers there."""
    done = drover("qga", tmp_path / "none", "-t", 0.2, "-c", "guest-ping")
    assert (done.returncode, done.stdout) == (3, "")


def test_objects(qemu: Path) -> None:
    """List, get, set by the property's type, and the tree, which hides what is secret."""
    env = {"QMP_SOCKET": str(qemu / "qmp")}
    made = "object-add qom-type=secret id=s3 data=hush"
    thread = "object-add qom-type=iothread id=g5"
    assert drover("qmp", "-c", made, "-c", thread, **env).returncode == 0
    done = drover("qom", "list", "/objects", **env)
    assert done.stdout.startswith("type (string)\ng5/ (iothread)\n")
    assert "\ns3/ (secret)\n" in done.stdout
    (listed,) = documents(drover("qom", "list", "--json", "/objects", **env).stdout)
    assert listed[0] == {"name": "type", "type": "string"}
    assert drover("qom", "set", "/objects/g5.poll-max-ns", "9", **env).returncode == 0
    done = drover("qom", "get", "-s", qemu / "qmp", "/objects/g5.poll-max-ns")
    assert (done.returncode, done.stdout) == (0, "9\n")
    assert drover("qom", "set", "/objects/g5.poll-max-ns", "many", **env).returncode == 2
    assert drover("qom", "get", "/objects/g5.nonsense", **env).returncode == 1
    assert drover("qom", "get", "nonsense", **env).returncode == 2
    tree = drover("qom", "tree", "/objects", **env).stdout
    assert "/objects/g5 (iothread)\n" in tree
    assert "  poll-max-ns: 9 (int)\n" in tree
    assert "  data: <hidden> (string)\n" in tree
    assert drover("qom", "tree", "--brief", "--depth", "0", "/objects", **env).stdout == "/objects\n"
    nodes = documents(drover("qom", "tree", "--json", **env).stdout)
    assert {"/", "/machine", "/machine/peripheral", "/objects/s3"} <= {node["path"] for node in nodes}
    assert drover("qmp", "-c", "object-del id=s3", "-c", "object-del id=g5", **env).returncode == 0


# -- as qmp-shell ----------------------------------------------------------------


def qmp_shell(name: str, *words: object, given: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", f"from drover.shell.qmp import {name}; {name}()", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)} | env
    return subprocess.run(
        program, check=False, input=given, env=environment, capture_output=True, text=True, timeout=LIMIT
    )


def test_in_the_place_of_qmp_shell(qemu: Path, tmp_path: Path) -> None:
    """Its options, its lines, its answers; and none of what it did wrong."""
    lines = ["", "   ", "query-name", "transaction(", "abort", ")", "object-add qom-type=secret id=s4 data='n 1'"]
    given = "\n".join([*lines, "qom-get path=/objects/s4 property=data", "object-del id=s4"])
    done = qmp_shell("main", "-v", "-l", tmp_path / "log", given=given, QMP_SOCKET=str(qemu / "qmp"))
    answers = documents(done.stdout)
    assert answers[0] == {"execute": "query-name", "arguments": {}}
    assert answers[1] == {"return": {"name": "a b"}}
    assert answers[3]["error"]["class"] == "GenericError"
    assert answers[7] == {"return": "n 1"}
    assert len((tmp_path / "log").read_text().splitlines()) == 10
    assert stat.S_ISSOCK((qemu / "qmp").stat().st_mode)
    pretty = qmp_shell("main", "-p", qemu / "qmp", given="query-name").stdout
    assert pretty == json.dumps({"return": {"name": "a b"}}, indent=4) + "\n"
    assert qmp_shell("main", "-h").stdout.startswith("Usage: drover-qmp-shell [OPTIONS] [ADDRESS]")
    assert qmp_shell("main", "-H", qemu / "qmp", given="   \ninfo name").stdout == "a b\n"


def test_a_qemu_of_its_own() -> None:
    """It is told when it does not start, and gone afterwards."""
    binary = str(qemu_of("7.2"))
    done = qmp_shell("main_wrap", "-c", "query-name", binary, "-machine", "none", "-display", "none", "-name", "x")
    assert (done.returncode, done.stdout) == (0, '{"return": {"name": "x"}}\n')
    done = qmp_shell("main_wrap", "-c", "query-name", binary, "-nonsense")
    assert done.returncode == 3
    assert "-nonsense: invalid option" in done.stderr
    assert qmp_shell("main_wrap", "/nonsense").returncode == 3
    done = drover("qmp", "--wrap", "-c", "quit", "-c", "query-name", "--", binary, "-machine", "none")
    assert done.returncode == 3


def test_help_is_quick() -> None:
    """`drover --help` loads neither the shells nor what they stand on."""
    program = "import sys; from drover.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    program += "print([name for name in sys.modules if name.startswith(('prompt_toolkit', 'asyncio', 'drover.shell'))])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(PACKAGE)},
        check=True,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.stdout.endswith("\n[]\n")
    assert "qmp" in done.stdout
