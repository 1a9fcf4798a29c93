"""Root directories of a program's own: what is in them, what is not, and that nothing of them is ever on the host."""

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from drover.errors import SpawnFailed
from drover.kvm import root as root_module
from drover.kvm.identity import Identity
from drover.kvm.process import Process, spawn
from drover.kvm.root import Shown, own_root, sees, words_to_enter

SOMEBODY = Identity(64190, 64190)
# What a program of the system needs to run.
SYSTEM = [Shown("/usr"), *(Shown(path, link=os.path.islink(path)) for path in ("/bin", "/lib", "/lib64"))]


def mounts() -> str:
    return Path("/proc/self/mountinfo").read_text(encoding="utf-8")


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def host_as_before() -> Iterator[None]:
    if os.getuid():
        pytest.fail("only root can mount: run the tests as root")
    before = mounts(), descriptors(), os.getcwd()
    yield
    assert (mounts(), descriptors(), os.getcwd()) == before


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder that a root directory is made on."""
    made = tmp_path / "own"
    made.mkdir()
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the host, with something in it; QEMU's own folder, or one that it may not know of."""
    made = tmp_path / "a folder, ü"
    made.mkdir()
    (made / "file").write_text("of the host\n")
    return made


def run(namespace: int, script: str) -> str:
    """What a shell in there prints; where it is said to, what went wrong."""
    words = [*words_to_enter(namespace), "sh", "-c", script]
    return subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout


def test_only_what_is_shown_is_there(place: Path, folder: Path) -> None:
    with own_root(place, [*SYSTEM, Shown("/etc/passwd"), Shown("/dev/null"), Shown(str(folder))]) as namespace:
        top = folder.parts[1]
        assert set(run(namespace, "ls /").split()) == {"bin", "dev", "etc", "lib", "lib64", "proc", "usr", top}
        assert run(namespace, "ls /etc /dev; pwd").split() == ["/dev:", "null", "/etc:", "passwd", "/"]
        assert run(namespace, f"cat '{folder}/file' </dev/null") == "of the host\n"
        shown = {"/", "/proc", "/usr", "/etc/passwd", "/dev/null", str(folder).replace(" ", "\\040")}
        points = {line.split()[4] for line in run(namespace, "cat /proc/self/mountinfo").splitlines()}
        assert points == shown | {path.path for path in SYSTEM if not path.link}


