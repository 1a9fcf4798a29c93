"""One QEMU process with the test guest, for tests and the demo: started, watched, and gone without trace afterwards.

::

    with Machine(machine="q35") as vm:
        vm.wait_ready()
        with QmpConnection(vm.qmp) as qmp:
            qmp.hot_add_disk("data.raw", id="data1")
        vm.console.wait_for_disk("vda")

A live migration needs a second one, with ``incoming=True`` and the same
hardware; ``source.hand_over(target)`` lets the guest's console follow it there.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from drover.errors import DroverError
from drover.testing.agent_image import agent_image
from drover.testing.console import READY_TIMEOUT, Console, Link, View
from drover.testing.image import GuestImage, guest_image

QEMU = "qemu-system-x86_64"

# Seconds. QEMU greets within 0.1 s; a machine that starts many at once on one core takes its time.
START_TIMEOUT = 30.0
# Seconds. A killed QEMU of 256 MiB is gone in 20 ms.
KILL_TIMEOUT = 10.0
# Seconds. A dying QEMU unmaps its guest's memory after it has closed its sockets: 20 ms for 256 MiB.
OBITUARY_TIMEOUT = 2.0
# Bytes: sun_path of unix(7) holds 108 with the final NUL.
SOCKET_PATH_MAX = 107
LOG_EXCERPT = 4000  # characters of QEMU's log in an error

# Only emergencies reach ttyS0, where the commands run: the kernel raises the level itself when it panics.
# The self-tests of the kernel's ciphers take 0.3 s under TCG, an eighth of a boot.
APPEND = "console=ttyS0 loglevel=1 rdinit=/init cryptomgr.notests"

# Always TCG: where /dev/kvm opens, guests may still hang. The buffer for translated code is 32 MiB instead of up to
# 1 GiB: QEMU then takes half the memory, and a reboot is slowed down less (2 s became up to 9) by the kernel being
# unpacked over pages whose old translations must be found and dropped one by one.
ACCEL = "tcg,tb-size=32"

_PORTS_PER_SLOT = 8  # functions of a PCI device


class MachineError(DroverError):
    """QEMU did not start, or did not end as expected.

    :ivar returncode: QEMU's exit code, ``None`` while it runs
    :ivar log: the end of what it printed
    """

    def __init__(self, problem: str, returncode: int | None, log: str) -> None:
        super().__init__(f"{problem}: {log.strip()}" if log.strip() else problem)
        self.returncode = returncode
        self.log = log


@cache
def qemu_binaries() -> Mapping[str, Path]:
    """Return the QEMUs of this machine: version such as ``7.2`` or ``10.0`` to its binary.

    Looked for on the path, in ``$DROVER_QEMU_10``, and in ``build/qemu-10`` of the source tree.
    """
    tree = Path(__file__).resolve().parents[2]
    places = (shutil.which(QEMU), os.environ.get("DROVER_QEMU_10"), tree / "build" / "qemu-10" / QEMU)
    found: dict[str, Path] = {}
    for place in places:
        if place and os.access(place, os.X_OK):
            found.setdefault(_version(Path(place)), Path(place))
    return found


def _version(binary: Path) -> str:
    words = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()
    return ".".join(words[3].split(".")[:2])  # QEMU emulator version 7.2.22 (…)


class Machine:
    """A QEMU process that runs the test guest. A context manager: started on entry, killed and removed at exit.

    QEMU is also killed when this Python process ends in whatever way, unless it may outlive it.

    :param qemu: the binary
    :param machine: ``q35``, ``pc``, or a versioned type such as ``pc-q35-7.2`` (a migration between versions needs one)
    :param memory: of the guest, in MiB
    :param smp: vCPUs, as QEMU's ``-smp`` takes them (``1``, or ``1,maxcpus=4``)
    :param incoming: wait for a migration (``-incoming defer -S``)
    :param paused: do not run the guest yet (``-S``)
    :param root_ports: q35 only: PCIe root ports ``rp0``, ``rp1``, … that take hotplug
    :param bridges: PCI bridges ``br0``, ``br1``, … (pci-bridge, or pcie-pci-bridge on q35)
    :param scsi: add a virtio-scsi controller ``scsi0``
    :param extra: more arguments for QEMU
    :param agent: put a guest agent (qemu-ga) into the guest; see `qga`
    :param append: more words for the kernel's command line
    :param image: the guest; else the one that :func:`drover.testing.image.guest_image` builds
    :param parent: folder in which to make the run directory; else the system's for temporary files
    :param name: for errors
    :param outlive: do not tie QEMU's life to this process, so that :meth:`detach` can leave it running

    :ivar directory: run directory with sockets and log; removed at exit
    :ivar qmp: path of the first QMP socket
    :ivar qmp2: path of the second one, for whoever wants to look on
    :ivar qga: path of the guest agent's socket, where there is one; its character device is ``qga``
    :ivar console: the guest's console, from :meth:`start` on
    """

    console: Console

    def __init__(
        self,
        *,
        qemu: Path | str = QEMU,
        machine: str = "q35",
        memory: int = 256,
        smp: int | str = 1,
        incoming: bool = False,
        paused: bool = False,
        root_ports: int = 4,
        bridges: int = 0,
        scsi: bool = False,
        agent: bool = False,
        extra: Sequence[str] = (),
        append: str = "",
        image: GuestImage | None = None,
        parent: Path | None = None,
        name: str = "guest",
        outlive: bool = False,
    ) -> None:
        self.image = image or (agent_image() if agent else guest_image())
        self.name = name
        self.directory = _run_directory(parent)
        self._remove = weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)
        self.qmp, self.qmp2 = self.directory / "qmp", self.directory / "qmp2"
        self.qga = self.directory / "qga"
        self._log = self.directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Link | None = None
        self._command = [
            *([] if outlive else ["setpriv", "--pdeathsig", "KILL", "--"]), str(qemu),
            "-machine", machine, "-accel", ACCEL, "-cpu", "max", "-m", str(memory), "-smp", str(smp),
            "-nodefaults", "-no-user-config", "-display", "none",
            "-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd),
            "-append", f"{APPEND} {append}".strip(),
            "-qmp", f"unix:{self.qmp},server=on,wait=off", "-qmp", f"unix:{self.qmp2},server=on,wait=off",
            *_hardware("q35" in machine, root_ports, bridges, scsi), *(_agent_port(self.qga) if agent else []),
            *(["-incoming", "defer"] if incoming else []), *(["-S"] if incoming or paused else []), *extra,
        ]  # fmt: skip

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start QEMU, and return when it answers on its monitor.

        :raise MachineError: it ended, or did not answer in time; the log is quoted
        """
        listeners = [_listen(self.directory / f"serial{number}") for number in (0, 1)]
        try:
            # Connected before QEMU exists, so that not a byte of the guest's is lost and nothing is tried twice.
            self._link = Link(*(_connect(self.directory / f"serial{number}") for number in (0, 1)))
            self.console = Console(self._link, self.name, self._obituary)
            self._process = _launch([*self._command, *_serial(listeners)], self._log, [it.fileno() for it in listeners])
        finally:
            for listener in listeners:
                listener.close()
        self._greet()

    def wait_ready(self, timeout: float = READY_TIMEOUT) -> View:
        """Wait until the guest takes commands; return what it sees. Timeout in seconds.

        :raise GuestTimeout: it did not in time
        :raise GuestError: the kernel panicked, or QEMU ended (its log is quoted)
        """
        return self.console.wait_ready(timeout)

    def hand_over(self, target: "Machine") -> None:
        """Let the guest's console listen at the machine that it will be migrated to. From now on both share it."""
        self.console.follow(target.console)
        target.console = self.console

    def wait(self, timeout: float = START_TIMEOUT) -> int:
        """Wait until QEMU has ended; return its exit code. Timeout in seconds.

        :raise MachineError: it runs on
        """
        assert self._process, "not started"
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise MachineError(f"{self.name}: QEMU runs on after {timeout:g} s", None, self.log) from error

    def kill(self) -> None:
        """Kill QEMU with SIGKILL and wait for its end; nothing if it has ended or was not started."""
        if self._process:
            self._process.kill()
            self._process.wait(KILL_TIMEOUT)

    def detach(self) -> None:
        """Let go of a QEMU that may outlive this process: it runs on, and its run directory stays.

        Whoever ends it, by its pid or by ``quit``, removes the directory.
        """
        if self._link:
            self.console.drop(self._link)
        self._link = self._process = None
        self._remove.detach()

    def close(self) -> None:
        """Kill QEMU, close the sockets, remove the run directory; nothing of it after :meth:`detach`."""
        self.kill()
        if self._link:
            self.console.drop(self._link)
        self._remove()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- state -------------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        assert self._process, "not started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        """QEMU runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """QEMU's exit code, minus the signal's number when one killed it, ``None`` while it runs."""
        return self._process.poll() if self._process else None

    @property
    def log(self) -> str:
        """The end of what QEMU printed."""
        return self._log.read_text(errors="replace")[-LOG_EXCERPT:] if self._log.exists() else ""

    def _obituary(self) -> str:
        # Its sockets close a moment before it can be waited for.
        if self._process:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(OBITUARY_TIMEOUT)
        return f"QEMU {'runs on' if self.alive else f'ended with {self.returncode}'}. {self.log}".strip()

    def _greet(self) -> None:
        """Wait for an answer of the second monitor: then all of the command line is digested.

        The greeting alone does not tell: the monitor's own thread sends it while the main one still creates devices.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if not self.alive:
                raise MachineError(f"{self.name}: QEMU ended with {self.returncode}", self.returncode, self.log)
            try:
                with _connect(self.qmp2) as sock:
                    sock.settimeout(max(0.1, deadline - time.monotonic()))
                    sock.sendall(b'{"execute": "qmp_capabilities"}\n')
                    if any(b'"return"' in line for line in sock.makefile("rb")):
                        return
            except OSError:
                time.sleep(0.005)  # it has not bound the socket yet
        raise MachineError(f"{self.name}: QEMU did not answer within {START_TIMEOUT:g} s", None, self.log)


# -- arguments -------------------------------------------------------------------------------------------------------


def _hardware(q35: bool, root_ports: int, bridges: int, scsi: bool) -> list[str]:
    devices: list[str] = []
    for port in range(root_ports if q35 else 0):
        # All addresses are said, so that the two sides of a migration agree; slot 0 is the host bridge.
        slot, function = 2 + port // _PORTS_PER_SLOT, port % _PORTS_PER_SLOT
        multi = ",multifunction=on" if function == 0 else ""
        devices.append(f"pcie-root-port,id=rp{port},bus=pcie.0,chassis={port + 1},addr={slot:#x}.{function}{multi}")
    for bridge in range(bridges):
        kind = "pcie-pci-bridge,bus=pcie.0" if q35 else f"pci-bridge,bus=pci.0,chassis_nr={bridge + 1}"
        devices.append(f"{kind},id=br{bridge}")
    if scsi:
        devices.append(f"virtio-scsi-pci,id=scsi0,bus={'pcie.0' if q35 else 'pci.0'}")
    return [word for device in devices for word in ("-device", device)]


def _agent_port(path: Path) -> list[str]:
    # An agent finds its port by this name.
    port = "virtserialport,id=agent0,chardev=qga,name=org.qemu.guest_agent.0"
    socket_of = f"socket,id=qga,path={path},server=on,wait=off"
    return ["-chardev", socket_of, "-device", "virtio-serial-pci", "-device", port]


def _serial(listeners: Sequence[socket.socket]) -> list[str]:
    words: list[str] = []
    for number, listener in enumerate(listeners):
        chardev = f"socket,id=serial{number},fd={listener.fileno()},server=on,wait=off"
        words += ["-chardev", chardev, "-serial", f"chardev:serial{number}"]
    return words


# -- the run directory and its sockets -------------------------------------------------------------------------------


def _run_directory(parent: Path | None) -> Path:
    directory = Path(tempfile.mkdtemp(prefix="drover-", dir=parent))
    if len(os.fsencode(directory / "serial0")) > SOCKET_PATH_MAX:
        directory.rmdir()
        if parent:
            raise MachineError(f"{parent}: its path is too long for unix sockets", None, "")
        directory = Path(tempfile.mkdtemp(prefix="drover-", dir="/tmp"))
    return directory


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def _connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        raise
    return sock


# -- the process -----------------------------------------------------------------------------------------------------


# The kernel sends the parent-death signal when the *thread* that forked ends. So one thread that lives as long as the
# process starts them all. A forked child of this process needs its own: threads do not survive a fork.
_launchers: dict[int, ThreadPoolExecutor] = {}
_launchers_lock = threading.Lock()


def _launch(command: Sequence[str], log: Path, fds: Sequence[int]) -> subprocess.Popen[bytes]:
    with _launchers_lock:
        launcher = _launchers.setdefault(os.getpid(), ThreadPoolExecutor(1, "qemu-launcher"))
    with log.open("wb") as out:
        try:
            # In a session of its own: a Ctrl-C in the terminal is for this process, which then ends QEMU in its order.
            return launcher.submit(
                subprocess.Popen, command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, pass_fds=fds,
                start_new_session=True,
            ).result()  # fmt: skip
        except FileNotFoundError as error:
            hint = ": install the Debian package util-linux" if command[0] == "setpriv" else ""
            raise MachineError(f"{command[0]} is missing{hint}", None, "") from error
