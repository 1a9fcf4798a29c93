"""`drover demo`: a real guest gets a disk and a NIC while it runs, moves live to a second QEMU, and loses both there.

Meant to be read, too: :class:`Demo` is a first larger example of the library's use. Beside it:

    demo_needs.py      what must be there before it begins
    demo_run.py        runs steps, and leaves nothing behind
    demo_signals.py    Ctrl-C as one exception
    demo_face.py       tells what happens, in plain lines or JSON; demo_terminal.py on a terminal
"""

import hashlib
import os
import shlex
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import click

from drover.cli.demo_face import MIB, End, Face, JsonFace, Seen, brief, dotted, mib
from drover.cli.demo_needs import Options, find_options
from drover.cli.demo_run import Step, run
from drover.cli.demo_signals import Interrupts
from drover.errors import DroverError
from drover.kvm.taps import Tap, open_tap
from drover.monitor.connection import QmpConnection
from drover.ops.disk import Disk
from drover.ops.migration import MigrationInfo, Progress
from drover.ops.migration_settings import ROUNDS_ARE_SOUND
from drover.ops.nic import Nic
from drover.testing.image import GuestImage, guest_image
from drover.testing.machine import QEMU, Machine, MachineError

DISK_SIZE: Final = 16 * MIB
WRITTEN: Final = 8 * MIB
MAC: Final = "52:54:00:64:72:76"
GUEST_DISK: Final = "vda"  # what Linux calls its first virtio-blk disk

# The guest writes memory while it moves, slower than the memory goes over: so there are several rounds, and an end.
DIRTY_RATE: Final = 24  # MiB a second
DIRTY_SIZE: Final = 16  # MiB
# Bytes a second, half of QEMU's default: the first round takes over a second, after which QEMU tells a dirty rate.
BANDWIDTH: Final = 64 * MIB
DOWNTIME: Final = 30  # ms: what is left when the guest is stopped may take this long, so 2 MiB
# Seconds. It takes 2 on an idle machine; a busy one without KVM takes its time.
MIGRATION_TIMEOUT: Final = 120.0
RESUME_TIMEOUT: Final = 10.0
POLL: Final = 0.1  # seconds between two looks at the migration: what the bar shows
BEATS_AFTER: Final = 40  # beats of the moved guest to see before its blackout is told: 0.2 s
MIN_MEMORY: Final = 128  # MiB: the guest with what it dirties
DYING: Final = 0.2  # seconds from the end of a QEMU's sockets to that of the process: 20 ms on an idle machine


class CheckFailed(DroverError):
    """Something is not as it should be.

    :ivar what: was compared
    """

    def __init__(self, what: str, expected: object, found: object) -> None:
        super().__init__(f"{what} should be {expected}, and is {found}")
        self.what = what


def check(what: str, found: object, expected: object) -> None:
    """Raise :exc:`CheckFailed` unless both are equal."""
    if found != expected:
        raise CheckFailed(what, expected, found)


