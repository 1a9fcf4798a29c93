"""The shells as a person sees them: in a real terminal, on real QEMUs."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shells import Bare, agent, bare
from terminal import Terminal, terminal

pytestmark = pytest.mark.live

PROMPT = "(QEMU)"


@pytest.fixture(scope="module", params=["7.2", "10.0"])
def qemu(request: pytest.FixtureRequest) -> Iterator[Bare]:
    """A QEMU with monitors and two vCPUs, stopped before it began."""
    with bare(request.param) as found:
        yield found


@pytest.fixture
def shell(qemu: Bare, tmp_path: Path) -> Iterator[Terminal]:
    """`drover qmp`, ready for a line."""
    with terminal(["qmp", str(qemu.folder / "qmp")], tmp_path) as found:
        found.see_last(PROMPT)
        yield found


def test_tab_completes_all_kinds_of_words(shell: Terminal, qemu: Bare) -> None:
    """A command, an argument's name, a value of an enumeration, the id of what somebody has just added."""
    with qemu.qmp() as vm:
        vm.execute("blockdev-add", {"driver": "null-co", "node-name": "node-7", "size": 4096})
        shell.type("block_res")
        shell.press("Tab")
        shell.see_last(f"{PROMPT} block_resize")
        shell.type(" node")
        shell.press("Tab")
        shell.see_last(f"{PROMPT} block_resize node-name=")
        shell.press("Tab")
        shell.see_last(f"{PROMPT} block_resize node-name=node-7")
        shell.enter(" size=512")
        shell.see("GenericError: ")
        shell.type("blockdev-add driver=null-a")
        shell.press("Tab")
        shell.see_last(f"{PROMPT} blockdev-add driver=null-aio")
        shell.press("C-c")
        vm.execute("blockdev-del", {"node-name": "node-7"})
    assert "Traceback" not in shell.screen()


def test_a_menu_shows_what_there_is(shell: Terminal) -> None:
    """Where there are several ways, all are shown, with what they are; Enter takes one, and a second Enter sends."""
    shell.type("query-stat")
    shell.press("Tab")
    shell.see("query-stats-schemas", "query-status")
    shell.press("Tab", "Tab", "Tab", "Enter")
    shell.see_last(f"{PROMPT} query-status")
    shell.press("Enter")
    assert "query-stats-schemas" not in shell.see('"status": "prelaunch"')  # the menu has gone


def test_an_event_leaves_the_line_alone(shell: Terminal, qemu: Bare) -> None:
    """It is printed above what is being typed, which goes on as if nothing had been."""
    shell.type("query-na")
    shell.see_last(f"{PROMPT} query-na")
    with qemu.qmp() as vm:
        vm.cont()
        vm.stop()
    shell.see("RESUME", "STOP")
    screen = shell.see_last(f"{PROMPT} query-na")  # it is gone for a moment, while they are printed
    assert [line for line in screen.splitlines() if "query-na" in line] == [f"{PROMPT} query-na"]
    shell.enter("me")
    shell.see(f"{PROMPT} query-name\n" + '{"return": {"name": "a b"}}')


def test_a_mistake_is_shown_where_it_is(shell: Terminal) -> None:
    """Before anything is sent."""
    shell.enter("block_resize node-name=x size=1G")
    screen = shell.see("size=1G\n                         ^\nsize wants an integer, not '1G'")
    assert "GenericError" not in screen  # which QEMU would have said


def test_open_ends_go_on_in_the_next_line(shell: Terminal) -> None:
    """A transaction, and JSON."""
    shell.enter("transaction(")
    shell.see_last("TRANS>")
    shell.enter("abort")
    shell.enter(")")
    shell.see("GenericError: Transaction aborted using Abort action")
    shell.enter('{"execute":')
    shell.see_last("   ...")
    shell.enter('"query-name"}')
    shell.see('{"return": {"name": "a b"}}')
    assert "Traceback" not in shell.screen()


