"""A QEMU whose main loop really hangs: in `stop`, on a guest's request that a stopped NBD server never answers."""

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
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
