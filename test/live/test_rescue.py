"""A QEMU whose main loop hangs, in `stop`, on a request that a stopped NBD server never answers; a broken postcopy."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import pytest

from blocks import Lab, lab
from drover.errors import CommandError, ConnectError, MonitorTimeout
from drover.ops.rescue import YankInstance
from drover.qmp.session import MAX_IN_BAND
from faces import Face

pytestmark = pytest.mark.live

PATIENCE = 30.0
DISK = YankInstance("block-node", "n0")


class Hung(NamedTuple):
    """A machine whose firmware waits for its disk, and whose main loop waits for that.

    :ivar stop: the command that hangs
    """

    qemu: Lab
    port: Any
    stop: Any


@pytest.fixture(params=[("7.2", "blocking"), ("10.0", "asyncio")], ids="-".join)
def hung(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hung]:
    image, where, second = tmp_path / "image", tmp_path / "nbd", tmp_path / "second"
    image.write_bytes(bytes(1 << 20))
    node = {"driver": "nbd", "node-name": "n0", "server": {"type": "unix", "path": str(where)}}
    options = ["-blockdev", json.dumps(node), "-device", "virtio-blk-pci,drive=n0,bootindex=0"]
    options += ["-qmp", f"unix:{second},server=on,wait=off"]
    with subprocess.Popen(["qemu-nbd", "-t", "-k", where, "-f", "raw", image]) as server:
        try:
            deadline = time.monotonic() + PATIENCE
            while str(where) not in Path("/proc/net/unix").read_text() and time.monotonic() < deadline:
                time.sleep(0.01)
            with lab(*request.param, tmp_path, *options, machine="pc") as qemu:
                server.send_signal(signal.SIGSTOP)
                qemu.vm.cont()
                time.sleep(2)  # the firmware comes to its boot disk within half a second
                port = getattr(qemu.vm, "vm", qemu.vm)._port
                stop = port.submit("stop")
                with pytest.raises(MonitorTimeout):
                    qemu.vm.execute("query-status", timeout=1)
                assert not stop.done
                yield Hung(qemu, port, stop)
        finally:
            server.kill()


def test_yank_frees_it(hung: Hung) -> None:
    vm = hung.qemu.vm
    assert DISK in vm.query_yank()
    with pytest.raises(CommandError) as caught:
        vm.yank([YankInstance("block-node", "none")])
    assert caught.value.error_class == "DeviceNotFound"
    mark = vm.event_mark()
    vm.yank([DISK])
    assert vm.query_status().status == "paused"
    assert hung.stop.done
    event = vm.wait_event("BLOCK_IO_ERROR", since=mark, timeout=PATIENCE)
    assert (event.typed.node_name, event.typed.operation, event.typed.action) == ("n0", "read", "report")
    assert (event.typed.qom_path is None) == (vm.version < (9, 2))
    vm.stop()


def test_out_of_band_lives_while_others_wait(hung: Hung) -> None:
    """QEMU does not read a monitor on which eight commands wait: never one more is sent than still leaves a way."""
    vm = hung.qemu.vm
    calls = [hung.port.submit("query-status") for _ in range(3 * MAX_IN_BAND)]
    for _ in range(10):
        assert DISK in vm.query_yank()
    for flow in (vm.migrate_pause, lambda: vm.migrate_recover("unix:/none")):
        with pytest.raises(CommandError):  # answered at once: there is no migration
            flow()
    assert not any(call.done for call in calls)
    vm.yank([DISK])
    vm.query_status()
    assert all(call.done and call.error is None for call in calls[:MAX_IN_BAND])


def test_a_new_connection_does_not_get_through(hung: Hung, tmp_path: Path) -> None:
    with contextlib.closing(Face().make(tmp_path / "second", timeout=1)) as late, pytest.raises(ConnectError):
        late.connect()
    hung.qemu.vm.yank([DISK])


def test_without_out_of_band_they_wait_as_the_others_do(hung: Hung, tmp_path: Path) -> None:
    hung.qemu.vm.yank([DISK])
    with Face().open(tmp_path / "second", oob=False) as vm:
        assert YankInstance("chardev", "compat_monitor0") in vm.query_yank()
        schema = vm.query_schema()
        may = {name for name in schema.commands if schema.allows_oob(name)}
        assert may == {"query-yank", "yank", "migrate-pause", "migrate-recover"}


# -- a postcopy whose network has died --------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "face"), [("7.2", "blocking"), ("10.0", "asyncio")])
def test_a_postcopy_is_broken_off_and_recovered(version: str, face: str, tmp_path: Path) -> None:
    size = 64 << 20  # as the machine is given
    with ExitStack() as stack:
        labs = []
        memories = []
        for name, extra in (("s", []), ("t", ["-incoming", "defer"])):
            memory = stack.enter_context(NamedTemporaryFile(dir="/dev/shm", prefix="drover-test-"))
            # noise, which cannot be sent as "a page of zeroes": there is something left to send when it breaks
            memory.write(os.urandom(size) if name == "s" else bytes(size))
            memory.flush()
            backend = f"memory-backend-file,id=m,size={size},mem-path={memory.name},share=on"
            (tmp_path / name).mkdir()
            qemu = lab(version, face, tmp_path / name, "-object", backend, *extra, machine="pc,memory-backend=m")
            labs.append(stack.enter_context(qemu))
            memories.append(Path(memory.name))
        source, target = (each.vm for each in labs)
        for vm in (source, target):
            vm.set_migration_capabilities({"postcopy-ram": True, "return-path": True, "events": True})
        source.set_migration_parameters({"max-bandwidth": 1 << 20, "max-postcopy-bandwidth": 1 << 20})
        target.migrate_incoming(f"unix:{tmp_path}/m1")
        source.cont()
        source.migrate(f"unix:{tmp_path}/m1")
        source.migrate_start_postcopy()
        for vm in (source, target):
            reaches(vm, "postcopy-active")
        deadline = time.monotonic() + PATIENCE
        while target.query_status().status == "inmigrate":  # a break before this loses the machine
            assert time.monotonic() < deadline
            time.sleep(0.02)
        source.migrate_pause()
        for vm in (source, target):
            reaches(vm, "postcopy-paused")
        target.migrate_recover(f"unix:{tmp_path}/m2")
        source.execute("migrate", {"uri": f"unix:{tmp_path}/m2", "resume": True})
        source.set_migration_parameters({"max-postcopy-bandwidth": 0})
        assert source.wait_migration(timeout=PATIENCE).status == "completed"
        assert target.wait_incoming(timeout=PATIENCE).status == "paused"
        assert memories[0].read_bytes() == memories[1].read_bytes()


def reaches(vm: Any, status: str) -> None:
    vm.wait_event("MIGRATION", since=0, match=lambda event: event.typed.status == status, timeout=PATIENCE)
