"""A real systemd for a test: process 1 of a container of our own, on a copy of this host's files that is thrown away.

Nothing of it reaches the host: it has namespaces, a control group and a root of its own, an overlay whose changes lie
in memory. What the test needs to see afterwards is written to a folder that both share.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from drover.kvm import tree

TOP: Final = Path(__file__).resolve().parents[1]

# $1 the folder of the container's own, $2 what is shared, $3 our sources, which may lie on another disk. Services that
# change the kernel are masked.
_SET_UP: Final = r"""
set -eu
mount --make-rprivate /
top=$1 shared=$2 root=$1/root
mount -t tmpfs none "$top"
mkdir "$top/upper" "$top/work" "$root"
mount -t overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" overlay "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 none "$root/sys/fs/cgroup"
for place in run tmp dev; do mount -t tmpfs none "$root/$place"; done
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/net"
mount -t devpts -o newinstance,ptmxmode=666 none "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
bind() { touch "$2" && mount --bind "$1" "$2"; }
for node in null zero full random urandom tty net/tun; do bind "/dev/$node" "$root/dev/$node"; done
bind "$shared/console" "$root/dev/console"
mkdir -p "$root/$3" && mount --rbind "$3" "$root/$3"
mkdir -p "$root/$shared" && mount --bind "$shared" "$root/$shared"
for unit in sysctl modules-load remount-fs journald journal-flush udevd udev-trigger logind timesyncd networkd; do
  ln -sf /dev/null "$root/etc/systemd/system/systemd-$unit.service"
done
for unit in sys-kernel-debug sys-kernel-tracing sys-kernel-config dev-hugepages dev-mqueue sys-fs-fuse-connections; do
  ln -sf /dev/null "$root/etc/systemd/system/$unit.mount"
done
cp -r "$shared/units/." "$root/etc/systemd/system/"
exec chroot "$root" env -i container=drover PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --system --unit=test.target --show-status=0 --log-target=console
"""
_NAMESPACES: Final = ("--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup")
_STARTER: Final = """\
echo $$ >"$0/cgroup.procs" && exec unshare "${@:5}" --fork --kill-child bash -c "$1" container "$2" "$3" "$4"
"""
_TARGET: Final = "[Unit]\nRequires=dbus.socket dbus.service sysinit.target\nAfter=sysinit.target dbus.socket\n"


class Container:
    """A host run by systemd.

    :ivar shared: the folder that it shares with us, under the same path
    """

    def __init__(self, shared: Path, init: int) -> None:
        self.shared = shared
        self._init = init

    def run(self, *words: str, env: dict[str, str] | None = None, timeout: float = 60) -> str:
        """Run something in it, in a unit of its own, and return all that it printed; it has to succeed."""
        settings = [f"--setenv={name}={value}" for name, value in (env or {}).items()]
        return self.enter("systemd-run", "--pipe", "--wait", "--collect", "--quiet", *settings, *words, timeout=timeout)

    def enter(self, *words: str, timeout: float = 60) -> str:
        """The same outside of any unit, as somebody who looks in from the host."""
        inside = ["nsenter", "--target", str(self._init), "--root", "--wd", *_NAMESPACES]
        done = subprocess.run([*inside, *words], capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, (words, done.stdout, done.stderr, (self.shared / "console").read_text())
        return done.stdout + done.stderr

    def wait_for_end(self, timeout: float = 60) -> None:
        """Wait until it has shut down."""
        deadline = time.monotonic() + timeout
        while Path(f"/proc/{self._init}").exists():
            assert time.monotonic() < deadline, (self.shared / "console").read_text()
            time.sleep(0.05)


@contextlib.contextmanager
def container(shared: Path, units: dict[str, str]) -> Iterator[Container]:
    """Start one, and wait until systemd is through.

    :param shared: an empty folder
    :param units: contents of unit files, by their names
    """
    assert shutil.which("/lib/systemd/systemd"), "no systemd: apt-get install systemd dbus"
    (shared / "units").mkdir()
    for name, text in ({"test.target": _TARGET} | units).items():
        (shared / "units" / name).write_text(text, encoding="utf-8")
    (shared / "console").touch()
    (shared / "container").mkdir()
    mount = tree._mount_point()
    assert mount, "no control groups of version 2: mount -t cgroup2 none /sys/fs/cgroup/unified"
    group = mount / f"drover-systemd-{os.getpid()}-{shared.name}"
    group.mkdir()
    starter = subprocess.Popen(
        ["bash", "-c", _STARTER, group, _SET_UP, shared / "container", shared, TOP, *_NAMESPACES],
        stdin=subprocess.DEVNULL,
    )
    try:
        yield _booted(shared, starter)
    finally:
        starter.send_signal(signal.SIGKILL)
        starter.wait()
        _remove(group)


def _booted(shared: Path, starter: subprocess.Popen[bytes]) -> Container:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert starter.poll() is None, (shared / "console").read_text()
        children = Path(f"/proc/{starter.pid}/task/{starter.pid}/children").read_text(encoding="ascii").split()
        if children and Path(f"/proc/{children[0]}/comm").read_text(encoding="utf-8") == "systemd\n":
            found = Container(shared, int(children[0]))
            with contextlib.suppress(AssertionError):
                found.enter("systemctl", "is-active", "--quiet", "test.target")
                return found
        time.sleep(0.1)
    raise AssertionError((shared / "console").read_text())


def _remove(group: Path) -> None:
    """Its processes have been killed with the first one; the last of them may take a moment."""
    deadline = time.monotonic() + 10
    while True:
        for folder in sorted(group.rglob("*/"), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        try:
            group.rmdir()
        except OSError:
            assert time.monotonic() < deadline, f"{group} is not empty"
            time.sleep(0.05)
        else:
            return
