"""The two daemons that are put side by side, each with its machines and a stopwatch beside it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Final, Self

from frame import BenchError
from procs import cpu_of, memory_of
from prompt import wait_for_prompt

from drover.kvm.node import Node
from drover.kvm.paths import Paths
from drover.testing.image import guest_image
from instances import SHELL, bootable
from machines import qemu_of
from noded import Noded

HERE: Final = Path(__file__).resolve().parent
LIBVIRT: Final = HERE.parents[1] / "build" / "libvirt" / "root"  # as tools/libvirt makes it
DISK: Final = 8 << 20  # bytes
FRESH: Final = "fresh"  # the machine that is started and ended in each round
GUEST: Final = "guest"  # one with a guest that boots
MAC: Final = "52:54:00:12:34:56"
SEEN: Final = {"disk": "/sys/block/vda", "nic": "/sys/class/net/eth0"}  # what a guest has with its first
_START: Final = 60.0  # s


def has_libvirt(what: str) -> bool:
    """Whether there is a libvirt to measure; if not, say so.

    :param what: that is left out then
    """
    if os.geteuid() == 0 and LIBVIRT.with_name("packages").exists():
        return True
    print(f"{what}: not there (tools/libvirt build/libvirt, as root), left out")
    return False


class Daemon(ABC):
    """A daemon that runs.

    :ivar pid: its process
    :ivar words: the program to type, in its place
    """

    pid: int
    words: list[str]
    _watch: "subprocess.Popen[str]"

    @abstractmethod
    def about(self) -> list[str]:
        """Which versions of what, in lines."""

    @abstractmethod
    def document(self, name: str) -> Any:
        """A machine, as it takes it."""

    @abstractmethod
    def bootable(self, name: str) -> Any:
        """A machine whose guest boots."""

    @abstractmethod
    def console(self, name: str) -> str:
        """Where a guest's serial port listens."""

    @abstractmethod
    def device(self, kind: str) -> Any:
        """A disk or a card to plug in, as it takes it."""

    @abstractmethod
    def typed(self, verb: str, name: str = FRESH) -> list[str]:
        """The words of a command after the program's."""

    def grow(self, count: int) -> None:
        """Have so many machines that run; their guests stand still."""
        for number in range(self._count, count):
            self.call("define", [self.document(f"m{number}")])
            self.call("start", [f"m{number}"])
        self._count = count

    _count = 0

    def read(self, verb: str, typed: bool, times: int) -> list[float]:
        """Seconds that each of some reads took; it must have told of all machines."""
        if typed:
            answer = self._ask({"type": [*self.words, *self.typed(verb)], "times": times})
        else:
            answer = self._ask({"call": verb, "times": times})
        if answer["count"] < self._count:
            raise BenchError(f"{verb}: told of {answer['count']}, not of {self._count}")
        return list(answer["seconds"])

    def change(self, verb: str, typed: bool) -> list[float]:
        """Seconds that a change of the fresh machine took."""
        if typed:
            return list(self._ask({"type": [*self.words, *self.typed(verb)]})["seconds"])
        act, _, kind = verb.partition(" ")
        return self.call(act, [FRESH, self.device(kind)] if kind else [FRESH])

    def boot(self) -> list[float]:
        """Seconds from the start of the machine with a guest to the guest's prompt."""
        return list(self._ask({"call": "run", "with": [GUEST], "console": self.console(GUEST)})["seconds"])

    def plug(self, kind: str, typed: bool) -> list[float]:
        """Seconds from the call until the guest sees its new device."""
        sees = {"console": self.console(GUEST), "sees": SEEN[kind]}
        if typed:
            return list(self._ask({"type": [*self.words, *self.typed(f"attach {kind}", GUEST)], **sees})["seconds"])
        return list(self._ask({"call": "attach", "with": [GUEST, self.device(kind)], **sees})["seconds"])

    def unplug(self, kind: str) -> None:
        """Have it taken away."""
        gone = {"console": self.console(GUEST), "gone": SEEN[kind]}
        self._ask({"call": "detach", "with": [GUEST, self.device(kind)], **gone})

    def call(self, verb: str, given: list[Any]) -> list[float]:
        """One call; the seconds that it took."""
        return list(self._ask({"call": verb, "with": given})["seconds"])

    def cpu(self) -> float:
        """CPU seconds that the daemon has taken so far."""
        return cpu_of(self.pid)

    def memory(self) -> int:
        """Bytes that it has of its own, or shares."""
        time.sleep(2)  # what the last calls needed is given back
        return memory_of(self.pid)

    def _begin(self, words: list[str], env: dict[str, str]) -> None:
        self._watch = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        assert self._watch.stdout is not None
        if self._watch.stdout.readline() != "{}\n":
            raise BenchError(f"{' '.join(words)}: did not start")

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._watch.stdin is not None
        assert self._watch.stdout is not None
        self._watch.stdin.write(json.dumps(question) + "\n")
        self._watch.stdin.flush()
        answer: dict[str, Any] = json.loads(self._watch.stdout.readline() or '{"error": "it has ended"}')
        if "error" in answer:
            raise BenchError(f"{type(self).__name__}, {question}: {answer['error']}")
        return answer

    def _end(self) -> None:
        assert self._watch.stdin is not None
        self._watch.stdin.close()
        self._watch.wait()


