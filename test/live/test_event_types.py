"""Events of real QEMUs, provoked without a guest, in their typed form."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blocks import KIB, MIB, SIZE, Lab, lab
from drover.qmp.event_types import EVENTS

pytestmark = pytest.mark.live

PATIENCE = 30.0


@pytest.fixture(params=[("7.2", "blocking"), ("10.0", "asyncio")], ids="-".join)
def qemu(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    options = ["-device", "virtio-scsi-pci,id=scsi0", "-device", "pvpanic", "-device", "ib700", "-S"]
    options += ["-action", "watchdog=none,panic=none,shutdown=pause", "-vnc", f"unix:{tmp_path}/vnc"]
    with lab(*request.param, tmp_path, *options, machine="pc") as found:
        yield found
        for event in found.vm.event_log:
            assert type(event.typed) is EVENTS[event.name].type, event
            assert not set(event.data) - {name.replace("_", "-") for name in event.typed.__struct_fields__} - {"pass"}


class Watch:
    """Waits for events from the moment on at which it was made."""

    def __init__(self, qemu: Lab) -> None:
        self.vm = qemu.vm
        self.mark = self.vm.event_mark()

    def typed(self, name: str, **expected: Any) -> Any:
        event = self.vm.wait_event(
            name,
            since=self.mark,
            match=lambda event: all(event.data.get(key) == value for key, value in expected.items()),
            timeout=PATIENCE,
        )
        assert type(event.typed) is EVENTS[name].type
        return event.typed


def port_write(qemu: Lab, port: int, *values: int) -> None:
    """Write to an I/O port, as the guest would."""
    for value in values:
        qemu.vm.execute("human-monitor-command", {"command-line": f"o /b {port:#x} {value:#x}"})


def test_run_state(qemu: Lab) -> None:
    seen, vm = Watch(qemu), qemu.vm
    vm.cont()
    seen.typed("RESUME")
    vm.stop()
    seen.typed("STOP")
    vm.system_powerdown()
    seen.typed("POWERDOWN")
    vm.system_reset()
    reset = seen.typed("RESET")
    assert (reset.guest, reset.reason) == (False, "host-qmp-system-reset")
    vm.quit()
    (shutdown,) = (event.typed for event in vm.event_log if event.name == "SHUTDOWN")
    assert (shutdown.guest, shutdown.reason) == (False, "host-qmp-quit")


def test_what_a_guest_does(qemu: Lab) -> None:
    """Its writes to I/O ports are made by the monitor."""
    seen = Watch(qemu)
    port_write(qemu, 0x505, 1)
    assert seen.typed("GUEST_PANICKED").info is None
    port_write(qemu, 0x505, 2)
    assert seen.typed("GUEST_CRASHLOADED").action == "run"
    if qemu.vm.version >= (9, 1):
        port_write(qemu, 0x505, 4)
        seen.typed("GUEST_PVSHUTDOWN")
    port_write(qemu, 0x70, 0x09)
    port_write(qemu, 0x71, 0x30)  # the year, as BCD
    changed = seen.typed("RTC_CHANGE")
    assert abs(changed.offset) > 86_400
    assert changed.qom_path.startswith("/machine/")
    port_write(qemu, 0x443, 0x0F)  # the shortest time: none
    qemu.vm.cont()
    assert seen.typed("WATCHDOG").action == "none"


def test_blocks_and_devices(qemu: Lab) -> None:
    seen, vm = Watch(qemu), qemu.vm
    qemu.node("a")
    qemu.node("b")
    qemu.plug("sd0", "a")
    vm.execute("block-set-write-threshold", {"node-name": "a-file", "write-threshold": MIB})
    qemu.write("a", 1, MIB, 4 * KIB)
    over = seen.typed("BLOCK_WRITE_THRESHOLD")
    assert (over.node_name, over.write_threshold, over.amount_exceeded) == ("a-file", MIB, 4 * KIB)
    vm.execute("blockdev-mirror", {"device": "a", "target": "b", "sync": "full", "job-id": "j", "auto-finalize": False})
    ready = seen.typed("BLOCK_JOB_READY")
    assert (ready.device, ready.type, ready.len, ready.offset, ready.speed) == ("j", "mirror", SIZE, SIZE, 0)
    assert seen.typed("JOB_STATUS_CHANGE", status="ready").id == "j"
    vm.execute("job-complete", {"id": "j"})
    assert seen.typed("BLOCK_JOB_PENDING").id == "j"
    vm.execute("job-finalize", {"id": "j"})
    done = seen.typed("BLOCK_JOB_COMPLETED")
    assert (done.device, done.len, done.error) == ("j", SIZE, None)
    vm.execute("device_del", {"id": "sd0"})
    gone = seen.typed("DEVICE_DELETED", device="sd0")
    assert gone.path == "/machine/peripheral/sd0"
    vm.execute("device_add", {"driver": "scsi-cd", "bus": "scsi0.0", "id": "cd0"})
    vm.execute("blockdev-open-tray", {"id": "cd0"})
    assert seen.typed("DEVICE_TRAY_MOVED").tray_open is True
    vm.nbd_server_start(str(qemu.folder / "nbd"))
    vm.block_export_add("e", "b")
    vm.block_export_del("e")
    assert seen.typed("BLOCK_EXPORT_DELETED").id == "e"


def test_a_failing_job_and_a_cancelled_one(qemu: Lab) -> None:
    seen, vm = Watch(qemu), qemu.vm
    qemu.node("a")
    fault = {"event": "none", "iotype": "write", "errno": 28}
    inner = {"driver": "blkdebug", "image": {"driver": "null-co", "size": SIZE}, "inject-error": [fault]}
    vm.execute("blockdev-add", {"driver": "raw", "node-name": "full", "file": inner})
    vm.execute("blockdev-backup", {"device": "a", "target": "full", "sync": "full", "job-id": "j"})
    error = seen.typed("BLOCK_JOB_ERROR")
    assert (error.device, error.operation, error.action) == ("j", "write", "report")
    assert seen.typed("BLOCK_JOB_COMPLETED").error == "No space left on device"
    qemu.node("b")
    copy = {"device": "a", "target": "b", "sync": "full", "job-id": "k", "speed": 64 * KIB}
    vm.execute("blockdev-backup", copy)
    vm.execute("job-cancel", {"id": "k"})
    cancelled = seen.typed("BLOCK_JOB_CANCELLED")
    assert (cancelled.device, cancelled.speed) == ("k", 64 * KIB)


def test_migration_and_dump(qemu: Lab) -> None:
    seen, vm = Watch(qemu), qemu.vm
    vm.set_migration_capabilities({"events": True})
    vm.execute("migrate", {"uri": f"exec:cat > {qemu.folder}/state"})
    assert seen.typed("MIGRATION_PASS").pass_ == 1
    seen.typed("MIGRATION", status="completed")
    states = [event.typed.status for event in vm.event_log if event.name == "MIGRATION"]
    assert states[0] == "setup"
    vm.execute("dump-guest-memory", {"paging": False, "protocol": f"file:{qemu.folder}/dump", "detach": True})
    dump = seen.typed("DUMP_COMPLETED")
    assert (dump.result.status, dump.error) == ("completed", None)
    assert dump.result.completed == dump.result.total >= 64 * MIB


def test_vnc(qemu: Lab) -> None:
    seen = Watch(qemu)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(qemu.folder / "vnc"))
        assert client.recv(12) == b"RFB 003.008\n"
        connected = seen.typed("VNC_CONNECTED")
        assert (connected.server.family, connected.server.websocket) == ("unix", False)
        client.sendall(b"RFB 003.008\n")
        assert client.recv(2) == b"\1\1"
        client.sendall(b"\1")
        assert client.recv(4) == bytes(4)
        client.sendall(b"\1")
        assert seen.typed("VNC_INITIALIZED").client.sasl_username is None

    assert seen.typed("VNC_DISCONNECTED").client.family == "unix"


def test_a_quorum(qemu: Lab) -> None:
    seen, vm = Watch(qemu), qemu.vm
    for name in "ab":
        qemu.node(name)
    children = {"children": ["a", "b"], "vote-threshold": 2}
    qemu.write("a", 1, 0, KIB)
    vm.execute("blockdev-add", {"driver": "quorum", "node-name": "q", **children})
    vm.execute("human-monitor-command", {"command-line": f'qemu-io q "read 0 {KIB}"'})
    failure = seen.typed("QUORUM_FAILURE")
    assert (failure.sector_num, failure.sectors_count) == (0, 2)
