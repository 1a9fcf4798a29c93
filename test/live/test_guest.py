"""The test guest itself: image, console and machine, on each QEMU found here and on both machine types.

Talks QMP by hand, so that a fault in the package's monitor cannot hide one of the guest.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from drover.testing.console import Beat, Blackout, GuestError, GuestTimeout, blackout
from drover.testing.guest.wire import Answer, BeatPort, CommandPort, Nic, Ready, View
from drover.testing.image import GuestImage, default_cache, guest_image
from drover.testing.machine import Machine, MachineError, qemu_binaries

live = pytest.mark.live
pytestmark = pytest.mark.alone

TYPES = ("q35", "pc")
VERSIONED = {"q35": "pc-q35-7.2", "pc": "pc-i440fx-7.2"}  # a type that both QEMUs know, for a move between them
ROUTES = {"q35": ("7.2", "10.0", "7.2"), "pc": ("10.0", "7.2")}  # where a guest goes from a 7.2, one after another
MOVE_TIMEOUT = 30.0  # seconds; an idle guest of 256 MiB moves in 0.4
MIB = 1 << 20


class Qmp:
    """A QMP client of the plainest kind."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(MOVE_TIMEOUT)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r")
        self._lines.readline()
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: object) -> Any:
        words = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._socket.sendall(json.dumps({"execute": command, "arguments": words}).encode())
        while "event" in (message := json.loads(self._lines.readline())):
            pass
        assert "return" in message, message
        return message["return"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()


# -- one machine, looked at --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fleet() -> Iterator[dict[str, Machine]]:
    """One machine of each kind, started together: the last ones boot while the first ones are tested."""
    with ExitStack() as stack:
        machines = {
            f"{version}-{kind}": Machine(qemu=binary, machine=kind, scsi=True, name=f"{version}-{kind}")
            for version, binary in qemu_binaries().items()
            for kind in TYPES
        }
        yield {name: stack.enter_context(machine) for name, machine in machines.items()}


@pytest.fixture(scope="module", params=[f"{version}-{kind}" for version in qemu_binaries() for kind in TYPES])
def vm(request: pytest.FixtureRequest, fleet: dict[str, Machine]) -> Machine:
    machine = fleet[request.param]
    machine.wait_ready()
    return machine


@live
def test_commands(vm: Machine) -> None:
    assert vm.console.run("uname -r").strip() == vm.image.version
    assert vm.console.run("printf 'a\\nb'; echo c >&2") == "a\nbc\n"
    assert vm.console.run("true") == ""
    with pytest.raises(GuestError, match="exit code 3") as failed:
        vm.console.run("echo gone wrong; exit 3")
    assert (failed.value.rc, failed.value.output) == (3, "gone wrong\n")
    with pytest.raises(ValueError, match="not one shell line"):
        vm.console.run("echo a\necho b")


@live
def test_output_is_framed_whatever_it_is(vm: Machine) -> None:
    assert vm.console.run("printf '\\n#1 BEGIN x\\n#1 END 0\\n\\r\\0'") == "\n#1 BEGIN x\n#1 END 0\n\r\0"
    assert vm.console.run("seq 20000") == "".join(f"{n}\n" for n in range(1, 20001))
    with pytest.raises(GuestError, match="too long"):
        vm.console.run("head -c 150000 /dev/zero")
    assert len(vm.console.run("printf %05000d 1; echo " + "x" * 10000)) == 15001


@live
def test_kernel_message_in_output_is_noticed(vm: Machine) -> None:
    with pytest.raises(GuestError, match="kernel messages"):
        vm.console.run("echo a; echo '<0>drover test' >/dev/kmsg; sleep 0.1; echo b")
    assert "drover test" in vm.console.text
    assert vm.console.run("echo all is well") == "all is well\n"


@live
def test_command_that_does_not_end_gives_way_to_the_next(vm: Machine) -> None:
    with pytest.raises(GuestTimeout):
        vm.console.run("sleep 77", timeout=0.3)
    assert vm.console.run("pidof sleep || echo none") == "none\n"


@live
def test_background_process_is_not_waited_for(vm: Machine) -> None:
    started = time.monotonic()
    vm.console.run("sleep 5 &")
    assert time.monotonic() - started < 4


@live
def test_modules_load_without_a_word(vm: Machine) -> None:
    assert "insmod" not in vm.console.text
    assert "virtio_scsi" in vm.console.run("lsmod")


@live
def test_beats_are_regular_and_complete(vm: Machine) -> None:
    looks = []
    for _ in range(3):  # where the host is busy with other things, it may stop a guest for a while
        since = time.monotonic()
        first = vm.console.view.beat
        vm.console.wait_until(lambda view, first=first: view.beat >= first + 100)
        looks.append(vm.console.blackout(since))
    assert all((seen.lost, seen.duplicated) == (0, 0) for seen in looks)
    assert min(seen.seconds for seen in looks) < 0.25
    assert vm.console.view.garbled == 0


@live
def test_disk_comes_is_written_and_goes(vm: Machine, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(8 * MIB))
    bus = "rp0" if "q35" in vm.name else "pci.0"
    with Qmp(vm.qmp) as qmp:
        qmp("blockdev-add", driver="file", filename=str(disk), node_name="d")
        qmp("device_add", driver="virtio-blk-pci", drive="d", id="d", bus=bus)
        assert vm.console.wait_for_disk("vda").disks["vda"] == 8 * MIB
        vm.console.run("mke2fs -q /dev/vda && mount /dev/vda /mnt && echo text >/mnt/file && umount /mnt && sync")
        sums = vm.console.run("sha256sum /dev/vda").split()[0]
        assert subprocess.run(["sha256sum", disk], capture_output=True, text=True, check=True).stdout.startswith(sums)
        qmp("device_del", id="d")
        vm.console.wait_for_disk("vda", present=False)


@live
def test_scsi_disk_and_nic_are_seen(vm: Machine) -> None:
    address = "52:54:00:12:34:56"
    bus = "rp1" if "q35" in vm.name else "pci.0"
    with Qmp(vm.qmp) as qmp:
        qmp("blockdev-add", driver="null-co", size=MIB, node_name="s", read_zeroes=True)
        qmp("device_add", driver="scsi-hd", drive="s", id="s", bus="scsi0.0")
        vm.console.wait_until(lambda view: view.disks.get("sda") == MIB)
        qmp("netdev_add", type="hubport", hubid=0, id="n")
        qmp("device_add", driver="virtio-net-pci", netdev="n", id="n", mac=address, bus=bus)
        name = vm.console.wait_for_nic(address)
        vm.console.run(f"ip address add 10.1.2.3/24 dev {name} && ip link set {name} up")
        vm.console.wait_until(lambda view: view.nics.get(name) == Nic(address, "up"))


@live
def test_memory_is_dirtied_at_the_rate_asked(vm: Machine) -> None:
    # where the host is busy with other things, a guest may fall behind for a while
    rates = [dirtied(vm) for _ in range(3)]
    assert any(36 <= written <= 44 and 25 <= measured <= 60 for written, measured in rates), rates
    assert all(written <= 44 for written, _ in rates)
    with pytest.raises(GuestError, match="nothing is dirtying"):
        vm.console.dirty_stop()
    with pytest.raises(GuestError, match="Cannot allocate"):
        vm.console.dirty(rate=1, size=1000)


def dirtied(vm: Machine) -> tuple[float, float]:
    """MiB a second that the guest says it wrote, and that QEMU saw."""
    vm.console.dirty(rate=40, size=64)
    with pytest.raises(GuestError, match="running already"):
        vm.console.dirty(rate=1, size=1)
    with Qmp(vm.qmp) as qmp:
        # Not by dirty-bitmap: under TCG that kills QEMU 7.2 with SIGSEGV, and 10.0 measures 0.
        qmp("calc-dirty-rate", calc_time=1, mode="page-sampling", sample_pages=4096)
        time.sleep(1.1)
        while (measured := qmp("query-dirty-rate"))["status"] == "measuring":
            time.sleep(0.02)
    return vm.console.dirty_stop(), measured["dirty-rate"]  # QEMU looks at 1,024 of the guest's pages


# The two tests that follow come last, because the second ends the machine.


@live
def test_reboot_begins_a_new_life(vm: Machine) -> None:
    boots = vm.console.view.boots
    view = vm.console.reboot()
    assert (view.boots, vm.alive, vm.returncode) == (boots + 1, True, None)
    since = time.monotonic()
    vm.console.wait_until(lambda now: now.beat >= view.beat + 50)
    assert vm.console.blackout(since).duplicated == 0


@live
def test_power_button_is_ignored_and_obeyed(vm: Machine) -> None:
    with Qmp(vm.qmp) as qmp:
        vm.console.run("touch /run/ignore-power-button")
        qmp("system_powerdown")
        time.sleep(0.3)
        vm.console.run("rm /run/ignore-power-button")
        qmp("system_powerdown")
        assert vm.wait() == 0
    with pytest.raises(GuestError, match="QEMU ended with 0"):
        vm.console.run("true")


# -- one machine, to its end -------------------------------------------------------------------------------------------


@live
def test_nothing_is_left_of_a_machine() -> None:
    with Machine() as vm:
        pid, directory = vm.pid, vm.directory
        assert Path(f"/proc/{pid}").exists()
    assert not directory.exists()
    assert not Path(f"/proc/{pid}").exists()
    assert vm.returncode == -signal.SIGKILL


@live
def test_panic_is_told_at_once_with_its_words() -> None:
    with Machine() as vm:
        vm.wait_ready()
        with pytest.raises(GuestError, match=r"(?s)panicked: .*sysrq triggered crash"):
            vm.console.run("echo c >/proc/sysrq-trigger", timeout=20)


@live
def test_qemu_that_dies_is_told_at_once_with_its_log() -> None:
    with pytest.raises(MachineError, match="nonsense"), Machine(extra=("-device", "nonsense")):
        pass
    with Machine() as vm:
        threading.Timer(0.3, os.kill, (vm.pid, signal.SIGABRT)).start()
        started = time.monotonic()
        with pytest.raises(GuestError, match="QEMU ended with -6"):
            vm.wait_ready()
        assert time.monotonic() - started < 5


@live
def test_qemu_outlives_the_thread_that_started_it_but_not_the_process(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys, threading, time
        from drover.testing.machine import Machine
        vm = Machine()
        thread = threading.Thread(target=vm.start)
        thread.start()
        thread.join()
        time.sleep(0.2)
        print(vm.pid if vm.alive else 0, vm.directory, flush=True)
        time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as python:
        assert python.stdout
        pid, directory = python.stdout.readline().split()
        assert int(pid)
        python.kill()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}/exe").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    shutil.rmtree(directory)
    assert not Path(f"/proc/{pid}/exe").exists()


# -- a move ------------------------------------------------------------------------------------------------------------


def _prepare(source: Qmp, target: Qmp, uri: str) -> None:
    for side in (source, target):
        wanted = ("return-path", "late-block-activate")
        side("migrate-set-capabilities", capabilities=[{"capability": name, "state": True} for name in wanted])
    # Without KVM, QEMU before 9.0 loses writes of the second round and later: one round, then the guest stops.
    source("migrate-set-parameters", downtime_limit=0)
    target("migrate-incoming", uri=uri)


def _move(source: Qmp, target: Qmp, uri: str) -> None:
    source("migrate", uri=uri)
    deadline = time.monotonic() + MOVE_TIMEOUT
    while (state := source("query-migrate").get("status")) != "completed":
        assert state not in ("failed", "cancelled")
        assert time.monotonic() < deadline
        time.sleep(0.005)
    target("cont")


def _hop(here: Machine, there: Machine, command: str, standing: bool = False) -> str:
    """Move the guest with a command in flight; return the command's output.

    While the guest stands, the first 16 bytes of a command fit into the UART
    and move with it; the others stay in the source's socket and are lost.
    """
    here.hand_over(there)
    with Qmp(here.qmp) as source, Qmp(there.qmp) as target, ThreadPoolExecutor() as pool:
        uri = f"unix:{there.directory / 'migration'}"
        _prepare(source, target, uri)
        if standing:
            source("stop")
        running = pool.submit(there.console.run, command)
        time.sleep(0.1)
        _move(source, target, uri)
        return running.result(timeout=MOVE_TIMEOUT)


def _hop_and_measure(here: Machine, there: Machine) -> Blackout:
    since = time.monotonic()
    assert _hop(here, there, "sleep 1; echo arrived") == "arrived\n"
    moved = there.console.view.beat
    there.console.wait_until(lambda view: view.beat >= moved + 50)
    return there.console.blackout(since)


@live
@pytest.mark.parametrize("kind", TYPES)
def test_console_follows_the_guest_from_qemu_to_qemu(kind: str) -> None:
    binaries, machine = qemu_binaries(), VERSIONED[kind]
    with ExitStack() as stack:
        here = stack.enter_context(Machine(qemu=binaries["7.2"], machine=machine, name="7.2"))
        here.wait_ready()
        *measured, last = (to for to in ROUTES[kind] if to in binaries)
        for to in measured:
            there = stack.enter_context(Machine(qemu=binaries[to], machine=machine, name=to, incoming=True))
            seen = _hop_and_measure(here, there)
            print(f"\n{here.name} to {to} on {kind}: {seen}")
            assert (seen.lost, seen.duplicated) == (0, 0)
            assert 0.001 < seen.seconds < 2
            here.close()
            assert there.console.run("echo still here") == "still here\n"
            here = there
        there = stack.enter_context(Machine(qemu=binaries[last], machine=machine, name=last, incoming=True))
        assert _hop(here, there, "echo $((6 * 7)) >>/tmp/ran; cat /tmp/ran", standing=True) == "42\n"
        assert (there.console.view.garbled, there.console.view.boots) == (0, 1)
        there.console.poweroff()
        assert there.wait() == 0


# -- the image ---------------------------------------------------------------------------------------------------------


def _copy_kernel(cache: Path) -> None:
    guest_image()
    (kernel,) = default_cache().glob("linux-image-*.deb")
    shutil.copy(kernel, cache)


@live
def test_two_builds_at_once_make_one_image(tmp_path: Path) -> None:
    _copy_kernel(tmp_path)
    program = f"from drover.testing.image import *; print(guest_image(Path({str(tmp_path)!r})).kernel)"
    builds = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = (build.communicate()[0] for build in builds)
    assert first == second
    assert len(list(tmp_path.glob("image-*"))) == 1
    assert not list(tmp_path.glob(".build-*"))
    image = guest_image(tmp_path)
    assert isinstance(image, GuestImage)
    assert image.initrd.stat().st_size < 3 * MIB


@live
def test_missing_tool_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _copy_kernel(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Exception, match="install the Debian package dpkg"):
        guest_image(tmp_path)
    assert not list(tmp_path.glob("image-*"))


# -- what the guest says, parsed: no QEMU here -------------------------------------------------------------------------


def test_blackout_is_the_longest_gap_over_both_sockets() -> None:
    here = [Beat(1, 0.0), Beat(2, 0.005), Beat(3, 0.010)]
    there = [Beat(4, 0.040), Beat(5, 0.045)]
    assert blackout(there, here) == blackout(here, there)
    seen = blackout(here, there)
    assert (round(seen.seconds, 9), seen.after, seen.lost, seen.duplicated) == (0.03, 3, 0, 0)


def test_blackout_counts_missing_and_repeated_beats() -> None:
    seen = blackout([Beat(1, 0.0), Beat(2, 1.0)], [Beat(2, 1.5), Beat(6, 2.0)])
    assert (seen.seconds, seen.after, seen.lost, seen.duplicated) == (1.0, 1, 3, 1)


@pytest.mark.parametrize("beats", [[], [Beat(1, 0.0)]])
def test_blackout_of_less_than_two_beats_is_refused(beats: list[Beat]) -> None:
    with pytest.raises(ValueError, match="between two beats"):
        blackout(beats)


def test_beat_port_takes_lines_cut_anywhere() -> None:
    said = b"S\nB 1\nV vda=2048,sda=8 eth0=52:54:00:12:34:56/up\nB 2\nV - -\nhalf a li\nB 3\nV vda=x -\n"
    for cut in range(len(said)):
        port, view = BeatPort(), View()
        for part in (said[:cut], said[cut:]):
            view = port.feed(part, 1.0, view)
        assert [beat.number for beat in port.beats] == [1, 2, 3]
        assert view == View(starts=1, beat=3, garbled=2)


def test_beat_port_reads_disks_and_nics() -> None:
    view = BeatPort().feed(b"V vda=2048,sda=8 eth0=52:54:00:12:34:56/down\n", 1.0, View())
    assert view.disks == {"vda": MIB, "sda": 4096}
    assert view.nics == {"eth0": Nic("52:54:00:12:34:56", "down")}


def test_command_port_takes_answers_cut_anywhere() -> None:
    said = b"noise\n#READY 6.1\n\n#7 BEGIN\na\n#8 END 0 1\nb\n#7 END 3 14\nnoise\n#8 BEGIN\n\n#8 END 0 0\n"
    for cut in range(len(said)):
        port = CommandPort()
        heard = [word for part in (said[:cut], said[cut:]) for word in port.feed(part)]
        assert heard == [Ready("6.1"), Answer(7, 3, b"a\n#8 END 0 1\nb", True), Answer(8, 0, b"", True)]


def test_command_port_notices_a_panic_and_the_boot_after_it() -> None:
    port, seen = CommandPort(), []
    for part in (b"[ 1.0] ---[ end Kernel pa", b"nic - not syncing: test", b"\n#READY 6.1\n"):
        port.feed(part)
        seen.append(port.panicked)
    assert seen == [False, True, False]