class NodeDaemon(Daemon):
    """drover-noded, with folders of its own."""

    def __enter__(self) -> Self:
        self._top = Path(tempfile.mkdtemp(prefix="drover-"))
        self._paths = Paths(self._top / "state", self._top / "run")
        self._noded = Noded(self._paths, self._top / "log")
        self._noded.start()
        self.pid = self._noded.pid
        program = Path(sys.executable).with_name("drover")
        self.words = [str(program)]
        (self._top / "disk.img").touch()
        os.truncate(self._top / "disk.img", DISK)
        env = os.environ | {
            "DROVER_STATE_DIR": str(self._paths.state), "DROVER_RUN_DIR": str(self._paths.run),
        }  # fmt: skip
        self._begin([sys.executable, str(HERE / "stopwatch.py"), "drover", str(self._noded.socket)], env)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if self._noded.runs:
            self._noded.end()
        node = Node(self._paths)
        for name in node.names:
            node.instance(name).kill()
        shutil.rmtree(self._top)

    def about(self) -> list[str]:
        return [f"drover: Python {sys.version.split()[0]}, QEMU {qemu_of('7.2')}"]

    def document(self, name: str) -> Any:
        return {
            "name": name, "emulator": str(qemu_of("7.2")), "acceleration": "tcg",
            "memory": {"size": "64MiB"}, "rng": False,
        }  # fmt: skip

    def bootable(self, name: str) -> Any:
        return bootable("7.2", name) | {"rng": False}

    def console(self, name: str) -> str:
        return str(self._paths.instance(name).socket("serial"))

    def device(self, kind: str) -> Any:
        if kind == "nic":
            return {"id": "x", "mode": "user", "mac": MAC}
        return {"id": "x", "source": str(self._top / "disk.img"), "format": "raw"}

    def typed(self, verb: str, name: str = FRESH) -> list[str]:
        return {
            "list": ["list"],
            "stats": ["stats"],
            "start": ["start", name, "--paused"],
            "attach disk": ["attach", "disk", name, str(self._top / "disk.img"), "--format", "raw", "--id", "x"],
            "attach nic": ["attach", "nic", name, "--mode", "user", "--id", "x", "--mac", MAC],
        }[verb]


