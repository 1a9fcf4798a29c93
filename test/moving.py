"""Two real QEMUs, a booted guest that writes to its disks, and the disks on two nodes that share nothing."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from blocks import content
from drover import QmpConnection
from drover.kvm.likeness import digest, marked
from drover.kvm.spec import BackingImage, Disk
from drover.migration import disks, storage, survey
from drover.migration.storage import DiskImage, Plan
from drover.ops.image import backing_node, common_options, file_node, format_node
from drover.ops.mirrors import MirrorProgress
from drover.ops.nbd import Nbd
from drover.testing.machine import Machine
from machines import qemu_of
from remote import Authority

MIB = 1 << 20
SIZE = 64 * MIB
MACHINE = "pc-q35-7.2"
BLOCKS = 1999  # a prime: 37 leads through all of them
# A counter, again and again, each time somewhere else; what the guest was told is written is in /tmp/told.
WRITER = (
    "n=0; while [ ! -e /tmp/enough ]; do n=$((n + 1)); "
    f"echo $n | dd of=/dev/DISK bs=4k seek=$((n * 37 % {BLOCKS})) conv=sync,notrunc,fsync 2>/dev/null "
    "&& echo $n > /tmp/told; done; touch /tmp/through"
)


def made(path: Path, kind: str, *writes: str, backing: tuple[str, str] | None = None, options: str = "") -> Path:
    """Make an image, and write to it by qemu-io."""
    words = ["-F", backing[1], "-b", backing[0]] if backing else []
    words += ["-o", options] if options else []
    size = [] if backing else [str(SIZE)]
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, *words, path, *size], check=True)
    for write in writes:
        subprocess.run(["qemu-io", "-f", kind, "-c", write, path], check=True, stdout=subprocess.DEVNULL)
    return path


def compressed(path: Path, *writes: str) -> Path:
    """A qcow2 image as those that one downloads: compressed, and of any length."""
    raw = made(path.with_name("raw"), "raw", *writes)
    subprocess.run(["qemu-img", "convert", "-c", "-O", "qcow2", raw, path], check=True)
    raw.unlink()
    with path.open("ab") as file:
        file.write(b"x" * 77)
    return path


def words_of(said: Sequence[Disk], thread: bool) -> list[str]:
    """QEMU's words for disks, with the names that Drover's nodes have."""
    words = ["-object", "iothread,id=io"] if thread else []
    scsi = ["-device", "virtio-scsi-pci,id=scsi1,addr=0x18" + (",iothread=io" if thread else "")]
    words += scsi if any(disk.bus == "virtio-scsi" for disk in said) else []
    for number, disk in enumerate(said):
        chain = [(disk.source, str(disk.format)), *((image.source, image.format) for image in disk.backing)]
        below: str | None = None
        for depth, (path, kind) in reversed(list(enumerate(chain))):
            node = backing_node(disk.id, depth)
            common = common_options(read_only=depth > 0 or disk.read_only, cache=disk.cache, discard=disk.discard)
            file = {
                "driver": "host_device" if path.startswith("/dev/") else "file",
                "node-name": file_node(node),
                "filename": path,
                **common,
            }
            words += [
                "-blockdev",
                json.dumps(file),
                "-blockdev",
                json.dumps(format_node(node, kind, common, "off", below)),
            ]
            below = node
        device = (
            f"scsi-hd,bus=scsi1.0,scsi-id={number}"
            if disk.bus == "virtio-scsi"
            else (f"virtio-blk-pci,addr={0x10 + number:#x}" + (",iothread=io" if thread else ""))
        )
        words += ["-device", f"{device},id={disk.id},drive={disk.id}"]
    return words


class Moving:
    """A machine that is to move.

    :ivar here, there: where it is, and where it goes
    :ivar one, two: their monitors
    :ivar folder: what the other node keeps about its images
    :ivar paths: where images are on the other node
    :ivar server: where the other QEMU exports disks
    """

    server: Nbd

    def __init__(self, folder: Path, said: Sequence[Disk], versions: tuple[str, str], thread: bool, boot: bool) -> None:
        self.top, self.said, self.versions, self.thread, self.boot = folder, list(said), versions, thread, boot
        self.folder = folder / "kept"
        self.paths = {path: self.other(path) for disk in said for path in self._paths(disk)}
        self.streamed = False
        self.stall: float | None = None
        self.plan = Plan()
        self.stack = ExitStack()

    def _paths(self, disk: Disk) -> list[str]:
        return [disk.source, *(image.source for image in disk.backing)]

    def other(self, path: str) -> str:
        """Where an image is on the other node."""
        return str(self.top / "there" / Path(path).name)

    # -- the steps --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Boot it, unless it is to have no guest."""
        self.here = self.stack.enter_context(
            Machine(
                qemu=qemu_of(self.versions[0]), extra=words_of(self.said, self.thread), name="source",
                machine=MACHINE, memory=192, paused=not self.boot,
            )
        )  # fmt: skip
        self.one = self.stack.enter_context(QmpConnection(self.here.qmp))
        if self.boot:
            self.here.wait_ready()
        else:  # a machine that has never run is not one that was stopped
            self.one.cont()
            self.one.stop()

    def survey(self) -> list[DiskImage]:
        images: list[DiskImage] = self.one.perform(lambda port: survey.survey(port, self.said, self.here.pid))
        return images

    def make_plan(self, **more: Any) -> Plan:
        """As the two nodes would agree on it."""
        images = self.survey()
        with marked([image.path for image in images]) as marks:
            seen = survey.look(images, marks, self.paths)
        pairs = storage.to_compare(images, seen, self.paths)
        alike = [here for here, path in pairs.items() if digest(here) == digest(path)]
        self.plan = storage.plan(images, seen, alike=alike, paths=self.paths, **more)
        return self.plan

    def launch(self, authority: Authority | None = None, client: str = "source") -> None:
        """The QEMU on the other node: its settings are made on both, and it listens for disks.

        :param authority: who signs certificates, so that they go over TLS
        :param client: for whom this side has one
        """
        disks.make_images(self.plan, self.folder)
        said = [self._moved(disk) for disk in self.said]
        self.there = self.stack.enter_context(
            Machine(
                qemu=qemu_of(self.versions[1]), extra=words_of(said, self.thread), name="target", incoming=True,
                machine=MACHINE, memory=192,
            )
        )  # fmt: skip
        self.two = self.stack.enter_context(QmpConnection(self.there.qmp))
        settings = storage.bitmap_settings(self.plan)
        common = {"events": True, "return-path": True}
        mine: tuple[dict[str, bool], ...] = ({"pause-before-switchover": True}, {"late-block-activate": True})
        for vm, side, more in zip((self.one, self.two), settings, mine, strict=True):
            vm.set_migration_capabilities({**common, **more, **side.capabilities})
            vm.set_migration_parameters(side.parameters)
        if self.one.version < (9, 0):
            # Without KVM it loses writes of the second round and later (QEMU's commit 03bfc2188f): the rest of the
            # first one goes while the guest stands still.
            self.one.set_migration_parameters({"downtime-limit": 1_000_000})
        if authority is not None:
            self._secure(authority, client)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            tls = {"tls_creds": "tls", "tls_authz": "who"} if authority is not None else {}
            self.two.perform(lambda port: disks.serve(port, self.plan, fd=listener.fileno(), **tls))
        known = {"tls_creds": "tls", "tls_hostname": "localhost"} if authority is not None else {}
        self.server = Nbd(address=address, **known)

    def _secure(self, authority: Authority, client: str) -> None:
        for vm, endpoint, name in ((self.one, "client", client), (self.two, "server", "target")):
            folder = self.top / endpoint
            folder.mkdir()
            shutil.copy(authority.certificate, folder / "ca-cert.pem")
            for path, kind in zip(authority.sign(name, f"/CN={name}"), ("cert", "key"), strict=True):
                shutil.copy(path, folder / f"{endpoint}-{kind}.pem")
            vm.object_add("tls-creds-x509", "tls", {"dir": str(folder), "endpoint": endpoint, "verify-peer": True})
        self.two.object_add("authz-simple", "who", {"identity": "CN=source"})

    def _moved(self, disk: Disk) -> Disk:
        backing = tuple(BackingImage(source=self.paths[image.source], format=image.format) for image in disk.backing)
        return replace(disk, source=self.paths[disk.source], backing=backing)

    def mirror(self, progress: Callable[[MirrorProgress], None] | None = None, **speeds: int) -> None:
        async def go_over() -> None:
            self.two.perform(lambda port: disks.go_over_to_disks(port, self.plan))

        self.one.perform(
            lambda port: disks.mirror(
                port, self.plan, self.server, go_over, speeds=lambda _: speeds, progress=progress, stall=self.stall
            )
        )

    def send(self) -> None:
        """All but the rest of the memory."""
        self.two.migrate_incoming(f"unix:{self.top}/m")
        self.streamed = True
        self.one.migrate(f"unix:{self.top}/m")
        self.one.wait_migration(until=["pre-switchover"], timeout=120)

    def reconnect(self) -> None:
        """Whoever drives it is another one now."""
        self.one.close()
        self.one = self.stack.enter_context(QmpConnection(self.here.qmp))

    def sync(self) -> None:
        """The mirrors' ends."""
        self.one.perform(lambda port: disks.sync(port, self.plan))

    def switch(self) -> None:
        """The rest of the memory, after the mirrors' ends; it runs there."""
        self.sync()
        if self.boot:
            self.here.hand_over(self.there)
        self.one.migrate_continue()
        self.one.wait_migration(timeout=60)
        assert self.two.wait_incoming(timeout=60).status == "paused"
        self.two.perform(lambda port: disks.close(port, self.plan))
        self.two.cont()
        disks.keep_images(self.folder)
        self.one.quit()
        self.here.wait()

    def cancel(self) -> None:
        """Back to how it was, on both nodes."""
        self.one.cut_mirrors([*self.plan.mirrors, *self.plan.copies])
        if self.streamed:
            self.one.migrate_cancel()
        self.one.perform(lambda port: disks.cancel(port, self.plan, streamed=self.streamed))
        self.drop()

    def drop(self) -> None:
        """The other node gives up."""
        self.there.kill()
        disks.drop_images(self.folder)

    # -- the guest --------------------------------------------------------------------------------------------------

    def write(self, disk: str = "vda") -> None:
        """Have the guest write all the time."""
        self.here.console.run(f"rm -f /tmp/enough; ({WRITER.replace('DISK', disk)}) >/dev/null 2>&1 &")

    def check_written(self, disk: str = "vda", more: int = 0) -> int:
        """All that the guest was told is written is on the disk that it has now, whose content is `digest_of`.

        :param more: how much has to be written from now on before the look
        """
        console = self.here.console
        begun = int(console.run("cat /tmp/told"))
        console.run(f"while [ $(cat /tmp/told) -lt {begun + more} ]; do usleep 50000; done", timeout=120)
        console.run("touch /tmp/enough; while [ ! -e /tmp/through ]; do usleep 20000; done; rm /tmp/through")
        told = int(console.run("cat /tmp/told"))
        console.run("echo 3 > /proc/sys/vm/drop_caches")
        text = console.run(f"dd if=/dev/{disk} bs=4k count={BLOCKS} 2>/dev/null | tr -d '\\0'", timeout=60)
        found = [int(word) for word in text.split()]
        last = {number * 37 % BLOCKS: number for number in range(max(1, told - BLOCKS + 1), told + 1)}
        assert found == [last[block] for block in sorted(last)]
        return told

    def sum_of(self, disk: str) -> str:
        """The digest of a disk, as the guest sees it."""
        self.here.console.run("echo 3 > /proc/sys/vm/drop_caches")
        return self.here.console.run(f"sha256sum /dev/{disk}", timeout=60).split()[0]

    def end(self) -> None:
        """The machine ends where it is now."""
        vm, machine = (self.one, self.here) if self.here.alive else (self.two, self.there)
        vm.quit()
        machine.wait()


@contextmanager
def moving(
    folder: Path, said: Sequence[Disk], versions: tuple[str, str], *, thread: bool = False, boot: bool = True
) -> Iterator[Moving]:
    """A machine with these disks, whose images lie in ``folder/here``.

    :param thread: its disks have an I/O thread
    :param boot: it has booted; else there is no guest in it
    """
    (folder / "there").mkdir(exist_ok=True)
    it = Moving(folder, said, versions, thread, boot)
    with it.stack:
        it.start()
        yield it


def allocated(path: Path | str) -> int:
    """Bytes that a file takes."""
    return os.stat(path).st_blocks * 512


def bitmaps(path: str) -> list[str]:
    """Names of the bitmaps that an image keeps."""
    said = subprocess.run(["qemu-img", "info", "--output=json", path], capture_output=True, check=True).stdout
    return sorted(each["name"] for each in json.loads(said)["format-specific"]["data"].get("bitmaps", []))


def sum_on_host(path: Path | str, kind: str) -> str:
    """The digest of what a disk holds, by its image."""
    return hashlib.sha256(content(Path(path), kind)).hexdigest()