def test_several_lines_are_pasted(shell: Terminal) -> None:
    """They run one after another, up to the first that fails."""
    shell.paste("query-name\ntransaction(\n  abort\n)\nquery-status")
    shell.see("query-status")
    shell.press("Enter")
    screen = shell.see("GenericError: Transaction aborted")
    assert screen.count('{"return": {"name": "a b"}}') == 1
    shell.enter("query-name")
    assert '"status"' not in shell.see('{"return": {"name": "a b"}}', times=2)


def test_an_end_by_a_signal(shell: Terminal) -> None:
    """It leaves the terminal as it was."""
    shell.type("query-na")
    shell.see_last(f"{PROMPT} query-na")
    shell.kill(signal.SIGTERM)
    shell.see("EXIT 143")
    assert "Traceback" not in shell.screen()
    shell.type("echoed")
    shell.see("echoed")


def test_control_c_and_control_d(shell: Terminal) -> None:
    """The one takes back a line, the other leaves."""
    shell.type("system_reset")
    shell.press("C-c")
    shell.see_last(PROMPT)
    shell.enter("query-name")
    shell.see('{"return": {"name": "a b"}}')
    shell.press("C-d")
    assert "RESET" not in shell.see_last("EXIT 0")  # the line that was taken back was not sent


def test_a_qemu_that_hangs(qemu: Bare, tmp_path: Path) -> None:
    """Completion gives up soon, Ctrl-C ends waiting, and afterwards all is as before."""
    with terminal(["qmp", "-v", "-t", "300", str(qemu.folder / "qmp")], tmp_path) as shell:
        shell.see_last(PROMPT)
        qemu.send(signal.SIGSTOP)
        try:
            shell.type("device_del id=")
            shell.press("Tab")
            shell.type("x")
            shell.see_last(f"{PROMPT} device_del id=x")
            shell.press("C-c")
            shell.enter("query-name")
            shell.see('{"execute": "query-name", "arguments": {}}')
            shell.press("C-c")
            shell.see("Not waited for any longer")
            shell.see_last(PROMPT)
        finally:
            qemu.send(signal.SIGCONT)
        shell.enter("query-status")
        shell.see('"status": "')
        assert "Traceback" not in shell.screen()


def test_qemu_dies_and_another_one_comes(shell: Terminal, qemu: Bare) -> None:
    """It is told at once, what was typed stays, and the next line finds the new one."""
    shell.type("query-na")
    shell.see_last(f"{PROMPT} query-na")
    qemu.kill()
    shell.see("QEMU closed the connection")
    shell.see_last(f"{PROMPT} query-na")
    shell.press("C-c")
    shell.enter("query-name x=1")  # a mistake is told without anybody there
    shell.see("query-name has no argument 'x'")
    qemu.start()
    shell.enter("query-name")
    shell.see("Connected to QEMU", '{"return": {"name": "a b"}}', times=1)
    with qemu.qmp() as vm:
        vm.cont()
        vm.stop()
    shell.see("RESUME", "STOP")
    shell.enter("/reconnect")
    screen = shell.see("Connected to QEMU", times=3)
    assert screen.count("connection closed") == 1


def test_history(qemu: Bare, tmp_path: Path) -> None:
    """It is found again by another shell, without passwords, in a file of one's own."""
    words = ["qmp", str(qemu.folder / "qmp")]
    with terminal(words, tmp_path) as shell:
        shell.see_last(PROMPT)
        shell.enter("query-name")
        shell.see('"a b"')
        shell.enter("set_password protocol=vnc password=hush")
        shell.see("GenericError: ")
        shell.press("C-d")
        shell.see_last("EXIT 0")
    path = tmp_path / "state" / "drover" / "qmp_history"
    assert path.read_text() == "query-name\n"
    assert path.stat().st_mode & 0o777 == 0o600
    with terminal(words, tmp_path) as shell:
        shell.see_last(PROMPT)
        shell.press("C-r")
        shell.type("nam")
        shell.see(f"{PROMPT} query-name")
        shell.press("Enter", "Enter")
        shell.see('"a b"')