class Demo:
    """What the steps do, in the order in which :meth:`steps` names them.

    Everything that must go at the end is entered into `stack` when it is made. A step returns what was seen, and
    raises if anything is not as it should be.

    :param stack: ends what the steps begin
    :param interrupts: held while something is made
    :param progress: told how the migration goes
    """

    def __init__(self, options: Options, stack: ExitStack, interrupts: Interrupts, progress: Progress) -> None:
        self.options = options
        self._machines: list[Machine] = []  # those that were started and not yet seen to their end
        self._ended: list[Machine] = []  # of these, the ones that were killed here
        self._stack, self._interrupts, self._progress = stack, interrupts, progress

    # what the steps make, and later steps use
    guest: GuestImage
    taps: list[Tap]  # one at the source, one at the target
    image: Path
    source: Machine
    target: Machine
    here: QmpConnection  # to the source
    there: QmpConnection  # to the target
    disk: Disk
    nic: Nic
    checksum: str

    def steps(self) -> list[Step]:
        """All of it."""
        steps = [
            Step("prepare", "Prepare", self.prepare),
            Step("boot", "Boot the guest", self.boot),
            Step("add-disk", "Hot-add a disk", self.add_disk),
            Step("add-nic", "Hot-add a NIC", self.add_nic),
            Step("write", "Write to the disk", self.write),
            Step("second", "Start a second QEMU", self.start_target),
            Step("migrate", "Migrate the guest", self.migrate),
            Step("end-first", "End the first QEMU", self.end_source),
            Step("compare", "Read the disk again", self.compare),
            Step("remove-disk", "Unplug the disk", self.remove_disk),
            Step("remove-nic", "Unplug the NIC", self.remove_nic),
        ]
        return [*steps, Step("keep", "Leave it running", self.keep)] if self.options.keep else steps

    # -- on the first QEMU -------------------------------------------------------------------------------------------

    def prepare(self) -> Seen:
        """Make what does not depend on a QEMU: the guest's kernel and initramfs, tap devices, the image of a disk."""
        self.guest = guest_image()
        with self._interrupts.held():
            self.taps = [self._stack.enter_context(open_tap()) for _ in ("source", "target")]
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="drover-demo-"))
        self.image = Path(folder) / "data.raw"
        with self.image.open("wb") as file:
            file.truncate(DISK_SIZE)
        machine, memory = self.options.machine_type, self.options.memory
        return Seen(f"{machine}, {memory} MiB of memory", "", {"machine_type": machine, "memory_bytes": memory * MIB})

    def boot(self) -> Seen:
        """Start QEMU, and wait until the guest is up."""
        self.source = self._start(self.options.qemu, "source")
        self.here = self._connect(self.source)
        self.source.wait_ready()
        kernel = self.source.console.run("uname -r").strip()
        version = dotted(self.here.version)
        return Seen(f"QEMU {version}", f"Linux {kernel} is up", {"source_qemu": version, "kernel": kernel})

    def add_disk(self) -> Seen:
        """Plug in a disk; the guest finds it with the right size."""
        # cache=writeback, since both QEMUs share this host's page cache, and tmpfs may lack the O_DIRECT of "none"
        self.disk = self.here.hot_add_disk(self.image, id="data1", cache="writeback")
        view = self.source.console.wait_for_disk(GUEST_DISK)
        check("the size of the disk in the guest", view.disks[GUEST_DISK], self.disk.size)
        where = place(self.disk)
        facts = {"disk": GUEST_DISK, "disk_bytes": self.disk.size, "disk_place": where}
        return Seen(f"{self.disk.id} on {where}", f"{GUEST_DISK} of {mib(self.disk.size)}", facts)

    def add_nic(self) -> Seen:
        """Plug in a NIC on a tap device that we opened; the guest finds it with its address."""
        self.nic = self.here.hot_add_nic("net1", tap_fds=self.taps[0].fds, mac=MAC)
        name = self.source.console.wait_for_nic(self.nic.mac)
        where = place(self.nic)
        facts = {"nic": name, "mac": self.nic.mac, "nic_place": where}
        return Seen(f"{self.nic.id} on {where}, {self.taps[0].name} behind it", f"{name} with {self.nic.mac}", facts)

    def write(self) -> Seen:
        """Have the guest write random data to the disk; the image on the host then holds what the guest reads."""
        blocks = WRITTEN // MIB
        self.source.console.run(f"dd if=/dev/urandom of=/dev/{GUEST_DISK} bs=1M count={blocks} conv=fsync")
        self.checksum = self._sum_in_guest(self.source)
        with self.image.open("rb") as file:
            on_host = hashlib.file_digest(file, "sha256").hexdigest()
        check("the checksum of the image on the host", on_host, self.checksum)
        facts = {"written_bytes": WRITTEN, "checksum_before": self.checksum}
        return Seen(f"{mib(WRITTEN)} of random data", f"sha256 {brief(self.checksum)}", facts)

    # -- the move ----------------------------------------------------------------------------------------------------

    def start_target(self) -> Seen:
        """Start a QEMU that waits for the machine, and plug the same disk and NIC into the same places there.

        While it waits, it opens the image inactive: the source keeps the lock on it.
        """
        self.target = self._start(self.options.target_qemu, "target", incoming=True)
        self.there = self._connect(self.target)
        both = {"events": True, "return-path": True}
        # auto-converge: on a host so busy that the memory goes over too slowly, the guest is slowed down, too
        self.here.set_migration_capabilities(both | {"pause-before-switchover": True, "auto-converge": True})
        downtime = DOWNTIME if self.here.version >= ROUNDS_ARE_SOUND else 0
        self.here.set_migration_parameters({"max-bandwidth": BANDWIDTH, "downtime-limit": downtime})
        self.there.set_migration_capabilities(both | {"late-block-activate": True})
        disk = self.there.hot_add_disk(
            self.image, id=self.disk.id, cache="writeback", bus=self.disk.bus, addr=self.disk.addr
        )
        nic = self.there.hot_add_nic(
            self.nic.id, tap_fds=self.taps[1].fds, mac=self.nic.mac, bus=self.nic.bus, addr=self.nic.addr
        )
        check("the disk at the target", disk, self.disk)
        check("the NIC at the target", nic, self.nic)
        version = dotted(self.there.version)
        return Seen(f"QEMU {version} waits, with the same disk and NIC", "", {"target_qemu": version})

    def migrate(self) -> Seen:
        """Move the running guest, which writes to its memory meanwhile; see that it missed nothing of its life."""
        console = self.source.console
        self.source.hand_over(self.target)
        console.dirty(DIRTY_RATE, DIRTY_SIZE)
        since = time.monotonic()
        info = self._send()
        self._run_at_target()
        beat = console.view.beat
        console.wait_until(lambda view: view.beat >= beat + BEATS_AFTER, what="the guest's beats on the target")
        silence = console.blackout(since)
        check("the number of lost beats", silence.lost, 0)
        check("the number of doubled beats", silence.duplicated, 0)
        check("the number of boots", console.view.boots, 1)
        facts = {
            "transferred_bytes": info.ram.transferred,
            "rounds": info.ram.dirty_sync_count,
            "total_ms": info.total_time,
            "downtime_ms": info.downtime,
            "blackout_ms": round(silence.seconds * 1000, 1),
            "beats": len(console.beats(since)),
            "beats_lost": silence.lost,
            "beats_doubled": silence.duplicated,
            "dirtied_mib_per_s": round(console.dirty_stop(), 1),
        }
        did = f"{mib(info.ram.transferred)} in {info.ram.dirty_sync_count} rounds, {info.downtime} ms of downtime"
        return Seen(did, f"silent {silence.seconds * 1000:.0f} ms; no beat lost or doubled", facts)

    def _send(self) -> MigrationInfo:
        """Send the machine; return when it stands whole and paused at the target, and for good stopped at the source.

        Until then the target has never run, so whatever fails, the guest stays where it is.
        """
        uri = f"unix:{self.target.directory / 'migrate'}"
        try:
            self.there.migrate_incoming(uri)
            self.here.migrate(uri)
            self._wait_at_source("pre-switchover")
            # The guest stands still now. What has to change hands outside of QEMU would do so here.
            self.here.migrate_continue()
            info = self._wait_at_source("completed")
            arrived = self.there.wait_incoming(timeout=MIGRATION_TIMEOUT)
            check("the state of the target", arrived.status, "paused")
            return info
        except DroverError as error:
            self._call_back(error)
            raise

    def _wait_at_source(self, status: str) -> MigrationInfo:
        return self.here.wait_migration(until=(status,), progress=self._progress, timeout=MIGRATION_TIMEOUT, poll=POLL)

    def _run_at_target(self) -> None:
        """The one moment after which the source must never run again."""
        mark = self.there.event_mark()
        self.there.cont()
        self.there.wait_event("RESUME", since=mark, timeout=RESUME_TIMEOUT)

    def _call_back(self, error: DroverError) -> None:
        """After a failure: end the target, which never ran, and let the guest go on at the source."""
        try:
            if not self._has_ended(self.target):
                self.target.kill()
                self._ended.append(self.target)
            if self.here.migrate_cancel().status == "completed":
                self.here.cont()
            beat = self.source.console.view.beat
            self.source.console.wait_until(lambda view: view.beat > beat, RESUME_TIMEOUT, "a beat at the source")
            error.add_note("the target never ran; the guest runs on at the source")
        except DroverError as problem:
            error.add_note(f"the guest could not be kept running at the source: {problem}")

    def end_source(self) -> Seen:
        """Quit the first QEMU, which has nothing left to do, and see it end."""
        check("the state of the source", self.here.query_status().status, "postmigrate")
        self._machines.remove(self.source)
        self.here.quit()
        check("the exit code of the source", self.source.wait(), 0)
        self.source.close()
        beat = self.target.console.view.beat
        view = self.target.console.wait_until(lambda view: view.beat > beat, what="a beat without the source")
        return Seen("", f"runs on, at beat {view.beat}", {})

    # -- on the second QEMU ------------------------------------------------------------------------------------------

    def compare(self) -> Seen:
        """Have the guest read the disk through the second QEMU: the same data."""
        checksum = self._sum_in_guest(self.target)
        check("the checksum after the move", checksum, self.checksum)
        return Seen("", f"sha256 {brief(checksum)}, the same", {"checksum_after": checksum})

    def remove_disk(self) -> Seen:
        """Take the disk out; the guest no longer has it, and QEMU has closed the image."""
        self.there.hot_remove_disk(self.disk.id)
        view = self.target.console.wait_for_disk(GUEST_DISK, present=False)
        check("what is left of the disk in QEMU", self.there.query_block_nodes(), [])
        return Seen("", ", ".join(view.disks) or "no disk", {"disk_gone": GUEST_DISK not in view.disks})

    def remove_nic(self) -> Seen:
        """Take the NIC out; the guest no longer has it."""
        self.there.hot_remove_nic(self.nic.id)
        name = self.target.console.wait_for_nic(self.nic.mac, present=False)
        check("whether QEMU still has the NIC", self.there.has_device(self.nic.id), False)
        return Seen("", ", ".join(self.target.console.view.nics) or "no NIC", {"nic_gone": not name})

    def keep(self) -> Seen:
        """Leave the guest running on the second QEMU, also after this process, and say how to reach it."""
        self._interrupts.hold()  # it is kept or it is not; nothing in between
        machine = self.target
        reach = {
            "pid": machine.pid,
            "directory": str(machine.directory),
            "qmp": str(machine.qmp),
            "serial": str(machine.directory / "serial0"),
            "end": f"kill {machine.pid} && rm -r {shlex.quote(str(machine.directory))}",
        }
        self.there.close()
        machine.detach()
        self._machines.remove(machine)
        return Seen("", "", {"kept": reach})

    # -- what several steps need -------------------------------------------------------------------------------------

    def _start(self, qemu: str, name: str, incoming: bool = False) -> Machine:
        with self._interrupts.held():
            machine = Machine(
                qemu=qemu, machine=self.options.machine_type, memory=self.options.memory, image=self.guest, name=name,
                incoming=incoming, outlive=self.options.keep and incoming,
            )  # fmt: skip
            self._machines.append(self._stack.enter_context(machine))
        return machine

    def _connect(self, machine: Machine) -> QmpConnection:
        return self._stack.enter_context(QmpConnection(machine.qmp))

    def _sum_in_guest(self, machine: Machine) -> str:
        # what Linux has cached moves with its memory: only a read from the disk tells of the disk
        return machine.console.run(f"echo 3 >/proc/sys/vm/drop_caches; sha256sum /dev/{GUEST_DISK}").split()[0]

    def ends(self) -> list[End]:
        """What became of the QEMUs, after an error."""
        return [End(machine.name, self._fate(machine), machine.log.strip()) for machine in self._machines]

    def _fate(self, machine: Machine) -> str:
        if machine in self._ended or not self._has_ended(machine):
            return ""
        code = machine.returncode or 0
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"

    def _has_ended(self, machine: Machine) -> bool:
        try:
            machine.wait(DYING)
        except MachineError:
            return False
        return True