def test_nothing_can_be_written_to_but_what_is_said(place: Path, tmp_path: Path, folder: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    shown = [*SYSTEM, Shown(str(folder)), Shown(str(private), writable=True), Shown("/dev/null")]
    with own_root(place, shown) as namespace:
        for place in ("/", "/usr", "/dev", str(folder)):
            assert "Read-only file system" in run(namespace, f"touch '{place}/new' 2>&1"), place
        assert run(namespace, f"echo new >'{private}/new'; echo >/dev/null") == ""
        assert "Permission denied" in run(namespace, f"cp /usr/bin/true '{private}' && '{private}/true' 2>&1")
    assert (private / "new").read_text() == "new\n"


def test_what_is_mounted_in_a_folder_is_seen_and_read_only_too() -> None:
    """In mounts of the test's own, and also where the root's own folder lies in one that is shown."""
    script = f"""
import os, subprocess, sys
sys.path[:0] = {sys.path!r}
from drover.kvm.root import Shown, own_root, words_to_enter
os.makedirs("/mnt/a/b")
os.mkdir("/mnt/a/own")
subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "inner", "/mnt/a/b"], check=True)
open("/mnt/a/b/file", "w").close()
for nested in (True, False):
    shown = [Shown("/usr"), *(Shown(path, link=True) for path in ("/bin", "/lib", "/lib64")), Shown("/mnt/a", nested)]
    with own_root("/mnt/a/own", shown) as namespace:
        words = "ls /mnt/a/b; touch /mnt/a/b/new || grep inner $0; grep -c ' /mnt' $0"
        inside = [*words_to_enter(namespace), "sh", "-c", words, "/proc/self/mountinfo"]
        subprocess.run(inside, stderr=subprocess.DEVNULL)
"""
    words = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs mine /mnt && exec "$@"', "sh", sys.executable, "-c"]
    lines = subprocess.run([*words, script], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    file, mount, *counts = lines
    assert file == "file"
    assert mount.split()[5].split(",")[:3] == ["ro", "nosuid", "noexec"]
    assert counts == ["2", "1"]


def test_only_its_own_processes_are_seen(place: Path) -> None:
    alone = "64177"  # no other test has a program of this user
    with own_root(place, SYSTEM) as namespace:
        assert run(namespace, "ls -d /proc/[a-z]*").split() == ["/proc/self", "/proc/thread-self"]
        words = [*words_to_enter(namespace), "setpriv", f"--reuid={alone}", f"--regid={alone}", "--clear-groups"]
        seen = subprocess.run([*words, "ls", "/proc"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
        assert [name.isdecimal() for name in seen] == [True, False, False]


def test_proc_of_an_older_kernel(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not know the options says EINVAL: then it has none."""
    monkeypatch.setattr(root_module, "_PRIVATE_PROC", "no-such-option")
    with own_root(place, SYSTEM) as namespace:
        assert len([float(seconds) for seconds in run(namespace, "cat /proc/uptime").split()]) == 2


def test_what_cannot_be_shown_is_named(place: Path, folder: Path) -> None:
    (folder / "out").symlink_to("/etc")
    for shown, number, named in (
        ([Shown("/no such")], errno.ENOENT, "/no such"),
        ([Shown(str(folder)), Shown(f"{folder}/out/ssl")], errno.ELOOP, f"{folder}/out/ssl"),
    ):
        with pytest.raises(OSError, match="symbolic link|No such file") as caught, own_root(place, shown):
            pass
        assert (caught.value.errno, caught.value.filename) == (number, named)


def test_what_is_in_a_folder_that_is_shown_is_not_mounted_again(place: Path) -> None:
    with own_root(place, [*SYSTEM, Shown("/usr/bin"), Shown("/bin/sh")]) as namespace:
        assert run(namespace, "grep -c ' /usr' /proc/self/mountinfo") == "1\n"


def test_one_that_hangs_is_given_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it makes in the end is closed."""
    before, make = descriptors(), root_module._make

    def slow(root: str, shown: Sequence[Shown]) -> int:
        time.sleep(0.1)
        return make(root, shown)

    monkeypatch.setattr(root_module, "ROOT_TIMEOUT", 0.01)
    monkeypatch.setattr(root_module, "_make", slow)
    with pytest.raises(TimeoutError), own_root(place, []):
        pass
    deadline = time.monotonic() + 10
    while descriptors() != before or any(thread.name == "root" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- with a program in it ---------------------------------------------------------------------------------------------


def start(folder: Path, namespace: int, *words: str) -> Process:
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        return spawn(words, status_path=folder / "status", log_fd=log, identity=SOMEBODY, root=namespace)
    finally:
        os.close(log)


def holders(namespace: str) -> list[int]:
    """Processes that are in a mount namespace."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/ns/mnt") == namespace:
                found.append(int(pid))
        except OSError:
            pass  # it has ended, or is the kernel's own
    return found


def test_a_program_is_in_it_and_goes_with_it(place: Path, tmp_path: Path, folder: Path) -> None:
    with own_root(place, SYSTEM) as namespace:
        process = start(tmp_path, namespace, "sleep", "60")
    with process:
        own = os.readlink(f"/proc/{process.pid}/ns/mnt")
        assert holders(own) == [process.pid]
        assert not [fd for fd in Path(f"/proc/{process.pid}/fd").iterdir() if "mnt" in os.readlink(fd)]
        assert sees(process.pid, "/usr/bin")
        assert not sees(process.pid, str(folder))
        assert sees(os.getpid(), str(folder))
        process.kill()
    assert holders(own) == []


def test_a_program_that_is_not_in_there(place: Path, tmp_path: Path, folder: Path) -> None:
    (folder / "program").symlink_to("/bin/true")
    with (
        own_root(place, SYSTEM) as namespace,
        pytest.raises(SpawnFailed, match=r"program: .*setpriv: failed to execute .*No such file"),
    ):
        start(tmp_path, namespace, str(folder / "program"))