def test_colours(qemu: Bare, tmp_path: Path) -> None:
    """There are some, unless they are not wanted."""
    words = ["qmp", str(qemu.folder / "qmp")]
    for env, wanted in (({}, True), ({"NO_COLOR": "1"}, False)):
        with terminal(words, tmp_path, **env) as shell:
            shell.see_last(PROMPT)
            shell.enter("query-name id='x'")
            shell.see("no argument")
            shell.enter("query-name")
            shell.see('"a b"')
            assert bool(re.search("\x1b\\[3[1-6]m", shell.screen(colours=True))) is wanted


@pytest.mark.parametrize("socket", ["hmp", "qmp"])
def test_the_human_monitor(qemu: Bare, tmp_path: Path, socket: str) -> None:
    """By its own socket and through QMP: prompt, completion, `cpu N`, what QEMU refuses, and its end."""
    with terminal(["hmp", str(qemu.folder / socket)], tmp_path) as shell:
        shell.see_last("(qemu)")
        shell.type("info nam")
        shell.press("Tab")
        shell.see_last("(qemu) info name")
        shell.press("Enter")
        shell.see("\na b\n")
        shell.enter("cpu 1")
        shell.see_last("(qemu cpu 1)")
        shell.enter("info cpus")
        shell.see("* CPU #1")
        shell.enter("cpu 7")
        shell.see("CPU")
        shell.see_last("(qemu cpu 1)")
        shell.enter("   ")
        shell.enter("nonsense")
        shell.see("unknown command: 'nonsense'")
        shell.enter("cpu 0")
        shell.see_last("(qemu)")
        shell.press("C-d")
        assert "Traceback" not in shell.see_last("EXIT 0")


def test_the_human_monitor_ends_with_qemu(tmp_path: Path) -> None:
    """`quit` ends QEMU, and that is told."""
    with bare("7.2") as qemu, terminal(["hmp", str(qemu.folder / "hmp")], tmp_path) as shell:
        shell.see_last("(qemu)")
        shell.enter("quit")
        assert "Traceback" not in shell.see("QEMU closed the connection")


def test_the_agent(tmp_path: Path) -> None:
    """Completion of its commands and of their arguments; it is told when it goes, and found again."""
    with agent() as process, terminal(["qga", str(process.path)], tmp_path) as shell:
        shell.see_last("(QGA)")
        shell.type("guest-exec-st")
        shell.press("Tab")
        shell.see_last("(QGA) guest-exec-status")
        shell.type(" ")
        shell.press("Tab")
        shell.see_last("(QGA) guest-exec-status pid=")
        shell.enter("999999")
        shell.see("GenericError: ")
        process.kill()
        shell.see("QEMU closed the connection")
        process.start()
        shell.enter("guest-ping")
        shell.see("Connected to qemu-ga", '{"return": {}}')
        assert "Traceback" not in shell.screen()


def test_wrapped(qemu: Bare, tmp_path: Path) -> None:
    """A QEMU of the shell's own is there, does not hear Ctrl-C, and is gone with the shell."""
    command = [str(qemu.binary), "-machine", "none", "-display", "none", "-name", f"at {tmp_path}"]
    with terminal(["qmp", "--wrap", "--", *command], tmp_path) as shell:
        shell.see_last(PROMPT)
        shell.press("C-c")
        shell.enter("query-name")
        shell.see('{"return": {"name": "at ')
        assert _processes(command) == 1
        shell.press("C-d")
        shell.see_last("EXIT 0")
        assert _processes(command) == 0
    with terminal(["qmp", "--wrap", "--", *command], tmp_path) as shell:
        shell.see_last(PROMPT)
        shell.enter("quit")
        shell.see("QEMU closed the connection")
        shell.enter("query-name")
        shell.see("QEMU ended with status 0")
        shell.kill(signal.SIGTERM)
        shell.see("EXIT 143")


def _processes(command: list[str]) -> int:
    """How many QEMUs run with this command line, to which a monitor was added."""
    wanted = "\0".join([*command[1:], "-qmp"])
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += wanted in path.read_bytes().decode(errors="replace")
        except OSError:
            pass  # it ended meanwhile
    return found