def place(device: Disk | Nic) -> str:
    """Where a device is plugged."""
    return f"{device.bus}, slot {device.addr}"


# -- the command -------------------------------------------------------------------------------------------------------


def choose_face(as_json: bool) -> Face:
    """The face for whoever reads standard output."""
    if as_json:
        return JsonFace()
    # The marks and bars are not in every character set, and a dumb terminal cannot take a line back.
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb" or "utf" not in sys.stdout.encoding.lower():
        return Face()
    from drover.cli.demo_terminal import TerminalFace

    return TerminalFace()


@click.command()
@click.option("--machine", type=click.Choice(["q35", "pc"]), default="q35", show_default=True, help="Kind of machine.")
@click.option("--qemu", metavar="PATH", default=QEMU, show_default=True, help="QEMU to start with.")
@click.option("--target-qemu", metavar="PATH", help="QEMU to move to; another version, say. The same unless given.")
@click.option("--keep", is_flag=True, help="Leave the guest running at the end, and say how to reach it.")
@click.option(
    "--memory", metavar="MiB", type=click.IntRange(min=MIN_MEMORY), default=256, show_default=True,
    help="The guest's memory.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a step, and one at the end, on a line each.")
def command(machine: str, qemu: str, target_qemu: str | None, keep: bool, memory: int, as_json: bool) -> None:
    """Boot a guest, hot-plug, live-migrate it, show each step.

    A real Linux guest gets a disk and a NIC while it runs and writes to the disk. It moves, running, to a second
    QEMU with both plugged, finds the same data there, and loses both again. Everything is cleaned up at the end,
    also after Ctrl-C. Needs the right to make tap devices, so usually root.
    \f
    Each step is shown with what the guest itself sees, the migration with its bytes, its rounds, and how long the guest
    stood still: by QEMU's clock, and by the beats that the guest sends every 5 ms. It takes some ten seconds without
    KVM. On a terminal the steps are shown as they happen; into a pipe or a file goes one plain line a step.

    With --target-qemu of another version, the guest is a machine of the newest versioned type that both know. A source
    older than QEMU 9.0 sends the memory of a guest without KVM in one round, then stops it for the rest: it would lose
    writes of later rounds.

    --keep prints the second QEMU's process id, its QMP socket, its serial console, its directory, and the command that
    ends it. The console takes lines such as "#1 8 uname -a" (a number, the length of the command, the command) and
    answers between "#1 BEGIN" and "#1 END".

    With --json a step has step, ok and seconds; the summary has summary, ok and seconds, and all that the steps found.
    Names end in their unit: _bytes, _ms.

    Ctrl-C (SIGINT, also SIGTERM and SIGHUP) and any failure end both QEMUs and remove every file; a second Ctrl-C does
    not disturb that; it exits with 130, 143 or 129. If the migration fails before the guest runs at the target, it runs
    on at the source, and the demo says so before it ends. The failing step, its reason and the last words of the QEMUs
    are on standard error.
    """
    options = find_options(machine, qemu, target_qemu, memory, keep)
    face = choose_face(as_json)
    run(lambda stack, interrupts: Demo(options, stack, interrupts, face.progress), face)
