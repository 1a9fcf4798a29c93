"""A start on NBD servers: a real one serves, and one that is silent, absent or refuses fails it in seconds."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from drover.errors import StartFailed
from drover.kvm import servers
from drover.kvm.node import Node
from drover.kvm.spec import parse
from instances import Guest, bare, bootable


@contextmanager
def qemu_nbd(node: Node, *options: str) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """Debian's NBD server, and the URI of its export ``disk``; QEMU's own user may dial it."""
    folder = node.host.paths.state.parent
    where, image = folder / "nbd.sock", folder / "nbd.raw"
    image.touch()
    os.truncate(image, 8 << 20)
    words = ["qemu-nbd", "-k", str(where), "-f", "raw", "-x", "disk", "-t", "-e", "8", *options, str(image)]
    with subprocess.Popen(words) as process:
        try:
            deadline = time.monotonic() + 20
            while not where.exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            where.chmod(0o666)
            yield process, f"nbd+unix:///disk?socket={where}"
        finally:
            process.kill()


def traces(node: Node) -> list[str]:
    """What is left of a start."""
    paths = node.host.paths.instance("vm")
    return [str(folder) for folder in (paths.run, paths.private) if folder.exists()]


def test_serves(node: Node, version: str) -> None:
    with qemu_nbd(node) as (_, uri):
        disks = [{"id": "far", "source": uri, "format": "raw"}]
        vm = node.create(parse(bootable(version, disks=disks)))
        vm.start()
        guest = Guest(vm)
        guest.until("ls /sys/block", "vda", there=True)
        guest.close()
        assert vm.verify().agrees
        vm.kill()


def test_does_not(node: Node, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent, refusing, read-only, absent: told by the field of the disk, and nothing stays."""
    monkeypatch.setattr(servers, "TIMEOUT", 0.5)
    with qemu_nbd(node, "-r") as (server, uri):
        disks = [{"id": "far", "source": uri, "format": "raw"}]
        vm = node.create(parse(bare(version, disks=disks)))
        other = node.create(parse(bare(version, "other", disks=[disks[0] | {"source": uri.replace("disk?", "no?")}])))
        with pytest.raises(StartFailed, match=r"disks\[0\].source 'nbd\+unix:.*read-only.*read_only = true"):
            vm.start()
        with pytest.raises(StartFailed, match=r"disks\[0\].source .*refuses the export 'no'"):
            other.start()
        os.kill(server.pid, signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(StartFailed, match=r"disks\[0\].source .*did not answer within 0.5 s"):
            vm.start()
        assert time.monotonic() - begun < 5
    with pytest.raises(StartFailed, match=r"disks\[0\].source .*"):
        vm.start()
    stop = vm.show().document.last_stop
    assert stop is not None
    assert (stop.reason, traces(node)) == ("start-failed", [])