class Libvirtd(Daemon):
    """libvirtd, in a root directory of its own.

    :ivar programs: files of ours that are there with it
    :ivar script: what starts it, and whoever answers questions, for sh
    :param root: the Debian that it is in
    """

    programs: tuple[str, ...] = "stopwatch.py", "prompt.py"
    script = (
        "libvirtd >/shared/log 2>&1 & until virsh list >/dev/null 2>&1; do sleep 0.1; done; "
        "python3 /shared/stopwatch.py libvirt"
    )

    def __init__(self, root: Path) -> None:
        self._root = root

    def __enter__(self) -> Self:
        self._shared = Path(tempfile.mkdtemp(prefix="drover-"))
        for program in self.programs:
            shutil.copy(HERE / program, self._shared)
        image = guest_image()
        shutil.copy(image.kernel, self._shared / "kernel")
        shutil.copy(image.initrd, self._shared / "initrd")
        for kind, text in DEVICES.items():
            (self._shared / f"{kind}.xml").write_text(text, encoding="ascii")
        (self._shared / "disk.img").touch()
        os.truncate(self._shared / "disk.img", DISK)
        script = f"{self.script}; exit"  # the shell stays: libvirtd waits for the first process to reap a QEMU
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", str(HERE / "enter.sh")]
        self._begin([*enter, str(self._root), str(self._shared), "/bin/sh", "-c", script], {"PATH": os.environ["PATH"]})
        self.words = ["/usr/bin/virsh"]
        self.pid = self.pids()[0]
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.send_signal(signal.SIGTERM)  # its init, and all that it started, with it
        self._end()
        for path in ("etc/libvirt/qemu", "var/lib/libvirt/qemu", "var/log/libvirt/qemu"):
            shutil.rmtree(self._root / path, ignore_errors=True)
        shutil.rmtree(self._shared)

    def pids(self) -> list[int]:
        """The numbers of all libvirtds out here: each is below the process that made its namespace."""
        deadline = time.monotonic() + _START
        while time.monotonic() < deadline:
            if found := [int(process.name) for process in Path("/proc").glob("[0-9]*") if _is_libvirtd(process)]:
                return found
            time.sleep(0.1)
        raise BenchError("libvirtd: is not there")

    def about(self) -> list[str]:
        return [f"libvirt: {', '.join(self._root.with_name('packages').read_text().splitlines())}"]

    def document(self, name: str) -> Any:
        return f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/>
<serial type='unix'><source mode='bind' path='/run/{name}.serial'/></serial>
<memballoon model='virtio'/></devices></domain>"""

    def bootable(self, name: str) -> Any:
        return f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>/shared/kernel</kernel><initrd>/shared/initrd</initrd>
<cmdline>{SHELL}</cmdline></os><features><acpi/><tcg><tb-cache unit='MiB'>32</tb-cache></tcg></features>
<cpu mode='maximum'/><devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/>
<controller type='pci' index='0' model='pcie-root'/>
{"".join(f"<controller type='pci' index='{port}' model='pcie-root-port'/>" for port in range(1, 9))}
<serial type='unix'><source mode='bind' path='{self.console(name)}'/></serial>
<memballoon model='virtio'/></devices></domain>"""

    def console(self, name: str) -> str:
        return f"/run/{name}.serial"

    def device(self, kind: str) -> Any:
        return DEVICES[kind]

    def typed(self, verb: str, name: str = FRESH) -> list[str]:
        return {
            "list": ["list"],
            "stats": ["domstats"],
            "start": ["start", "--paused", name],
            "attach disk": ["attach-device", name, "/shared/disk.xml"],
            "attach nic": ["attach-device", name, "/shared/nic.xml"],
        }[verb]


class Ferries(Libvirtd):
    """Two of them, and a machine that goes from one to the other (:mod:`.ferry`)."""

    programs = ("ferry.py",)
    script = "python3 /shared/ferry.py"

    def begin(self) -> None:
        """Start the machine; see :func:`.migrations.guest_of`."""
        self._ask({"run": self.bootable(GUEST).replace("</cmdline>", " nokaslr</cmdline>")})
        pids = self.pids()
        sockets = [Path(f"/proc/{pid}/root{self.console(GUEST)}") for pid in pids]
        wait_for_prompt(next(path for path in sockets if path.exists()))

    def move(self) -> tuple[float, float]:
        """Seconds that it took, and that the guest stood still."""
        answer = self._ask({"move": GUEST})
        return answer["seconds"], answer["stood"]

    def cpu(self) -> float:
        """CPU seconds that both have taken so far."""
        return sum(map(cpu_of, self.pids()))


def _is_libvirtd(process: Path) -> bool:
    """Whether it is one, in a namespace of its own."""
    try:
        ours = (process / "ns" / "pid").stat().st_ino != Path("/proc/self/ns/pid").stat().st_ino
        return ours and (process / "comm").read_text() == "libvirtd\n"
    except OSError:
        return False


DEVICES: Final = {
    "disk": """<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/>
<source file='/shared/disk.img'/><target dev='vdb' bus='virtio'/></disk>""",
    "nic": f"<interface type='user'><mac address='{MAC}'/><model type='virtio'/></interface>",
}
