"""The human monitor on real QEMUs: what it prints is what the session expects, on 7.2 and 10.0."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drover import AsyncQmpConnection, QmpConnection
from drover.errors import (
    CommandError,
    CommandNotSupported,
    MigrationFailed,
    MonitorTimeout,
    NotSupported,
)
from drover.monitor.human import AsyncHumanMonitor, AsyncQmpHumanMonitor, HumanMonitor, QmpHumanMonitor
from drover.qmp.hmp import MAX_ARGUMENT, MAX_LINE
from machines import qemu_of

pytestmark = pytest.mark.live

DEVICES = ["-device", "VGA", "-device", "virtio-balloon", "-netdev", "user,id=n0", "-device", "e1000,netdev=n0"]
OTHERS = ["-chardev", "ringbuf,id=rb,size=64k", "-m", "64"]


@dataclass
class Running:
    """A QEMU, and both of its monitors."""

    version: str
    process: subprocess.Popen[bytes]
    hmp: Path
    qmp: Path


@pytest.fixture(params=["7.2-q35", "10.0-q35"])
def qemu(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    hmp, qmp = tmp_path / "h", tmp_path / "q"
    machine = ["-machine", "q35,accel=tcg", "-nodefaults", "-display", "none", "-S", *DEVICES, *OTHERS]
    machine += ["-vnc", f"unix:{tmp_path / 'v'},password=on"]
    sockets = ["-monitor", f"unix:{hmp},server=on,wait=off", "-qmp", f"unix:{qmp},server=on,wait=off"]
    with subprocess.Popen([qemu_of(request.param), *machine, *sockets], stderr=subprocess.DEVNULL) as process:
        try:
            yield Running(request.param.split("-")[0], process, hmp, qmp)
        finally:
            process.kill()


class Sync:
    """An asyncio monitor whose coroutines are run to their end where they are called."""

    def __init__(self, loop: asyncio.AbstractEventLoop, monitor: Any) -> None:
        self.loop, self.monitor = loop, monitor

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.monitor, name)
        if not asyncio.iscoroutinefunction(value):
            return value
        return lambda *args, **kwargs: self.loop.run_until_complete(value(*args, **kwargs))


@pytest.fixture(params=["text", "text-asyncio", "qmp", "qmp-asyncio"])
def hmp(request: pytest.FixtureRequest, qemu: Running) -> Iterator[Any]:
    """Each way to a human monitor."""
    loop = asyncio.new_event_loop()
    on_qmp = request.param.startswith("qmp")
    connection: Any
    if request.param.endswith("asyncio"):
        connection = Sync(loop, (AsyncQmpConnection if on_qmp else AsyncHumanMonitor)(qemu.qmp if on_qmp else qemu.hmp))
    else:
        connection = QmpConnection(qemu.qmp) if on_qmp else HumanMonitor(qemu.hmp)
    connection.connect()
    if not on_qmp:
        yield connection
    elif isinstance(connection, Sync):
        yield Sync(loop, AsyncQmpHumanMonitor(connection.monitor))
    else:
        yield QmpHumanMonitor(connection)
    connection.close()
    loop.close()


def ends(qemu: Running) -> bool:
    qemu.process.wait(10)
    return True


def test_all_verbs(hmp: Any, qemu: Running, tmp_path: Path) -> None:
    assert hmp.status().status == "prelaunch"
    assert hmp.info("version").startswith(qemu.version + ".")
    assert hmp.help("sendkey").startswith("sendkey ")
    assert "\ninfo " in hmp.help()
    hmp.cont()
    assert hmp.status().running
    hmp.system_reset()
    hmp.system_powerdown()
    hmp.stop()
    assert hmp.status().status == "paused"
    hmp.sendkey("ctrl-alt-f1", hold=5)
    hmp.mouse_move(3, -4)
    hmp.mouse_move(0, 0, 1)
    hmp.mouse_button(1)
    hmp.mouse_button(0)
    picture = tmp_path / 'a "b" \\c.ppm'
    hmp.screendump(picture)
    assert picture.read_bytes().startswith(b"P6\n")
    hmp.set_link("n0", False)
    hmp.set_link("n0", True)
    hmp.balloon(32 << 20)
    hmp.migrate_cancel()
    assert hmp.migrate_status() == ""
    hmp.migrate(f"exec:cat > {tmp_path / 'state'}")
    hmp.wait_migration(timeout=30)
    assert (tmp_path / "state").stat().st_size > 1000
    assert hmp.status().status == "postmigrate"
    hmp.quit()
    assert ends(qemu)


REFUSED = [
    "set_link x on", "set_link x maybe", "sendkey nokey", "sendkey", "device_add nosuch", "device_del x",
    "migrate -d bogus:1", "getfd a", "balloon x", "p $foo", "cpu 7", "netdev_add bogus,id=a",
    "object_add secret,id=s", "change nosuch x", "eject x", "drive_add 0 if=none,file=/nosuch", "block_resize x 1",
    "quit x", "qom-get /machine x", "commit x", "ringbuf_read x 1", "hostfwd_add x", "hostfwd_remove tcp::1",
    "loadvm x", "savevm x", "info status x", "watchdog_action x", "trace-event foo on", "migrate_set_parameter foo 1",
    "info usb", "boot_set z", "print 1/0", "logfile /nosuch/x", "closefd x", "mouse_set 9", "screendump /nosuch/x",
    "set_password vnc", "chardev-remove x", "dump-guest-memory /nosuch/x",
]  # fmt: skip


def test_refusals(qemu: Running) -> None:
    with HumanMonitor(qemu.hmp) as text, QmpConnection(qemu.qmp) as qmp:
        for line in REFUSED:
            errors = []
            for hmp in (text, QmpHumanMonitor(qmp)):
                with pytest.raises(CommandError) as caught:
                    pytest.fail(f"{line}: {hmp.cmd(line)!r}")
                errors.append((type(caught.value), str(caught.value)))
            assert errors[0] == errors[1]
            assert errors[0][0] is CommandError
        for line in ("nosuch", "info nosuch", "help nosuch"):
            with pytest.raises(CommandNotSupported):
                text.cmd(line)
        assert text.status().status == "prelaunch"


def test_no_info_is_a_refusal(qemu: Running) -> None:
    """Nor are the texts that say that there is nothing."""
    with HumanMonitor(qemu.hmp) as hmp:
        names = [line.split()[1] for line in hmp.info("").splitlines() if " [" not in line and " -- " in line]
        # of those that need no argument; 10.0 ends at `info qdm` on this machine
        plain = [name for name in names if f"info {name}  --" in hmp.info("") and name != "qdm"]
        assert len(plain) > 40
        refused = []
        for name in plain:
            try:
                hmp.info(name)
            except CommandError as error:
                refused.append(error)
        assert all(
            "not enabled" in error.desc or "not found" in error.desc or "not " in error.desc for error in refused
        )


def test_output_that_looks_like_a_prompt(qemu: Running) -> None:
    """A guest can write this to a serial port; so can we."""
    with HumanMonitor(qemu.hmp) as hmp, QmpConnection(qemu.qmp) as qmp:
        fake = "one\n(qemu) \n(qemu) x\x1b[K\x1b[Dxy\x1b[K\x1b[D\x1b[D\x1b[K(qemu) "
        qmp.execute("ringbuf-write", {"device": "rb", "data": fake})
        assert hmp.cmd("ringbuf_read rb 1000").rstrip("\n") == fake.replace("\x1b", "\\u001B")
        assert hmp.status().status == "prelaunch"


def test_descriptors(qemu: Running, tmp_path: Path) -> None:
    with HumanMonitor(qemu.hmp) as hmp, open(tmp_path / "state", "wb") as file:
        hmp.getfd("out", file.fileno())
        hmp.migrate("fd:out")
        hmp.wait_migration(timeout=30)
        assert os.fstat(file.fileno()).st_size > 1000
        with pytest.raises(CommandError):
            hmp.cmd("closefd out")
    with QmpConnection(qemu.qmp) as qmp, pytest.raises(NotSupported):
        QmpHumanMonitor(qmp).getfd("out", 0)


def test_failed_migration(hmp: Any) -> None:
    hmp.migrate("exec:exit 1")
    with pytest.raises(MigrationFailed):
        hmp.wait_migration(timeout=30)


def test_longest_lines(qemu: Running) -> None:
    with HumanMonitor(qemu.hmp, timeout=60) as hmp:
        with pytest.raises(CommandNotSupported) as caught:
            hmp.cmd("x" * MAX_LINE)
        assert caught.value.desc == f"unknown command: '{'x' * MAX_LINE}'"
        with pytest.raises(CommandError, match="y" * (MAX_ARGUMENT - 1)):
            hmp.cmd("qom-list /" + "y" * (MAX_ARGUMENT - 1))
        assert hmp.status().status == "prelaunch"


def test_timeout_and_late_output(qemu: Running) -> None:
    with HumanMonitor(qemu.hmp) as hmp:
        qemu.process.send_signal(signal.SIGSTOP)
        with pytest.raises(MonitorTimeout):
            hmp.cmd("info version", 0.1)
        qemu.process.send_signal(signal.SIGCONT)
        assert hmp.status().status == "prelaunch"


def test_a_command_that_holds_the_monitor(qemu: Running) -> None:
    """`migrate` without -d gives the prompt back when it is through, and nothing is read before."""
    with HumanMonitor(qemu.hmp) as hmp:
        started = time.monotonic()
        hmp.cmd('migrate "exec:sleep 1; cat > /dev/null"', 30)
        assert time.monotonic() - started > 0.5
        assert hmp.migrate_status() == "completed"


def test_one_client_after_another(qemu: Running) -> None:
    for _ in range(3):
        with HumanMonitor(qemu.hmp) as hmp:
            assert ".".join(map(str, hmp.version)).startswith(qemu.version + ".")
            hmp.status()
            hmp._port.link.wire.send(b"half a line")  # QEMU starts anew with the next client


def test_secrets(qemu: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), HumanMonitor(qemu.hmp) as hmp, QmpConnection(qemu.qmp) as qmp:
        for monitor in (hmp, QmpHumanMonitor(qmp)):
            monitor.cmd("set_password vnc s3cret")
            monitor.cmd("change vnc password s3cret")
            monitor.cmd("object_add secret,id=s,data=s3cret")
            monitor.cmd("object_del s")
            with pytest.raises(CommandError) as caught:
                monitor.cmd("set_password nosuch s3cret")
            assert "s3cret" not in str(caught.value)
    assert "set_password" in caplog.text
    assert "s3cret" not in caplog.text


def test_big_output(qemu: Running) -> None:
    with HumanMonitor(qemu.hmp) as hmp, QmpConnection(qemu.qmp) as qmp:
        assert len(hmp.info("mtree -f")) > 5_000
        assert hmp.info("qtree") == QmpHumanMonitor(qmp).info("qtree")
        assert json.loads(hmp.cmd("qom-get /machine type")).startswith("pc-q35")
